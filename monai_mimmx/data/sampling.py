# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""How training batches are drawn from a subset."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from monai.data import DistributedSampler
from torch.utils.data import Sampler, SubsetRandomSampler, WeightedRandomSampler

from monai_mimmx.data.splits import balanced_weights
from monai_mimmx.options import require_options

__all__ = ["make_sampler"]

logger = logging.getLogger(__name__)


class _FreshOrders(DistributedSampler):
    """One process's part of the rows, dealt anew each epoch; each iteration in an order of its own, as on one process."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._generator = torch.Generator().manual_seed(self.seed + 1_000_003 * self.rank)

    def __iter__(self) -> Iterator[int]:
        rows = list(super().__iter__())
        return (rows[i] for i in torch.randperm(len(rows), generator=self._generator).tolist())


def make_sampler(
    labels: np.ndarray,
    num_classes: Sequence[int],
    sampling: str,
    *,
    seed: int = 0,
    task_names: Sequence[str] | None = None,
) -> Sampler[int]:
    """
    The sampler of an epoch over the training subset, as many draws as it has rows.

    In a process group each process has its share: a part of the rows of its own, or, when balanced, independent draws
    from all of them, so that the composition is the same on every process.

    Args:
        labels: class indices `(n, 1 + N)`, the primary task first.
        num_classes: classes of each task.
        sampling: ``"correlated"``, every row once in random order; or ``"balanced"``, every (y, z) cell
            equally likely, with replacement.
        seed: of the sampler's own generator.
        task_names: names for messages.

    Raises:
        ValueError: for an unknown ``sampling``, or a balanced one when a cell is empty.

    Example:
        >>> sampler = make_sampler(np.array([[0, 0], [1, 1]] * 9 + [[0, 1], [1, 0]]), (2, 2), "balanced")
        >>> len(list(sampler))
        20
    """
    require_options(sampling=sampling)
    processes = idist.get_world_size()
    generator = torch.Generator().manual_seed(seed + 1_000_003 * idist.get_rank())
    if sampling == "correlated":
        if processes > 1:
            return _FreshOrders(labels, shuffle=True, seed=seed)
        # Not RandomSampler, which draws once more when an epoch has ended: a resumed training would miss that draw.
        return SubsetRandomSampler(range(len(labels)), generator=generator)
    weights = balanced_weights(labels, num_classes, task_names=task_names)
    if never := int((weights == 0).sum()):
        logger.warning("%d of %d training rows miss a label: balanced sampling never draws them", never, len(labels))
    return WeightedRandomSampler(weights.tolist(), len(labels) // processes, replacement=True, generator=generator)
