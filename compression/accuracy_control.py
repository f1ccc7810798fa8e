"""Static eight-bit integers where they do no harm: the operators that cost most quality stay float."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from pydantic import Field

from compression.base import BrokenPromiseError, Facts, PassContext, PassRefusedError, Quality, Settings
from compression.calibration import activations
from compression.data import Split
from compression.inspection import quantized_operators
from compression.model import OnnxModel
from compression.quantization import Calibrated, Int8Pass, StaticInt8Settings
from compression.records import note, noted
from compression.signature import Array

# Operators that pass values on as they are: rounding is decided by their neighbours.
MOVERS = {
    "ArgMax",
    "Clip",
    "Flatten",
    "Gather",
    "GatherElements",
    "MaxPool",
    "Pad",
    "Relu",
    "Reshape",
    "Slice",
    "Split",
    "Squeeze",
    "TopK",
    "Transpose",
    "Unsqueeze",
}
NAME = "int8-accuracy-control"
BATCH = 64
# Stands for no error at all, which JSON cannot say.
SILENCE_DB = 200.0


class AccuracyControlSettings(StaticInt8Settings):
    """Settings of `int8-accuracy-control`.

    Attributes:
        max_drop: How much may be lost on validation against the float graph: the share of the model's
            metric, without labels the metric against the float graph's answers.
        validation_rows: How many rows of validation decide; None for all.
        ranking_rows: How many rows of calibration show how sensitive an operator is.
    """

    max_drop: float = Field(default=0.01, ge=0.0, lt=1.0)
    validation_rows: int | None = Field(default=None, ge=1)
    ranking_rows: int = Field(default=64, ge=1)


class AccuracyControl(Int8Pass[AccuracyControlSettings]):
    """Quantizes as `int8-static`, then returns the most sensitive operators to float until quality is kept.

    Operators are ranked by the noise that each adds to the outputs when it alone is quantized
    (signal-to-quantization-noise ratio); bisection finds how many must be returned, in this order: the
    fewest, where quality never falls as one more returns. After Wu et al. 2020, "Integer Quantization for
    Deep Learning Inference: Principles and Empirical Evaluation", section 5.2 (partial quantization).
    """

    name: ClassVar[str] = NAME
    version: ClassVar[int] = 2
    settings_class: ClassVar[type[Settings]] = AccuracyControlSettings

    def run(self, model: OnnxModel, context: PassContext) -> OnnxModel:
        """Returns the graph with as many integer operators as the limit allows."""
        settings = self.settings
        judge = self._judge(model, context)
        calibrated = Calibrated(model, settings, context)
        every = calibrated.quantized()
        drop_of_all = judge.drop(every)
        if drop_of_all <= settings.max_drop:
            return _noted(every, drop_of_all, {}, 0)
        few = calibrated.rows.spread(settings.ranking_rows)
        candidates = self._candidates(calibrated)
        sensitivity: dict[str, float] = {}
        for index, name in enumerate(candidates):
            context.report("ranking operators", 0.1 + 0.7 * index / len(candidates))
            sensitivity[name] = _noise_ratio(calibrated.graph, calibrated.quantized(only=[name]), few)
        ranked = dict(sorted(sensitivity.items(), key=lambda item: item[1]))
        context.report("returning operators to float", 0.8)
        count, kept = _fewest(calibrated.quantized, list(ranked), judge, settings.max_drop)
        return _noted(kept, drop_of_all, ranked, count)

    def ensures(self, before: OnnxModel, after: OnnxModel, context: PassContext) -> Facts:
        """Checks also that no more is lost on validation than allowed, and lists what is float again."""
        judge = self._judge(before, context)
        drop = judge.drop(after)
        if not drop <= self.settings.max_drop:  # so that no number is no excuse
            raise BrokenPromiseError(
                f"{drop:.4f} is lost on validation, more than {self.settings.max_drop:g}. Raise max_drop."
            )
        facts = super().ensures(before, after, context)
        return {**facts, "measure": judge.measure, "drop": drop, **note(after, NAME)}

    def _judge(self, model: OnnxModel, context: PassContext) -> _Judge:
        validation = context.splits.validation
        rows = validation.spread(self.settings.validation_rows or len(validation))
        return _Judge(rows, _answers(model, rows), context.quality)

    def _candidates(self, calibrated: Calibrated) -> list[str]:
        types = set(self.settings.scheme.operators) - MOVERS
        return [
            node.name
            for node in calibrated.graph.proto.graph.node
            if node.op_type in types and node.name not in calibrated.excluded
        ]


@dataclass(frozen=True)
class _Judge:
    """Says how much worse a graph answers than the float graph, row for row.

    Attributes:
        rows: The rows that decide.
        right: The float graph's outputs for them.
        quality: The model's metric, None to compare outputs.
    """

    rows: Split
    right: list[Array]
    quality: Quality | None

    @property
    def measure(self) -> str:
        """What is measured."""
        if self.quality is None:
            return "relative error of the outputs"
        return "share of the metric" + (", the float graph's answers for labels" if self.unlabelled else "")

    @property
    def unlabelled(self) -> bool:
        """Whether the float graph's answers are all that there is to hold answers against."""
        return self.rows.labels is None

    def drop(self, model: OnnxModel) -> float:
        """What is lost, 0 for nothing; below 0 where the graph is better than the float one."""
        answers = _answers(model, self.rows)
        if self.quality is None:
            return max(_relative_error(*pair) for pair in zip(self.right, answers, strict=True))
        return 1.0 - self.quality(answers, self.right, self.rows.labels)


