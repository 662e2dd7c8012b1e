# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.integrate import trapezoid

from monai_mimmx.losses import (
    BlockAdversary,
    BlockDistanceCorrelation,
    BlockMMD,
    BlockMutualInformation,
    distance_correlation,
    make_dependence,
)


def blocks(batch=12, factors=3, width=4):
    generator = torch.Generator().manual_seed(0)
    f_y, f_z = torch.randn(batch, width, generator=generator), torch.randn(batch, factors, width, generator=generator)
    return f_y, f_z, torch.stack([torch.arange(batch) % 2, *torch.zeros(factors, batch, dtype=torch.long)], dim=1)


class TestBlockMutualInformation:
    @pytest.mark.parametrize("conditional", [False, True])
    def test_per_factor_is_one_estimate_per_factor(self, conditional):
        f_y, f_z, labels = blocks()
        module = BlockMutualInformation(4, factors=(0, 2), negatives=20, conditional=conditional)  # all partners
        values = module(f_y, f_z, labels)
        condition = labels[:, 0] if conditional else None
        assert values.shape == (2,) and module.groups == ((0,), (2,))
        torch.testing.assert_close(values, module.estimator(f_y, f_z[:, [0, 2]], condition))

    def test_joint_is_one_estimate_of_all(self):
        f_y, f_z, labels = blocks()
        module = BlockMutualInformation(4, factors=(0, 2), estimator="joint", negatives=20)
        values = module(f_y, f_z, labels)
        torch.testing.assert_close(values, module.estimator(f_y, f_z[:, [0, 2]].flatten(1)[:, None]))
        assert values.shape == (1,) and module.groups == ((0, 2),)

    @pytest.mark.parametrize("estimator", ["per_factor", "joint"])
    def test_gradient_reaches_the_named_factors_only(self, estimator):
        f_y, f_z, labels = blocks()
        f_y, f_z = f_y.requires_grad_(), f_z.requires_grad_()
        BlockMutualInformation(4, factors=(1,), estimator=estimator)(f_y, f_z, labels).sum().backward()
        assert bool((f_y.grad != 0).any()) and bool((f_z.grad[:, 1] != 0).any())
        assert bool((f_z.grad[:, [0, 2]] == 0).all())

    def test_uses_the_class_only_when_conditional(self):
        f_y, f_z, labels = blocks()
        torch.manual_seed(0)
        marginal = BlockMutualInformation(4, factors=(0,), negatives=20)
        conditional = BlockMutualInformation(4, factors=(0,), negatives=20, conditional=True)
        assert torch.allclose(marginal(f_y, f_z, labels), marginal(f_y, f_z, 1 - labels), atol=1e-6)
        assert not torch.allclose(conditional(f_y, f_z, labels), conditional(f_y, f_z, 1 - labels), atol=1e-4)

    def test_options_reach_the_estimators(self):
        module = BlockMutualInformation(4, factors=(0,), hidden=(7, 5), negatives=3, conditional=True, num_classes=6)
        estimator = module.estimator
        assert [p.shape[-1] for p in estimator.layers.parameters()] == [5, 5, 1, 1]
        assert estimator.x_layer.weight.shape == (1, 4, 7) and estimator.negatives == 3
        assert estimator.class_layer.num_embeddings == 6

    def test_refusals(self):
        with pytest.raises(ValueError, match="must be 'per_factor' or 'joint', got 'both'"):
            BlockMutualInformation(4, factors=(0,), estimator="both")
        with pytest.raises(ValueError, match="factors must name at least one spurious factor"):
            BlockMutualInformation(4, factors=())


class TestBlockDistanceCorrelation:
    def test_conditional_is_the_mean_within_the_classes_of_y(self):
        torch.manual_seed(0)
        y = torch.tensor([0] * 10 + [1] * 30)
        f_y, f_z = torch.randn(40, 2) + 5 * y[:, None], torch.randn(40, 2, 2) + 5 * y[:, None, None]
        labels = torch.stack([y, y, y], 1)
        found = BlockDistanceCorrelation(factors=(1, 0), conditional=True)(f_y, f_z, labels)
        expected = [
            0.25 * distance_correlation(f_y[:10], f_z[:10, i]) + 0.75 * distance_correlation(f_y[10:], f_z[10:, i])
            for i in (1, 0)
        ]
        torch.testing.assert_close(found, torch.stack(expected))
        # What both share with y is no dependence given y.
        assert (found < 0.6).all() and (BlockDistanceCorrelation(factors=(0, 1))(f_y, f_z, labels) > 0.8).all()

    def test_one_value_per_factor(self):
        f_y, f_z, labels = blocks()
        module = BlockDistanceCorrelation(factors=(2, 0))
        expected = torch.stack([distance_correlation(f_y, f_z[:, 2]), distance_correlation(f_y, f_z[:, 0])])
        assert torch.equal(module(f_y, f_z, labels), expected)
        assert not list(module.parameters())

    def test_refusal(self):
        with pytest.raises(ValueError, match="factors must name at least one spurious factor"):
            BlockDistanceCorrelation(factors=())


