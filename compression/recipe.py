"""A recipe: the ordered passes that make one variant, with a canonical digest. Torch-free."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

RecipeName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]


class Step(BaseModel):
    """One pass by its registered name, with settings that the pass validates."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    pass_name: str = Field(alias="pass")
    settings: dict[str, Any] = Field(default_factory=dict)


class Recipe(BaseModel):
    """An ordered list of passes. No steps at all is the reference itself.

    Attributes:
        name: What variants are called after it.
        steps: The passes with their settings.
        timeout_s: How long a build of it may take; None for what the spec says.
        seed: Seeds what its passes draw; None for the model's own. It tells luck from merit.
        by_default: Whether it is built where none is named; what others are only held against need not be.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: RecipeName
    steps: tuple[Step, ...] = ()
    timeout_s: float | None = Field(default=None, gt=0)
    seed: int | None = Field(default=None, ge=0, lt=2**32)
    by_default: bool = True

    def canonical(self) -> list[dict[str, Any]]:
        """The steps as plain JSON, in order."""
        return [step.model_dump(by_alias=True) for step in self.steps]

    @property
    def digest(self) -> str:
        """Sha256 of the steps alone: two names for the same steps have the same digest."""
        text = json.dumps(self.canonical(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def step(pass_name: str, **settings: Any) -> Step:
    """A step in one line: `step("distill", temperature=4.0)`."""
    return Step.model_validate({"pass": pass_name, "settings": settings})
