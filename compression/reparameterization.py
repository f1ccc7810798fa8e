"""More layers in training than in the artifact: what is linear is multiplied out."""

from __future__ import annotations

import copy
import warnings
from collections import Counter
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.nn.utils import parametrize
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from compression.base import (
    AnyPass,
    BrokenPromiseError,
    Facts,
    Pass,
    PassContext,
    PassRefusedError,
    Settings,
    held_by,
)
from compression.data import Split
from compression.model import Form, OnnxModel, TorchModel
from compression.stored_size import check_stored, stored_facts
from compression.training import predict

Normalization = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d
Folding = tuple[str, str]


class Branches(nn.Module):
    """Parallel branches over one input, summed: in training a layer that `fuse` turns into one convolution.

    Ding et al. 2021, "RepVGG: Making VGG-style ConvNets Great Again", section 3.3.

    Args:
        branches: Each a convolution with its batch normalization, in a `Sequential`, or a batch normalization
            alone, which is the identity's branch. Kernels are odd squares, padded by half; strides and
            groups are the same.
    """

    def __init__(self, branches: Sequence[nn.Module]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, features: Tensor) -> Tensor:
        """The sum of what the branches make of `(batch, channels, height, width)`."""
        first, *others = self.branches
        total: Tensor = first(features)
        for branch in others:
            total = total + branch(features)
        return total


class FuseSettings(Settings):
    """Settings of `fuse`.

    Attributes:
        tolerance: Largest difference of any output, as a share of the largest output.
        rows: How many rows of validation are compared.
    """

    tolerance: float = Field(default=1e-4, gt=0.0)
    rows: int = Field(default=64, ge=1)


class Fuse(Pass[FuseSettings, TorchModel, TorchModel]):
    """Folds batch normalizations into the layers before them and parallel branches into one convolution.

    Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
    Inference", section 3.2; for branches Ding et al. 2021, section 3.3. The answers stay; what is trained
    afterwards is trained without normalization.
    """

    name: ClassVar[str] = "fuse"
    version: ClassVar[int] = 1
    takes: ClassVar[Form] = Form.TORCH
    gives: ClassVar[Form] = Form.TORCH
    settings_class: ClassVar[type[Settings]] = FuseSettings

    def refused_after(self, before: AnyPass) -> str:
        """Refuses to reshape layers whose weights are held."""
        return held_by(before)

    def requires(self, model: TorchModel, context: PassContext) -> None:
        """Checks that something can be fused, and that no layer's weights are held by a parametrization."""
        held = [name for name, part in model.module.named_modules() if parametrize.is_parametrized(part)]
        if held:
            raise PassRefusedError(
                f"the weights of {', '.join(held)} are masked or shared, which scaling them would undo. Put "
                "fuse before the pass that did it."
            )
        if not _blocks(model.module) and not _foldings(model, context.splits.validation):
            raise PassRefusedError(
                "there is no batch normalization behind a layer of its own and no block of branches. Leave "
                "fuse out."
            )

    def run(self, model: TorchModel, context: PassContext) -> TorchModel:
        """Returns the module with fewer layers and the same answers."""
        return fused(model, context.splits.validation)

    def ensures(self, before: TorchModel, after: TorchModel, context: PassContext) -> Facts:
        """Checks that normalizations or branches are gone and that the answers are the same."""
        blocks = len(_blocks(before.module)) - len(_blocks(after.module))
        norms = _normalizations(before.module) - _normalizations(after.module)
        if norms <= 0:
            raise BrokenPromiseError("no batch normalization was folded. Leave fuse out.")
        rows = context.splits.validation.spread(self.settings.rows)
        worst = 0.0
        for spec, was, now in zip(
            after.signature.outputs, predict(before, rows), predict(after, rows), strict=True
        ):
            error = float(np.abs(now.astype(np.float64) - was).max() / max(np.abs(was).max(), 1e-12))
            if not error <= self.settings.tolerance:
                raise BrokenPromiseError(
                    f'output "{spec.name}" differs by {error:.2g} of its largest value after fusing; '
                    f"{self.settings.tolerance:.2g} is allowed. A variance near zero makes scales explode: "
                    "train longer, or raise tolerance."
                )
            worst = max(worst, error)
        return {
            "normalizations_folded": norms,
            "blocks_fused": blocks,
            "largest_error": worst,
            "parameters_before": _size(before.module),
            "parameters_after": _size(after.module),
            **stored_facts(before, after),
        }

    def holds(self, facts: Facts, artifact: OnnxModel) -> None:
        """Checks that no branch came back."""
        if facts["blocks_fused"]:
            check_stored(facts, artifact, self.name)