class TestBlockAdversary:
    def test_a_discriminator_that_knows_gains_the_entropy(self):
        labels = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]] * 8)
        f_y = 2.0 * labels[:, 1:].float() - 1
        adversary = BlockAdversary(1, (2, 2), hidden=())
        (layer,) = adversary.discriminators[0]
        for scale, expected in ((0.0, 0.0), (20.0, math.log(2)), (-20.0, math.log(2) - 40.0)):
            layer.weight.data, layer.bias.data = torch.tensor([[-scale], [scale]]), torch.zeros(2)
            assert adversary(f_y, f_y[:, None], labels).item() == pytest.approx(expected, abs=1e-4)

    def test_trained_it_is_the_mutual_information_of_a_shifted_gaussian(self):
        torch.manual_seed(0)
        z = torch.randint(2, (4000,))
        f_y = torch.randn(4000, 1) + 2.0 * z[:, None]
        labels = torch.stack([torch.randint(2, (4000,)), z], 1)
        adversary = BlockAdversary(1, (2, 2), hidden=(16,))
        optimizer = torch.optim.Adam(adversary.parameters(), lr=0.02)
        for _ in range(300):
            optimizer.zero_grad()
            (-adversary(f_y, f_y[:, None], labels).sum()).backward()
            optimizer.step()
        points = np.linspace(-8, 10, 20001)
        densities = [np.exp(-((points - mean) ** 2) / 2) / np.sqrt(2 * np.pi) for mean in (0, 2)]
        mixture = sum(densities) / 2
        truth = sum(0.5 * trapezoid(p * np.log(np.maximum(p, 1e-300) / mixture), points) for p in densities)
        assert adversary(f_y, f_y[:, None], labels).item() == pytest.approx(truth, abs=0.03)

    def test_conditional_grants_what_y_tells(self):
        # z is y: within a class of y nothing is left to gain, however well z is read.
        labels = torch.tensor([[0, 0], [1, 1]] * 8)
        f_y = labels[:, 1:].float()
        marginal, conditional = (BlockAdversary(1, (2, 2), conditional=flag, hidden=()) for flag in (False, True))
        for adversary in (marginal, conditional):
            weight = torch.zeros_like(adversary.discriminators[0][0].weight)
            weight[:, 0] = torch.tensor([-40.0, 40.0])
            adversary.discriminators[0][0].weight.data = weight
            adversary.discriminators[0][0].bias.data = torch.tensor([20.0, -20.0])
        assert marginal(f_y, f_y[:, None], labels).item() == pytest.approx(math.log(2), abs=1e-4)
        assert conditional(f_y, f_y[:, None], labels).item() == pytest.approx(0, abs=1e-4)

    def test_missing_labels_do_not_count(self):
        f_y, _, _ = blocks()
        labels = torch.tensor([[0, 0, 2], [1, 1, 0]] * 6)
        adversary = BlockAdversary(4, (2, 2, 3))
        full = adversary(f_y[:8], f_y[:8, None], labels[:8])
        labels[8:, 1] = -1
        assert torch.allclose(adversary(f_y, f_y[:, None], labels)[0], full[0])
        labels[:, 2] = -1
        assert adversary(f_y, f_y[:, None], labels)[1].item() == 0


