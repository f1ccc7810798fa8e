"""Weights of few bits: powers of two, fixed point, signs and eight-bit floats, learned under rounding.

Storage techniques: the artifact holds packed codes and expands them to float32 when it is loaded. What is
gained is size, not time.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, TypeVar

import numpy as np
from pydantic import Field
from torch import fx

from compression.base import (
    CODES,
    AnyPass,
    BrokenPromiseError,
    Facts,
    Pass,
    PassContext,
    PassRefusedError,
    Settings,
    check_smaller,
)
from compression.codebook import Codes, store_as_codes, stored_codes
from compression.export import export
from compression.imitation import imitation_of, teacher_objective, teacher_of
from compression.inspection import weights_by_dtype
from compression.layer_graph import held_zeros, is_shared, layers, place_on_weights, placed, stored, weight_of
from compression.model import Form, OnnxModel, TorchModel
from compression.tracing import TracingError, settled, traced
from compression.training import labels_objective
from compression.weight_grids import (
    E4M3,
    Grid,
    GridRounding,
    bound,
    eight_bit_floats,
    fixed_points,
    powers_of_two,
    signs,
)

GAIN = "size only"
# Of the peak learning rate that the model was trained with from scratch.
SHARE_OF_LEARNING_RATE = 10
# A layer with more zeros than this was pruned.
SPARSE = 0.1


class LowBitSettings(Settings):
    """What all of these share.

    Attributes:
        epochs: Fine-tuning under rounding; 0 only rounds.
        learning_rate: Its peak; None for a tenth of the model's own.
        teacher: Weight of the reference's answers beside the labels.
        exclude_ends: Leaves the first and the last layer in float32.
    """

    epochs: int = Field(default=5, ge=0)
    learning_rate: float | None = Field(default=None, gt=0.0)
    teacher: float = Field(default=0.0, ge=0.0, le=1.0)
    exclude_ends: bool = False


class Pow2Settings(LowBitSettings):
    """Settings of `pow2-weights`.

    Attributes:
        bits: Length of a code: the sign, zero and `2**(bits - 1) - 1` exponents.
    """

    bits: int = Field(default=4, ge=2, le=6)


class FixedPointSettings(LowBitSettings):
    """Settings of `fixed-point-weights`.

    Attributes:
        bits: Length of a weight.
    """

    bits: int = Field(default=8, ge=2, le=8)


class BinarySettings(LowBitSettings):
    """Settings of `binary-weights`."""

    exclude_ends: bool = True


class Fp8Settings(LowBitSettings):
    """Settings of `fp8-weights`."""


S = TypeVar("S", bound=LowBitSettings)


class _CodedWeights(Pass[S, TorchModel, OnnxModel]):
    """What these passes require and promise."""

    takes: ClassVar[Form] = Form.TORCH
    gives: ClassVar[Form] = Form.ONNX
    number_format: ClassVar[str] = CODES
    has_zero: ClassVar[bool] = True

    def refused_after(self, before: AnyPass) -> str:
        """Refuses what was pruned where there is no zero."""
        if self.has_zero or not before.makes_zeros:
            return ""
        return f"it has no zero for what {before.name} left of weights. Use pow2-weights"

    @property
    @abstractmethod
    def grid(self) -> Grid:
        """Which values there are."""

    @property
    @abstractmethod
    def bits(self) -> int:
        """Length of a code."""

    @abstractmethod
    def keeps(self, codes: Codes) -> bool:
        """Whether stored codes stand for values of this technique."""

    def requires(self, model: TorchModel, context: PassContext) -> None:
        """Checks that the module can be traced, has layers to round, and something to learn from."""
        if self.settings.teacher:
            teacher_of(context)
            imitation_of(context.training)
        elif self.settings.epochs and context.splits.train.labels is None:
            raise PassRefusedError(
                "train has no labels to learn from. Set teacher to 1 to learn from the reference's answers, "
                "or epochs to 0."
            )
        try:
            graph = _graph(traced(model))
        except TracingError as error:
            raise PassRefusedError(f"{error}. Use another technique.") from error
        if not self._chosen(graph):
            raise PassRefusedError(
                "the model has no convolution or linear layer with a weight of its own to round"
                + (" between its first and its last. Set exclude_ends to false." if layers(graph) else ".")
            )
        shares = [float((weight_of(graph, layer) == 0).float().mean()) for layer in self._chosen(graph)]
        if max(shares) > SPARSE and not self.has_zero:
            raise PassRefusedError(f"the model is sparse and {self.name} has no zero. Use pow2-weights.")

    def run(self, model: TorchModel, context: PassContext) -> OnnxModel:
        """Returns the graph with weights stored as codes."""
        settings = self.settings
        context.report("tracing", 0.0)
        graph = _graph(traced(model))
        parts = {node: GridRounding(self.grid, axis, self.bits) for node, axis in self._chosen(graph).items()}
        place_on_weights(graph, parts)
        student = TorchModel(settled(graph), model.signature)
        if settings.epochs:
            student = context.fit(
                student,
                epochs=settings.epochs,
                learning_rate=settings.learning_rate
                or context.training.learning_rate / SHARE_OF_LEARNING_RATE,
                objective=teacher_objective(context, alpha=settings.teacher)
                if settings.teacher
                else labels_objective(context.training),
            )
        learned = _graph(student)
        roundings = placed(learned, GridRounding).values()
        plain, weights = stored(learned, GridRounding)
        codes = {}
        for (name, weight), part in zip(weights.items(), roundings, strict=True):
            assert isinstance(part, GridRounding)
            codes[name] = part.codes(weight)
        return store_as_codes(export(TorchModel(plain, model.signature)), codes)

    def ensures(self, before: TorchModel, after: OnnxModel, context: PassContext) -> Facts:
        """Checks the values of every layer, that zeros stayed zero, and that the file is smaller."""
        graph = _graph(traced(before))
        codes = stored_codes(after)
        chosen = list(self._chosen(graph))
        if len(codes) != len(chosen):
            raise BrokenPromiseError(f"{len(codes)} of {len(chosen)} layers are stored as codes.")
        self._check_values(codes)
        bytes_before, bytes_after = export(before).proto.ByteSize(), after.proto.ByteSize()
        sizes = check_smaller(bytes_before, bytes_after, "codebooks", self.name)
        zeros_before = sum(held_zeros(graph, layer) for layer in chosen)
        zeros_after = sum(int((each.weight() == 0).sum()) for each in codes.values())
        if self.has_zero and zeros_after < zeros_before:
            raise BrokenPromiseError(
                f"{zeros_before} weights were held at zero, {zeros_after} zeros are left."
            )
        return {
            "gain": GAIN,
            "bits": self.bits,
            "layers": {name: len(np.unique(each.indices)) for name, each in codes.items()},
            "coded_weights": sum(each.indices.size for each in codes.values()),
            "float32_weights": weights_by_dtype(after).get("float32", 0),
            "zero_weights": zeros_after,
            **sizes,
        }

    def holds(self, facts: Facts, artifact: OnnxModel) -> None:
        """Checks that the same layers are still stored as codes of these values."""
        codes = stored_codes(artifact)
        if lost := sorted(facts["layers"].keys() - codes.keys()):
            raise BrokenPromiseError(
                f"{', '.join(lost)} is no longer stored as codes: a later step expanded it. "
                f"Put {self.name} last."
            )
        self._check_values({name: codes[name] for name in facts["layers"]})

    def _check_values(self, codes: dict[str, Codes]) -> None:
        for name, each in codes.items():
            if each.bits > self.bits or not self.keeps(each):
                raise BrokenPromiseError(f'"{name}" has values that {self.name} does not make.')

    def _chosen(self, graph: fx.GraphModule) -> dict[fx.Node, int]:
        """The layers to round, each with the axis of its weight's output channels."""
        found = [(layer, axis) for layer, axis in layers(graph).items() if not is_shared(graph, layer)]
        return dict(found[1:-1] if self.settings.exclude_ends else found)


