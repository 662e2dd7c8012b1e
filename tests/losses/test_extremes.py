# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""What the terms of the loss make of extreme batches: a finite value with finite gradients, or one that stops a training."""

from __future__ import annotations

import math

import pytest
import torch

from monai_mimmx.handlers import DynamicLossScaling, loss_scaling_factors
from monai_mimmx.losses import (
    BlockMMD,
    GroupDROCrossEntropy,
    MINELoss,
    MultiTaskCrossEntropy,
    distance_correlation,
    make_dependence,
)
from monai_mimmx.networks import ConfounderAttentionWeighter

CLASSES = (2, 2, 3)
TERMS = [(method, flag) for method in ("mimmx", "dcor", "adversarial", "mmd") for flag in (False, True)]


def batch(size=12, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    f_y, f_z = torch.randn(size, 4, generator=generator), torch.randn(size, 2, 4, generator=generator)
    rows = torch.arange(size)
    return f_y.to(dtype), f_z.to(dtype), torch.stack([rows % 2, rows // 2 % 2, rows % 3], 1)


def term(method, conditional):
    torch.manual_seed(0)
    return make_dependence(method, 4, CLASSES, conditional=conditional)


def value_and_slopes(module, f_y, f_z, labels):
    """The terms and the gradients of both inputs, 0 where there is none."""
    inputs = [f_y.clone().requires_grad_(), f_z.clone().requires_grad_()]
    torch.manual_seed(1)
    value = module(*inputs, labels)
    slopes = [torch.zeros_like(part) for part in inputs]
    if value.requires_grad:
        found = torch.autograd.grad(value.sum(), inputs, allow_unused=True)
        slopes = [zero if slope is None else slope for zero, slope in zip(slopes, found)]
    return value.detach(), slopes


def is_finite(value, slopes):
    return bool(torch.isfinite(value).all()) and all(bool(torch.isfinite(slope).all()) for slope in slopes)


@pytest.mark.parametrize(("method", "conditional"), TERMS)
class TestTerms:
    @pytest.mark.parametrize("scale", [1e-30, 1e10, 1e15, 1e30])
    @pytest.mark.parametrize("which", ["one", "all"])
    def test_large_and_small_features(self, method, conditional, scale, which):
        f_y, f_z, labels = batch()
        for part in (f_y, f_z):
            part[(slice(None) if which == "all" else 3)] *= scale
        assert is_finite(*value_and_slopes(term(method, conditional), f_y, f_z, labels))

    @pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
    @pytest.mark.parametrize("part", [0, 1])
    def test_what_is_not_finite_shows(self, method, conditional, bad, part):
        inputs = batch()
        inputs[part][3] = bad
        value, _ = value_and_slopes(term(method, conditional), *inputs)
        reads_it = part == 0 or method in ("mimmx", "dcor")
        assert bool(torch.isfinite(value).all()) is not reads_it

    @pytest.mark.parametrize("size", [1, 2, 3])
    def test_tiny_batches(self, method, conditional, size):
        module = term(method, conditional)
        if method == "mimmx" and size == 1:
            with pytest.raises(ValueError, match="MINE needs a batch of 2 or more samples"):
                module(*batch(size))
        else:
            assert is_finite(*value_and_slopes(module, *batch(size)))

    def test_constant_features_tell_nothing(self, method, conditional):
        f_y, f_z, labels = batch()
        value, slopes = value_and_slopes(term(method, conditional), torch.ones_like(f_y), torch.ones_like(f_z), labels)
        # The discriminators are not trained: they do no better than not looking, but not exactly as well.
        assert is_finite(value, slopes) and float(value.max()) <= 1e-6

    @pytest.mark.parametrize("task", [0, 1, 2])
    def test_one_class_only(self, method, conditional, task):
        f_y, f_z, labels = batch()
        labels[:, task] = 1
        assert is_finite(*value_and_slopes(term(method, conditional), f_y, f_z, labels))

    def test_missing_factors(self, method, conditional):
        f_y, f_z, labels = batch()
        labels[:4, 1], labels[:, 2] = -1, -1
        assert is_finite(*value_and_slopes(term(method, conditional), f_y, f_z, labels))

    @pytest.mark.parametrize("missing", [4, 11, 12])
    def test_a_missing_primary_label(self, method, conditional, missing):
        f_y, f_z, labels = batch()
        labels[:missing, 0] = -1
        module = term(method, conditional)
        if method == "mimmx" and conditional:
            with pytest.raises(ValueError, match="leave out samples without a label"):
                module(f_y, f_z, labels)
            return
        value, slopes = value_and_slopes(module, f_y, f_z, labels)
        assert is_finite(value, slopes)
        if conditional:  # as if those samples were not there
            assert bool((slopes[0][:missing] == 0).all())
            if missing < 12:
                kept = value_and_slopes(module, f_y[missing:], f_z[missing:], labels[missing:])
                if method != "mmd":  # whose width is that of the batch
                    torch.testing.assert_close(value, kept[0])
            else:
                assert torch.equal(value, torch.zeros_like(value))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision(self, method, conditional, dtype):
        module = term(method, conditional)
        f_y, f_z, labels = batch(dtype=dtype)
        value, slopes = value_and_slopes(module, f_y, f_z, labels)
        assert value.dtype == torch.float32 and is_finite(value, slopes)
        expected, _ = value_and_slopes(module, f_y.float(), f_z.float(), labels)
        torch.testing.assert_close(value, expected)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            inside, _ = value_and_slopes(module, f_y, f_z, labels)
        torch.testing.assert_close(inside, expected)


@pytest.mark.parametrize("scale", [1e18, 1e25, 1e30])
def test_scale_free_measures_are_so_beyond_what_can_be_squared(scale):
    x, z, labels = torch.randn(20, 3), torch.randn(20, 2), torch.arange(20)[:, None] % 2 * torch.ones(2).long()
    assert distance_correlation(x * scale, z).item() == pytest.approx(distance_correlation(x, z).item(), rel=1e-3)
    mmd = BlockMMD((2, 2))
    assert mmd(x * scale, x[:, None], labels).item() == pytest.approx(mmd(x, x[:, None], labels).item(), rel=1e-3)
    torch.manual_seed(0)
    loss = MINELoss(3, 2, negatives=19)
    assert loss(x * scale, z).item() == pytest.approx(loss(x, z).item(), abs=1e-4)
    mixed = x * torch.tensor([1.0, scale, 1.0])  # one large column leaves the others as they are
    assert loss(mixed, z).item() == pytest.approx(loss(x, z).item(), abs=1e-4)


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_standardised_features_that_are_not_finite_show(bad):
    x = torch.randn(8, 2)
    x[3, 1] = bad
    assert math.isnan(MINELoss(2, 2)(x, torch.randn(8, 2)).item())


class TestGradients:
    """Analytic gradients against finite differences in float64, for the terms whose own tests have none."""

    @pytest.mark.parametrize("conditional", [False, True])
    def test_adversary(self, conditional):
        module = term("adversarial", conditional).double()
        f_y, f_z, labels = batch(dtype=torch.float64)
        assert torch.autograd.gradcheck(lambda f: module(f, f_z, labels), (f_y.requires_grad_(),))

    @pytest.mark.parametrize("conditional", [False, True])
    def test_mmd(self, conditional):
        # Its width, the median distance, is a constant: so only samples that are not of that pair are moved.
        f_y, _, labels = batch(dtype=torch.float64)
        squared = torch.cdist(f_y, f_y).square()
        pair = (squared == squared.median()).nonzero()[0].tolist()
        free = [row for row in range(12) if row not in pair]
        module = BlockMMD(CLASSES, conditional=conditional)

        def value(moved):
            return module(f_y.index_copy(0, torch.tensor(free), moved), f_y[:, None], labels)

        assert torch.autograd.gradcheck(value, (f_y[free].clone().requires_grad_(),))

    def test_group_dro(self):
        _, _, labels = batch()
        logits = torch.randn(12, 7, dtype=torch.float64, requires_grad=True)

        def value(logits):
            loss = GroupDROCrossEntropy(CLASSES).double()
            loss.step_size = 1e-9  # the weights move with the losses, by no gradient
            return loss(logits, labels)

        assert torch.autograd.gradcheck(value, (logits,), eps=1e-5)

    def test_attention(self):
        module = ConfounderAttentionWeighter(4).double()
        f_y, f_z, _ = batch(dtype=torch.float64)
        assert torch.autograd.gradcheck(lambda f: module(f_y, f), (f_z.requires_grad_(),))


class TestLossScaling:
    @pytest.mark.parametrize("losses", [[1e30, 1.0, 1.0], [3e38, 3e38, 1.0], [1e-45, 1e-45, 0.0], [0.0, 0.0, 0.0]])
    def test_finite_losses_have_finite_factors(self, losses):
        losses = torch.tensor(losses)
        factors = DynamicLossScaling(0.3, 0.8)(losses)
        assert bool(torch.isfinite(factors).all()) and bool((factors[losses > 0] > 0).all())

    def test_losses_whose_sum_overflows_are_scaled_as_smaller_ones(self):
        alpha, losses = torch.tensor([0.3, 0.8, 0.8]), torch.tensor([3e38, 3e38, 1.5e38])
        torch.testing.assert_close(loss_scaling_factors(losses, alpha), loss_scaling_factors(losses / 1e38, alpha))

    @pytest.mark.parametrize("bad", [math.inf, math.nan])
    @pytest.mark.parametrize("place", [0, 2])
    def test_what_is_not_finite_shows_in_the_loss(self, bad, place):
        losses = torch.ones(3)
        losses[place] = bad
        assert not math.isfinite((DynamicLossScaling()(losses) * losses).sum().item())

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision(self, dtype):
        losses = torch.tensor([6e4, 6e4, 6e4], dtype=dtype)  # their sum is beyond float16
        assert torch.equal(DynamicLossScaling()(losses), torch.ones(3, dtype=dtype))


@pytest.mark.parametrize("kind", [MultiTaskCrossEntropy, GroupDROCrossEntropy])
class TestTaskLosses:
    def losses(self, kind, logits, labels):
        options = {"reduction": "none"} if kind is MultiTaskCrossEntropy else {}
        return kind(CLASSES, **options)(logits, labels)

    def test_certain_and_right_is_zero(self, kind):
        _, _, labels = batch()
        logits = torch.cat([torch.nn.functional.one_hot(z, c) * 1e4 for z, c in zip(labels.T, CLASSES)], 1)
        assert torch.equal(self.losses(kind, logits.float(), labels), torch.zeros(3))

    @pytest.mark.parametrize("bad", [1e30, math.inf, math.nan])
    def test_certain_and_wrong_is_huge_or_shows(self, kind, bad):
        _, _, labels = batch()
        logits = torch.zeros(12, 7)
        logits[3, 1 - int(labels[3, 0])] = bad
        value = self.losses(kind, logits, labels)[0].item()
        assert not math.isfinite(value) or value > 1e28

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision(self, kind, dtype):
        logits, (_, _, labels) = torch.randn(12, 7).to(dtype), batch()
        value = self.losses(kind, logits, labels)
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, self.losses(kind, logits.float(), labels))

    @pytest.mark.parametrize("size", [1, 2])
    def test_tiny_batches_and_no_labels(self, kind, size):
        logits, (_, _, labels) = torch.randn(size, 7), batch(size)
        assert bool(torch.isfinite(self.losses(kind, logits, labels)).all())
        assert torch.equal(self.losses(kind, logits, torch.full_like(labels, -1)), torch.zeros(3))

    def test_a_class_that_does_not_exist_is_refused(self, kind):
        _, _, labels = batch()
        labels[0, 0] = 2
        with pytest.raises(ValueError, match="labels of task 0 must be classes from 0 to 1, or -1 .* got 2 in row 0"):
            self.losses(kind, torch.zeros(12, 7), labels)
        labels = labels.float()
        labels[0, 0], labels[3, 1] = 0, math.nan
        with pytest.raises(ValueError, match="labels of task 2 .* got 0.5 in row 1"):
            self.losses(
                kind, torch.zeros(12, 7), torch.where(torch.arange(36).view(12, 3) == 5, 0.5, labels.nan_to_num())
            )
        with pytest.raises(ValueError, match=rf"labels of task 1 .* to {CLASSES[1] - 1}, .* got nan in row 3"):
            self.losses(kind, torch.zeros(12, 7), labels)


class TestAttention:
    @pytest.mark.parametrize("scale", [0.0, 1e-30, 1e10, 1e18])
    @pytest.mark.parametrize("size", [1, 12])
    def test_weights_sum_to_one(self, scale, size):
        f_y, f_z, _ = batch(size)
        weights = ConfounderAttentionWeighter(4)(f_y * scale, f_z * scale)
        torch.testing.assert_close(weights.sum(1), torch.ones(size))

    @pytest.mark.parametrize("bad", [-math.inf, math.inf, math.nan])
    @pytest.mark.parametrize("sign", [-1.0, 1.0])
    def test_what_is_not_finite_shows_or_counts_for_nothing(self, bad, sign):
        f_y, f_z, _ = batch()
        f_z[3, 1, 0] = bad
        attention = ConfounderAttentionWeighter(4)
        torch.nn.init.constant_(attention.key.weight, sign)  # every unit's share of the infinite score has one sign
        torch.nn.init.constant_(attention.query.weight, 0.0)
        torch.nn.init.constant_(attention.query.bias, 1.0)
        weights = attention(f_y, f_z)
        if sign * bad == -math.inf:
            assert weights[3].tolist() == [1.0, 0.0]
        else:
            assert bool(torch.isnan(weights[3]).all())
        assert bool(torch.isfinite(weights[:3]).all())
