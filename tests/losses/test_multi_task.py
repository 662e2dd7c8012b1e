# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from monai_mimmx.handlers import DynamicLossScaling
from monai_mimmx.losses import MultiTaskCrossEntropy


def batch(missing=()):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 7, generator=generator)
    labels = torch.stack([torch.randint(c, (6,), generator=generator) for c in (2, 2, 3)], dim=1)
    for row, task in missing:
        labels[row, task] = -1
    return logits, labels


def test_against_torch():
    logits, labels = batch()
    losses = MultiTaskCrossEntropy((2, 2, 3), reduction="none")(logits, labels)
    heads = (logits[:, :2], logits[:, 2:4], logits[:, 4:])
    expected = torch.stack([F.cross_entropy(head, labels[:, i]) for i, head in enumerate(heads)])
    torch.testing.assert_close(losses, expected)
    assert MultiTaskCrossEntropy((2, 2, 3))(logits, labels).item() == pytest.approx(expected.sum().item(), abs=1e-6)


def test_missing_labels_do_not_count():
    logits, labels = batch(missing=[(0, 1), (4, 1), (2, 2)])
    logits = logits.requires_grad_()
    losses = MultiTaskCrossEntropy((2, 2, 3), reduction="none")(logits, labels)
    kept = labels[:, 1] >= 0
    assert losses[1].item() == pytest.approx(F.cross_entropy(logits[kept, 2:4], labels[kept, 1]).item(), abs=1e-6)
    losses.sum().backward()
    assert bool((logits.grad[[0, 4], 2:4] == 0).all()) and bool((logits.grad[2, 4:] == 0).all())
    assert bool((logits.grad[:, :2] != 0).all())


def test_task_without_labels():
    logits, labels = batch(missing=[(row, 2) for row in range(6)])
    logits = logits.requires_grad_()
    losses = MultiTaskCrossEntropy((2, 2, 3), reduction="none")(logits, labels)
    assert losses[2] == 0 and bool((losses[:2] > 0).all())
    MultiTaskCrossEntropy((2, 2, 3), scaling=DynamicLossScaling())(logits, labels).backward()
    assert bool(torch.isfinite(logits.grad).all()) and bool((logits.grad[:, 4:] == 0).all())


def test_scaling_weighs_without_a_gradient_of_its_own():
    logits, labels = batch()
    gamma = torch.tensor([2.0, 0.0, 0.5])
    seen = []

    def scaling(losses):
        seen.append(losses)
        return gamma

    losses = MultiTaskCrossEntropy((2, 2, 3), reduction="none")(logits, labels)
    total = MultiTaskCrossEntropy((2, 2, 3), scaling=scaling)(logits, labels)
    assert total.item() == pytest.approx((gamma * losses).sum().item(), abs=1e-6)
    torch.testing.assert_close(seen[0], losses)


def test_dtypes():
    logits, labels = batch()
    loss = MultiTaskCrossEntropy((2, 2, 3))
    assert loss(logits.bfloat16(), labels).dtype == torch.float32
    precise = logits.double().requires_grad_()
    assert loss(precise, labels).dtype == torch.float64
    assert torch.autograd.gradcheck(lambda v: loss(v, labels), (precise,))


def test_refusals():
    with pytest.raises(ValueError, match="reduction must be 'sum' or 'none', got 'mean'"):
        MultiTaskCrossEntropy((2, 2), reduction="mean")
    with pytest.raises(ValueError, match="scaling has no effect with reduction='none'"):
        MultiTaskCrossEntropy((2, 2), scaling=DynamicLossScaling(), reduction="none")
    loss = MultiTaskCrossEntropy((2, 3))
    with pytest.raises(ValueError, match=r"logits must have shape \(B, 5\) for num_classes \(2, 3\), got \(4, 4\)"):
        loss(torch.zeros(4, 4), torch.zeros(4, 2, dtype=torch.long))
    with pytest.raises(ValueError, match=r"labels must have shape \(4, 2\), got \(4,\)"):
        loss(torch.zeros(4, 5), torch.zeros(4, dtype=torch.long))


def test_labels_of_any_whole_number_type():
    logits, labels = torch.randn(6, 4), torch.randint(2, (6, 2))
    loss = MultiTaskCrossEntropy((2, 2), reduction="none")
    for dtype in (torch.int32, torch.uint8):
        assert torch.equal(loss(logits, labels.to(dtype)), loss(logits, labels))
