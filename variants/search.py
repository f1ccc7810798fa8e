"""Looks for the recipe that costs least above a floor of quality: each one tried is measured like any build.

Every trial is a real build into a catalog of its own beside the search's journal, profiled on this host and
judged on validation. Interrupted, the search goes on where it stood; nothing that was tried is tried again.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from functools import cached_property
from math import log
from pathlib import Path
from typing import Literal

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from compression.model import Form
from compression.pipeline import RecipeError, check
from compression.recipe import Recipe
from variants.assessment import Standing, assess_model
from variants.build import BuildError, Built, build
from variants.catalog import Catalog
from variants.frontier import fastest, undominated
from variants.home import subfolder
from variants.host import Host
from variants.progress import Reporter
from variants.reference import untrained
from variants.search_space import SPACE_VERSION, Space, shortened, space_of, trains
from variants.spec import ModelSpec, load_spec

Objective = Literal["latency", "size"]

# A trial is first trained for this share of its epochs, and goes on only if it is no worse than the median.
FIRST_SHARE = 0.25
_STARTUP_TRIALS = 4
_TRIED = (TrialState.COMPLETE, TrialState.PRUNED)
# Two points below the floor weigh as much as costing 2.7 times as much.
_PENALTY = 50.0
_SEARCH = "search"
# After so many suggestions in a row that were tried already they are drawn at random, and after so many
# nothing is left to try.
_REPEATED_BY_DESIGN = 5
_MOST_REPEATED = 50


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        winner: The recipe of least cost at or above the floor, or None when there is none.
        published: The winner's build in the model's own catalog, or None.
        frontier: What nothing tried beats in both cost and quality, cheapest first.
        reference: The uncompressed model, for comparison.
        tried: How many trials were measured, earlier runs included.
        given_up: How many of them were stopped early or could not be applied.
    """

    winner: Recipe | None
    published: Built | None
    frontier: list[Standing]
    reference: Standing
    tried: int
    given_up: int


