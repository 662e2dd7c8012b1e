# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""Light random augmentation of a whole batch where it stands: shift, flip, gain and noise per sample."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from monai_mimmx.transforms.batch_random import RandBatch

_FIELD_SIZE = 2**18


def shift_image(image: np.ndarray, shift: Sequence[int], out: np.ndarray) -> None:
    """Shift an image by whole pixels; what moves in is the nearest edge.

    Args:
        image: `(C, *spatial)`; soonest done where it is contiguous.
        shift: pixels per spatial axis, positive towards higher indices; at least one pixel of each axis stays inside.
        out: where `image[c, clip(i - shift)]` goes, another array of the same shape, contiguous.

    Example:
        >>> out = np.empty((1, 3))
        >>> shift_image(np.array([[1.0, 2.0, 3.0]]), (1,), out)
        >>> out.tolist()
        [[1.0, 1.0, 2.0]]
    """
    # By one copy: what it carries over the end of an axis lies in the edges, which come after it.
    step = sum(s * size for s, size in zip(shift, out.strides[1:], strict=True)) // out.itemsize
    source, target = image.reshape(-1), out.reshape(-1)
    target[max(step, 0) : target.size + min(step, 0)] = source[max(-step, 0) : source.size - max(step, 0)]
    for axis, s in enumerate(shift, start=1):
        along = out.swapaxes(0, axis)
        if s > 0:
            along[:s] = along[s]
        elif s < 0:
            along[s:] = along[s - 1]


