# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from monai_mimmx.losses import MINELoss, donsker_varadhan, product_partners


def gaussian_pair(information, batch=128):
    """2 + 2 dimensions whose mutual information is -ln(1 - rho^2), each pair of dimensions correlated by rho."""
    rho = math.sqrt(1 - math.exp(-information))
    x = torch.randn(batch, 2)
    return x, rho * x + math.sqrt(1 - rho**2) * torch.randn(batch, 2)


def estimates(loss, draw, steps):
    optimizer = torch.optim.Adam(loss.parameters(), lr=1e-3, fused=True)
    return torch.stack([loss.update_estimator(optimizer, *draw()) for _ in range(steps)])


def slope(loss, x, z, **kwargs):
    """The value and the gradients of x, z and the parameters."""
    x, z = x.clone().requires_grad_(), z.clone().requires_grad_()
    loss.zero_grad()
    value = loss(x, z, **kwargs)
    value.backward()
    return value.detach(), x.grad, z.grad, [p.grad for p in loss.parameters()]


@pytest.mark.parametrize(("information", "steps"), [(0.0, 800), (0.288, 1200), (1.661, 3000), (3.917, 3000)])
def test_gaussians_of_known_information(information, steps):
    torch.manual_seed(0)
    values = estimates(MINELoss(2, 2), lambda: gaussian_pair(information), steps)
    assert bool(torch.isfinite(values).all())
    assert abs(values[-500:].mean().item() - information) <= max(0.1, 0.06 * information)
    # Stable: once it has arrived, the averages over 500 steps stay within 0.05 nats or 3 % of each other.
    windows = values[1000:].unfold(0, 500, 500).mean(1) if steps >= 2000 else values[-500:].mean(0, keepdim=True)
    assert float(windows.max() - windows.min()) <= max(0.05, 0.03 * information)


