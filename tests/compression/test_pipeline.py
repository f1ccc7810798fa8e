from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from compression import registry, training
from compression.base import (
    BrokenPromiseError,
    Facts,
    Pass,
    PassContext,
    PassRefusedError,
    Settings,
)
from compression.checkpoint import Checkpoints
from compression.export import VERSION as EXPORT_VERSION
from compression.inspection import parameters, quantized_operators
from compression.model import Form, OnnxModel, TorchModel
from compression.pipeline import (
    Compressed,
    RecipeError,
    RecipeRefusedError,
    check,
    compress,
    pass_versions,
)
from compression.pruning import StructuredPruning
from compression.recipe import Recipe, Step, step
from compression.registry import StepError, make_pass
from tests.compression.small_digits import accuracy, digits_net

PRUNE = step("prune-structured", epochs=1)
TEACH = step("distill", student="current", epochs=2)


def recipe(*steps: Step) -> Recipe:
    return Recipe(name="tried", steps=steps)


class LyingPruning(StructuredPruning):
    """Says that it prunes."""

    def run(self, model: TorchModel, context: PassContext) -> TorchModel:
        return model


class Crashing(Pass[Settings, OnnxModel, OnnxModel]):
    """Fails in a way that it does not explain."""

    name = "crashing"
    version = 7
    takes = Form.ONNX
    gives = Form.ONNX
    settings_class = Settings

    def run(self, model: OnnxModel, context: PassContext) -> OnnxModel:
        raise ZeroDivisionError("division by zero")

    def ensures(self, before: OnnxModel, after: OnnxModel, context: PassContext) -> Facts:
        return {}


class Widening(Pass[Settings, TorchModel, TorchModel]):
    """Puts a wider network in the place of what came in."""

    name = "widening"
    version = 1
    takes = Form.TORCH
    gives = Form.TORCH
    settings_class = Settings

    def run(self, model: TorchModel, context: PassContext) -> TorchModel:
        return TorchModel(digits_net((16, 32, 56), 32), model.signature)

    def ensures(self, before: TorchModel, after: TorchModel, context: PassContext) -> Facts:
        return {}


@pytest.fixture(scope="module")
def pruned(reference: TorchModel, context: PassContext) -> Compressed:
    return compress(recipe(PRUNE), reference, context)


def test_no_steps_is_the_export(reference: TorchModel, artifact: OnnxModel, context: PassContext) -> None:
    made = compress(recipe(), reference, context)
    assert made.artifact.proto == artifact.proto
    assert made.facts == ()
    assert made.torch_model is reference


def test_prune_teach_quantize_compose_in_order(
    reference: TorchModel, artifact: OnnxModel, context: PassContext
) -> None:
    made = compress(recipe(PRUNE, TEACH, step("int8-static")), reference, context)
    assert [entry["pass"] for entry in made.facts] == ["prune-structured", "distill", "int8-static"]
    assert all(entry.keys() == {"pass", "version", "settings", "facts", "curves"} for entry in made.facts)
    assert parameters(made.artifact) < 0.35 * parameters(artifact)
    assert quantized_operators(made.artifact) == {"Conv": 3, "Gemm": 2}
    assert accuracy(made.artifact, context.splits.test) > 0.9
    assert made.torch_model is not None
    assert made.torch_model is not reference


def test_the_same_seed_gives_the_same_artifact(
    pruned: Compressed, reference: TorchModel, context: PassContext
) -> None:
    again = compress(recipe(PRUNE), reference, context)
    first, second = (made.artifact.proto.SerializeToString(deterministic=True) for made in (pruned, again))
    assert first == second


def test_an_onnx_source_takes_graph_passes_without_a_reference(
    artifact: OnnxModel, context: PassContext
) -> None:
    made = compress(recipe(step("int8-static")), artifact, replace(context, reference=None))
    assert made.torch_model is None
    assert quantized_operators(made.artifact)


