"""A variant: a built artifact with its identity and lineage."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

_PATTERN = re.compile(
    r"(?P<model>[a-z0-9][a-z0-9_-]*)/(?P<recipe>[a-z0-9][a-z0-9-]*)(?:@(?P<build>[0-9a-f]{12}))?"
)


class VariantNameError(ValueError):
    """A text that names no variant."""


class Life(StrEnum):
    """How far a variant has come. The router sees released ones only."""

    CANDIDATE = "candidate"
    RELEASED = "released"
    RETIRED = "retired"


class Status(StrEnum):
    """The health of a variant on this host."""

    SERVING = "serving"
    DOMINATED = "dominated"
    REFUSED = "refused"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, order=True)
class VariantId:
    """`model/recipe@build`, where `build` is the first 12 hex digits of the build key."""

    model: str
    recipe: str
    build: str

    def __str__(self) -> str:
        return f"{self.model}/{self.recipe}@{self.build}"

    @property
    def version(self) -> str:
        """The name within its model: `recipe@build`."""
        return f"{self.recipe}@{self.build}"

    @property
    def tag(self) -> str:
        """The tag in BentoML's model store."""
        return f"{self.model}.{self.recipe}:{self.build}"


@dataclass(frozen=True)
class Lineage:
    """Everything that a build key is made of; the same lineage is the same build.

    Attributes:
        source: Sha256 of the reference's weights.
        data: Sha256 of the splits.
        recipe: Sha256 of the recipe's steps.
        passes: Version of each pass used.
        libraries: Version of each library that shapes the artifact.
        seed: Seeds everything random.
        spec: Sha256 of the signature, the training settings and the sources of the module and its student.
    """

    source: str
    data: str
    recipe: str
    passes: dict[str, int]
    libraries: dict[str, str]
    seed: int
    spec: str = ""


@dataclass(frozen=True)
class Variant:
    """A built artifact.

    Attributes:
        id: Its identity.
        steps: The recipe's steps as JSON: `[{"pass": ..., "settings": ...}]`.
        lineage: What it was made from.
        created: ISO 8601 time of the build, UTC.
    """

    id: VariantId
    steps: list[dict[str, Any]]
    lineage: Lineage
    created: str


def parse_name(text: str) -> tuple[str, str, str | None]:
    """Splits `model/recipe` or `model/recipe@build` into its parts.

    Raises:
        VariantNameError: The text is neither.
    """
    match = _PATTERN.fullmatch(text)
    if match is None:
        raise VariantNameError(
            f'"{text}" names no variant. Write MODEL/RECIPE or MODEL/RECIPE@BUILD, as in digits/int8-static.'
        )
    return match["model"], match["recipe"], match["build"]
