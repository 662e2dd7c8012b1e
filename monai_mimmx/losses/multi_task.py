# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""Cross-entropy of several classification tasks whose logits stand side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["MultiTaskCrossEntropy"]


class MultiTaskCrossEntropy(nn.Module):
    """
    One cross-entropy L_i per task, over the samples that have that task's label.

    Args:
        num_classes: classes of each task, the primary task first.
        scaling: a callable from the losses `(1 + N,)` to their scaling factors gamma `(1 + N,)`, such as
            :class:`~monai_mimmx.handlers.DynamicLossScaling`; ``None`` means 1. Used by ``reduction="sum"``.
        reduction: ``"sum"`` gives the scalar sum_i gamma_i L_i, ``"none"`` the losses `(1 + N,)`.

    Raises:
        ValueError: for an unknown reduction, or ``scaling`` with ``reduction="none"``.

    Example:
        >>> loss = MultiTaskCrossEntropy((2, 3), reduction="none")
        >>> loss(torch.zeros(1, 5), torch.tensor([[1, -1]]))
        tensor([0.6931, 0.0000])
    """

    def __init__(
        self,
        num_classes: Sequence[int],
        *,
        scaling: Callable[[Tensor], Tensor] | None = None,
        reduction: str = "sum",
    ) -> None:
        super().__init__()
        if reduction not in ("sum", "none"):
            raise ValueError(f"reduction must be 'sum' or 'none', got {reduction!r}.")
        if scaling is not None and reduction == "none":
            raise ValueError("scaling has no effect with reduction='none'; scale the returned losses instead.")
        self.num_classes = tuple(num_classes)
        self.scaling = scaling
        self.reduction = reduction

    def _require_classes(self, labels: Tensor) -> None:
        labels = labels if labels.is_floating_point() else labels.long()  # -1 of uint8 would be 255
        classes = torch.tensor(self.num_classes, device=labels.device)
        wrong = ~((labels >= -1) & (labels < classes) & (labels == labels.trunc()))  # NaN is none of it
        if bool(wrong.any()):
            row, task = wrong.nonzero()[0].tolist()
            raise ValueError(
                f"labels of task {task} must be classes from 0 to {self.num_classes[task] - 1}, or -1 where they are missing, "
                f"got {labels[row, task].item():g} in row {row}."
            )

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """
        Args:
            logits: `(B, sum of num_classes)`, task after task.
            labels: class indices `(B, 1 + N)`; -1 where a label is missing.

        Returns:
            a scalar or the losses `(1 + N,)`; the loss of a task without any label in the batch is 0.

        Raises:
            ValueError: for shapes that do not fit ``num_classes``, or, on a processor, labels that are no classes.
        """
        tasks, width = len(self.num_classes), sum(self.num_classes)
        if logits.ndim != 2 or logits.shape[1] != width:
            raise ValueError(
                f"logits must have shape (B, {width}) for num_classes {self.num_classes}, got {tuple(logits.shape)}."
            )
        if labels.shape != (logits.shape[0], tasks):
            raise ValueError(f"labels must have shape ({logits.shape[0]}, {tasks}), got {tuple(labels.shape)}.")
        logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
        if not torch.compiler.is_compiling() and labels.device.type == "cpu":  # a GPU would be waited for
            self._require_classes(labels)
        losses = []
        for head, label in zip(logits.split(self.num_classes, dim=1), labels.long().unbind(1), strict=True):
            total = F.cross_entropy(head, label, ignore_index=-1, reduction="sum")
            losses.append(total / (label >= 0).sum().clamp(min=1))
        stacked = torch.stack(losses)
        if self.reduction == "none":
            return stacked
        return stacked.sum() if self.scaling is None else (self.scaling(stacked) * stacked).sum()