class Pow2Weights(_CodedWeights[Pow2Settings]):
    """Rounds weights to zero and signed powers of two; a storage technique.

    Miyashita, Lee and Murmann 2016, "Convolutional Neural Networks using Logarithmic Data Representation";
    the largest exponent as in Zhou et al. 2017, "Incremental Network Quantization".
    """

    name: ClassVar[str] = "pow2-weights"
    version: ClassVar[int] = 2
    settings_class: ClassVar[type[Settings]] = Pow2Settings

    @property
    def grid(self) -> Grid:
        """Powers of two."""
        return bound(powers_of_two, self.settings.bits)

    @property
    def bits(self) -> int:
        """Length of a code."""
        return self.settings.bits

    def keeps(self, codes: Codes) -> bool:
        """Whether all values are zero or a power of two."""
        return codes.scale is None and _are_powers(codes.codebook)


class FixedPointWeights(_CodedWeights[FixedPointSettings]):
    """Rounds weights to fixed point numbers with one binary point per layer; a storage technique.

    The dynamic fixed point of Gysel, Motamedi and Ghiasi 2016, "Hardware-oriented Approximation of
    Convolutional Neural Networks" (Ristretto).
    """

    name: ClassVar[str] = "fixed-point-weights"
    version: ClassVar[int] = 2
    settings_class: ClassVar[type[Settings]] = FixedPointSettings

    @property
    def grid(self) -> Grid:
        """Multiples of a power of two."""
        return bound(fixed_points, self.settings.bits)

    @property
    def bits(self) -> int:
        """Length of a code."""
        return self.settings.bits

    def keeps(self, codes: Codes) -> bool:
        """Whether all values are multiples of one power of two."""
        steps = np.diff(codes.codebook)
        return codes.scale is None and _are_powers(steps[:1]) and bool((steps == steps[0]).all())


