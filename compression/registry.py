"""Every technique there is, by the name that recipes use."""

from __future__ import annotations

from pydantic import ValidationError

from compression.accuracy_control import AccuracyControl
from compression.base import AnyPass, CompressionError
from compression.clustering import Cluster
from compression.depth import DepthPruning
from compression.distillation import Distillation
from compression.equalization import DataFree
from compression.factorization import LowRank
from compression.int4 import Int4Weights
from compression.lowbit import BinaryWeights, FixedPointWeights, Fp8Weights, Pow2Weights
from compression.precision import Float16
from compression.pruning import StructuredPruning
from compression.qat import QuantizationAwareTraining
from compression.quantization import DynamicInt8, StaticInt8
from compression.ratio_search import RatioSearch
from compression.recipe import Step
from compression.reparameterization import Fuse
from compression.smoothing import SmoothQuant
from compression.sparsity import SemiStructuredPruning, UnstructuredPruning
from compression.storage import Huffman

PASSES: dict[str, type[AnyPass]] = {
    "binary-weights": BinaryWeights,
    "cluster": Cluster,
    "distill": Distillation,
    "fixed-point-weights": FixedPointWeights,
    "fp16": Float16,
    "fp8-weights": Fp8Weights,
    "fuse": Fuse,
    "huffman": Huffman,
    "int4-weights": Int4Weights,
    "int8-accuracy-control": AccuracyControl,
    "int8-data-free": DataFree,
    "int8-dynamic": DynamicInt8,
    "int8-qat": QuantizationAwareTraining,
    "int8-smoothquant": SmoothQuant,
    "int8-static": StaticInt8,
    "low-rank": LowRank,
    "pow2-weights": Pow2Weights,
    "prune-depth": DepthPruning,
    "prune-nm": SemiStructuredPruning,
    "prune-search": RatioSearch,
    "prune-structured": StructuredPruning,
    "prune-unstructured": UnstructuredPruning,
}


class StepError(CompressionError):
    """A recipe names a pass that does not exist, or settings that it does not take."""


def make_pass(step: Step) -> AnyPass:
    """The pass that a step names, with its settings checked.

    Raises:
        StepError: There is no such pass, or a setting is unknown or out of range.
    """
    known = PASSES.get(step.pass_name)
    if known is None:
        raise StepError(f'unknown pass "{step.pass_name}". Use one of {", ".join(sorted(PASSES))}.')
    try:
        return known(known.settings_class.model_validate(step.settings))
    except ValidationError as error:
        problems = "; ".join(
            f'"{".".join(str(part) for part in problem["loc"])}": {problem["msg"]}'
            for problem in error.errors()
        )
        settings = ", ".join(known.settings_class.model_fields) or "none"
        raise StepError(
            f"settings of {step.pass_name} are wrong: {problems}. It takes {settings}."
        ) from error
