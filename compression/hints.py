"""What a student can learn from inside its teacher: feature hints, and where the teacher looks.

Regressors and hooks live during training only and leave no trace in the student.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from compression.autocast import Autocast
from compression.base import PassRefusedError
from compression.data import Split
from compression.losses import Batch, Outputs
from compression.model import TorchModel
from compression.reparameterization import fused
from compression.training import Training, lay_out, outputs_of, predict, seeded

PROBE_ROWS = 2
_EPSILON = 1e-12
_COMPARED_ROWS = 16
_SAME = 1e-3  # of the largest answer


@dataclass(frozen=True)
class Pair:
    """A layer of the teacher and the layer of the student that learns from it, by module name.

    Attributes:
        teacher: Name of the teacher's module.
        student: Name of the student's module.
        channels: Channels of the student's features and of the teacher's.
        rank: How many axes the features have, the batch being one.
    """

    teacher: str
    student: str
    channels: tuple[int, int]
    rank: int


def pairs_of(
    teacher: TorchModel, student: TorchModel, split: Split, named: Sequence[tuple[str, str]] = ()
) -> tuple[Pair, ...]:
    """The named pairs of layers, or by default the last layers of both at each height and width.

    Raises:
        PassRefusedError: A layer does not exist, features differ in more than channels, or nothing pairs.
    """
    shapes = _shapes(teacher, split), _shapes(student, split)
    names = named or _by_size(*shapes)
    if not names:
        raise PassRefusedError(
            "teacher and student have no feature maps of the same height and width. Name pairs of layers "
            "in hints."
        )
    return tuple(_pair(*shapes, *both) for both in names)


def hint_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared distance of features, as a share of the teacher's mean square.

    Romero et al. 2015, "FitNets: Hints for Thin Deep Nets", equation 3; the scale of the layer is divided
    out, so that one weight fits all layers.
    """
    return functional.mse_loss(student.float(), teacher) / (teacher.square().mean() + _EPSILON)


def attention_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared distance, 0 to 2, of where both look in their feature maps `(batch, channels, height, width)`.

    Zagoruyko and Komodakis 2017, "Paying More Attention to Attention", section 3.1: the mean square over
    channels, normalized over positions.
    """
    return (_attention(student.float()) - _attention(teacher)).square().sum(1).mean()


class Hinted(nn.Module):
    """A student that also returns its features, plain and as the teacher's width, behind its outputs.

    Args:
        student: What is trained; it is taken over, not copied.
        pairs: Its layers that have a teacher.
        regressed: Whether a linear map (1x1 convolution) brings each feature to the teacher's channels.
    """

    def __init__(self, student: nn.Module, pairs: Sequence[Pair], regressed: bool) -> None:
        super().__init__()
        self.student = student
        self.layers = [pair.student for pair in pairs]
        self.regressors = nn.ModuleList([_regressor(pair) for pair in pairs] if regressed else [])

    def forward(self, *inputs: Tensor) -> Outputs:
        """Outputs, then one feature per pair, then those of the regressors."""
        with watched(self.student, self.layers) as features:
            outputs = outputs_of(self.student, inputs)
        plain = tuple(features[name] for name in self.layers)
        given = plain if self.regressors else ()
        regressed = [regress(each) for regress, each in zip(self.regressors, given, strict=True)]
        return (*outputs, *plain, *regressed)


def hinted(student: TorchModel, pairs: Sequence[Pair], *, regressed: bool, seed: int) -> TorchModel:
    """A copy of the student as what is trained with hints."""
    with seeded(seed):
        module = Hinted(copy.deepcopy(student.module), pairs, regressed)
    return TorchModel(module, student.signature)


class Watching:
    """A teacher that answers each batch as the student sees it.

    Args:
        teacher: Who answers.
        training: Whether autocast computes the answers.
        split: Where rows come from that show whether a lean copy answers as the teacher does.
        layers: Names of the modules whose features are asked for too.
    """

    def __init__(
        self, teacher: TorchModel, training: Training, split: Split, layers: Sequence[str] = ()
    ) -> None:
        self.module = copy.deepcopy(teacher.module).eval() if layers else _lean(teacher, split)
        self.layers = layers
        self.autocast = Autocast(self.module, training.autocast)
        if self.autocast.enabled:
            lay_out(self.module, torch.channels_last)
        self._seen: Batch | None = None
        self._said: tuple[Outputs, Outputs] = ((), ())

    def answers(self, batch: Batch) -> Outputs:
        """The teacher's outputs, in float32."""
        return self._see(batch)[0]

    def features(self, batch: Batch) -> Outputs:
        """What its layers give, in float32."""
        return self._see(batch)[1]

    def _see(self, batch: Batch) -> tuple[Outputs, Outputs]:
        if self._seen is not batch:
            with torch.no_grad(), self.autocast.context(), watched(self.module, self.layers) as features:
                outputs = outputs_of(self.module, batch.inputs)
            looked_at = (features[name] for name in self.layers)
            self._seen, self._said = batch, (_singles(outputs), _singles(looked_at))
        return self._said