def test_progress_rises_from_zero_to_one_and_names_the_pass(
    reference: TorchModel, context: PassContext
) -> None:
    heard: list[tuple[str, float]] = []
    listening = replace(context, report=lambda phrase, done: heard.append((phrase, done)))
    compress(recipe(PRUNE, step("fp16")), reference, listening)
    fractions = [done for _, done in heard]
    assert fractions == sorted(fractions)
    assert (fractions[0], fractions[-1]) == (0.0, 1.0)
    assert heard[0][0].startswith("prune-structured: ")


@pytest.mark.parametrize(
    ("steps", "source", "says"),
    [
        ((step("fp16"), PRUNE), Form.TORCH, "after fp16 the model is an ONNX graph"),
        ((PRUNE,), Form.ONNX, "this model is an ONNX file"),
        ((step("prune-unstructured"), step("fuse")), Form.TORCH, "fuse cannot come after prune-unstructured"),
        ((step("prune-nm"), PRUNE), Form.TORCH, "prune-nm holds weights in their shape. Put it behind"),
        ((PRUNE, step("distill", student="small")), Form.TORCH, "small begins anew, without it"),
        ((step("prune-unstructured"), step("low-rank")), Form.TORCH, "holds weights in their shape"),
        ((step("cluster"), step("prune-depth")), Form.TORCH, "cluster holds weights in their shape"),
        ((step("cluster"), step("prune-nm")), Form.TORCH, "cluster holds weights in their shape"),
        ((step("cluster"), step("prune-unstructured")), Form.TORCH, "cluster holds weights in their shape"),
        ((step("prune-nm"), step("binary-weights")), Form.TORCH, "has no zero for what prune-nm left"),
        ((step("int8-static"), step("int8-dynamic")), Form.ONNX, "weights are int8 then"),
        ((step("int4-weights"), step("int8-static")), Form.ONNX, "weights are int4 then"),
        ((step("fp8-weights"), step("int8-static")), Form.TORCH, "weights are codes then. Quantize once"),
        ((step("int8-qat"), step("fp16")), Form.TORCH, "weights are int8 then. Convert once"),
        ((step("fp16"), step("fp16")), Form.ONNX, "weights are float16 then. Convert once"),
        ((step("cluster"), step("int8-data-free")), Form.TORCH, "made alike would differ. Set equalize"),
        ((step("cluster"), step("int8-smoothquant")), Form.TORCH, "made alike would differ. Use int8-static"),
        ((step("fp16"), step("int4-weights")), Form.ONNX, "weights are float16 then. Round once"),
        ((step("cluster"), step("int4-weights")), Form.TORCH, "that cluster made alike would differ"),
        ((step("int4-weights"), step("int4-weights")), Form.ONNX, "weights are int4 then. Round once"),
        ((step("fp16"), step("int8-smoothquant")), Form.ONNX, "weights are float16 then. Quantize once"),
    ],
)
def test_an_order_that_cannot_work_is_refused_up_front(
    steps: tuple[Step, ...], source: Form, says: str
) -> None:
    with pytest.raises(RecipeError, match=says):
        check(recipe(*steps), source)


@pytest.mark.parametrize(
    "names",
    [
        ("prune-structured", "prune-unstructured", "int8-qat"),
        ("prune-nm", "int8-qat"),
        ("cluster", "int8-static"),
        ("cluster", "binary-weights"),
        ("prune-unstructured", "int8-data-free"),
        ("prune-nm", "int8-smoothquant"),
        ("prune-unstructured", "cluster", "huffman"),
        ("prune-depth", "low-rank", "prune-structured", "int8-static"),
        ("prune-unstructured", "fp8-weights", "fp16"),
        ("int8-static", "int4-weights"),
        ("binary-weights", "int4-weights"),
    ],
)
def test_orders_that_can_work_are_not_refused(names: tuple[str, ...]) -> None:
    check(recipe(*(step(name) for name in names)), Form.TORCH)


def test_nothing_runs_when_the_order_cannot_work(reference: TorchModel, context: PassContext) -> None:
    def fail(phrase: str, fraction: float) -> None:
        raise AssertionError(phrase)

    with pytest.raises(RecipeError, match="Put passes on modules before"):
        compress(recipe(step("fp16"), PRUNE), reference, replace(context, report=fail))