def fused(model: TorchModel, split: Split) -> TorchModel:
    """A copy in eval mode that answers the same with fewer layers: the model as it is where none folds.

    Args:
        model: What to fold.
        split: Where the rows come from that show how many axes a layer gives.

    Raises:
        PassRefusedError: The module cannot be traced, or a block has branches that are not linear together.
    """
    module = copy.deepcopy(model.module).eval()
    for name in _blocks(module):
        block = module.get_submodule(name)
        assert isinstance(block, Branches)
        module.set_submodule(name, one_convolution(block))
    whole = TorchModel(module, model.signature)
    for layer_name, norm_name in _foldings(whole, split):
        layer, norm = module.get_submodule(layer_name), module.get_submodule(norm_name)
        module.set_submodule(layer_name, _folded(layer, norm))
        module.set_submodule(norm_name, nn.Identity())
    return whole


def one_convolution(block: Branches) -> nn.Conv2d:
    """The convolution that answers as the block of branches does in eval mode.

    Raises:
        PassRefusedError: A branch is something else than a convolution, a normalization, or one after the
            other, or the branches' strides, groups or paddings do not fit.
    """
    convolutions = [_as_convolution(branch, block) for branch in block.branches]
    side = max(each.kernel_size[0] for each in convolutions)
    first = convolutions[0]
    for each in convolutions:
        half = each.kernel_size[0] // 2
        fits = each.kernel_size == (2 * half + 1,) * 2 and each.padding == (half, half)
        if not fits or (each.stride, each.groups, each.dilation) != (first.stride, first.groups, (1, 1)):
            raise PassRefusedError(
                f"branches {first} and {each} cannot become one. Give them one stride and one number of "
                "groups, odd kernels, and paddings of half the kernel."
            )
    fused = copy.deepcopy(first)
    kernels = [_padded(each.weight, side) for each in convolutions]
    offsets = [each.bias for each in convolutions if each.bias is not None]
    fused.kernel_size, fused.padding = (side, side), (side // 2, side // 2)
    fused.weight = nn.Parameter(torch.stack(kernels).sum(0).detach())
    fused.bias = nn.Parameter(torch.stack(offsets).sum(0).detach()) if offsets else None
    return fused.eval()


def _as_convolution(branch: nn.Module, block: Branches) -> nn.Conv2d:
    parts = list(branch) if isinstance(branch, nn.Sequential) else [branch]
    match parts:
        case [nn.BatchNorm2d() as norm]:
            return fuse_conv_bn_eval(_identity(norm.num_features, block), norm.eval())
        case [nn.Conv2d() as layer, nn.BatchNorm2d() as norm]:
            return fuse_conv_bn_eval(layer.eval(), norm.eval())
        case [nn.Conv2d() as layer]:
            return layer
    raise PassRefusedError(
        f"a branch of {type(block).__name__} is {branch}. Branches are a Conv2d, a BatchNorm2d, or a "
        "Sequential of both."
    )


def _identity(channels: int, block: Branches) -> nn.Conv2d:
    """The 1x1 convolution that changes nothing, in as many groups as the other branches."""
    groups = next((part.groups for part in block.modules() if isinstance(part, nn.Conv2d)), 1)
    layer = nn.Conv2d(channels, channels, 1, groups=groups, bias=False).eval()
    nn.init.dirac_(layer.weight, groups)
    return layer


def _padded(kernel: Tensor, side: int) -> Tensor:
    margin = (side - kernel.shape[-1]) // 2
    return functional.pad(kernel, [margin] * 4)


def has_branches(module: nn.Module) -> bool:
    """Whether a module learns in branches that `fuse` makes one convolution of."""
    return any(isinstance(part, Branches) for part in module.modules())


def _blocks(module: nn.Module) -> list[str]:
    return [name for name, part in module.named_modules() if isinstance(part, Branches) and name]


def _foldings(model: TorchModel, split: Split) -> list[Folding]:
    """Layers and the normalizations that alone read them, by name; those in blocks of branches left out.

    Raises:
        PassRefusedError: The module cannot be traced, so that nothing shows what reads what.
    """
    module = model.module
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of tracing: what it leaves out is no layer
            graph = _Tracer().trace(copy.deepcopy(module))
    except Exception as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise PassRefusedError(
            f"the module cannot be traced: {said}. Layers fold where the forward pass has no control flow "
            "that depends on values."
        ) from error
    parts = dict(module.named_modules())
    calls = Counter(id(parts[str(node.target)]) for node in graph.nodes if node.op == "call_module")
    shared, over_positions = _read_apart(module, graph), _over_positions(model, split)
    found = []
    for node in graph.nodes:
        source = node.args[0] if node.args else None
        if node.op != "call_module" or not isinstance(source, fx.Node) or source.op != "call_module":
            continue
        layer, norm = parts[str(source.target)], parts[str(node.target)]
        once = calls[id(layer)] == calls[id(norm)] == 1 and len(source.users) == 1
        own = not shared & {id(each) for each in (*layer.parameters(), *norm.parameters())}
        along = not (isinstance(layer, nn.Linear) and norm in over_positions)
        if once and own and along and _folds(layer, norm):
            found.append((str(source.target), str(node.target)))
    return found


def _read_apart(module: nn.Module, graph: fx.Graph) -> set[int]:
    """Ids of parameters that are read outside their layer too, or belong to several."""
    owned = list(module.named_parameters(remove_duplicate=False))
    owners = Counter(id(parameter) for _, parameter in owned)
    read = {str(node.target) for node in graph.nodes if node.op == "get_attr"}
    return {id(each) for name, each in owned if owners[id(each)] > 1 or name in read}


def _over_positions(model: TorchModel, split: Split) -> set[nn.Module]:
    """Normalizations of more than rows: behind a linear layer their channels are the positions."""
    found: set[nn.Module] = set()

    def look(norm: nn.Module, given: tuple[Tensor, ...]) -> None:
        if given[0].ndim > 2:
            found.add(norm)

    norms = [part for part in model.module.modules() if isinstance(part, nn.BatchNorm1d)]
    handles = [norm.register_forward_pre_hook(look) for norm in norms]
    try:
        predict(model, split.take(slice(0, 2)))
    finally:
        for handle in handles:
            handle.remove()
    return found


def _folds(layer: nn.Module, norm: nn.Module) -> bool:
    pairs = (
        (nn.Linear, nn.BatchNorm1d),
        (nn.Conv1d, nn.BatchNorm1d),
        (nn.Conv2d, nn.BatchNorm2d),
        (nn.Conv3d, nn.BatchNorm3d),
    )
    return isinstance(norm, Normalization) and norm.track_running_stats and (type(layer), type(norm)) in pairs


def _folded(layer: nn.Module, norm: nn.Module) -> nn.Module:
    assert isinstance(norm, Normalization)
    if isinstance(layer, nn.Linear):
        return fuse_linear_bn_eval(layer, norm)
    assert isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    return fuse_conv_bn_eval(layer, norm)


class _Tracer(fx.Tracer):
    """Sees blocks of branches as one layer each."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, Branches) or super().is_leaf_module(m, module_qualified_name)


def _normalizations(module: nn.Module) -> int:
    return sum(isinstance(part, Normalization) for part in module.modules())


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
