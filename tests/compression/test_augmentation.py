from __future__ import annotations

import pytest
import torch
from torch import Tensor

from compression.augmentation import crop_flip, crop_flip_cutout, shrink


def images(last: bool) -> Tensor:
    pixels = torch.arange(2 * 16 * 16 * 3, dtype=torch.float32).reshape(2, 16, 16, 3) % 251
    pixels = pixels.to(torch.uint8)
    return pixels if last else pixels.permute(0, 3, 1, 2)


@pytest.mark.parametrize("last", [True, False])
def test_crop_flip_keeps_shape_dtype_and_colours_and_moves_pixels(last: bool) -> None:
    given = images(last)
    moved = crop_flip(given, torch.Generator().manual_seed(0))
    assert moved.shape == given.shape
    assert moved.dtype == given.dtype
    assert not torch.equal(moved, given)
    assert set(moved.unique().tolist()) <= set(given.unique().tolist())


def test_both_layouts_move_alike() -> None:
    first = crop_flip(images(True), torch.Generator().manual_seed(3))
    second = crop_flip(images(False), torch.Generator().manual_seed(3))
    assert torch.equal(first, second.permute(0, 2, 3, 1))


@pytest.mark.parametrize("last", [True, False])
def test_shrink_averages(last: bool) -> None:
    small = shrink(images(last), 0.75)
    assert small.shape == ((2, 12, 12, 3) if last else (2, 3, 12, 12))
    assert small.dtype == torch.uint8
    even = torch.full((1, 16, 16, 3), 7, dtype=torch.uint8)
    assert shrink(even, 0.5).unique().tolist() == [7]


@pytest.mark.parametrize("last", [True, False])
def test_cutout_paints_a_square_in_the_mean_colour(last: bool) -> None:
    dark = torch.zeros(1, 16, 16, 3, dtype=torch.uint8)
    dark[:, :, :8] = 250
    given = dark if last else dark.permute(0, 3, 1, 2)
    painted = crop_flip_cutout(given, torch.Generator().manual_seed(0))
    assert painted.shape == given.shape
    seen = painted if last else painted.permute(0, 2, 3, 1)
    grey = ((seen > 0) & (seen < 250)).all(-1)
    assert 4 <= int(grey.sum()) <= 25