class TestBlockMMD:
    def oracle(self, f_y, one, other):
        distances = ((f_y[:, None] - f_y[None]) ** 2).sum(-1)
        width = np.sort(distances.ravel())[(distances.size - 1) // 2]
        total = 0.0
        for a, wa in [(i, 1 / len(one)) for i in one] + [(i, -1 / len(other)) for i in other]:
            for b, wb in [(i, 1 / len(one)) for i in one] + [(i, -1 / len(other)) for i in other]:
                total += wa * wb * np.mean([np.exp(-distances[a, b] / (s * width)) for s in BlockMMD.SCALES])
        return total

    def test_against_a_double_loop(self):
        rng = np.random.default_rng(0)
        f_y = rng.normal(size=(20, 3))
        labels = np.stack([rng.integers(0, 2, 20), rng.integers(-1, 2, 20), rng.integers(0, 3, 20)], 1)
        features = torch.tensor(f_y)
        values = BlockMMD((2, 2, 3))(features, features[:, None], torch.tensor(labels))
        rows = [np.flatnonzero(labels[:, 1] == value) for value in (0, 1)]
        assert values[0].item() == pytest.approx(self.oracle(f_y, *rows), abs=1e-9)
        three = [
            self.oracle(f_y, np.flatnonzero(labels[:, 2] == value), np.flatnonzero(labels[:, 2] != value))
            for value in range(3)
        ]
        assert values[1].item() == pytest.approx(np.mean(three), abs=1e-9)
        within = BlockMMD((2, 2, 3), conditional=True)(features, features[:, None], torch.tensor(labels))
        strata = [
            self.oracle(f_y, *(np.flatnonzero((labels[:, 0] == y) & (labels[:, 1] == value)) for value in (0, 1)))
            for y in (0, 1)
        ]
        assert within[0].item() == pytest.approx(np.mean(strata), abs=1e-9)

    def test_conditional_grants_what_y_tells(self):
        generator = torch.Generator().manual_seed(0)
        y = torch.arange(400) % 2
        z = torch.where(torch.arange(400) % 20 < 18, y, 1 - y)
        f_y = torch.randn(400, 2, generator=generator) + 4.0 * y[:, None]
        labels = torch.stack([y, z], 1)
        marginal, conditional = (
            BlockMMD((2, 2), conditional=flag)(f_y, f_y[:, None], labels) for flag in (False, True)
        )
        assert marginal > 0.3 and conditional < 0.05

    def test_identical_features_give_zero_and_finite_gradients(self):
        f_y = torch.ones(6, 2, requires_grad=True)
        labels = torch.tensor([[0, 0], [0, 1]] * 3)
        value = BlockMMD((2, 2))(f_y, f_y[:, None], labels)
        value.sum().backward()
        assert value.item() == pytest.approx(0, abs=1e-6) and bool(torch.isfinite(f_y.grad).all())

    def test_nothing_to_compare(self):
        f_y, f_z, labels = blocks()
        assert torch.equal(BlockMMD((2, 2, 2, 2))(f_y, f_z, labels), torch.zeros(3))


class TestMakeDependence:
    @pytest.mark.parametrize(
        ("method", "factors", "kind"),
        [
            ("mimmx", (0, 1), BlockMutualInformation),
            ("mimm", (0,), BlockMutualInformation),
            ("dcor", (0, 1), BlockDistanceCorrelation),
            ("adversarial", (0, 1), BlockAdversary),
            ("mmd", (0, 1), BlockMMD),
        ],
    )
    def test_methods(self, method, factors, kind):
        module = make_dependence(method, 4, (3, 2, 2))
        assert type(module) is kind and module.factors == factors
        f_y, f_z, labels = blocks(factors=2)
        assert module(f_y, f_z, labels).shape == (len(factors),)

    def test_options(self):
        options = {"estimator": "joint", "conditional": True, "negatives": 2, "hidden": (9,)}
        module = make_dependence("mimmx", 4, (3, 2, 2), **options)
        assert module.groups == ((0, 1),) and module.estimator.class_layer.num_embeddings == 3
        assert module.estimator.negatives == 2 and module.estimator.x_layer.weight.shape == (1, 4, 9)

    @pytest.mark.parametrize("method", ["baseline", "rebalance", "groupdro", "dfr"])
    def test_methods_without_a_term(self, method):
        assert make_dependence(method, 4, (2, 2)) is None

    def test_unknown_method(self):
        message = "method must be one of .mimmx., .*, .dfr., got .erm."
        with pytest.raises(ValueError, match=message):
            make_dependence("erm", 4, (2, 2))


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1e3, 1e6])
def test_mmd_does_not_depend_on_the_scale_of_the_features(scale):
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(2, (60, 2), generator=generator)
    f_y = torch.randn(60, 4, generator=generator) + labels[:, 1:]
    mmd = BlockMMD((2, 2))
    expected = mmd(f_y, None, labels)
    assert expected.item() > 0.05
    torch.testing.assert_close(mmd(scale * f_y, None, labels), expected, rtol=1e-4, atol=1e-6)
    still = torch.ones(60, 4, requires_grad=True)
    mmd(still, None, labels).sum().backward()
    assert bool((still.grad == 0).all())


@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("method", ["mimmx", "dcor", "mmd", "adversarial"])
def test_labels_of_any_integer_type(method, conditional):
    torch.manual_seed(0)
    term = make_dependence(method, 3, (2, 2, 2), conditional=conditional, negatives=99)
    f_y, f_z, labels = torch.randn(20, 3), torch.randn(20, 2, 3), torch.randint(2, (20, 3))
    torch.testing.assert_close(term(f_y, f_z, labels.int()), term(f_y, f_z, labels))
