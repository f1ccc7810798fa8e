"""All that a user writes to register a model."""

from __future__ import annotations

import hashlib
import importlib
import json
import pkgutil
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import onnx
from torch import nn

import variants.zoo
from compression.base import Student
from compression.data import Splits, divided
from compression.model import OnnxModel, TorchModel
from compression.recipe import Recipe, step
from compression.signature import Signature
from compression.training import Training, seeded
from variants.catalog import KEPT_NAMES
from variants.comparison import Baseline
from variants.metrics import MetricError, check_metric
from variants.registration import GRAPH_FILE, ROWS_FILE, Registration, find_registration
from variants.samples import read_split
from variants.serving_spec import DEFAULT_TIERS, ServingSpec, SpecError, TierSpec, Transform
from variants.transform import DeclarationError
from variants.transforms import check_declared

_LONGEST_TAG_NAME = 63


# What is tried on a graph that was added. Techniques that need a module say so in the table.
GRAPH_RECIPES = (
    Recipe(name="fp32"),
    Recipe(name="fp16", steps=(step("fp16"),)),
    Recipe(name="int8-dynamic", steps=(step("int8-dynamic"),)),
    Recipe(name="int8-static", steps=(step("int8-static"),)),
    Recipe(name="int8-accuracy-control", steps=(step("int8-accuracy-control"),)),
    Recipe(name="int8-smoothquant", steps=(step("int8-smoothquant"),)),
    Recipe(name="pruned", steps=(step("prune-structured", ratio=0.5),)),
    Recipe(name="distilled", steps=(step("distill", student="current"),)),
)