def search(
    spec_name: str,
    catalog: Catalog,
    host: Host,
    progress: Reporter,
    *,
    floor: float,
    objective: Objective = "latency",
    trials: int = 20,
    epochs: int | None = None,
    name: str | None = None,
    fresh: bool = False,
) -> Found:
    """Tries recipes until so many were tried, and publishes the best as a candidate.

    Args:
        spec_name: A model of the zoo, or `module:attribute`.
        catalog: Where the winner is published.
        host: This host; latencies are its own.
        progress: Receives the progress.
        floor: Lowest quality ratio on validation, such as 0.99.
        objective: What to make small: time per row, or bytes.
        trials: How many recipes to try in all, earlier runs of the same search included; fewer where nothing
            else is left to try.
        epochs: Of each training; None for a quarter of the model's own.
        name: Of the winner's recipe; None for `search-latency` or `search-size`.
        fresh: Forgets what earlier runs tried.

    Raises:
        SpecError: There is no such model.
        BuildError: Its reference cannot be built.
    """
    spec = load_spec(spec_name)
    epochs = epochs or max(1, spec.training.epochs // 4)
    form = untrained(spec).form
    folder = subfolder("searches") / spec.name
    if fresh:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    own_catalog = Catalog(root=folder / "store")
    tries = _Tries(spec_name, spec, own_catalog, host, progress, objective, trials)
    started = build(spec_name, tries.catalog, host, tries, recipes=[spec.reference])
    reference = started.ids[spec.reference].build
    if started.card.find(spec.reference).id.build != reference:  # the first one's place is taken by another
        progress.update(_SEARCH, "the model or its data changed: the search begins anew", 0.0)
        return search(
            spec_name, catalog, host, progress,
            floor=floor, objective=objective, trials=trials, epochs=epochs, name=name, fresh=True,
        )  # fmt: skip
    study = _study(folder, f"{objective}-{floor}-{epochs}-{reference}-{SPACE_VERSION}")
    space = space_of(spec, form, epochs)
    repeated = 0
    while (done := _done(study)) < trials and repeated < _MOST_REPEATED:
        tries.number = done
        repeated = 0 if _try(study, space, form, tries, floor) else repeated + 1
        if repeated == _REPEATED_BY_DESIGN:
            study.sampler = optuna.samplers.RandomSampler(seed=len(study.trials))
    standings = tries.standings()
    own = tries.reference(standings)
    tried = [s for s in standings if s.profile is not None and s is not own]
    best = fastest([s for s in tried if s.ratio >= floor], tries.cost, lambda s: s.ratio)
    winner = published = None
    if best is not None:
        winner = Recipe.model_validate({"name": name or f"search-{objective}", "steps": best.entry.steps})
        (folder / f"{winner.name}.json").write_text(winner.model_dump_json(by_alias=True, indent=2) + "\n")
        published = build(spec_name, catalog, host, progress, added=[winner], released=False)
    complete = len(study.get_trials(states=(TrialState.COMPLETE,)))
    return Found(
        winner, published, undominated(tried, tries.cost, lambda s: s.ratio), own, done, done - complete
    )


@dataclass
class _Tries:
    """Builds and measures recipes in the search's own catalog; a reporter that sums up their progress."""

    spec_name: str
    spec: ModelSpec
    catalog: Catalog
    host: Host
    progress: Reporter
    objective: Objective
    trials: int
    number: int = 0

    def update(self, task: str, what: str, fraction: float) -> None:
        """One line for all that the running trial does."""
        done = (self.number + fraction) / self.trials
        self.progress.update(_SEARCH, f"trial {self.number + 1} of {self.trials}: {what}", min(done, 1.0))

    def finish(self, task: str, outcome: str) -> None:
        """The end of a trial's part is no end of the search."""

    def measure(self, recipe: Recipe) -> Standing:
        """Builds and profiles a recipe.

        Raises:
            optuna.TrialPruned: It cannot be built or run; the message says why.
        """
        built = build(self.spec_name, self.catalog, self.host, self, added=[recipe])
        if failure := built.failures.get(recipe.name):
            raise optuna.TrialPruned(failure.reason)
        standing = next(s for s in self.standings() if s.entry.id == built.ids[recipe.name])
        if standing.profile is None:
            raise optuna.TrialPruned(standing.reason)
        return standing

    def standings(self) -> list[Standing]:
        """All that was tried so far."""
        return assess_model(self.catalog, self.spec.name, self.host)[1]

    def reference(self, standings: list[Standing]) -> Standing:
        """The uncompressed model among them."""
        return next(s for s in standings if s.entry.id.recipe == self.spec.reference)

    def cost(self, standing: Standing) -> float:
        """Milliseconds per row or bytes, as the objective says."""
        assert standing.profile is not None
        assert standing.stored is not None
        if self.objective == "size":
            return float(standing.stored.scorecard.bytes)
        return standing.profile.cost_ms(self.spec.profile_batch)

    @cached_property
    def _reference_cost(self) -> float:
        return self.cost(self.reference(self.standings()))

    def value(self, standing: Standing, floor: float) -> float:
        """What the sampler minimizes: cost against the reference's, and a price for missing quality."""
        missing = max(0.0, floor - standing.ratio)
        return log(self.cost(standing) / self._reference_cost) + _PENALTY * missing


def _study(folder: Path, name: str) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(folder / "journal.log"))),
        study_name=name,
        load_if_exists=True,
        pruner=optuna.pruners.MedianPruner(n_startup_trials=_STARTUP_TRIALS),
    )
    for left in study.get_trials(states=(TrialState.RUNNING,)):  # the run that it belonged to was cut off
        study.tell(left.number, state=TrialState.FAIL)
    # Another seed for each run, or the random trials of the first would be drawn again.
    study.sampler = optuna.samplers.TPESampler(seed=len(study.trials), n_startup_trials=_STARTUP_TRIALS)
    return study


def _done(study: optuna.Study) -> int:
    return len(study.get_trials(deepcopy=False, states=_TRIED))


def _try(study: optuna.Study, space: Space, form: Form, tries: _Tries, floor: float) -> bool:
    """One trial, a short training first and the whole if it is promising; False for what was tried before."""
    trial = study.ask()
    recipe = space.suggest(trial, f"trial-{trial.number}")
    known = {each.user_attrs.get("recipe") for each in study.get_trials(deepcopy=False, states=_TRIED)}
    if not recipe.steps or recipe.digest in known:  # the reference, or an earlier trial: it does not count
        study.tell(trial, state=TrialState.FAIL)
        return False
    trial.set_user_attr("recipe", recipe.digest)
    try:
        check(recipe, form)
        if trains(recipe):
            short = shortened(recipe, FIRST_SHARE)
            early = tries.measure(Recipe(name=f"{recipe.name}-short", steps=short.steps))
            trial.report(tries.value(early, floor), 0)
            if trial.should_prune():
                raise optuna.TrialPruned("worse than the median after the first epochs")
        value = tries.value(tries.measure(recipe), floor)
    except (optuna.TrialPruned, RecipeError, BuildError) as error:
        trial.set_user_attr("reason", str(error))
        study.tell(trial, state=TrialState.PRUNED)
        return True
    study.tell(trial, value)
    return True