def _fewest(
    made: Callable[[Collection[str]], OnnxModel], ranked: Sequence[str], judge: _Judge, max_drop: float
) -> tuple[int, OnnxModel]:
    """How many operators must be float, in order of rank, and the graph in which they are."""
    kept: tuple[int, OnnxModel] | None = None
    fewest, most = 1, len(ranked) - 1
    while fewest <= most:
        count = (fewest + most) // 2
        partly = made(ranked[:count])
        # Where what is left computes on integers nowhere, nothing is gained any more.
        if not quantized_operators(partly):
            most = count - 1
        elif judge.drop(partly) <= max_drop:
            kept = (count, partly)
            most = count - 1
        else:
            fewest = count + 1
    if len(ranked) < 2:
        raise PassRefusedError(
            f"the graph has one operator to quantize, and without it nothing is gained; with it more than "
            f"{max_drop:g} is lost by {judge.measure}. Raise max_drop, or use another technique."
        )
    if kept is None:
        raise PassRefusedError(
            "with as many operators in float as leave integers at all, still more than "
            f"{max_drop:g} is lost by {judge.measure}. Raise max_drop, or use another technique."
        )
    return kept


def _answers(model: OnnxModel, split: Split) -> list[Array]:
    names = [spec.name for spec in model.signature.outputs]
    batches = list(activations(model, names, split, BATCH))
    return [np.concatenate([batch[name] for batch in batches]) for name in names]


def _relative_error(right: Array, answer: Array) -> float:
    if right.dtype.kind != "f":
        return float(np.mean(right != answer))
    size = float(np.linalg.norm(right)) or 1.0
    return float(np.linalg.norm(answer - right)) / size


def _noise_ratio(exact: OnnxModel, rounded: OnnxModel, split: Split) -> float:
    """Signal-to-quantization-noise ratio of the noisiest output, in dB."""
    errors = [
        _relative_error(*pair) for pair in zip(_answers(exact, split), _answers(rounded, split), strict=True)
    ]
    return min(SILENCE_DB, -20 * float(np.log10(max(*errors, 10 ** (-SILENCE_DB / 20)))))


def _noted(model: OnnxModel, drop_of_all: float, ranked: dict[str, float], count: int) -> OnnxModel:
    return noted(
        model,
        NAME,
        {
            "drop_of_all": drop_of_all,
            "float_operators": list(ranked)[:count],
            "sensitivity_db": {name: round(ratio, 2) for name, ratio in ranked.items()},
        },
    )