def _lean(teacher: TorchModel, split: Split) -> nn.Module:
    """A copy in eval mode, without the normalizations that fold into layers: it answers the same, sooner.

    Where none folds, or the answers would differ, it is as slow as the teacher, and as right.
    """
    rows = split.spread(_COMPARED_ROWS)
    try:
        lean = fused(teacher, rows)
    except PassRefusedError:
        return copy.deepcopy(teacher.module).eval()
    answers = zip(predict(lean, rows), predict(teacher, rows), strict=True)
    same = all(
        np.abs(ours.astype(np.float64) - whole).max() <= _SAME * np.abs(whole).max()
        for ours, whole in answers
    )
    return lean.module if same else copy.deepcopy(teacher.module).eval()


@contextmanager
def watched(module: nn.Module, names: Iterable[str]) -> Iterator[dict[str, Tensor]]:
    """Collects what submodules return while the block runs, by name, in the order of their last run."""
    seen: dict[str, Tensor] = {}
    handles = []
    parts = dict(module.named_modules())
    for name in names:

        def keep(part: nn.Module, inputs: Any, output: Any, name: str = name) -> None:
            seen.pop(name, None)
            if isinstance(output, Tensor):
                seen[name] = output

        handles.append(parts[name].register_forward_hook(keep))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _shapes(model: TorchModel, split: Split) -> dict[str, tuple[int, ...]]:
    """The shapes of what all submodules return for a few rows, in the order in which they run."""
    names = [name for name, _ in model.module.named_modules() if name]
    with watched(model.module, names) as features:
        predict(model, split.take(slice(0, PROBE_ROWS)))
    return {name: tuple(feature.shape) for name, feature in features.items()}


def _by_size(
    teacher: dict[str, tuple[int, ...]], student: dict[str, tuple[int, ...]]
) -> list[tuple[str, str]]:
    last = [
        {shape[2:]: name for name, shape in shapes.items() if len(shape) == 4 and shape[2:] != (1, 1)}
        for shapes in (teacher, student)
    ]
    return [(name, last[1][size]) for size, name in last[0].items() if size in last[1]]


def _pair(
    teachers: dict[str, tuple[int, ...]], students: dict[str, tuple[int, ...]], teacher: str, student: str
) -> Pair:
    for who, name, shapes in (("teacher", teacher, teachers), ("student", student, students)):
        if name not in shapes:
            raise PassRefusedError(
                f'the {who} has no layer "{name}" that returns a tensor. Layers: {", ".join(shapes)}.'
            )
    ours, theirs = students[student], teachers[teacher]
    axis = _channel_axis(len(ours))
    if len(ours) < 2 or _without(ours, axis) != _without(theirs, axis):
        raise PassRefusedError(
            f'features of shape {list(ours)} at the student\'s "{student}" cannot be compared with '
            f'{list(theirs)} at the teacher\'s "{teacher}". Pair layers that differ in channels only.'
        )
    return Pair(teacher, student, (ours[axis], theirs[axis]), len(ours))


def _channel_axis(rank: int) -> int:
    """Images have their channels behind the batch, sequences have them last."""
    return 1 if rank == 4 else rank - 1


def _without(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return (*shape[:axis], *shape[axis + 1 :])


def _regressor(pair: Pair) -> nn.Module:
    if pair.rank == 4:
        return nn.Conv2d(*pair.channels, kernel_size=1, bias=False)
    return nn.Linear(*pair.channels, bias=False)


def _attention(features: Tensor) -> Tensor:
    return functional.normalize(features.square().mean(1).flatten(1), dim=1)


def _singles(tensors: Iterable[Tensor]) -> Outputs:
    return tuple(each.float() if each.is_floating_point() else each for each in tensors)
