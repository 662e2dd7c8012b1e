# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from monai_mimmx.losses import (
    BlockDistanceCorrelation,
    BlockMutualInformation,
    distance_correlation,
    make_dependence,
)


def blocks(batch=12, factors=3, width=4):
    generator = torch.Generator().manual_seed(0)
    f_y, f_z = torch.randn(batch, width, generator=generator), torch.randn(batch, factors, width, generator=generator)
    return f_y, f_z, torch.arange(batch) % 2


class TestBlockMutualInformation:
    @pytest.mark.parametrize("conditional", [False, True])
    def test_per_factor_is_one_estimate_per_factor(self, conditional):
        f_y, f_z, y = blocks()
        module = BlockMutualInformation(4, factors=(0, 2), negatives=20, conditional=conditional)  # all partners
        values = module(f_y, f_z, y)
        condition = y if conditional else None
        assert values.shape == (2,) and module.groups == ((0,), (2,))
        for value, estimator, factor in zip(values, module.estimators, (0, 2)):
            assert value.item() == pytest.approx(estimator(f_y, f_z[:, factor], condition).item(), abs=1e-6)

    def test_joint_is_one_estimate_of_all(self):
        f_y, f_z, y = blocks()
        module = BlockMutualInformation(4, factors=(0, 2), estimator="joint", negatives=20)
        values = module(f_y, f_z, y)
        expected = module.estimators[0](f_y, torch.cat([f_z[:, 0], f_z[:, 2]], dim=1))
        assert values.shape == (1,) and module.groups == ((0, 2),) and len(module.estimators) == 1
        assert values.item() == pytest.approx(expected.item(), abs=1e-6)

    @pytest.mark.parametrize("estimator", ["per_factor", "joint"])
    def test_gradient_reaches_the_named_factors_only(self, estimator):
        f_y, f_z, y = blocks()
        f_y, f_z = f_y.requires_grad_(), f_z.requires_grad_()
        BlockMutualInformation(4, factors=(1,), estimator=estimator)(f_y, f_z, y).sum().backward()
        assert bool((f_y.grad != 0).any()) and bool((f_z.grad[:, 1] != 0).any())
        assert bool((f_z.grad[:, [0, 2]] == 0).all())

    def test_uses_the_class_only_when_conditional(self):
        f_y, f_z, y = blocks()
        torch.manual_seed(0)
        marginal = BlockMutualInformation(4, factors=(0,), negatives=20)
        conditional = BlockMutualInformation(4, factors=(0,), negatives=20, conditional=True)
        assert torch.allclose(marginal(f_y, f_z, y), marginal(f_y, f_z, 1 - y), atol=1e-6)
        assert not torch.allclose(conditional(f_y, f_z, y), conditional(f_y, f_z, 1 - y), atol=1e-4)

    def test_options_reach_the_estimators(self):
        module = BlockMutualInformation(4, factors=(0,), hidden=(7, 5), negatives=3, conditional=True, num_classes=6)
        (estimator,) = module.estimators
        assert [p.shape[0] for p in estimator.layers.parameters()] == [5, 5, 1, 1]
        assert estimator.x_layer.out_features == 7 and estimator.negatives == 3
        assert estimator.class_layer.num_embeddings == 6

    def test_refusals(self):
        with pytest.raises(ValueError, match="must be 'per_factor' or 'joint', got 'both'"):
            BlockMutualInformation(4, factors=(0,), estimator="both")
        with pytest.raises(ValueError, match="factors must name at least one spurious factor"):
            BlockMutualInformation(4, factors=())


class TestBlockDistanceCorrelation:
    def test_one_value_per_factor(self):
        f_y, f_z, y = blocks()
        module = BlockDistanceCorrelation(factors=(2, 0))
        expected = torch.stack([distance_correlation(f_y, f_z[:, 2]), distance_correlation(f_y, f_z[:, 0])])
        assert torch.equal(module(f_y, f_z, y), expected)
        assert not list(module.parameters())

    def test_refusal(self):
        with pytest.raises(ValueError, match="factors must name at least one spurious factor"):
            BlockDistanceCorrelation(factors=())


class TestMakeDependence:
    @pytest.mark.parametrize(
        ("method", "factors", "kind"),
        [
            ("mimmx", (0, 1), BlockMutualInformation),
            ("mimm", (0,), BlockMutualInformation),
            ("dcor", (0, 1), BlockDistanceCorrelation),
        ],
    )
    def test_methods(self, method, factors, kind):
        module = make_dependence(method, 4, (3, 2, 2))
        assert type(module) is kind and module.factors == factors
        f_y, f_z, y = blocks(factors=2)
        assert module(f_y, f_z, y).shape == (len(factors),)

    def test_options(self):
        options = {"estimator": "joint", "conditional": True, "negatives": 2, "hidden": (9,)}
        module = make_dependence("mimmx", 4, (3, 2, 2), **options)
        (estimator,) = module.estimators
        assert module.groups == ((0, 1),) and estimator.class_layer.num_embeddings == 3
        assert estimator.negatives == 2 and estimator.x_layer.out_features == 9

    @pytest.mark.parametrize("method", ["baseline", "rebalance"])
    def test_methods_without_a_term(self, method):
        assert make_dependence(method, 4, (2, 2)) is None

    def test_unknown_method(self):
        message = "must be 'mimmx', 'mimm', 'dcor', 'baseline' or 'rebalance', got 'erm'"
        with pytest.raises(ValueError, match=message):
            make_dependence("erm", 4, (2, 2))
