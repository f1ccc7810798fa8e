"""Removes channels from a module, and leaves whole what cannot be cut."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from compression.base import PassContext, PassRefusedError
from compression.channels import EXAMPLE_ROWS, ChannelGroup, Survey, Widths, narrowed
from compression.model import TorchModel
from compression.training import predict


def cut(
    model: TorchModel, context: PassContext, found: Survey, choose: Callable[[Survey], Widths]
) -> tuple[TorchModel, Survey]:
    """A copy of the model at the widths that are chosen, and the survey without what cannot be cut.

    Where the copy does not run, the groups that fail alone keep their width, and the widths of the others
    are chosen anew.

    Args:
        model: What the survey was made of; it stays as it is.
        context: Rows to run the copy on.
        found: The groups of channels that may go.
        choose: Gives the widths of a survey's groups.

    Raises:
        PassRefusedError: Every group fails alone, none does and yet they fail together, or `choose` refuses.
    """
    widths = choose(found)
    try:
        return _running(model, context, found.groups, widths), found
    except PassRefusedError:
        sound = tuple(group for group in found.groups if _can_be_cut(model, context, group, widths))
        if len(sound) in (0, len(found.groups)):
            raise
        whole = tuple(group.name for group in found.groups if group not in sound)
        return cut(model, context, replace(found, groups=sound, whole=(*found.whole, *whole)), choose)


def _can_be_cut(model: TorchModel, context: PassContext, group: ChannelGroup, widths: Widths) -> bool:
    try:
        _running(model, context, (group,), widths)
    except PassRefusedError:
        return False
    return True


def _running(
    model: TorchModel, context: PassContext, groups: Sequence[ChannelGroup], widths: Widths
) -> TorchModel:
    narrow = narrowed(model, context.splits.train, groups, widths)
    check_runs(narrow, context)
    return narrow


def check_runs(model: TorchModel, context: PassContext) -> None:
    """Checks that a narrower model still runs and gives what its signature says.

    Raises:
        PassRefusedError: The module reshapes to a width that is written in its code, or an output changed
            its shape.
    """
    try:
        outputs = predict(model, context.splits.train.take(slice(0, EXAMPLE_ROWS)))
    except Exception as error:  # whatever the module's own code says of a width that it does not know
        line = next(iter(str(error).splitlines()), type(error).__name__)
        raise PassRefusedError(
            f"the module does not run with fewer channels ({line}): its code fixes a width. Name the layers "
            "that make it in `ignore`."
        ) from error
    for spec, output in zip(model.signature.outputs, outputs, strict=True):
        if not spec.accepts_shape(output.shape):
            raise PassRefusedError(
                f'output "{spec.name}" has shape {list(output.shape)} after pruning; the signature says '
                f"{spec.wire_shape}. Name the layers that make it in `ignore`."
            )