@dataclass(frozen=True)
class ModelSpec:
    """One model and how it is compressed.

    Attributes:
        name: Registered name: lower case, digits, `-` and `_`.
        factory: Makes the module. With `training` it is trained from scratch, without it is taken as is. A
            graph that it makes instead is taken as is; techniques that need a module are skipped.
        signature: Inputs, in the order of the module's arguments, and outputs.
        splits: Loads the data.
        metric: Name in `variants.metrics.METRICS`; `NAME@OUTPUT` judges that output instead of the first.
        recipes: What to build; the one named `reference` has no steps.
        training: How the module is trained and fine-tuned.
        train_reference: Whether the factory's module is trained first.
        students: Make untrained smaller modules for distillation, by name. One that takes a `width`, with a
            default, comes in the widths that recipes and searches choose.
        reference: Name of the recipe that all others are measured against.
        tiers: Levels of service.
        default_tier: The tier of a request that names none.
        degrade_floor: Lowest quality ratio for requests that allow degrading.
        allow_non_finite: Whether inputs may hold NaN and infinities.
        profile_batch: Batch size that decides which runtime serves; None for 1 and 8 together.
        seed: Seeds everything random.
        timeout_s: How long the build of one variant may take; None for as long as it does.
        description: One line for people.
        transforms: What the gateway does before and after the model.
        files: Finds the files that the transforms read, by the name that they have in the catalog.
        baseline: Fits a simpler model that this one has to beat; it answers the rows of the test split.
    """

    name: str
    factory: Callable[[], nn.Module | OnnxModel]
    signature: Signature
    splits: Callable[[], Splits]
    metric: str
    recipes: tuple[Recipe, ...]
    training: Training = field(default_factory=Training)
    train_reference: bool = True
    students: Mapping[str, Student] = field(default_factory=dict)
    reference: str = "fp32"
    tiers: tuple[TierSpec, ...] = DEFAULT_TIERS
    default_tier: str = "balanced"
    degrade_floor: float = 0.95
    allow_non_finite: bool = False
    profile_batch: int | None = None
    seed: int = 0
    timeout_s: float | None = None
    description: str = ""
    transforms: tuple[Transform, ...] = ()
    files: Mapping[str, Callable[[], Path]] = field(default_factory=dict)
    baseline: Callable[[], Baseline] | None = None

    def __post_init__(self) -> None:
        names = [recipe.name for recipe in self.recipes]
        if not re.fullmatch(r"[a-z0-9]([a-z0-9_-]*[a-z0-9])?", self.name):
            raise SpecError(f'"{self.name}" cannot name a model. Use lower case letters, digits, - and _.')
        if long := [name for name in names if len(f"{self.name}.{name}") > _LONGEST_TAG_NAME]:
            raise SpecError(
                f"{self.name}.{long[0]} has more than the {_LONGEST_TAG_NAME} characters of a BentoML tag. "
                "Shorten the model's or the recipe's name."
            )
        try:
            check_metric(self.metric, self.signature)
        except MetricError as error:
            raise SpecError(str(error)) from error
        if len(set(names)) != len(names):
            raise SpecError(f"{self.name} names a recipe twice: {', '.join(names)}. Rename one.")
        if self.reference not in names or self.recipe(self.reference).steps:
            raise SpecError(f'{self.name} needs a recipe "{self.reference}" without steps, its reference.')
        if self.default_tier not in (tier.name for tier in self.tiers):
            raise SpecError(f'default tier "{self.default_tier}" is not one of the tiers. Add it.')
        self._check_transforms()

    def _check_transforms(self) -> None:
        for name in self.files:
            if name in KEPT_NAMES or not re.fullmatch(r"[\w-]+\.\w+", name):
                raise SpecError(f'"{name}" cannot name a file in the catalog. Call it like tokenizer.json.')
        try:
            check_declared(self.transforms, self.files)
        except DeclarationError as error:
            raise SpecError(f"{self.name}: {error}") from error

    def recipe(self, name: str) -> Recipe:
        """The recipe of this name.

        Raises:
            SpecError: There is none.
        """
        for recipe in self.recipes:
            if recipe.name == name:
                return recipe
        known = ", ".join(recipe.name for recipe in self.recipes)
        raise SpecError(f'{self.name} has no recipe "{name}". There are {known}.')

    def digest(self, recipe: Recipe) -> str:
        """Sha256 of what shapes a recipe's artifact beside data, weights and steps."""
        named = [(step.settings.get("student"), step.settings.get("width")) for step in recipe.steps]
        facts = {
            "signature": self.signature.to_json(),
            "metric": self.metric,  # some passes decide by it, and profiles are taken with it
            "training": self.training.chosen(),
            "architecture": self.architecture(self.factory),
            "students": [
                self.architecture(partial(make, width=width) if width else make)
                for name, make in self.students.items()
                for width in dict.fromkeys(width for student, width in named if student == name)
            ],
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def seed_of(self, recipe: Recipe) -> int:
        """What seeds a recipe's passes."""
        return self.seed if recipe.seed is None else recipe.seed

    def architecture(self, factory: Callable[[], nn.Module | OnnxModel]) -> str:
        """Sha256 of a module as a factory makes it: its layers, its own code, its weights."""
        with seeded(self.seed):
            module = factory()
        if isinstance(module, OnnxModel):
            return module.weights_digest()
        return TorchModel(module, self.signature).digest()

    def serving_spec(self) -> ServingSpec:
        """What serving needs to know, without torch."""
        return ServingSpec(
            model=self.name,
            signature=self.signature,
            metric=self.metric,
            reference=self.reference,
            tiers=self.tiers,
            default_tier=self.default_tier,
            degrade_floor=self.degrade_floor,
            allow_non_finite=self.allow_non_finite,
            profile_batch=self.profile_batch,
            description=self.description,
            transforms=self.transforms,
            files=tuple(self.files),
        )


def load_spec(name: str) -> ModelSpec:
    """Finds a spec by its name in the zoo, or as `module:attribute`.

    Raises:
        SpecError: There is none, or what is there is no spec.
    """
    module_name, _, attribute = name.partition(":")
    if not attribute:
        known = zoo()
        if name not in known:
            return _added_spec(name)
        module_name, attribute = f"variants.zoo.{name}", "SPEC"
    try:
        spec = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise SpecError(f"cannot load {name}: {error}. Check the module path and PYTHONPATH.") from error
    if not isinstance(spec, ModelSpec):
        raise SpecError(f"{name} is a {type(spec).__name__}; expected a variants.spec.ModelSpec.")
    return spec


def graph_spec(
    registration: Registration, graph: Callable[[], OnnxModel], splits: Callable[[], Splits]
) -> ModelSpec:
    """The spec of an ONNX file that was added.

    Raises:
        SpecError: Its name or metric cannot be.
    """
    source = registration.graph
    assert source is not None
    return ModelSpec(
        name=registration.name,
        factory=graph,
        signature=source.signature,
        splits=splits,
        metric=source.metric,
        recipes=GRAPH_RECIPES,
        train_reference=False,
        allow_non_finite=source.allow_non_finite,
        description=f"{source.origin}, added by hand",
    )


def _added_spec(name: str) -> ModelSpec:
    registration = find_registration(name)
    if registration is None:
        raise SpecError(
            f'no spec "{name}". Mipgate brings {", ".join(zoo())}; add your own with `mipgate add`, or name '
            "it as package.module:SPEC."
        )
    if registration.spec is not None:
        return load_spec(registration.spec)
    source = registration.graph
    assert source is not None
    return graph_spec(
        registration,
        lambda: OnnxModel(onnx.load_model(registration.path(GRAPH_FILE)), source.signature),
        lambda: divided(read_split(registration.path(ROWS_FILE))),
    )


def zoo() -> list[str]:
    """Names of the models that Mipgate brings along."""
    return [module.name for module in pkgutil.iter_modules(variants.zoo.__path__)]
