# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""Batches for the engines, augmented as a whole on their device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from monai.engines import PrepareBatch, default_prepare_batch
from monai.utils.enums import CommonKeys as Keys
from torch import Tensor

from monai_mimmx.data import StoredImages
from monai_mimmx.transforms import RandBatchAugment

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

    On a processor a :class:`~monai_mimmx.transforms.RandBatchAugment` with a ``dtype`` of its own, alone and not in a
    ``Compose``, reads :class:`~monai_mimmx.data.StoredImages` where they are stored, without a copy in between.

    Example:
        >>> prepare = PrepareAugmentedBatch(lambda image: image + 1)
        >>> prepare({"image": torch.zeros(1, 2), "label": torch.tensor([[0, 1]])}, "cpu")
        (tensor([[1., 1.]]), tensor([[0, 1]]))
    """

    def __init__(self, augment: Callable[[Tensor], Tensor], *, dtype: torch.dtype | None = None) -> None:
        self.augment, self.dtype = augment, dtype

    def __call__(
        self,
        batchdata: Mapping[str, Any],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor]:
        """Batch to (image, label) on ``device``."""
        stored = batchdata.get(Keys.IMAGE) if isinstance(batchdata, Mapping) else None
        own_dtype = getattr(self.augment, "dtype", None)
        in_place = own_dtype is not None and torch.device(device or "cpu").type == "cpu" and not kwargs
        if in_place and isinstance(stored, StoredImages) and isinstance(self.augment, RandBatchAugment):
            return self.augment(stored.pixels, stored.rows), batchdata.get(Keys.LABEL)  # type: ignore[return-value]
        image, label = default_prepare_batch(batchdata, device, non_blocking, **kwargs)  # type: ignore[arg-type, misc]
        if own_dtype is None:
            image = image.to(dtype=self.dtype)  # type: ignore[union-attr]
        return self.augment(image), label  # type: ignore[return-value, arg-type]
