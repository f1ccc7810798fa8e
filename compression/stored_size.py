"""How many weights are stored with a module, and whether the finished artifact still stores so few."""

from __future__ import annotations

from compression.base import BrokenPromiseError, Facts
from compression.channels import parameters_of
from compression.export import export
from compression.inspection import parameters
from compression.model import OnnxModel, TorchModel


def stored_facts(before: TorchModel, after: TorchModel) -> Facts:
    """What `check_stored` needs to know of a technique that takes weights away.

    Constants that the module computes with, such as a filterbank, are stored beside its parameters.

    Raises:
        ExportError: The module cannot be exported.
    """
    left = parameters_of(after.module)
    return {
        # An export with shared weights keeps the normalizations that this one folds.
        "stored_weights": max(parameters(export(after)), left),
        "removed_weights": parameters_of(before.module) - left,
    }


def check_stored(facts: Facts, artifact: OnnxModel, technique: str) -> None:
    """Checks that an artifact stores about as few weights as were left. Export folds and adds a few.

    Raises:
        BrokenPromiseError: It stores nearly as many as before.
    """
    stored, left, removed = parameters(artifact), facts["stored_weights"], facts["removed_weights"]
    if stored > left + removed / 2:
        raise BrokenPromiseError(
            f"the artifact stores {stored} weights, nearer to the {left + removed} before {technique} than "
            f"to the {left} after it. A later step replaced what {technique} made: leave one of them out."
        )
