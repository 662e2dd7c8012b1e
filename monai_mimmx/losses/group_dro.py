# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""Group distributionally robust optimisation of the primary task."""

from __future__ import annotations

import math
from collections.abc import Sequence

import ignite.distributed as idist
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from monai_mimmx.losses.multi_task import MultiTaskCrossEntropy

__all__ = ["GroupDROCrossEntropy", "make_task_loss"]


class GroupDROCrossEntropy(nn.Module):
    r"""
    The losses of :class:`MultiTaskCrossEntropy`, with the primary task's weighted towards the groups that fare worst.

    Groups are the cells (y, z_1 .. z_N). With L_g the mean cross-entropy of group g in the batch,

    .. math:: q_g \leftarrow q_g \exp(\eta L_g) / \textstyle\sum_h q_h \exp(\eta L_h), \qquad L_0 = \sum_g q_g L_g .

    Args:
        num_classes: classes of each task, the primary task first.
        step_size: eta, above 0.

    Raises:
        ValueError: for a step_size that is not above 0.

    The buffer ``weights`` holds q, one entry per group in the order of the cells, and is part of the state. It stays as it
    is in evaluation mode, and where a loss is not finite, such as in a step that a gradient scaler skips. With several
    processes L_g is the mean over the joint batch, so that all have the same weights, and each returns its part of the
    primary loss times their number: DistributedDataParallel's mean of the gradients is then that of the joint batch.

    Example:
        >>> loss = GroupDROCrossEntropy((2, 2), step_size=1.0)
        >>> _ = loss(torch.tensor([[9.0, 0, 0, 0]] * 2), torch.tensor([[0, 0], [1, 0]]))
        >>> int(loss.weights.argmax())  # the group (y=1, z=0)
        2

    Reference:
        Sagawa et al., Distributionally Robust Neural Networks for Group Shifts, ICLR 2020, algorithm 1.
    """

    weights: Tensor

    def __init__(self, num_classes: Sequence[int], *, step_size: float = 0.01) -> None:
        super().__init__()
        if not step_size > 0:
            raise ValueError(f"step_size must be above 0, got {step_size}.")
        self.tasks = MultiTaskCrossEntropy(num_classes, reduction="none")
        self.num_classes, self.step_size = tuple(num_classes), step_size
        groups = math.prod(num_classes)
        self.register_buffer("weights", torch.full((groups,), 1.0 / groups))

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """
        Args:
            logits: `(B, sum of num_classes)`, task after task.
            labels: class indices `(B, 1 + N)`; -1 where a label is missing. Samples that miss one have no group and
                do not count for the primary task.

        Returns:
            the losses `(1 + N,)`; that of the primary task is its plain mean where no sample has a group.
        """
        losses, labels = self.tasks(logits, labels), labels.long()
        grouped = (labels >= 0).all(1)
        members = torch.zeros(len(labels), dtype=torch.long, device=labels.device)
        for label, classes in zip(labels.unbind(1), self.num_classes, strict=True):
            members = members * classes + label
        members = members[grouped]
        logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
        each = F.cross_entropy(logits[grouped, : self.num_classes[0]], labels[grouped, 0], reduction="none")
        zeros = each.new_zeros(len(self.weights))
        sums = zeros.index_add(0, members, each)
        counts = zeros.index_add(0, members, torch.ones_like(each))
        with torch.no_grad():
            total = torch.stack([sums.detach(), counts])
            if (processes := idist.get_world_size()) > 1:
                dist.all_reduce(total)
            if not bool(total[1].any()):
                return losses
            counts = total[1].clamp(min=1)
            if self.training and bool(total[0].isfinite().all()):
                # As logarithms, for the exponential of a large loss is infinite; that of 0 would keep a group out for good.
                floor = torch.finfo(self.weights.dtype).tiny
                logarithms = self.weights.to(each.device).clamp(min=floor).log()
                self.weights = (logarithms + self.step_size * total[0] / counts).softmax(0)
        primary = processes * (self.weights.to(each.device) * sums / counts).sum()
        return torch.cat([primary.unsqueeze(0), losses[1:]])


def make_task_loss(method: str, num_classes: Sequence[int]) -> nn.Module:
    """
    The tasks' losses of a named method, one value per task.

    Args:
        method: ``"groupdro"`` weighs groups in the primary task's loss; all others do not.
        num_classes: classes of each task, the primary task first.

    Example:
        >>> type(make_task_loss("groupdro", (2, 2))).__name__, type(make_task_loss("mimmx", (2, 2))).__name__
        ('GroupDROCrossEntropy', 'MultiTaskCrossEntropy')
    """
    if method == "groupdro":
        return GroupDROCrossEntropy(num_classes)
    return MultiTaskCrossEntropy(num_classes, reduction="none")
