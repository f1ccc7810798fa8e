"""How much quality is left on disturbed rows: what compression may cost where nobody looked.

After Hendrycks and Dietterich 2019, "Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations", with the severities 1 and 5 that its CIFAR-10-C has; blur grows with large pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compression.data import Split
from compression.signature import Array

Pixels = NDArray[np.float32]

DISTURBED_ROWS = 128
_CHANNELS = (1, 3)
_SMALLEST_SIDE = 8
_SIDE = 32  # of the pictures that the severities were chosen for
_SEED = 0


@dataclass(frozen=True)
class Perturbation:
    """One way to disturb rows.

    Attributes:
        name: What it is called in reports.
        severities: How strong.
        apply: Disturbs pixels `(rows, height, width, channels)` of 0..1; it may leave that range.
    """

    name: str
    severities: tuple[float, ...]
    apply: Callable[[Pixels, float], Pixels]


@dataclass(frozen=True)
class Disturbed:
    """Rows after a perturbation.

    Attributes:
        perturbation: Its name.
        severity: How strong.
        rows: What became of the validation rows that are spread evenly, so many as `DISTURBED_ROWS`.
    """

    perturbation: str
    severity: float
    rows: Split


@dataclass(frozen=True)
class Robustness:
    """Quality under one perturbation.

    Attributes:
        perturbation: What it is called.
        severity: How strong.
        rows: Rows of the validation split that were disturbed.
        clean: The variant's metric on those rows as they are.
        value: The variant's metric on the disturbed rows.
        reference_clean: The reference's metric on those rows as they are.
        reference: The reference's metric on the disturbed rows.
    """

    perturbation: str
    severity: float
    rows: int
    clean: float
    value: float
    reference_clean: float
    reference: float

    @property
    def drop_ratio(self) -> float | None:
        """What the variant loses over what the reference loses; None where the reference loses nothing."""
        lost, reference_lost = self.clean - self.value, self.reference_clean - self.reference
        return lost / reference_lost if reference_lost else None


def _noise(pixels: Pixels, deviation: float) -> Pixels:
    generator = np.random.default_rng(_SEED)
    noise = generator.standard_normal(pixels.shape, np.float32)
    return pixels + np.float32(deviation) * noise


def _blur(pixels: Pixels, sigma: float) -> Pixels:
    """Gaussian, one axis after the other; edges are repeated."""
    sigma *= max(1.0, min(pixels.shape[1:3]) / _SIDE)
    radius = max(1, round(3 * sigma))
    weights = np.exp(-0.5 * np.square(np.arange(-radius, radius + 1) / sigma))
    weights /= weights.sum()
    for axis in (1, 2):
        width = [(radius, radius) if each == axis else (0, 0) for each in range(pixels.ndim)]
        padded, length = np.pad(pixels, width, mode="edge"), pixels.shape[axis]
        parts = (padded.take(range(at, at + length), axis=axis) for at in range(len(weights)))
        pixels = np.sum([weight * part for weight, part in zip(weights, parts, strict=True)], axis=0)
    return pixels.astype(np.float32)


def _contrast(pixels: Pixels, kept: float) -> Pixels:
    mean = pixels.mean(axis=(1, 2), keepdims=True)
    faded: Pixels = (pixels - mean) * np.float32(kept) + mean
    return faded


# Kinds of inputs and how rows of them are disturbed.
PERTURBATIONS: dict[str, tuple[Perturbation, ...]] = {
    "image": (
        Perturbation("gaussian-noise", (0.04, 0.10), _noise),
        Perturbation("gaussian-blur", (0.4, 1.0), _blur),
        Perturbation("contrast", (0.75, 0.15), _contrast),
    ),
}


def kind_of(rows: Array) -> str | None:
    """The kind of an input by the look of its rows: `image`, or None for what has no perturbations."""
    is_number = rows.dtype == np.uint8 or rows.dtype.kind == "f"
    return "image" if is_number and rows.ndim == 4 and _channel_axis(rows.shape) else None


def perturbations(inputs: Mapping[str, Array]) -> list[tuple[Perturbation, float]]:
    """Every perturbation that fits the first input that has any, with each of its severities."""
    kind = next((kind for rows in inputs.values() if (kind := kind_of(rows))), None)
    fitting = PERTURBATIONS[kind] if kind else ()
    return [(each, severity) for each in fitting for severity in each.severities]


def disturb(split: Split, perturbation: Perturbation, severity: float) -> Split:
    """The rows with every picture disturbed, in the dtype, layout and range that they came in."""
    disturbed = {
        name: _disturb_pictures(rows, perturbation, severity) if kind_of(rows) == "image" else rows
        for name, rows in split.inputs.items()
    }
    return Split(disturbed, split.labels)


def disturbed_pictures(split: Split) -> Iterator[Disturbed]:
    """The rows under every perturbation that fits them, one after the other."""
    for perturbation, severity in perturbations(split.inputs):
        yield Disturbed(perturbation.name, severity, disturb(split, perturbation, severity))


def _disturb_pictures(rows: Array, perturbation: Perturbation, severity: float) -> Array:
    low, high = _range(rows)
    pixels = np.moveaxis((rows.astype(np.float32) - low) / (high - low), _channel_axis(rows.shape), -1)
    disturbed = np.clip(perturbation.apply(pixels, severity), 0.0, 1.0) * (high - low) + low
    disturbed = np.moveaxis(disturbed, -1, _channel_axis(rows.shape))
    return (np.rint(disturbed) if rows.dtype == np.uint8 else disturbed).astype(rows.dtype)


def _range(rows: Array) -> tuple[float, float]:
    """Darkest and brightest value: of bytes by their type, of floats as far as these rows show."""
    if rows.dtype == np.uint8:
        return 0.0, 255.0
    low, high = float(rows.min()), float(rows.max())
    return (low, high) if high > low else (low, low + 1.0)


def _channel_axis(shape: tuple[int, ...]) -> int:
    """3 or 1 for the axis of channels, 0 when the other two are no sides of a picture."""
    for axis, sides in ((3, shape[1:3]), (1, shape[2:4])):
        if shape[axis] in _CHANNELS and min(sides) >= _SMALLEST_SIDE:
            return axis
    return 0
