# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""Batches for the engines, augmented as a whole on their device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from monai.engines import PrepareBatch, default_prepare_batch
from torch import Tensor

__all__ = ["PrepareAugmentedBatch"]


class PrepareAugmentedBatch(PrepareBatch):
    """
    MONAI's default preparation, then an augmentation of the image batch on the device.

    Args:
        augment: image batch `(B, C, *spatial)` to the augmented batch, such as
            :class:`~monai_mimmx.transforms.RandBatchAugment`.
        dtype: type that the images get on the device, before they are augmented, where ``augment`` has no ``dtype`` of its
            own to give them; ``None``: as they come. What is stored in fewer bytes
            (:func:`~monai_mimmx.data.select_subset` with ``as_stored``) then moves there in fewer.

    Example:
        >>> prepare = PrepareAugmentedBatch(lambda image: image + 1)
        >>> prepare({"image": torch.zeros(1, 2), "label": torch.tensor([[0, 1]])}, "cpu")
        (tensor([[1., 1.]]), tensor([[0, 1]]))
    """

    def __init__(self, augment: Callable[[Tensor], Tensor], *, dtype: torch.dtype | None = None) -> None:
        self.augment, self.dtype = augment, dtype

    def __call__(
        self,
        batchdata: Mapping[str, Tensor],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor]:
        """Batch to (image, label) on ``device``."""
        image, label = default_prepare_batch(batchdata, device, non_blocking, **kwargs)  # type: ignore[arg-type, misc]
        if getattr(self.augment, "dtype", None) is None:
            image = image.to(dtype=self.dtype)  # type: ignore[union-attr]
        return self.augment(image), label  # type: ignore[return-value, arg-type]