class BinaryWeights(_CodedWeights[BinarySettings]):
    """Keeps the signs of weights and one factor per output channel; a storage technique.

    The binary weight networks of Rastegari et al. 2016, "XNOR-Net", first and last layer left in float32.
    """

    name: ClassVar[str] = "binary-weights"
    version: ClassVar[int] = 2
    settings_class: ClassVar[type[Settings]] = BinarySettings
    has_zero: ClassVar[bool] = False

    @property
    def grid(self) -> Grid:
        """Signs."""
        return signs

    @property
    def bits(self) -> int:
        """Length of a code."""
        return 1

    def keeps(self, codes: Codes) -> bool:
        """Whether all values are signs with a factor."""
        return codes.scale is not None and codes.codebook.tolist() == [-1.0, 1.0]


class Fp8Weights(_CodedWeights[Fp8Settings]):
    """Rounds weights to eight-bit floats (E4M3) with one factor per output channel; a storage technique.

    Micikevicius et al. 2022, "FP8 Formats for Deep Learning". Stored as codes of the E4M3 numbers, which run
    on every runtime and opset.
    """

    name: ClassVar[str] = "fp8-weights"
    version: ClassVar[int] = 2
    settings_class: ClassVar[type[Settings]] = Fp8Settings

    @property
    def grid(self) -> Grid:
        """E4M3 numbers."""
        return eight_bit_floats

    @property
    def bits(self) -> int:
        """Length of a code."""
        return 8

    def keeps(self, codes: Codes) -> bool:
        """Whether all values are E4M3 numbers with a factor."""
        return codes.scale is not None and bool(np.isin(codes.codebook, E4M3.numpy()).all())


def _are_powers(values: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> bool:
    fraction, _ = np.frexp(np.abs(values))
    return bool(np.isin(fraction, (0.0, 0.5)).all())


def _graph(model: TorchModel) -> fx.GraphModule:
    assert isinstance(model.module, fx.GraphModule)
    return model.module
