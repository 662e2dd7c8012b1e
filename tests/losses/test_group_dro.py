# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.nn import functional as F

from monai_mimmx.losses import GroupDROCrossEntropy, MultiTaskCrossEntropy

CLASSES = (2, 3)


def batch(seed, size=24):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.stack([torch.randint(c, (size,), generator=generator) for c in CLASSES], 1)
    return torch.randn(size, 5, generator=generator), labels


def test_against_the_algorithm_by_hand():
    loss, weights = GroupDROCrossEntropy(CLASSES, step_size=0.5), np.full(6, 1 / 6)
    for seed in range(4):
        logits, labels = batch(seed)
        labels[labels[:, 1] == seed % 3, 1] = (seed + 1) % 3  # a class of z is absent
        values = loss(logits, labels)
        each = F.cross_entropy(logits[:, :2], labels[:, 0], reduction="none").numpy()
        group_losses = np.zeros(6)
        for y in range(2):
            for z in range(3):
                inside = ((labels[:, 0] == y) & (labels[:, 1] == z)).numpy()
                group_losses[3 * y + z] = each[inside].mean() if inside.any() else 0.0
        weights = weights * np.exp(0.5 * group_losses)
        weights /= weights.sum()
        assert values[0].item() == pytest.approx((weights * group_losses).sum(), abs=1e-6)
        assert values[1].item() == pytest.approx(MultiTaskCrossEntropy(CLASSES, reduction="none")(logits, labels)[1])
        np.testing.assert_allclose(loss.weights, weights, rtol=1e-5)


def test_samples_without_a_group_do_not_count():
    logits, labels = batch(0)
    labels[5:, 1] = -1
    known, all_rows = GroupDROCrossEntropy(CLASSES), GroupDROCrossEntropy(CLASSES)
    assert torch.allclose(known(logits[:5], labels[:5])[0], all_rows(logits, labels)[0])
    labels[:, 1] = -1
    plain = MultiTaskCrossEntropy(CLASSES, reduction="none")(logits, labels)
    before = all_rows.weights.clone()
    assert torch.equal(all_rows(logits, labels), plain) and torch.equal(all_rows.weights, before)


def test_the_weights_are_saved():
    loss = GroupDROCrossEntropy(CLASSES, step_size=1.0)
    loss(*batch(0))
    other = GroupDROCrossEntropy(CLASSES)
    other.load_state_dict(loss.state_dict())
    assert torch.equal(other.weights, loss.weights) and not torch.allclose(loss.weights, torch.full((6,), 1 / 6))


def test_gradient_follows_the_weights():
    logits, labels = batch(1)
    logits.requires_grad_()
    loss = GroupDROCrossEntropy(CLASSES)
    loss(logits, labels)[0].backward()
    probabilities = logits.detach()[:, :2].softmax(1) - F.one_hot(labels[:, 0], 2)
    group = 3 * labels[:, 0] + labels[:, 1]
    expected = probabilities * (loss.weights / group.bincount(minlength=6).clamp(min=1))[group][:, None]
    torch.testing.assert_close(logits.grad[:, :2], expected)


def test_refusal():
    with pytest.raises(ValueError, match="step_size must be above 0, got 0"):
        GroupDROCrossEntropy(CLASSES, step_size=0)


@pytest.mark.parametrize("size", [1e2, 1e4, 1e6])
def test_huge_losses_give_finite_weights(size):
    """exp(0.01 L) of single precision ends at L = 8,872."""
    loss = GroupDROCrossEntropy((2, 2))
    logits = torch.tensor([[size, 0.0, 0.0, 0.0]] * 4)
    labels = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]])
    for _ in range(3):
        value = loss(logits, labels)
        assert value.isfinite().all()
    assert loss.weights.sum() == pytest.approx(1) and loss.weights[:2].max() < loss.weights[2:].min()
    assert value[0] == pytest.approx(size * float(loss.weights[2:].sum()), rel=1e-5)


def half_of_the_batches(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    loss, results = GroupDROCrossEntropy(CLASSES, step_size=0.5), []
    for logits, labels in joint_batches():
        part = logits.chunk(2)[rank].clone().requires_grad_()
        values = loss(part, labels.chunk(2)[rank])
        values[0].backward()
        results.append((values[0].detach(), part.grad / 2, loss.weights))  # DistributedDataParallel divides by 2
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def joint_batches():
    """The second has no sample with a group in one of its halves."""
    batches = [batch(seed) for seed in range(3)]
    batches[1][1][12:, 1] = -1
    return batches


@pytest.mark.skipif(not dist.is_available(), reason="PyTorch was built without torch.distributed")
def test_two_processes_are_one_with_the_joint_batch(tmp_path):
    torch.multiprocessing.start_processes(half_of_the_batches, (str(tmp_path),), 2, start_method="forkserver")
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    alone = GroupDROCrossEntropy(CLASSES, step_size=0.5)
    for step, (logits, labels) in enumerate(joint_batches()):
        whole = logits.clone().requires_grad_()
        value = alone(whole, labels)[0]
        value.backward()
        values, gradients, weights = zip(*(part[step] for part in parts), strict=True)
        torch.testing.assert_close(torch.stack(values).mean(), value.detach())
        torch.testing.assert_close(torch.cat(gradients), whole.grad)
        for each in weights:
            torch.testing.assert_close(each, alone.weights)


def test_evaluation_leaves_the_weights_alone():
    loss = GroupDROCrossEntropy((2, 2)).eval()
    before = loss.weights.clone()
    loss(torch.randn(20, 4), torch.randint(2, (20, 2)))
    assert torch.equal(loss.weights, before)


def test_a_batch_that_is_not_finite_leaves_the_weights_alone():
    loss = GroupDROCrossEntropy((2, 2))
    logits, labels = torch.randn(20, 4), torch.randint(2, (20, 2))
    loss(logits, labels)
    before = loss.weights.clone()
    assert not loss(logits * float("nan"), labels)[0].isfinite()
    assert torch.equal(loss.weights, before) and loss(logits, labels).isfinite().all()


def test_a_group_can_come_back_from_next_to_nothing():
    loss = GroupDROCrossEntropy((2, 2), step_size=50.0)
    good, bad = torch.tensor([[20.0, -20, 0, 0]]), torch.tensor([[-20.0, 20, 0, 0]])
    labels = torch.tensor([[0, 0], [0, 1]])
    for _ in range(3):
        loss(torch.cat([bad, good]), labels)
    assert loss.weights[1] < 1e-30
    for _ in range(3):
        loss(torch.cat([good, bad]), labels)
    assert loss.weights[1] > 0.99


def test_labels_of_any_integer_type():
    logits, labels = batch(0)
    expected = GroupDROCrossEntropy(CLASSES)(logits, labels)
    for dtype in (torch.int32, torch.int8):
        assert torch.equal(GroupDROCrossEntropy(CLASSES)(logits, labels.to(dtype)), expected)