class TestConditional:
    def test_both_follow_the_class(self):
        # x and z agree only because both follow y: I(x; z) = ln 2 minus little, I(x; z | y) = 0.
        def draw():
            y = torch.randint(2, (128,))
            centre = (6.0 * y - 3.0).unsqueeze(1)
            return centre + torch.randn(128, 1), centre + torch.randn(128, 1), y

        torch.manual_seed(0)
        marginal = estimates(MINELoss(1, 1), lambda: draw()[:2], 600)[-200:].mean().item()
        conditional = estimates(MINELoss(1, 1, conditional=True), draw, 600)[-200:].mean().item()
        assert marginal == pytest.approx(math.log(2), abs=0.06)
        assert conditional == pytest.approx(0.0, abs=0.03)

    @pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int16])
    def test_classes_of_any_integer_type(self, dtype):
        x, z = torch.randn(2, 8, 1)
        condition = torch.tensor([0, 1] * 4)
        loss = MINELoss(1, 1, conditional=True, negatives=3)
        values = []
        for given in (condition, condition.to(dtype)):
            torch.manual_seed(0)
            values.append(loss(x, z, given).item())
        assert values[0] == values[1]

    def test_known_conditional_information(self):
        # Given y, x and z are Gaussian with correlation +0.8 or -0.8: I(x; z | y) = -ln(1 - 0.64) / 2 = 0.511 nats.
        def draw():
            y = torch.randint(2, (128,))
            x = torch.randn(128, 1)
            return x, 0.8 * (2.0 * y - 1.0).unsqueeze(1) * x + 0.6 * torch.randn(128, 1), y

        torch.manual_seed(0)
        value = estimates(MINELoss(1, 1, conditional=True), draw, 1200)[-400:].mean().item()
        assert value == pytest.approx(-0.5 * math.log(0.36), abs=0.06)

    def test_the_class_holds_no_unit_on_or_off_to_begin_with(self):
        # Within y, x and z are Gaussian with correlation 0.8 in three dimensions: 1.53 nats, of which updates 50 to 100 find
        # 0.72 where the classes' offsets start as biases do, and 0.46 where they are of size 1.
        def draw():
            y = torch.randint(2, (150,))
            x = torch.randn(150, 3)
            z = 0.8 * x + 0.6 * torch.randn(150, 3)
            return x + 1.6 * y[:, None], z + 1.6 * y[:, None], y

        found = []
        for seed in range(4):
            torch.manual_seed(seed)
            found.append(estimates(MINELoss(3, 3, conditional=True, negatives=4), draw, 100)[50:].mean().item())
        assert sum(found) / 4 > 0.6

    def test_one_class_is_the_marginal_estimate(self):
        torch.manual_seed(0)
        conditional = MINELoss(2, 3, conditional=True, negatives=20)
        marginal = MINELoss(2, 3, negatives=20)
        marginal.load_state_dict({k: v for k, v in conditional.state_dict().items() if "class_layer" not in k})
        with torch.no_grad():
            marginal.x_layer.bias += conditional.class_layer.weight[1]
        x, z = torch.randn(12, 2), torch.randn(12, 3)
        expected = marginal(x, z)  # more negatives than partners: all 11 of them, whatever the seed
        assert conditional(x, z, torch.ones(12, dtype=torch.long)).item() == pytest.approx(expected.item(), abs=1e-6)

    def test_lonely_samples_do_not_count(self):
        torch.manual_seed(0)
        loss = MINELoss(2, 2, conditional=True, num_classes=4, negatives=9, standardize=False)
        x, z = torch.randn(6, 2), torch.randn(6, 2)
        y = torch.tensor([0, 0, 3, 0, 0, 1])  # classes 1 and 3 have one sample, class 2 none
        _, x_slope, z_slope, _ = slope(loss, x, z, condition=y)
        assert bool((x_slope[[2, 5]] == 0).all()) and bool((z_slope[[2, 5]] == 0).all())
        assert bool((x_slope[[0, 1, 3, 4]] != 0).any(1).all())

    @pytest.mark.parametrize("ema_rate", [0.0, 0.1])
    def test_it_is_the_bound_of_those_that_have_partners(self, ema_rate):
        torch.manual_seed(0)
        loss = MINELoss(
            2, 2, conditional=True, num_classes=4, negatives=3, standardize=False, num_blocks=2, ema_rate=ema_rate
        ).double()
        x, z = torch.randn(8, 2, dtype=torch.float64), torch.randn(8, 2, 2, dtype=torch.float64)
        y = torch.tensor([0, 0, 3, 0, 2, 0, 1, 2])  # classes 1 and 3 have one sample
        torch.manual_seed(1)
        value = loss(x, z, y)
        torch.manual_seed(1)
        keep, partners = product_partners(8, 3, condition=y)
        left = loss.x_layer(x.expand(2, 8, 2)) + loss.class_layer(y).view(8, 2, -1).transpose(0, 1)
        right = loss.z_layer(z.transpose(0, 1))
        joint = loss.layers(left[:, keep] + right[:, keep])
        product = torch.stack([loss.layers(left[:, keep] + right[:, others]) for others in partners], 1)
        torch.testing.assert_close(value, donsker_varadhan(joint, product, batch_dims=1), rtol=1e-12, atol=1e-12)

    def test_no_pair_leaves_the_moving_average(self):
        loss = MINELoss(2, 2, conditional=True, ema_rate=0.1)
        assert loss(torch.randn(2, 2), torch.randn(2, 2), torch.tensor([0, 1])).item() == 0
        assert bool(loss.log_average.isnan().all())

    def test_no_pair_at_all(self):
        loss = MINELoss(2, 2, conditional=True)
        x, z, y = torch.randn(2, 2), torch.randn(2, 2), torch.tensor([0, 1])
        value, x_slope, z_slope, _ = slope(loss, x, z, condition=y)
        assert value == 0 and bool((x_slope == 0).all()) and bool((z_slope == 0).all())
        before = [p.clone() for p in loss.parameters()]
        optimizer = torch.optim.SGD(loss.parameters(), lr=1.0)
        assert loss.update_estimator(optimizer, x, z, y) == 0
        assert all(torch.equal(a, b) for a, b in zip(before, loss.parameters()))


