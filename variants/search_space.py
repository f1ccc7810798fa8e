"""What `mipgate search` tries: recipes of one technique that shapes the network and one that stores it small.

Pure: a trial's suggestions in, a recipe out. What a model cannot have is not suggested.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from typing import Any

import optuna

from compression.base import usual_width
from compression.imitation import IMITATIONS
from compression.model import Form
from compression.recipe import Recipe, Step, step
from compression.reparameterization import has_branches
from compression.students import MULTIPLE
from variants.spec import ModelSpec

# Rises when other recipes are suggested: earlier trials are of another search then.
SPACE_VERSION = 2
UNCHANGED = "unchanged"
PRUNED = "prune-structured"
FACTORIZED = "low-rank"
DEEP = "deep-compression"
# What stores a graph small, and what trains a module for it.
OF_GRAPHS = ("none", "fp16", "int8-dynamic", "int8-static", "int8-smoothquant")
OF_MODULES = ("int8-qat", DEEP)
IMPORTANCES = ("l2", "taylor")
CALIBRATIONS = ("minmax", "percentile")
CLUSTERS = (16, 32)


@dataclass(frozen=True)
class Space:
    """The recipes that suit a model.

    Attributes:
        bodies: What shapes the network: nothing, pruning, factorization, or a student by name.
        finishes: What stores it small: nothing, a pass by name, or Deep Compression (Han et al. 2016).
        epochs: Passes over the training split of each training that a recipe has.
        widths: Usual widths of the students that come in several: half to twice as wide ones are tried.
        branched: Students that learn in branches, which are fused afterwards.
    """

    bodies: tuple[str, ...]
    finishes: tuple[str, ...]
    epochs: int
    widths: Mapping[str, int] = field(default_factory=dict)
    branched: Set[str] = frozenset()

    def suggest(self, trial: optuna.Trial, name: str) -> Recipe:
        """The recipe that a trial's suggestions make."""
        body = trial.suggest_categorical("body", self.bodies)
        finish = trial.suggest_categorical("finish", self.finishes)
        return Recipe(name=name, steps=(*self._body(trial, body), *self._finish(trial, finish)))

    def _body(self, trial: optuna.Trial, body: str) -> tuple[Step, ...]:
        if body == UNCHANGED:
            return ()
        if body == PRUNED:
            ratio = trial.suggest_float("prune.ratio", 0.2, 0.8, step=0.1)
            importance = trial.suggest_categorical("prune.importance", IMPORTANCES)
            return (
                step(PRUNED, ratio=ratio, importance=importance, epochs=0),
                self._taught("current", trial),
            )
        if body == FACTORIZED:
            ratio = trial.suggest_float("low-rank.ratio", 0.2, 0.8, step=0.1)
            return (step(FACTORIZED, ratio=ratio, epochs=0), self._taught("current", trial))
        taught = self._taught(body, trial, **self._width(trial, body))
        return (taught, step("fuse")) if body in self.branched else (taught,)

    def _width(self, trial: optuna.Trial, student: str) -> dict[str, int]:
        if (usual := self.widths.get(student)) is None:
            return {}
        # In multiples of 8, as vector units like them.
        low, high = max(MULTIPLE, usual // 2 // MULTIPLE * MULTIPLE), max(1, 2 * usual // MULTIPLE) * MULTIPLE
        return {"width": trial.suggest_int(f"{student}.width", low, high, step=MULTIPLE)}

    def _taught(self, student: str, trial: optuna.Trial, **width: int) -> Step:
        alpha = trial.suggest_float("distill.alpha", 0.5, 0.9, step=0.2)
        return step("distill", student=student, **width, alpha=alpha, epochs=self.epochs)

    def _finish(self, trial: optuna.Trial, finish: str) -> tuple[Step, ...]:
        if finish == "none":
            return ()
        if finish == "int8-static":
            return (step(finish, calibration=trial.suggest_categorical("calibration", CALIBRATIONS)),)
        if finish == "int8-qat":
            return (step(finish, epochs=max(1, self.epochs // 4)),)
        if finish == DEEP:
            epochs = max(1, self.epochs // 2)
            ratio = trial.suggest_float("deep.ratio", 0.5, 0.9, step=0.1)
            clusters = trial.suggest_categorical("deep.clusters", CLUSTERS)
            return (
                step("prune-unstructured", ratio=ratio, epochs=epochs),
                step("cluster", clusters=clusters, epochs=epochs),
                step("huffman"),
            )
        return (step(finish),)


def space_of(spec: ModelSpec, form: Form, epochs: int) -> Space:
    """The space of a model: a graph is not trained, a module without a teacher for its kind keeps its shape.

    Args:
        spec: The model.
        form: What its factory makes.
        epochs: Of each training.
    """
    if form is Form.ONNX:
        return Space((UNCHANGED,), OF_GRAPHS, epochs)
    teachable = spec.training.loss in IMITATIONS
    shapes = (PRUNED, FACTORIZED, *spec.students) if teachable else ()
    widths = {name: usual for name, make in spec.students.items() if (usual := usual_width(make))}
    branched = {name for name, make in spec.students.items() if has_branches(make())}
    return Space((UNCHANGED, *shapes), (*OF_GRAPHS, *OF_MODULES), epochs, widths, branched)


def shortened(recipe: Recipe, share: float) -> Recipe:
    """The recipe with a share of its epochs: cheap enough to tell whether the whole is worth it."""
    return Recipe(name=recipe.name, steps=tuple(_shortened(each, share) for each in recipe.steps))


def trains(recipe: Recipe) -> bool:
    """Whether a recipe has epochs that could be saved."""
    return any(each.settings.get("epochs", 0) > 1 for each in recipe.steps)


def _shortened(given: Step, share: float) -> Step:
    epochs: Any = given.settings.get("epochs", 0)
    if not epochs:
        return given
    return step(given.pass_name, **{**given.settings, "epochs": max(1, round(epochs * share))})
