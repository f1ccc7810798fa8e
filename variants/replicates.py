"""A recipe built with several seeds: how much of its quality is the recipe's, and how much is luck.

Replicates live in a catalog of their own, so that they neither serve nor appear beside the model's variants.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from compression.data import Split
from compression.recipe import Recipe
from compression.signature import Array
from variants.build import BuildError, build
from variants.catalog import SAMPLES_FILE, VALIDATION_FILE, Catalog
from variants.home import subfolder
from variants.host import Host
from variants.intervals import percentile_interval, resample
from variants.metrics import Floats, Metric, find_metric
from variants.profiling import predict
from variants.progress import Reporter
from variants.quality import judged_by, truth
from variants.runtime import open_session, reference_runtime
from variants.samples import read_split
from variants.spec import ModelSpec, load_spec
from variants.variant import VariantId

_SPLITS = {"validation": VALIDATION_FILE, "test": SAMPLES_FILE}


@dataclass(frozen=True)
class Replicated:
    """What a recipe's seeds came to on one split.

    Attributes:
        split: `validation` or `test`.
        metric: What it is judged by, which labels decide.
        higher_is_better: Its direction.
        values: The metric for each seed, in the order of the seeds.
        against: The same of the other recipe; empty where there is none.
        interval: 95% of the mean difference, by the paired bootstrap over rows; None where there is no other.
        rows: Rows of the split.
    """

    split: str
    metric: str
    higher_is_better: bool
    values: tuple[float, ...]
    against: tuple[float, ...]
    interval: tuple[float, float] | None
    rows: int

    @property
    def differences(self) -> tuple[float, ...]:
        """What the recipe has more than the other, for each seed; empty where there is no other."""
        return tuple(
            ours - theirs for ours, theirs in zip(self.values, self.against, strict=bool(self.against))
        )


@dataclass(frozen=True)
class Replicates:
    """A recipe's replicates, judged.

    Attributes:
        seeds: Which ones, in order.
        splits: What they came to.
    """

    seeds: tuple[int, ...]
    splits: tuple[Replicated, ...]


def replicate(
    spec_name: str,
    recipe_name: str,
    against: str | None,
    host: Host,
    progress: Reporter,
    *,
    seeds: int,
) -> Replicates:
    """Builds a recipe, and another to hold it against, with so many seeds, and judges all on the same rows.

    The first seed is the model's own. What was built before is found and not built again.

    Args:
        spec_name: A model of the zoo, or `module:attribute`.
        recipe_name: One of the model's recipes.
        against: Another of them; None for the recipe alone.
        host: Where they are judged, on the plainest runtime; nobody serves them, so that none is profiled.
        progress: Receives the progress.
        seeds: How many.

    Raises:
        SpecError: There is no such model.
        BuildError: There is no such recipe, or a replicate cannot be built.
    """
    spec = load_spec(spec_name)
    chosen = tuple(range(spec.seed, spec.seed + seeds))
    catalog = Catalog(root=subfolder("replicates") / spec.name / "store")
    wanted = [
        [_seeded(spec, name, seed) for seed in chosen] for name in (recipe_name, against) if name is not None
    ]
    added = [recipe for row in zip(*wanted, strict=True) for recipe in row]  # whole pairs first
    built = build(spec_name, catalog, host, progress, added=added, profiled=False)
    if built.failures:
        recipe, failure = next(iter(built.failures.items()))
        raise BuildError(f"{recipe} was not built: {failure.reason}")
    judge = _Judge(spec, catalog, built.ids, host)
    names = [[recipe.name for recipe in row] for row in wanted]
    splits = tuple(judge.judged(split, *names) for split in _SPLITS)
    return Replicates(chosen, splits)


def _seeded(spec: ModelSpec, name: str, seed: int) -> Recipe:
    known = {recipe.name: recipe for recipe in spec.recipes}
    if name not in known:
        raise BuildError(f'{spec.name} has no recipe "{name}". There are {", ".join(known)}.')
    if not known[name].steps:
        raise BuildError(f'"{name}" is the reference, which no pass shapes. Name a recipe with passes.')
    return known[name].model_copy(update={"name": f"{name}-seed-{seed}", "seed": seed})


class _Judge:
    """Replicates' answers, and what they are worth."""

    def __init__(self, spec: ModelSpec, catalog: Catalog, ids: Mapping[str, VariantId], host: Host) -> None:
        self._spec, self._catalog, self._ids, self._host = spec, catalog, ids, host

    def judged(self, name: str, ours: Sequence[str], theirs: Sequence[str] = ()) -> Replicated:
        """The values of all on one split, and the interval of the mean difference."""
        split = read_split(self._catalog.card_file(self._spec.name, _SPLITS[name]))
        metric = judged_by(find_metric(self._spec.metric), split.labels)
        against = truth(metric, self._answers(self._spec.reference, split), split.labels)
        first, second = (
            [metric.rows(self._answers(recipe, split), against) for recipe in recipes]
            for recipes in (ours, theirs)
        )
        return Replicated(
            name,
            metric.name,
            metric.higher_is_better,
            _values(metric, first),
            _values(metric, second),
            _interval(metric, first, second),
            len(split),
        )

    def _answers(self, recipe: str, split: Split) -> dict[str, Array]:
        stored = self._catalog.open(self._ids[recipe])
        return predict(open_session(stored.model_path, reference_runtime(self._host)), split)


def _values(metric: Metric, seeds: Sequence[Floats]) -> tuple[float, ...]:
    return tuple(float(metric.value(rows.mean(axis=0))) for rows in seeds)


def _interval(
    metric: Metric, first: Sequence[Floats], second: Sequence[Floats]
) -> tuple[float, float] | None:
    if not second:
        return None

    def mean(seeds: Sequence[Floats], weights: Floats) -> Floats:
        values: Floats = np.mean([metric.value(weights @ rows) for rows in seeds], axis=0)
        return values

    def means(weights: Floats) -> tuple[Floats, Floats]:
        return mean(first, weights), mean(second, weights)

    ours, theirs = resample(len(first[0]), 0, means)
    return percentile_interval(ours - theirs)