class TestBlocks:
    """Several z at once are what an estimator for each would give."""

    @staticmethod
    def alone(loss, block):
        """An estimator of one z with the weights of a block."""
        options = {"conditional": loss.conditional, "standardize": loss.standardize, "ema_rate": loss.ema_rate}
        single = MINELoss(loss.x_dim, loss.z_dim, hidden=(6, 5), negatives=loss.negatives, **options)
        state = {name: value[block : block + 1] for name, value in loss.state_dict().items() if "class" not in name}
        if loss.conditional:
            state["class_layer.weight"] = loss.class_layer.weight.detach().unflatten(1, (loss.num_blocks, -1))[:, block]
        single.load_state_dict(state)
        return single

    @pytest.mark.parametrize("standardize", [False, True])
    @pytest.mark.parametrize("conditional", [False, True])
    def test_values_and_gradients(self, conditional, standardize):
        torch.manual_seed(0)
        options = {"conditional": conditional, "standardize": standardize, "hidden": (6, 5)}
        loss = MINELoss(2, 3, num_blocks=3, negatives=20, **options)  # all partners: nothing is drawn
        x, z, weights = torch.randn(12, 2), torch.randn(12, 3, 3), torch.tensor([1.0, -2.0, 0.5])
        y = torch.tensor([0, 1] * 5 + [0, 0]) if conditional else None
        x.requires_grad_(), z.requires_grad_()
        singles = [self.alone(loss, block) for block in range(3)]
        values = loss(x, z, y)
        expected = torch.stack([single(x, z[:, block], y) for block, single in enumerate(singles)])
        torch.testing.assert_close(values, expected)
        slopes, wanted = (torch.autograd.grad((weights * terms).sum(), (x, z)) for terms in (values, expected))
        torch.testing.assert_close(slopes, wanted, atol=1e-6, rtol=1e-4)
        (weights * loss(x, z, y)).sum().backward()
        for block, (single, weight) in enumerate(zip(singles, weights)):
            single.zero_grad()
            (weight * single(x.detach(), z[:, block].detach(), y)).backward()
            for name, part in (("x_layer", "weight"), ("z_layer", "weight"), ("x_layer", "bias")):
                whole, own = (getattr(getattr(module, name), part).grad for module in (loss, single))
                torch.testing.assert_close(whole[block : block + 1], own, atol=1e-6, rtol=1e-4)

    def test_each_keeps_its_own_average(self):
        torch.manual_seed(0)
        loss = MINELoss(2, 2, hidden=(6, 5), num_blocks=2, negatives=20, ema_rate=0.5)
        singles = [self.alone(loss, block) for block in range(2)]
        for scale in (1.0, 3.0):
            x, z = scale * torch.randn(9, 2), torch.randn(9, 2, 2)
            loss(x, z)
            for block, single in enumerate(singles):
                single(x, z[:, block])
                assert loss.log_average[block].item() == pytest.approx(single.log_average.item(), abs=1e-6)

    def test_a_step_trains_all(self):
        torch.manual_seed(0)
        loss = MINELoss(2, 2, num_blocks=2, conditional=True)
        optimizer = torch.optim.Adam(loss.parameters(), lr=1e-3)
        before = [p.detach().clone() for p in loss.parameters()]
        values = loss.update_estimator(optimizer, torch.randn(16, 2), torch.randn(16, 2, 2), torch.arange(16) % 2)
        assert values.shape == (2,) and not values.requires_grad
        assert all(bool((a != b).flatten(1).any(1).all()) for a, b in zip(before, loss.parameters()))

    def test_they_share_the_partners(self):
        torch.manual_seed(0)
        loss = MINELoss(2, 2, num_blocks=2, negatives=1)
        loss.load_state_dict({k: v[:1].expand_as(v).clone() for k, v in loss.state_dict().items()})
        z = torch.randn(32, 2)
        first, second = loss(torch.randn(32, 2), torch.stack([z, z], dim=1))
        assert first.item() == second.item()

    def test_no_pair_at_all(self):
        value = MINELoss(2, 2, conditional=True, num_blocks=2)(torch.randn(2, 2), torch.randn(2, 2, 2), torch.arange(2))
        assert value.tolist() == [0.0, 0.0]


