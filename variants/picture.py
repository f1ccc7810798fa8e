"""PNG and JPEG files become pixels. Torch-free."""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Mapping
from math import inf
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageOps
from pydantic import Field

from compression.signature import Array, Signature
from variants.transform import (
    Before,
    DeclarationError,
    Settings,
    TransformError,
    check_size,
    check_time,
    raw_input,
)

_FORMATS = ("PNG", "JPEG")
_BEGINNINGS = (b"\x89PNG", b"\xff\xd8\xff")
_MODES = {1: "L", 3: "RGB"}
_LIGHT_BYTES = 16 * 1024
_LIGHT_PIXELS = 64 * 1024


class ImageSettings(Settings):
    """Settings.

    Attributes:
        input: Name of the BYTES input.
        layout: Order of the axes of the model's input.
        resize: What becomes of a picture of another size: `crop` scales it until it covers the size and
            cuts what stands out at the sides, `stretch` changes its proportions, `none` refuses it.
        mean: Taken from each channel.
        deviation: Divides each channel.
        max_pixels: Pixels that a file may unfold to; more are refused before they are decoded.
    """

    input: str = "file"
    layout: Literal["NHWC", "NCHW"] = "NHWC"
    resize: Literal["crop", "stretch", "none"] = "crop"
    mean: tuple[float, ...] = (0.0,)
    deviation: tuple[float, ...] = (1.0,)
    max_pixels: int = Field(16 * 1024**2, ge=1)


class DecodeImage(Before):
    """PNG and JPEG files to pixels of the input's size, layout and dtype.

    Whole numbers get the pixels 0..255; floats get `(pixel - mean) / deviation`, by channel.
    """

    settings_type = ImageSettings
    # One grey pixel.
    example = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR42mNoAAAAggCB2kUIOwAAAABJRU5ErkJggg=="

    def __init__(self, settings: ImageSettings, signature: Signature, files: Mapping[str, Path]) -> None:
        """Prepares for a model.

        Raises:
            DeclarationError: It has several inputs, or its input is no picture of that layout.
        """
        self._settings = settings
        self.raw = raw_input(settings.input, signature)
        if len(signature.inputs) != 1:
            raise DeclarationError(
                "a picture becomes one input. Declare `image` for models of one input only."
            )
        self._input = signature.inputs[0]
        self._height, self._width, self._channels = self._size()
        self._mean, self._deviation = (self._per_channel(v) for v in (settings.mean, settings.deviation))

    def is_light(self, values: Array) -> bool:
        """Judged by their headers too: a small file can unfold to a large picture."""
        if sum(map(len, values)) > _LIGHT_BYTES:
            return False
        pixels = 0
        for row, value in enumerate(values):
            with self._opened(row, value) as image:
                pixels += image.width * image.height
        return pixels <= _LIGHT_PIXELS

    def run(self, values: Array, until: float = inf) -> dict[str, Array]:
        """One tensor `(rows, ...)` of files `(rows,)`, each in binary or in base64."""
        row_shape = (self._height, self._width, self._channels)
        dtype = np.dtype(self._input.dtype)
        check_size(len(values) * int(np.prod(row_shape)) * dtype.itemsize, "pictures")
        tensor = np.empty((len(values), *row_shape), dtype)
        for row, value in enumerate(values):
            check_time(until)
            pixels = self._pixels(row, value).reshape(row_shape)
            tensor[row] = pixels if dtype.kind in "iu" else (pixels - self._mean) / self._deviation
        if self._settings.layout == "NCHW":
            tensor = np.ascontiguousarray(tensor.transpose(0, 3, 1, 2))
        return {self._input.name: tensor}

    def _pixels(self, row: int, value: bytes) -> Array:
        with self._opened(row, value) as image:
            if image.mode.startswith(("I", "F")):
                raise self._error(row, f"has the mode {image.mode}", "Send 8 bits per channel.")
            try:
                upright = ImageOps.exif_transpose(image)
                return np.asarray(self._resized(row, upright.convert(_MODES[self._channels])))
            except TransformError:
                raise
            except Exception as error:  # Pillow's decoders raise whatever their formats do
                raise self._error(row, f"cannot be decoded ({error})", "Send a whole PNG or JPEG.") from error

    def _opened(self, row: int, value: bytes) -> Image.Image:
        """The file with its header read and nothing decoded."""
        try:
            content = value if value.startswith(_BEGINNINGS) else base64.b64decode(value, validate=True)
            image = Image.open(io.BytesIO(content), formats=_FORMATS)
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise self._too_large(row, "too many") from error
        except binascii.Error as error:
            raise self._error(row, "is neither PNG, JPEG nor base64", "Send the file's bytes.") from error
        except Exception as error:  # as above
            raise self._error(row, "is no readable PNG or JPEG", "Send a file of these formats.") from error
        if image.width * image.height > self._settings.max_pixels:
            raise self._too_large(row, f"{image.width} x {image.height}")
        return image

    def _resized(self, row: int, image: Image.Image) -> Image.Image:
        size = (self._width, self._height)
        if image.size == size:
            return image
        match self._settings.resize:
            case "crop":
                return ImageOps.fit(image, size, Image.Resampling.BILINEAR)
            case "stretch":
                return image.resize(size, Image.Resampling.BILINEAR)
            case "none":
                given = f"has {image.width} x {image.height} pixels; expected {self._width} x {self._height}"
                raise self._error(row, given, "Scale it to that size.")

    def _size(self) -> tuple[int, int, int]:
        """Height, width and channels, from the input's shape."""
        axes = self._input.row_shape
        order = (0, 1, 2) if self._settings.layout == "NHWC" else (1, 2, 0)
        if len(axes) != 3 or not all(isinstance(axis, int) for axis in axes) or axes[order[2]] not in _MODES:
            raise DeclarationError(
                f'input "{self._input.name}" has shape {self._input.wire_shape}; a picture needs three fixed '
                f"axes in the order {self._settings.layout} with one or three channels. Change the layout."
            )
        height, width, channels = (int(axes[position]) for position in order)
        return height, width, channels

    def _per_channel(self, values: tuple[float, ...]) -> Array:
        if len(values) not in (1, self._channels):
            raise DeclarationError(
                f"{len(values)} values for {self._channels} channels. Give one, or one each."
            )
        return np.array(values, np.float32)

    def _too_large(self, row: int, pixels: str) -> TransformError:
        return self._error(
            row,
            f"unfolds to {pixels} pixels; at most {self._settings.max_pixels} are taken",
            "Send a smaller picture.",
        )

    def _error(self, row: int, fact: str, remedy: str) -> TransformError:
        return TransformError(f'input "{self.raw.name}" {fact} in row {row}. {remedy}')