class RandBatchAugment(RandBatch):
    """Augment each sample of a batch at random: flip, shift with edge replication, gain, additive Gaussian noise.

    All draws come from one CPU generator, so that a run repeats and resumes on any device. Where a batch has more than
    262,144 values, its noise is cut at random places, with a random sign, out of one random field of that size (or of
    two images), because a normal number per pixel would cost more than everything else together.

    Args:
        max_shift: largest shift in pixels along each axis, uniform in [-max_shift, max_shift].
        noise_std: standard deviation of the noise, in units of the pixels.
        flip_prob: probability of a flip, in [0, 1].
        flip_axis: spatial axis that is flipped.
        intensity: the gain is uniform in [1 - intensity, 1 + intensity].
        seed: of the generator; None: a random one.
        dtype: floating-point type of the result, for batches that come as they are stored (see
            :func:`~monai_mimmx.data.select_subset`); None: that of the batch.

    Raises:
        ValueError: an option out of its range.

    Example:
        >>> augment = RandBatchAugment(max_shift=2, noise_std=0.1, seed=0)
        >>> augment(torch.zeros(4, 1, 8, 8)).shape
        torch.Size([4, 1, 8, 8])
    """

    def __init__(
        self,
        *,
        max_shift: int = 4,
        noise_std: float = 0.05,
        flip_prob: float = 0.0,
        flip_axis: int = 0,
        intensity: float = 0.0,
        seed: int | None = 0,
        dtype: torch.dtype | None = None,
    ) -> None:
        if isinstance(max_shift, bool) or not isinstance(max_shift, int) or max_shift < 0:
            raise ValueError(f"expected max_shift to be a whole number of 0 or more, got {max_shift!r}")
        if not noise_std >= 0:
            raise ValueError(f"expected noise_std to be 0 or more, got {noise_std!r}")
        if not 0 <= flip_prob <= 1:
            raise ValueError(f"expected flip_prob to be from 0 to 1, got {flip_prob!r}")
        if not 0 <= intensity < 1:
            raise ValueError(f"expected intensity to be from 0 to below 1, got {intensity!r}")
        if flip_axis < 0:
            raise ValueError(f"expected flip_axis to be a spatial axis counted from 0, got {flip_axis!r}")
        self.max_shift = max_shift
        self.noise_std = noise_std
        self.flip_prob = flip_prob
        self.flip_axis = flip_axis
        self.intensity = intensity
        self.dtype = dtype
        super().__init__(seed)

    def __call__(self, batch: torch.Tensor, rows: torch.Tensor | None = None) -> torch.Tensor:
        """Augment a batch.

        Args:
            batch: `(B, C, *spatial)`, floating point, or of any type with `dtype`; not changed.
            rows: `(K,)` int64, the samples to take, in any order and as often; None: each once. It saves gathering them.

        Returns:
            A new tensor of the same shape (K for B) and device, and of `dtype` or the same type; no gradient passes through
            it.

        Raises:
            TypeError: a batch that is no tensor, or none of floating point without `dtype`.
            ValueError: no spatial axis, an axis that is not larger than `max_shift`, or no such `flip_axis`.
        """
        if not isinstance(batch, torch.Tensor) or not (self.dtype or batch.dtype).is_floating_point:
            received = batch.dtype if isinstance(batch, torch.Tensor) else type(batch).__name__
            raise TypeError(f"expected a floating-point tensor, got {received}")
        spatial = batch.shape[2:]
        if batch.ndim < 3 or min(spatial) <= self.max_shift or self.flip_axis >= len(spatial):
            raise ValueError(
                f"expected a batch (B, C, *spatial) with spatial sizes above max_shift={self.max_shift} and an axis "
                f"flip_axis={self.flip_axis}, got shape {tuple(batch.shape)}"
            )
        if rows is None:
            rows = torch.arange(len(batch))
        draws = self._draw(batch, len(rows))
        way = _one_by_one if batch.device.type == "cpu" else _at_once
        return way(batch.detach(), rows, draws, self.flip_axis, self.dtype or batch.dtype)

    def _draw(self, batch: torch.Tensor, count: int) -> _Draws:
        size = math.prod(batch.shape[1:])
        draw = self.generator
        shifts = torch.randint(-self.max_shift, self.max_shift + 1, (count, batch.ndim - 2), generator=draw)
        flips = torch.rand(count, generator=draw) < self.flip_prob
        gains = 1 + self.intensity * (2 * torch.rand(count, generator=draw) - 1)
        if not self.noise_std:
            return _Draws(shifts, flips, gains if self.intensity else None)
        length = min(count, max(2, _FIELD_SIZE // max(size, 1))) * size
        if length == count * size:
            offsets = torch.arange(count) * size
        else:
            offsets = torch.randint(0, length - size + 1, (count,), generator=draw)
        amounts = (2 * torch.randint(0, 2, (count,), generator=draw) - 1) * self.noise_std
        field = torch.randn(length, generator=draw).to(device=batch.device, dtype=self.dtype or batch.dtype)
        return _Draws(shifts, flips, gains if self.intensity else None, (field, offsets, amounts))


class _Draws(NamedTuple):
    """What is drawn for a batch: each sample's shift, flip, gain; a field of noise, where its own begins, times what."""

    shifts: torch.Tensor
    flips: torch.Tensor
    gains: torch.Tensor | None = None
    noise: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None


def _one_by_one(
    batch: torch.Tensor, rows: torch.Tensor, draws: _Draws, flip_axis: int, dtype: torch.dtype
) -> torch.Tensor:
    """For a processor: one sample at a time stays in its cache, and views cost NumPy the least."""
    out = torch.empty((len(rows), *batch.shape[1:]), dtype=dtype)
    # NumPy has no bfloat16.
    bits = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[batch.element_size()]
    images = batch.detach().view(bits).numpy()
    # What is to be converted is shifted beside it, in the same place for every sample.
    shifted = out if dtype == batch.dtype else batch.new_empty(batch.shape[1:]).expand_as(out)
    places = shifted.detach().view(bits).numpy()
    shifts, flips = draws.shifts.tolist(), draws.flips.tolist()
    gains = None if draws.gains is None else draws.gains.tolist()
    noise = None if draws.noise is None else (draws.noise[0], draws.noise[1].tolist(), draws.noise[2].tolist())
    for index, (row, new) in enumerate(zip(rows.tolist(), out, strict=True)):
        image = np.flip(images[row], 1 + flip_axis) if flips[index] else images[row]
        shift_image(image, shifts[index], places[index])
        if shifted is not out:
            new.copy_(shifted[index])
        if gains is not None:
            new.mul_(gains[index])
        if noise is not None:
            field, offsets, amounts = noise
            new.add_(field.narrow(0, offsets[index], new.numel()).view_as(new), alpha=amounts[index])
    return out


def _at_once(
    batch: torch.Tensor, rows: torch.Tensor, draws: _Draws, flip_axis: int, dtype: torch.dtype
) -> torch.Tensor:
    """For a GPU: starting a step costs it more than the step on one sample."""
    device, axes = batch.device, batch.ndim - 2
    shifts, flips = draws.shifts.to(device), draws.flips.to(device)
    places = [
        at.to(device).view(-1, *[1] * (batch.ndim - 1 - k)) for k, at in enumerate((rows, torch.arange(batch.shape[1])))
    ]
    for axis, size in enumerate(batch.shape[2:]):
        place = (torch.arange(size, device=device) - shifts[:, axis, None]).clamp(0, size - 1)
        if axis == flip_axis:
            place = torch.where(flips[:, None], size - 1 - place, place)
        places.append(place.view(-1, *[1] * (1 + axis), size, *[1] * (axes - 1 - axis)))
    out = batch[tuple(places)].to(dtype)
    per_sample = (-1, *[1] * (batch.ndim - 1))
    if draws.gains is not None:
        out *= draws.gains.to(out).view(per_sample)
    if draws.noise is not None and len(rows):
        field, offsets, amounts = draws.noise
        noise = field.unfold(0, out[0].numel(), 1)[offsets.to(device)]
        out.addcmul_(noise.view_as(out), amounts.to(out).view(per_sample))
    return out