class RecordSizes(TorchDispatchMode):
    """The largest number of rows and of bytes of any tensor that is made."""

    def __init__(self):
        super().__init__()
        self.rows, self.bytes, self.total = 0, 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, (tuple, list)) else [made]:
            if isinstance(tensor, torch.Tensor) and tensor.ndim:
                self.rows = max(self.rows, tensor.numel() // max(tensor.shape[-1], 1), tensor.shape[0])
                self.bytes = max(self.bytes, tensor.numel() * tensor.element_size())
                self.total += tensor.numel() * tensor.element_size()
        return made


@pytest.mark.parametrize("conditional", [False, True])
def test_memory_grows_linearly_with_the_batch(conditional):
    records = {}
    for batch in (256, 512, 1024):
        loss = MINELoss(32, 48, conditional=conditional)
        x, z = torch.randn(batch, 32, requires_grad=True), torch.randn(batch, 48, requires_grad=True)
        y = torch.arange(batch) % 2 if conditional else None
        with RecordSizes() as record:
            loss(x, z, y).backward()
        assert record.rows <= 17 * batch < batch * batch
        assert record.bytes <= 17 * batch * 64 * 4
        records[batch] = record.total
    for batch in (512, 1024):
        assert records[batch] < 2.1 * records[batch // 2]


class TestProductPartners:
    @pytest.mark.parametrize(("batch", "negatives"), [(2, 1), (5, 2), (64, 16), (9, 30)])
    def test_marginal(self, batch, negatives):
        keep, partners = product_partners(batch, negatives)
        expected = min(negatives, batch - 1)
        assert keep.tolist() == list(range(batch)) and partners.shape == (expected, batch)
        assert bool((partners != keep).all())
        assert torch.bincount(partners.flatten(), minlength=batch).tolist() == [expected] * batch
        assert all(len(set(column.tolist())) == expected for column in partners.T)  # distinct partners

    def test_within_class(self):
        y = torch.tensor([2, 0, 2, 4, 0, 0, 2, 2, 4, 1])  # class 3 is absent, class 1 has a single sample
        keep, partners = product_partners(len(y), 4, condition=y)
        assert sorted(keep.tolist()) == [0, 1, 2, 3, 4, 5, 6, 7, 8]
        assert partners.shape == (4, 9)
        assert bool((partners != keep).all()) and bool((y[partners] == y[keep]).all())
        assert torch.bincount(partners.flatten(), minlength=10).tolist() == [4] * 9 + [0]

    def test_more_negatives_than_others_meets_everyone(self):
        y = torch.tensor([0, 1, 0, 1, 0, 0])
        keep, partners = product_partners(6, 100, condition=y)
        for sample, met in zip(keep.tolist(), partners.T.tolist()):
            assert set(met) == set(torch.nonzero(y == y[sample]).flatten().tolist()) - {sample}

    @pytest.mark.parametrize("condition", [None, torch.tensor([1])])
    def test_one_sample_has_no_partner(self, condition):
        keep, partners = product_partners(1, 3, condition=condition)
        assert keep.numel() == 0 and partners.numel() == 0

    def test_seeded(self):
        draws = []
        for seed in (0, 0, 1):
            torch.manual_seed(seed)
            draws.append(product_partners(50, 3)[1])
        assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


class TestDonskerVaradhan:
    def test_several_at_once(self):
        joint, product = torch.randn(4, 7), torch.randn(4, 3, 7)
        expected = torch.stack([donsker_varadhan(*parts) for parts in zip(joint, product)])
        torch.testing.assert_close(donsker_varadhan(joint, product, batch_dims=1), expected)

    def test_closed_form(self):
        rng = np.random.default_rng(0)
        joint, product = rng.normal(size=7), rng.normal(size=(3, 7))
        expected = joint.mean() - np.log(np.exp(product).mean())
        value = donsker_varadhan(torch.tensor(joint), torch.tensor(product))
        assert value.dtype == torch.float64 and value.item() == pytest.approx(expected, abs=1e-12)

    def test_no_overflow(self):
        assert donsker_varadhan(torch.tensor([1000.0]), torch.tensor([1000.0, 1000.0])).item() == pytest.approx(0.0)

    def test_constant_shift_cancels(self):
        joint, product = torch.randn(5).double(), torch.randn(2, 5).double()
        shifted = donsker_varadhan(joint + 3, product + 3)
        assert shifted.item() == pytest.approx(donsker_varadhan(joint, product).item(), abs=1e-12)


class TestGradient:
    @pytest.mark.parametrize("conditional", [False, True])
    @pytest.mark.parametrize("standardize", [False, True])
    def test_gradcheck(self, conditional, standardize):
        torch.manual_seed(1)
        loss = MINELoss(2, 3, hidden=(6, 5), negatives=2, conditional=conditional, standardize=standardize).double()
        y = torch.tensor([0, 1, 0, 1, 0]) if conditional else None

        def value(x, z):
            torch.manual_seed(0)  # the same partners at every call
            return loss(x, z, y)

        x, z = (torch.randn(5, width, dtype=torch.float64, requires_grad=True) for width in (2, 3))
        assert torch.autograd.gradcheck(value, (x, z))

    def test_reaches_both_unless_detached(self):
        torch.manual_seed(0)
        loss = MINELoss(3, 2)
        x, z = torch.randn(8, 3), torch.randn(8, 2)
        _, x_slope, z_slope, _ = slope(loss, x, z)
        assert bool((x_slope != 0).any(1).all()) and bool((z_slope != 0).any(1).all())
        x, z = x.requires_grad_(), z.requires_grad_()
        loss(x, z.detach()).backward()
        assert x.grad is not None and z.grad is None

    def test_update_changes_its_own_parameters_only(self):
        torch.manual_seed(0)
        encoder, loss = torch.nn.Linear(4, 3), MINELoss(3, 3)
        before, own = encoder.weight.detach().clone(), [p.detach().clone() for p in loss.parameters()]
        x = encoder(torch.randn(16, 4))
        value = loss.update_estimator(torch.optim.Adam(loss.parameters()), x, x)
        assert not value.requires_grad and encoder.weight.grad is None and torch.equal(encoder.weight, before)
        assert all(not torch.equal(a, b) for a, b in zip(own, loss.parameters()))
        with torch.no_grad():  # also where gradients are off around it
            loss.update_estimator(torch.optim.Adam(loss.parameters()), x, x)

    def test_update_raises_the_estimate(self):
        torch.manual_seed(0)
        loss = MINELoss(2, 2, negatives=63)  # all partners: nothing is drawn
        x = torch.randn(64, 2)
        optimizer = torch.optim.SGD(loss.parameters(), lr=1e-2)
        values = [loss.update_estimator(optimizer, x, x).item() for _ in range(5)]
        assert values == sorted(values) and values[-1] > values[0]

    def test_scale_and_shift_change_nothing(self):
        torch.manual_seed(0)
        loss = MINELoss(2, 2, negatives=15)
        x, z = torch.randn(16, 2), torch.randn(16, 2)
        assert loss(5 * x - 3, 0.1 * z + 1).item() == pytest.approx(loss(x, z).item(), abs=1e-3)

    def test_constant_features(self):
        value, x_slope, _, _ = slope(MINELoss(2, 2), torch.ones(8, 2), torch.randn(8, 2))
        assert bool(torch.isfinite(value)) and bool(torch.isfinite(x_slope).all())


class TestMovingAverage:
    def test_same_value_other_gradient(self):
        torch.manual_seed(0)
        plain = MINELoss(2, 2, negatives=31)
        corrected = MINELoss(2, 2, negatives=31, ema_rate=0.1)
        corrected.load_state_dict(plain.state_dict())
        corrected(3 * torch.randn(32, 2), torch.randn(32, 2))
        x = torch.randn(32, 2)
        value, _, _, slopes = slope(plain, x, x)
        corrected_value, _, _, corrected_slopes = slope(corrected, x, x)
        assert corrected_value.item() == pytest.approx(value.item(), abs=1e-6)
        assert any(not torch.allclose(a, b, atol=1e-6) for a, b in zip(slopes, corrected_slopes))

    def test_first_batch_has_the_plain_gradient(self):
        torch.manual_seed(0)
        plain = MINELoss(2, 2, negatives=31)
        corrected = MINELoss(2, 2, negatives=31, ema_rate=0.1)
        corrected.load_state_dict(plain.state_dict())
        x = torch.randn(32, 2)
        for a, b in zip(slope(plain, x, x)[3], slope(corrected, x, x)[3]):
            torch.testing.assert_close(a, b)

    def test_average_is_that_of_mean_exp(self):
        torch.manual_seed(0)
        loss = MINELoss(2, 2, negatives=31, ema_rate=0.25)
        batches = [torch.randn(32, 2) * scale for scale in (1.0, 2.0, 0.5)]
        expected = None
        for x in batches:
            hidden = loss.eval()  # evaluation neither reads nor moves the average
            torch.manual_seed(1)
            value = hidden(x, x)
            joint = loss.layers(loss.x_layer(self.standard(x)[None]) + loss.z_layer(self.standard(x)[None])).mean()
            mean_exp = (joint - value).exp().item()
            expected = mean_exp if expected is None else 0.75 * expected + 0.25 * mean_exp
            loss.train()(x, x)
        assert loss.log_average.exp().item() == pytest.approx(expected, rel=1e-4)

    @staticmethod
    def standard(x):
        return (x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-5).sqrt()

    def test_rate_of_one_is_plain(self):
        torch.manual_seed(0)
        loss = MINELoss(2, 2, negatives=7, ema_rate=1.0)
        for _ in range(3):
            x = torch.randn(8, 2)
            value, _, _, slopes = slope(loss, x, x)
        loss.ema_rate = 0.0
        for a, b in zip(slopes, slope(loss, x, x)[3]):
            torch.testing.assert_close(a, b)


def test_autocast_stays_in_float32():
    torch.manual_seed(0)
    loss = MINELoss(4, 4, negatives=31)
    x, z = torch.randn(32, 4), torch.randn(32, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(x.bfloat16(), z.bfloat16())
    value.backward()
    assert value.dtype == torch.float32 and bool(torch.isfinite(value))
    assert value.item() == pytest.approx(loss(x.bfloat16().float(), z.bfloat16().float()).item(), abs=1e-6)
    assert all(p.grad.dtype == torch.float32 and bool(torch.isfinite(p.grad).all()) for p in loss.parameters())


def test_three_lines_in_any_training_loop():
    # The encoder learns to remove from x what z tells, with nothing but the documented calls.
    torch.manual_seed(0)
    encoder = torch.nn.Linear(2, 1)
    encoder.weight.data = torch.tensor([[1.0, 0.5]])
    mi = MINELoss(1, 1)
    optimizer = torch.optim.Adam(encoder.parameters(), lr=2e-2)
    mi_optimizer = torch.optim.Adam(mi.parameters(), lr=5e-3)
    for step in range(150):
        z = torch.randn(128, 1)
        features = encoder(torch.cat([z, torch.randn(128, 1)], dim=1))
        for _ in range(2):
            value = mi.update_estimator(mi_optimizer, features, z)
        if step == 30:
            start = value.item()
        if step >= 30:
            optimizer.zero_grad()
            mi(features, z).backward()
            optimizer.step()
    share = abs(encoder.weight[0, 0].item()) / encoder.weight.norm().item()
    assert start > 0.2 and share < 0.2, (start, share)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"x_dim": 0}, "x_dim must be 1 or more, got 0"),
        ({"z_dim": 0}, "z_dim must be 1 or more, got 0"),
        ({"negatives": 0}, "negatives must be 1 or more, got 0"),
        ({"num_classes": 0}, "num_classes must be 1 or more, got 0"),
        ({"hidden": ()}, r"hidden must name at least one layer of width 1 or more, got \(\)"),
        ({"hidden": (8, 0)}, r"hidden must name at least one layer of width 1 or more, got \(8, 0\)"),
        ({"ema_rate": 1.5}, r"ema_rate must lie in \[0, 1\], got 1.5"),
        ({"num_blocks": 0}, "num_blocks must be 1 or more, got 0"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        MINELoss(**{"x_dim": 2, "z_dim": 2} | options)


@pytest.mark.parametrize(
    ("conditional", "x", "z", "condition", "message"),
    [
        (False, (4, 3), (4, 2), None, r"x must have shape \(4, 2\), got \(4, 3\)"),
        (False, (4, 2), (5, 2), None, r"z must have shape \(4, 2\), got \(5, 2\)"),
        (False, (4, 2, 1), (4, 2), None, r"x must have shape \(4, 2\), got \(4, 2, 1\)"),
        (False, (1, 2), (1, 2), None, "batch of 2 or more samples to form product pairs, got 1"),
        (False, (4, 2), (4, 2), torch.zeros(4, dtype=torch.long), "conditional=False would ignore it"),
        (True, (4, 2), (4, 2), None, "needs `condition`, the class indices of the batch"),
        (True, (4, 2), (4, 2), torch.zeros(4), "condition must hold 4 integer class indices, got torch.float32"),
        (True, (4, 2), (4, 2), torch.zeros(3, dtype=torch.long), r"4 integer class indices, got torch.int64 \(3,\)"),
        (True, (4, 2), (4, 2), torch.tensor([0, 1, 2, 0]), r"lie in \[0, 1\], got values from 0 to 2"),
        (True, (4, 2), (4, 2), torch.tensor([0, -1, 1, 0]), "from -1 to 1; leave out samples without a label"),
    ],
)
def test_wrong_inputs(conditional, x, z, condition, message):
    with pytest.raises(ValueError, match=message):
        MINELoss(2, 2, conditional=conditional)(torch.zeros(x), torch.zeros(z), condition)


def test_blocks_that_are_not_there():
    with pytest.raises(ValueError, match=r"z must have shape \(4, 2, 3\), got \(4, 3\)"):
        MINELoss(2, 3, num_blocks=2)(torch.zeros(4, 2), torch.zeros(4, 3))


@pytest.mark.parametrize("conditional", [False, True])
def test_gradients_repeat_bit_for_bit_on_several_threads(conditional):
    # Large enough that PyTorch shares the work: a gather whose backward adds atomically would differ from run to run.
    generator = torch.Generator().manual_seed(0)
    x, z = torch.randn(600, 4, generator=generator), torch.randn(600, 4, generator=generator)
    condition = torch.arange(600) % 2 if conditional else None
    threads = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        gradients = set()
        for _ in range(40):
            torch.manual_seed(0)
            loss = MINELoss(4, 4, hidden=(64, 64), conditional=conditional)
            inputs = x.clone().requires_grad_(), z.clone().requires_grad_()
            loss(*inputs, condition).backward()
            gradients.add(
                b"".join(p.grad.numpy().tobytes() for p in [*inputs, *loss.parameters()] if p.grad is not None)
            )
    finally:
        torch.set_num_threads(threads)
    assert len(gradients) == 1
