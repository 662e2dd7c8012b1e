# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""One axial slice of a volume, whatever its orientation in the file."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import nibabel
import numpy as np
import torch
from monai.config import KeysCollection, NdarrayOrTensor
from monai.data import MetaTensor
from monai.transforms import MapTransform

from monai_mimmx.options import require_options

FOREGROUND = "foreground"


def _slice_index(volume: NdarrayOrTensor, position: float | str, axis: int) -> int:
    if position == FOREGROUND:
        others = tuple(index for index in range(volume.ndim) if index != axis)
        values = torch.as_tensor(volume).float()
        return int((values > values.mean()).sum(dim=others).argmax())
    return int(np.floor(float(position) * (volume.shape[axis] - 1) + 0.5))


def axial_slice(volume: NdarrayOrTensor, position: float | str = 0.5) -> NdarrayOrTensor:
    """Cut the plane z = constant out of a channel-first volume whose last axis runs from inferior to superior.

    Args:
        volume: `(C, X, Y, Z)`.
        position: fraction of the extent in [0, 1], 0 the lowest slice, 1 the highest (nearest slice), or "foreground":
            the slice with most pixels above the volume's mean.

    Returns:
        `(C, X, Y)`, a view.

    Raises:
        ValueError: a volume that is not four-dimensional, or a position out of range.

    Example:
        >>> axial_slice(np.arange(3.0).reshape(1, 1, 1, 3), 1.0).tolist()
        [[[2.0]]]
    """
    require_options(position=position)
    if volume.ndim != 4:
        raise ValueError(f"expected a volume (C, X, Y, Z), got shape {tuple(volume.shape)}")
    return volume[..., _slice_index(volume, position, 3)]


class AxialSliced(MapTransform):
    """Dictionary transform: one axial slice of a volume, as a 2D image with x towards right and y towards anterior.

    The affine of a `MetaTensor` says which axis is axial and which way the axes run, so `Orientationd` is not needed
    and files of different orientation give slices that look the same way. The slice keeps the meta data and gets the
    in-plane part of the affine. A plain array or tensor is taken to run towards right, anterior, superior. Images that
    are already 2D, `(C, X, Y)`, pass through unchanged.

    Args:
        keys: of the images.
        position: fraction of the inferior-superior extent in [0, 1], or "foreground"; see `axial_slice`.
        allow_missing_keys: do not raise for a key that is absent.

    Raises:
        ValueError: a position out of range, an image that is neither 2D nor 3D, or an affine without an axial axis.

    Example:
        >>> AxialSliced("image")({"image": torch.zeros(1, 6, 7, 5)})["image"].shape
        torch.Size([1, 6, 7])
    """

    def __init__(self, keys: KeysCollection, position: float | str = 0.5, *, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        require_options(position=position)
        self.position = position

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Slice the image of each key."""
        new = dict(data)
        for key in self.key_iterator(new):
            new[key] = self._slice(new[key], key)
        return new

    def _slice(self, image: NdarrayOrTensor, key: Hashable) -> NdarrayOrTensor:
        if image.ndim == 3:
            return image
        if image.ndim != 4:
            raise ValueError(f"{key!r}: expected (C, X, Y, Z) or (C, X, Y), got shape {tuple(image.shape)}")
        if not isinstance(image, MetaTensor):
            return axial_slice(image, self.position)
        affine = image.affine.cpu().numpy()
        # One row per axis of the volume: (world axis R, A or S it is closest to, +1 or -1 for its direction).
        orientation = nibabel.orientations.io_orientation(affine)
        if np.isnan(orientation).any():
            raise ValueError(f"{key!r}: the affine {affine.tolist()} does not say which axis is axial")
        axis_of = {int(world): axis for axis, world in enumerate(orientation[:, 0])}
        axial = axis_of[2]
        index = _slice_index(image.as_tensor(), self.position, 1 + axial)
        if self.position != FOREGROUND and orientation[axial, 1] < 0:
            index = image.shape[1 + axial] - 1 - index  # the position counts from below, the file from above
        plane = image.as_tensor().select(1 + axial, index)
        in_plane = affine.copy()
        in_plane[:3, 3] += index * affine[:3, axial]
        columns = [axis_of[0], axis_of[1]]
        if columns[0] > columns[1]:
            plane = plane.transpose(1, 2)
        for new_axis, axis in enumerate(columns):
            if orientation[axis, 1] < 0:
                plane = plane.flip(1 + new_axis)
                in_plane[:3, 3] += (image.shape[1 + axis] - 1) * in_plane[:3, axis]
                in_plane[:3, axis] *= -1
        flat = np.eye(3)
        flat[:2, :2] = in_plane[:2, columns]
        flat[:2, 2] = in_plane[:2, 3]
        sliced = MetaTensor(plane.contiguous(), meta=image.meta, applied_operations=image.applied_operations)
        sliced.affine = torch.as_tensor(flat)
        return sliced
