"""What a build's parent and its child processes tell each other. Torch-free."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from compression.recipe import Recipe
from variants.scorecard import Scorecard
from variants.serving_spec import ServingSpec
from variants.variant import Lineage

CALIBRATION_FILE = "calibration.npz"


@dataclass(frozen=True)
class Job:
    """What a child is to do.

    Attributes:
        spec: Name of the spec, as `load_spec` takes it.
        folder: Where it leaves files.
        recipe: The recipe to build, or None to prepare.
        data: Digest of the rows that the recipe was planned with.
        source: Digest of the weights that it was planned with.
        only: Recipes that `prepare` plans beside the reference; empty for the spec's defaults.
        added: Recipes beside the spec's own, or in the place of one of the same name.
    """

    spec: str
    folder: Path
    recipe: str | None = None
    data: str = ""
    source: str = ""
    only: tuple[str, ...] = ()
    added: tuple[Recipe, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """How one variant's build ended.

    Attributes:
        scorecard: Its figures when it was built.
        skipped: Why the recipe cannot be applied to this model, or None.
        failed: Why it failed, or None.
    """

    scorecard: Scorecard | None = None
    skipped: str | None = None
    failed: str | None = None


@dataclass(frozen=True)
class Planned:
    """A recipe with its build key.

    Attributes:
        recipe: Its name.
        steps: Its steps as JSON.
        lineage: What the build key is made of.
        build: The build key.
        refused: Why it cannot work, known before anything is built; None when it may.
        timeout_s: How long its build may take; None for as long as it does.
    """

    recipe: str
    steps: list[dict[str, Any]]
    lineage: Lineage
    build: str
    refused: Outcome | None = None
    timeout_s: float | None = None


@dataclass(frozen=True)
class Prepared:
    """What the parent needs to know of a model; its test, validation and calibration rows lie beside it."""

    spec: ServingSpec
    plans: list[Planned]


@dataclass(frozen=True)
class Result:
    """What a child wrote."""

    prepared: Prepared | None = None
    outcome: Outcome | None = None


def build_key(lineage: Lineage) -> str:
    """The first 12 hex digits of the digest of everything that a build depends on."""
    text = json.dumps(asdict(lineage), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
