# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""Training batches as a finished encoder sees them, so that what stands behind it can be trained without it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from monai_mimmx.data.cache import Batch
from monai_mimmx.networks.modes import evaluated

__all__ = ["EncodedBatches"]


class EncodedBatches(Dataset):
    """
    The encoder's output for training batches as they come: drawn, and augmented, as in training.

    The encoder runs when the first item is asked for, with its weights of that moment, in evaluation mode and without
    gradient. The outputs stay in memory: `len(self) * out_features` float32 values.

    Args:
        loader: the training batches, all of one size (``drop_last``).
        encoder: image batch `(B, C, *spatial)` to features `(B, F)`.
        prepare_batch: turns a batch into (image, label) on the device, and augments it, as in MONAI's engines.
        device: where the encoder is.
        passes: epochs of the loader to encode, 1 or more.
        amp: encode under autocast.
        amp_kwargs: arguments of :class:`torch.autocast`, such as its dtype.

    Raises:
        ValueError: for fewer than one pass, or a loader that may end with a smaller batch.

    Example:
        >>> loader = DataLoader([{"image": torch.ones(1, 4, 4), "label": torch.tensor([0, 1])}] * 8, 4, drop_last=True)
        >>> prepare = lambda batch, device, non_blocking: (batch["image"], batch["label"])
        >>> encoded = EncodedBatches(loader, nn.Flatten(), prepare_batch=prepare, device="cpu", passes=2)
        >>> len(encoded), encoded[0]["image"].shape
        (16, torch.Size([16]))
    """

    def __init__(
        self,
        loader: DataLoader,
        encoder: nn.Module,
        *,
        prepare_batch: Callable[..., tuple],
        device: torch.device | str,
        passes: int = 1,
        amp: bool = False,
        amp_kwargs: dict[str, Any] | None = None,
    ) -> None:
        if passes < 1:
            raise ValueError(f"passes, the epochs of the loader to encode, must be 1 or more, got {passes}.")
        if not loader.drop_last:
            raise ValueError("loader must have drop_last=True: the number of its samples has to be known beforehand.")
        self.loader, self.encoder, self.prepare_batch = loader, encoder, prepare_batch
        self.device, self.passes, self.amp = torch.device(device), passes, amp
        self.amp_kwargs = amp_kwargs or {}
        self._encoded: tuple[Tensor, Tensor] | None = None
        self._rows: list[int] = []

    def _encode(self) -> tuple[Tensor, Tensor]:
        outputs, labels = [], []
        bar = tqdm(total=len(self), desc="encoding", unit="img", disable=None)
        precision = torch.autocast(self.device.type, enabled=self.amp, **self.amp_kwargs)
        with evaluated(self.encoder), precision, bar:
            for _ in range(self.passes):
                for batch in self.loader:
                    image, label, *_ = self.prepare_batch(batch, self.device, False)
                    outputs.append(self.encoder(image).float().cpu())
                    labels.append(label.cpu())
                    self._rows += batch["row"].tolist() if "row" in batch else []
                    bar.update(len(label))
        features = torch.cat(outputs)
        logging.getLogger("monai_mimmx").info(
            f"the encoder is fixed now: what it makes of {len(features)} training images, "
            f"{features.numel() * 4 / 1e9:.2f} GB, stays in memory"
        )
        return features, torch.cat(labels)

    def __len__(self) -> int:
        return self.passes * len(self.loader) * int(self.loader.batch_size or 1)

    def __getitem__(self, index: int) -> Batch:
        return Batch({name: values[0] for name, values in self.__getitems__([index]).items()})

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """The batch of these items: "image", the features `(B, F)` float32, "label" `(B, 1 + N)` and "row" `(B,)`."""
        if self._encoded is None:
            self._encoded = self._encode()
        picked: Any = torch.as_tensor(indices)
        return Batch(image=self._encoded[0][picked], label=self._encoded[1][picked], row=picked)

    def files(self, rows: Sequence[int]) -> list[str]:
        """The image files of these items; none where the loader's batches do not tell."""
        source: Any = self.loader.dataset
        return source.files([self._rows[row] for row in rows]) if self._rows and hasattr(source, "files") else []
