"""Runs a recipe: every pass checked before, after, and once more on the finished artifact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from compression.base import AnyPass, CompressionError, Facts, PassContext, PassRefusedError
from compression.export import VERSION as EXPORT_VERSION
from compression.export import export
from compression.model import Form, Model, OnnxModel, TorchModel
from compression.recipe import Recipe
from compression.registry import make_pass
from compression.rewriting import plain
from compression.training import VERSION as TRAINING_VERSION
from compression.training import Report

TRAINING, EXPORT = "training", "export"


class RecipeError(CompressionError):
    """A recipe cannot work, or one of its passes failed; the message names the pass and the cause."""


class RecipeRefusedError(RecipeError, PassRefusedError):
    """A pass of the recipe cannot be applied to this model."""


@dataclass(frozen=True)
class Stage:
    """How far a recipe has come.

    Attributes:
        model: The model after the steps so far.
        torch_model: The last torch form of it, None when there was none.
        facts: One entry per step so far.
    """

    model: Model
    torch_model: TorchModel | None
    facts: tuple[Facts, ...] = ()


@dataclass(frozen=True)
class Compressed:
    """What a recipe made.

    Attributes:
        artifact: The finished graph.
        facts: One entry per step: `pass`, `version`, `settings`, `facts` as its promise established, and the
            `curves` of its trainings.
        torch_model: The last torch form, None when the source was ONNX.
    """

    artifact: OnnxModel
    facts: tuple[Facts, ...]
    torch_model: TorchModel | None


def check(recipe: Recipe, source: Form) -> None:
    """Checks that every step exists and takes the form that it will be given, before anything runs.

    Raises:
        RecipeRefusedError: A pass needs a module and the source is a graph.
        RecipeError: A pass is unknown, its settings are wrong, it needs a form that is gone, or it undoes one
            before it.
    """
    _check_order(recipe, _passes(recipe), source)


def pass_versions(recipe: Recipe) -> dict[str, int]:
    """The versions of training, of the export and of each pass, by name: a part of what identifies a build.

    Raises:
        RecipeError: A pass is unknown or its settings are wrong.
    """
    common = {TRAINING: TRAINING_VERSION, EXPORT: EXPORT_VERSION}
    return common | {each.name: each.version for each in _passes(recipe)}


def compress(recipe: Recipe, reference: Model, context: PassContext) -> Compressed:
    """Runs a recipe on a model and returns the finished ONNX artifact.

    No steps at all is the export alone. The model given is not changed.

    Args:
        recipe: What to do, in order.
        reference: The model to compress, in either form.
        context: Data, teacher, seed and where to report progress.

    Raises:
        RecipeRefusedError: A pass does not fit the model.
        RecipeError: The order cannot work, a pass failed, or its promise was not kept.
    """
    passes = _passes(recipe)
    _check_order(recipe, passes, reference.form)
    if isinstance(reference, TorchModel):
        reference = plain(reference)
    stage = Stage(reference, reference if isinstance(reference, TorchModel) else None)
    for index in range(len(passes)):
        stage = _run_step(recipe, passes, index, stage, context)
    artifact = _finish(recipe, passes, stage)
    context.report("done", 1.0)
    return Compressed(artifact, stage.facts, stage.torch_model)


def _passes(recipe: Recipe) -> list[AnyPass]:
    try:
        return [make_pass(step) for step in recipe.steps]
    except CompressionError as error:
        raise RecipeError(f"recipe {recipe.name}: {error}") from error


def _check_order(recipe: Recipe, passes: Sequence[AnyPass], source: Form) -> None:
    form = source
    for index, each in enumerate(passes):
        if each.takes is Form.TORCH and source is Form.ONNX:
            raise RecipeRefusedError(
                f"recipe {recipe.name}: {each.name} takes a torch module, and this model is an ONNX file. "
                "Register it as a module to train or reshape it."
            )
        if each.takes is Form.TORCH and form is Form.ONNX:
            raise RecipeError(
                f"recipe {recipe.name}: {each.name} takes a torch module, but after {_names(passes[:index])} "
                "the model is an ONNX graph. Put passes on modules before passes on graphs."
            )
        for before in passes[:index]:
            if reason := each.refused_after(before):
                raise RecipeError(
                    f"recipe {recipe.name}: {each.name} cannot come after {before.name}: {reason}."
                )
        if stored := [before.name for before in passes[:index] if before.only_stores]:
            raise RecipeError(
                f"recipe {recipe.name}: {each.name} writes the graph anew, which undoes {stored[0]}. Put "
                f"{stored[0]} last, once."
            )
        form = each.gives


def _run_step(
    recipe: Recipe, passes: Sequence[AnyPass], index: int, stage: Stage, context: PassContext
) -> Stage:
    each = passes[index]
    context = replace(context, report=_scaled(context.report, each.name, index, len(passes)), curves=[])
    context.report("starting", 0.0)
    try:
        before = _in_form(stage.model, each.takes)
        each.requires(before, context)
        after = each.run(before, context)
        facts = each.ensures(before, after, context)
    except Exception as error:
        raise _failure(recipe, each.name, passes[:index], error) from error
    entry = {
        "pass": each.name,
        "version": each.version,
        "settings": each.settings.model_dump(mode="json"),
        "facts": facts,
        "curves": [[asdict(epoch) for epoch in curve] for curve in context.curves],
    }
    last = after if isinstance(after, TorchModel) else stage.torch_model
    return Stage(after, last, (*stage.facts, entry))


def _finish(recipe: Recipe, passes: Sequence[AnyPass], stage: Stage) -> OnnxModel:
    try:
        artifact = _in_form(stage.model, Form.ONNX)
    except Exception as error:
        raise _failure(recipe, EXPORT, passes, error) from error
    assert isinstance(artifact, OnnxModel)
    for each, entry in zip(passes, stage.facts, strict=True):
        try:
            each.holds(entry["facts"], artifact)
        except Exception as error:
            raise RecipeError(
                f"recipe {recipe.name}: {each.name} does not hold on the finished artifact: {error}"
            ) from error
    return artifact


def _in_form(model: Model, form: Form) -> Model:
    if form is Form.ONNX and isinstance(model, TorchModel):
        return export(model)
    return model


def _failure(recipe: Recipe, name: str, before: Sequence[AnyPass], cause: Exception) -> RecipeError:
    refused = isinstance(cause, PassRefusedError)
    verb = "was refused" if refused else "failed"
    after = f" after {_names(before)}" if before else ""
    said = str(cause) if isinstance(cause, CompressionError) else f"{type(cause).__name__}: {cause}"
    message = f"recipe {recipe.name}: {name} {verb}{after}: {said}"
    return RecipeRefusedError(message) if refused else RecipeError(message)


def _names(passes: Sequence[AnyPass]) -> str:
    return ", ".join(each.name for each in passes)


def _scaled(report: Report, name: str, index: int, count: int) -> Report:
    def scaled(phrase: str, fraction: float) -> None:
        report(f"{name}: {phrase}", (index + fraction) / count)

    return scaled
