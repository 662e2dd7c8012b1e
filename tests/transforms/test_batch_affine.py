# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import affine_transform

from monai_mimmx.transforms import RandBatchAffine


def test_nothing_asked_changes_nothing():
    batch = torch.rand(3, 2, 9, 14)
    torch.testing.assert_close(RandBatchAffine(seed=0)(batch), batch, atol=1e-5, rtol=0)


def _draws(count: int, seed: int) -> np.ndarray:
    return (2 * torch.rand(count, 4, generator=torch.Generator().manual_seed(seed)) - 1).double().numpy()


@pytest.mark.parametrize("shape", [(20, 20), (16, 31)])
def test_equals_scipy(shape):
    """In pixels, the source of an output offset (row, column) from the centre is a matrix times that offset."""
    batch = torch.rand(6, 1, *shape, dtype=torch.float64)
    out = RandBatchAffine(max_rotation=25, max_scale=0.3, max_shear=0.2, seed=4)(batch)
    centre = (np.array(shape) - 1) / 2
    for image, new, (angle, shear, wide, high) in zip(batch[:, 0], out[:, 0], _draws(6, 4), strict=True):
        angle, shear = math.radians(25) * angle, 0.2 * shear
        wide, high = 1 + 0.3 * wide, 1 + 0.3 * high
        cos, sin = math.cos(angle), math.sin(angle)
        matrix = np.array([[high * cos, high * sin], [wide * (shear * cos - sin), wide * (cos + shear * sin)]])
        expected = affine_transform(image.numpy(), matrix, centre - matrix @ centre, order=1, mode="nearest")
        np.testing.assert_allclose(new.numpy(), expected, atol=1e-6)


def test_each_sample_has_its_own_draw():
    out = RandBatchAffine(max_rotation=30, seed=0)(torch.rand(1, 1, 10, 10).expand(8, -1, -1, -1))
    assert len({tuple(image.flatten().tolist()) for image in out}) == 8


def test_dtype_and_input_are_kept():
    batch = torch.rand(2, 1, 8, 8, dtype=torch.float64)
    before = batch.clone()
    out = RandBatchAffine(max_scale=0.2, seed=0)(batch)
    assert out.dtype == torch.float64 and torch.equal(batch, before)


@pytest.mark.parametrize("options", [{"max_rotation": -1}, {"max_shear": -0.1}, {"max_scale": 1.0}])
def test_options(options):
    with pytest.raises(ValueError, match="expected max_rotation and max_shear of 0 or more and max_scale from 0"):
        RandBatchAffine(**options)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [96, 256])
def test_half_precision_is_that_of_the_pixels_alone(dtype, size):
    batch = torch.rand(3, 1, size, size, generator=torch.Generator().manual_seed(0)).to(dtype)
    moved = RandBatchAffine(max_rotation=8, max_scale=0.1, seed=0)(batch)
    expected = RandBatchAffine(max_rotation=8, max_scale=0.1, seed=0)(batch.float())
    assert moved.dtype == dtype and torch.equal(moved, expected.to(dtype))


def test_3d_is_refused():
    with pytest.raises(ValueError, match=r"2D images \(B, C, H, W\), got shape \(1, 1, 4, 4, 4\)"):
        RandBatchAffine()(torch.zeros(1, 1, 4, 4, 4))
