# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""Images with a faint stripe pattern (y: its direction) and a bright corner (z: whether it is there) that mostly agrees."""

from __future__ import annotations

import torch
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from torch import Tensor, nn
from torch.utils.data import WeightedRandomSampler

from monai_mimmx.data import balanced_weights
from monai_mimmx.handlers import head_accuracies


def toy_images(count: int, agreement: float, seed: int) -> tuple[Tensor, Tensor]:
    """Images `(count, 1, 16, 16)` and labels `(count, 2)` of y and z, which are equal with that probability."""
    draw = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 2, (count,), generator=draw)
    z = torch.where(torch.rand(count, generator=draw) < agreement, y, 1 - y)
    stripes = (torch.arange(16) // 2 % 2).float() - 0.5
    pattern = torch.where(y[:, None, None].bool(), stripes[None, :, None], stripes[None, None, :])
    images = 0.35 * pattern + torch.randn(count, 16, 16, generator=draw)
    images[:, :4, :4] += 2.0 * z[:, None, None]
    return images[:, None], torch.stack([y, z], dim=1)


def toy_loader(count: int, agreement: float, seed: int, balanced: bool = False) -> DataLoader:
    """The same as batches of 100 with the keys that MONAI's engines expect; balanced: every (y, z) is equally likely."""
    images, labels = toy_images(count, agreement, seed)
    items = [{"image": image, "label": label} for image, label in zip(images, labels, strict=True)]
    weights = balanced_weights(labels.numpy(), (2, 2)).tolist()
    sampler = WeightedRandomSampler(weights, count) if balanced else None
    return DataLoader(Dataset(items), batch_size=100, shuffle=sampler is None, sampler=sampler)


def accuracies(network: nn.Module, loader: DataLoader, tasks: list[str]) -> list[float]:
    """Accuracy of the first two logits for the first label, and of the next two for the second."""
    metrics = head_accuracies((2, 2), tasks)
    test = SupervisedEvaluator("cpu", loader, network, key_val_metric=metrics, decollate=False)
    test.run()
    return [test.state.metrics[f"accuracy_{task}"] for task in tasks]
