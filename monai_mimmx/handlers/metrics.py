# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""Ignite metrics of the heads of a multi-task network, for MONAI's evaluator without decollation."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from ignite.exceptions import NotComputableError
from ignite.metrics import Accuracy, Metric
from ignite.metrics.metric import reinit__is_reduced, sync_all_reduce
from monai.utils.enums import CommonKeys as Keys
from torch import Tensor

from monai_mimmx.data.splits import cell_index

__all__ = ["CellBalancedAccuracy", "RobustAccuracy", "head_accuracies", "head_output"]


def head_output(num_classes: Sequence[int], task: int) -> Callable[[Mapping[str, Tensor]], tuple[Tensor, Tensor]]:
    """
    An ``output_transform``: from an engine's output to one head's logits `(b, C)` and labels `(b,)`, where labelled.

    Args:
        num_classes: classes of each task, in the order of the logits.
        task: which head, 0 for the primary task.

    Example:
        >>> output = {"pred": torch.tensor([[0.1, 0.2, 0.3, 0.4, 0.5]] * 2), "label": torch.tensor([[0, 2], [1, -1]])}
        >>> head_output((2, 3), 1)(output)
        (tensor([[0.3000, 0.4000, 0.5000]]), tensor([2]))
    """
    start = sum(num_classes[:task])

    def transform(output: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        logits, label = output[Keys.PRED][:, start : start + num_classes[task]], output[Keys.LABEL][:, task]
        return logits[label >= 0], label[label >= 0]

    return transform


class _HeadAccuracy(Accuracy):
    """The accuracy of a head; NaN, rather than an error that ends the training, where nobody labelled its factor."""

    def compute(self) -> float:
        try:
            return super().compute()
        except NotComputableError:
            return math.nan


def head_accuracies(num_classes: Sequence[int], task_names: Sequence[str]) -> dict[str, Metric]:
    """
    The accuracy of every head, as metrics named ``accuracy_<task>``; NaN for a task that no sample has a label of.

    Args:
        num_classes: classes of each task.
        task_names: their names.

    Example:
        >>> sorted(head_accuracies((2, 2), ("y", "sex")))
        ['accuracy_sex', 'accuracy_y']
    """
    return {
        f"accuracy_{name}": _HeadAccuracy(output_transform=head_output(num_classes, i))
        for i, name in enumerate(task_names)
    }


def _logits_and_labels(output: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    return output[Keys.PRED], output[Keys.LABEL]


class CellBalancedAccuracy(Metric):
    """
    The accuracy of the primary task, with every populated (y, z_1 .. z_N) cell counting alike.

    On data with the training's correlation it shows a shortcut and an over-correction alike: both fail in the rare
    cells or in the common ones. That makes it a criterion for model selection that needs no inverted or balanced data.

    Args:
        num_classes: classes of each task, the primary task first.
        output_transform: from the engine's output to logits `(B, sum C)` and labels `(B, 1 + N)`; by default the
            entries "pred" and "label".

    Example:
        >>> metric = CellBalancedAccuracy((2, 2))
        >>> label = torch.tensor([[0, 0], [0, 0], [0, 0], [0, 1]])
        >>> metric.update((torch.tensor([[1.0, 0, 0, 0]] * 3 + [[0.0, 1, 0, 0]]), label))
        >>> metric.compute()
        0.5
    """

    _state_dict_all_req_keys = ("_correct", "_total")

    def __init__(self, num_classes: Sequence[int], output_transform: Callable | None = None) -> None:
        self.num_classes = tuple(num_classes)
        super().__init__(output_transform=output_transform or _logits_and_labels)

    @reinit__is_reduced
    def reset(self) -> None:
        """Forget all samples."""
        cells = math.prod(self.num_classes)
        self._correct = torch.zeros(cells, dtype=torch.float64)
        self._total = torch.zeros(cells, dtype=torch.float64)

    @reinit__is_reduced
    def update(self, output: tuple[Tensor, Tensor]) -> None:
        """
        Args:
            output: logits `(B, sum C)` and labels `(B, 1 + N)`; rows that miss a label are left out.
        """
        label = output[1].cpu()
        predicted = output[0][:, : self.num_classes[0]].argmax(1).cpu()
        cell = torch.from_numpy(cell_index(label.numpy(), self.num_classes))
        complete, correct = cell >= 0, predicted == label[:, 0]
        self._total += torch.bincount(cell[complete], minlength=len(self._total))
        self._correct += torch.bincount(cell[complete & correct], minlength=len(self._total))

    @sync_all_reduce("_correct", "_total")
    def compute(self) -> float:
        """The mean over populated cells, in [0, 1]; 0 before any sample."""
        populated = self._total > 0
        if not bool(populated.any()):
            return 0.0
        return float((self._correct[populated] / self._total[populated]).mean())


class RobustAccuracy(CellBalancedAccuracy):
    """
    The accuracy on the data seen, less what is expected to be lost where the correlations point the other way.

    With A_i(y, z) the accuracy of the primary task in the cell (y, z_i) and P_i(y, z) its share of the data, the drop
    from here to data with inverted correlations is estimated as

        drop = sum_i K_i / (K_i - 1) sum_yz (P_i(y, z) - P_i(y) P_i(z)) A_i(y, z)

    for factors of K_i classes, since what exceeds independence here falls short of it there by 1 / (K_i - 1) (see
    :class:`~monai_mimmx.data.CorrelatedSplit`). It uses the cells of one factor at a time and is far less noisy than the
    rare cells of all factors; in a cell without samples A_i(y, z) is taken to be that of the class y. The value is accuracy - drop_weight * max(drop, 0): a
    shortcut lowers it by its drop, an over-correction by the accuracy it costs here. It needs no inverted or balanced
    data.

    Args:
        num_classes: classes of each task, the primary task first.
        drop_weight: 1 makes the value the expected accuracy where the correlations point the other way. Where rare
            cells hold few samples, that hardly changes as training goes on to fit the common ones, so that noise
            would choose the epoch; above 1, of two models equally good there the one with the smaller drop is preferred.

    Raises:
        ValueError: for a drop_weight below 0.

    Example:
        >>> metric = RobustAccuracy((2, 2))
        >>> label = torch.tensor([[0, 0]] * 4 + [[0, 1]] + [[1, 1]] * 4 + [[1, 0]])
        >>> shortcut = torch.nn.functional.one_hot(label[:, 1], 2).float()
        >>> metric.update((torch.cat([shortcut, shortcut], 1), label))
        >>> round(metric.compute(), 3)
        0.2
    """

    def __init__(
        self, num_classes: Sequence[int], drop_weight: float = 1.0, output_transform: Callable | None = None
    ) -> None:
        if drop_weight < 0:
            raise ValueError(f"drop_weight must be 0 or more, got {drop_weight}.")
        self.drop_weight = drop_weight
        super().__init__(num_classes, output_transform)

    @sync_all_reduce("_correct", "_total")
    def compute(self) -> float:
        """The value, in [0, 1]; 0 before any sample."""
        total = self._total.reshape(self.num_classes)
        correct = self._correct.reshape(self.num_classes)
        count = float(total.sum())
        if count == 0:
            return 0.0
        drop = 0.0
        for factor in range(1, len(self.num_classes)):
            others = [axis for axis in range(1, len(self.num_classes)) if axis != factor]
            share = (total.sum(others) if others else total) / count
            hits = (correct.sum(others) if others else correct) / count
            of_class = hits.sum(1, keepdim=True) / share.sum(1, keepdim=True).clamp(min=1e-12)
            rate = torch.where(share > 0, hits / share.clamp(min=1e-12), of_class)
            excess = share - share.sum(1, keepdim=True) * share.sum(0, keepdim=True)
            classes = self.num_classes[factor]
            drop += classes / max(classes - 1, 1) * float((excess * rate).sum())
        return max(0.0, float(correct.sum()) / count - self.drop_weight * max(drop, 0.0))
