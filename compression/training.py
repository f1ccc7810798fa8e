"""How a model is trained and fine-tuned: one loop for the reference, pruning and distillation."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Training:
    """How a model learns.

    Attributes:
        loss: Name in `LOSSES`: what is minimized against the labels.
        epochs: Passes over the training split when training from scratch.
        learning_rate: Peak of the one-cycle schedule.
        batch_size: Rows per step.
        weight_decay: AdamW's decoupled weight decay.
    """

    loss: str = "cross_entropy"
    epochs: int = 30
    learning_rate: float = 3e-3
    batch_size: int = 64
    weight_decay: float = 1e-2
