# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""Random rotation and scaling of whole batches of 2D images on their device."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from monai_mimmx.transforms.batch_random import RandBatch

__all__ = ["RandBatchAffine"]


class RandBatchAffine(RandBatch):
    """
    Rotate, scale and shear each 2D image of a batch at random about its centre, by one bilinear resampling.

    Use only what cannot destroy a label: no scaling where size is a spurious factor, for example.

    Args:
        max_rotation: largest rotation to either side, in degrees.
        max_scale: the scale is uniform in [1 - max_scale, 1 + max_scale], for each axis on its own.
        max_shear: largest shear factor to either side.
        seed: of the generator, which lives on the CPU so that a run repeats on any device; ``None``: a random one.

    Raises:
        ValueError: for an option out of its range.

    Example:
        >>> RandBatchAffine(max_rotation=10, seed=0)(torch.zeros(4, 1, 8, 8)).shape
        torch.Size([4, 1, 8, 8])
    """

    def __init__(
        self, *, max_rotation: float = 0.0, max_scale: float = 0.0, max_shear: float = 0.0, seed: int | None = 0
    ) -> None:
        if max_rotation < 0 or max_shear < 0 or not 0 <= max_scale < 1:
            raise ValueError(
                "expected max_rotation and max_shear of 0 or more and max_scale from 0 to below 1, got "
                f"{max_rotation}, {max_shear} and {max_scale}"
            )
        self.max_rotation, self.max_scale, self.max_shear = math.radians(max_rotation), max_scale, max_shear
        super().__init__(seed)

    def __call__(self, batch: Tensor) -> Tensor:
        """
        Args:
            batch: `(B, C, H, W)`, floating point; not changed.

        Returns:
            a new tensor of the same shape, dtype and device; what comes from outside the image repeats its border.

        Raises:
            ValueError: for another number of axes.
        """
        if batch.ndim != 4:
            raise ValueError(f"expected a batch of 2D images (B, C, H, W), got shape {tuple(batch.shape)}")
        draws = 2 * torch.rand(len(batch), 4, generator=self.generator) - 1
        angle, shear = self.max_rotation * draws[:, 0], self.max_shear * draws[:, 1]
        scale = 1 + self.max_scale * draws[:, 2:]
        aspect = batch.shape[-1] / batch.shape[-2]
        cos, sin = angle.cos(), angle.sin()
        # In normalised coordinates the axes have different units; `aspect` keeps a rotation a rotation.
        theta = torch.zeros(len(batch), 2, 3)
        theta[:, 0, 0] = (cos + shear * sin) * scale[:, 0]
        theta[:, 0, 1] = (-sin + shear * cos) * scale[:, 0] / aspect
        theta[:, 1, 0] = sin * scale[:, 1] * aspect
        theta[:, 1, 1] = cos * scale[:, 1]
        # Half precision cannot tell the places of a hundred pixels apart.
        image = batch.to(torch.promote_types(batch.dtype, torch.float32))
        grid = F.affine_grid(theta.to(image), list(batch.shape), align_corners=False)
        moved = F.grid_sample(image, grid, mode="bilinear", padding_mode="border", align_corners=False)
        return moved.to(batch.dtype)