def test_a_pass_that_lies_is_caught(
    reference: TorchModel, context: PassContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(registry.PASSES, "prune-structured", LyingPruning)
    with pytest.raises(RecipeError, match="prune-structured failed: no channel was removed") as caught:
        compress(recipe(PRUNE), reference, context)
    assert isinstance(caught.value.__cause__, BrokenPromiseError)
    assert not isinstance(caught.value, PassRefusedError)


def test_a_failure_names_what_went_before_and_keeps_its_cause(
    artifact: OnnxModel, context: PassContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(registry.PASSES, "crashing", Crashing)
    says = "recipe tried: crashing failed after fp16: ZeroDivisionError: division by zero"
    with pytest.raises(RecipeError, match=says) as caught:
        compress(recipe(step("fp16"), step("crashing")), artifact, context)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_a_refusal_stays_a_refusal(artifact: OnnxModel, context: PassContext) -> None:
    says = "int4-weights was refused after int8-static: the model has no MatMul or Gemm with stored float32"
    with pytest.raises(RecipeRefusedError, match=says):
        compress(recipe(step("int8-static"), step("int4-weights")), artifact, context)


def test_a_step_that_a_later_one_undoes_is_caught_on_the_finished_artifact(
    reference: TorchModel, context: PassContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(registry.PASSES, "widening", Widening)
    with pytest.raises(RecipeError, match="prune-structured does not hold on the finished artifact"):
        compress(recipe(PRUNE, step("widening")), reference, context)


def test_recipes_that_begin_alike_train_their_beginning_once(
    pruned: Compressed, reference: TorchModel, context: PassContext, tmp_path: Path
) -> None:
    remembering = replace(context, checkpoints=Checkpoints(tmp_path))
    first = compress(recipe(PRUNE), reference, remembering)
    longer = compress(recipe(PRUNE, step("int8-static")), reference, remembering)
    assert longer.facts[0] == first.facts[0]  # the seconds of its curve included: it was not trained again
    assert len(list(tmp_path.glob("*.safetensors"))) == 1
    assert longer.torch_model is not None
    assert pruned.torch_model is not None
    assert longer.torch_model.weights_digest() == pruned.torch_model.weights_digest()


def test_another_seed_other_data_or_settings_train_anew(
    reference: TorchModel, context: PassContext, tmp_path: Path
) -> None:
    remembering = replace(context, checkpoints=Checkpoints(tmp_path))
    shorter = replace(context.splits, test=context.splits.test.take(slice(0, 50)))
    for changed in (remembering, replace(remembering, seed=1), replace(remembering, splits=shorter)):
        compress(recipe(PRUNE), reference, changed)
    compress(recipe(step("prune-structured", epochs=2)), reference, remembering)
    assert len(list(tmp_path.glob("*.safetensors"))) == 4


def test_versions_name_each_pass_once_and_what_all_share() -> None:
    versions = pass_versions(recipe(PRUNE, TEACH, step("fp16"), step("fp16")))
    assert versions == {"training": training.VERSION, "export": EXPORT_VERSION} | {
        name: registry.PASSES[name].version for name in ("prune-structured", "distill", "fp16")
    }


def test_an_unknown_pass_lists_what_exists() -> None:
    with pytest.raises(StepError, match=r'unknown pass "magic".*distill, .*fp16, .*int8-dynamic'):
        make_pass(step("magic"))
    with pytest.raises(RecipeError, match="recipe tried: unknown pass"):
        check(recipe(step("magic")), Form.TORCH)


def test_wrong_settings_are_named_with_what_the_pass_takes() -> None:
    with pytest.raises(
        StepError, match=r'"ratio": Input should be less than 1.*It takes .*ratio, target_macs'
    ):
        make_pass(step("prune-structured", ratio=2))
    with pytest.raises(StepError, match='"rato": Extra inputs are not permitted'):
        make_pass(step("prune-structured", rato=0.5))


def test_passes_are_registered_under_their_own_names() -> None:
    assert {name: each.name for name, each in registry.PASSES.items()} == {
        name: name for name in registry.PASSES
    }
