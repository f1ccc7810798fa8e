"""Figures that are measured on a graph, readable without the libraries that measured them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Traffic:
    """Bytes that one inference of one row moves between processor and memory.

    An upper bound: operators as they are written, except that runtimes fold quantization and dequantization
    into their neighbours.

    Attributes:
        weight_bytes: Stored tensors, each read once.
        activation_bytes: Inputs and intermediate results, each written once and read by each of its readers.
    """

    weight_bytes: int
    activation_bytes: int

    @property
    def bytes(self) -> int:
        """All of them."""
        return self.weight_bytes + self.activation_bytes


@dataclass(frozen=True)
class Layer:
    """A layer that reference and artifact both have.

    Attributes:
        name: The reference's weight.
        weight_db: Signal to quantization noise of its weight.
        activation_db: The same of what it gives for real rows; None where no tensor corresponds.
        node: The reference's operator, as `exclude_nodes` takes it; empty where it has no name.
    """

    name: str
    weight_db: float
    activation_db: float | None
    node: str = ""

    @property
    def label(self) -> str:
        """What people call it: by the operator, else by the weight."""
        return self.node or self.name

    @property
    def worst_db(self) -> float:
        """The lower of the two."""
        known = (self.weight_db, self.activation_db)
        return min(value for value in known if value is not None)


@dataclass(frozen=True)
class Sqnr:
    """Signal to noise of an artifact against the reference.

    Attributes:
        outputs: By output, in decibels.
        layers: Layers whose weights correspond by name and shape, the worst first. Pruned ones do not.
    """

    outputs: dict[str, float]
    layers: list[Layer]
