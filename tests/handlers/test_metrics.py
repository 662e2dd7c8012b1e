# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from monai.engines import SupervisedEvaluator
from torch import nn

from monai_mimmx.handlers import CellBalancedAccuracy, RobustAccuracy, head_accuracies, head_output

CLASSES = (3, 2, 2)


def predictions(n=60, missing=0, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.stack([rng.integers(0, c, n) for c in CLASSES], axis=1)
    labels[:missing, 1] = -1
    return torch.tensor(rng.normal(size=(n, sum(CLASSES)))), torch.tensor(labels)


def oracle(logits, labels):
    logits, labels = logits.numpy(), labels.numpy()
    labels, correct = labels[(labels >= 0).all(1)], (logits[:, :3].argmax(1) == labels[:, 0])[(labels >= 0).all(1)]
    cells = [correct[(labels == cell).all(1)] for cell in np.unique(labels, axis=0)]
    return float(np.mean([cell.mean() for cell in cells]))


class TestCellBalancedAccuracy:
    @pytest.mark.parametrize("missing", [0, 7])
    def test_against_numpy_in_parts(self, missing):
        logits, labels = predictions(missing=missing)
        metric = CellBalancedAccuracy(CLASSES)
        for part in (slice(0, 10), slice(10, 11), slice(11, 60)):
            metric.update((logits[part], labels[part]))
        assert metric.compute() == pytest.approx(oracle(logits, labels), abs=1e-12)

    def test_a_shortcut_and_an_over_correction_read_alike(self):
        # y and z agree in 9 of 10 samples; predicting z, or its opposite, is right in one of the two kinds of cell.
        labels = torch.tensor([[0, 0]] * 9 + [[0, 1]] + [[1, 1]] * 9 + [[1, 0]])
        for predicted in (labels[:, 1], 1 - labels[:, 1]):
            metric = CellBalancedAccuracy((2, 2))
            metric.update((torch.nn.functional.one_hot(predicted, 4).float(), labels))
            assert metric.compute() == 0.5

    def test_empty_cells_do_not_count_and_reset_forgets(self):
        metric = CellBalancedAccuracy((2, 2))
        assert metric.compute() == 0.0
        metric.update((torch.tensor([[1.0, 0, 0, 0]]), torch.tensor([[0, 1]])))
        assert metric.compute() == 1.0
        metric.reset()
        assert metric.compute() == 0.0


class TestRobustAccuracy:
    @pytest.mark.parametrize("missing", [0, 7])
    def test_one_factor_is_the_worse_of_here_and_inverted(self, missing):
        rng = np.random.default_rng(0)
        y = rng.integers(0, 2, 400)
        z = np.where(rng.random(400) < 0.85, y, 1 - y)
        labels = torch.tensor(np.stack([y, z], axis=1))
        labels[:missing, 1] = -1
        rows = labels[missing:].numpy()
        for predicted in (z, y, np.where(rng.random(400) < 0.7, y, z), np.where(y == z, 1 - y, y)):
            logits = torch.nn.functional.one_hot(torch.tensor(predicted), 4).float()
            metric = RobustAccuracy((2, 2))
            metric.update((logits, labels))
            correct = (predicted == y)[missing:]
            inverted = 0.0
            for cell in np.ndindex(2, 2):
                inside = (rows == cell).all(1)
                independent = (rows[:, 0] == cell[0]).mean() * (rows[:, 1] == cell[1]).mean()
                inverted += (2 * independent - inside.mean()) * correct[inside].mean()
            assert metric.compute() == pytest.approx(max(0.0, min(correct.mean(), inverted)), abs=1e-9)

    def test_two_factors_add_their_drops(self):
        # The prediction follows z1: the drop is that of z1, and z2, which is independent of all, adds none.
        cells = [(y, y, z) for y in (0, 1) for z in (0, 1)] * 9 + [(y, 1 - y, z) for y in (0, 1) for z in (0, 1)]
        labels = torch.tensor(cells)
        metric = RobustAccuracy((2, 2, 2))
        metric.update((torch.nn.functional.one_hot(labels[:, 1], 6).float(), labels))
        assert metric.compute() == pytest.approx(0.1, abs=1e-9)  # 0.9 here, 0.1 where z1 is inverted

    @pytest.mark.parametrize("classes", [2, 3, 4])
    def test_the_value_is_the_accuracy_on_the_inverted_subset(self, classes):
        # 900 of each class of y, z = y in 9 of 10; all is right there, and 6 of 10 elsewhere.
        others = classes - 1
        cells = {(y, z): 810 if y == z else 90 // others for y in range(classes) for z in range(classes)}
        labels = torch.tensor([cell for cell, count in cells.items() for _ in range(count)])
        order = torch.cat([torch.arange(count) / count for count in cells.values()])
        right = (labels[:, 0] == labels[:, 1]) | (order < 0.6)
        predicted = torch.where(right, labels[:, 0], (labels[:, 0] + 1) % classes)
        metric = RobustAccuracy((classes, classes))
        metric.update((torch.nn.functional.one_hot(predicted, 2 * classes).float(), labels))
        agreement = 0.1 / others  # of Inv
        assert metric.compute() == pytest.approx(agreement + (1 - agreement) * 0.6, abs=1e-6)

    def test_drop_weight(self):
        # Where z agrees with y (80 of 100) all is right, elsewhere half.
        labels = torch.tensor([(0, 0), (1, 1)] * 40 + [(0, 1), (1, 0)] * 10)
        predicted = torch.tensor([0, 1] * 40 + [0, 1] * 5 + [1, 0] * 5)
        values = {}
        for weight in (0.0, 1.0, 2.0, 9.0):
            metric = RobustAccuracy((2, 2), drop_weight=weight)
            metric.update((torch.nn.functional.one_hot(predicted, 4).float(), labels))
            values[weight] = metric.compute()
        # drop = 2 * (0.15 * 1 + 0.15 * 1 - 0.15 * 0.5 - 0.15 * 0.5) = 0.3
        assert values == pytest.approx({0.0: 0.9, 1.0: 0.6, 2.0: 0.3, 9.0: 0.0})
        with pytest.raises(ValueError, match=r"drop_weight must be 0 or more, got -1"):
            RobustAccuracy((2, 2), drop_weight=-1)

    def test_an_empty_cell_is_no_drop(self):
        # z's class 2 goes with y = 0 only, and the prediction is right 3 times in 4 whatever z is.
        cells = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]
        labels = torch.tensor([cell for cell in cells for _ in range(4)])
        predicted = torch.where(torch.arange(20) % 4 == 0, 1 - labels[:, 0], labels[:, 0])
        metric = RobustAccuracy((2, 3))
        metric.update((torch.nn.functional.one_hot(predicted, 5).float(), labels))
        assert metric.compute() == pytest.approx(0.75)

    def test_no_sample(self):
        assert RobustAccuracy((2, 2)).compute() == 0.0


class TestHeads:
    def test_a_head_without_labels_has_no_accuracy(self):
        metrics = head_accuracies((2, 2), ("y", "sex"))
        batch = {"pred": torch.eye(4)[[0, 1]], "label": torch.tensor([[0, -1], [0, -1]])}
        for metric in metrics.values():
            metric.update(metric._output_transform(batch))
        assert metrics["accuracy_y"].compute() == 0.5 and math.isnan(metrics["accuracy_sex"].compute())

    def test_output_is_the_heads_labelled_rows(self):
        logits, labels = predictions(missing=7)
        head, label = head_output(CLASSES, 1)({"pred": logits, "label": labels})
        assert torch.equal(head, logits[7:, 3:5]) and torch.equal(label, labels[7:, 1])

    def test_in_monais_evaluator(self):
        # The network's logits are its input. A batch without any label of a task must not stop the run.
        logits, labels = predictions(missing=10)
        logits = logits.float()
        batches = [{"image": logits[i : i + 10], "label": labels[i : i + 10]} for i in range(0, 60, 10)]
        evaluator = SupervisedEvaluator(
            device="cpu",
            val_data_loader=batches,
            network=nn.Identity(),
            key_val_metric={"cells": CellBalancedAccuracy(CLASSES)},
            additional_metrics=head_accuracies(CLASSES, ("y", "sex", "site")),
            decollate=False,
        )
        evaluator.run()
        metrics = evaluator.state.metrics
        assert metrics["cells"] == pytest.approx(oracle(logits, labels), abs=1e-12)
        for i, (name, part) in enumerate({"y": slice(0, 3), "sex": slice(3, 5), "site": slice(5, 7)}.items()):
            known = labels[:, i] >= 0
            expected = (logits[known, part].argmax(1) == labels[known, i]).double().mean().item()
            assert metrics[f"accuracy_{name}"] == pytest.approx(expected, abs=1e-12)
