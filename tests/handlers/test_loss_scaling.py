# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events

from monai_mimmx.handlers import DynamicLossScaling, loss_scaling_factors


def test_equation_2():
    losses, alpha = np.array([0.9, 0.2, 1.7]), np.array([0.3, 0.8, 0.5])
    factors = loss_scaling_factors(torch.tensor(losses), torch.tensor(alpha))
    np.testing.assert_allclose(factors.numpy(), (losses / losses.mean()) ** alpha, rtol=1e-12)


def test_equal_losses_and_zero_exponents_give_one():
    alpha = torch.tensor([0.3, 0.8])
    torch.testing.assert_close(loss_scaling_factors(torch.full((2,), 0.4), alpha), torch.ones(2))
    assert torch.equal(loss_scaling_factors(torch.tensor([0.1, 5.0]), torch.zeros(2)), torch.ones(2))


def test_scale_of_the_losses_cancels():
    losses, alpha = torch.tensor([0.3, 1.2, 0.6]), torch.tensor([0.3, 0.8, 0.8])
    torch.testing.assert_close(loss_scaling_factors(losses * 50, alpha), loss_scaling_factors(losses, alpha))


def test_zero_losses():
    alpha = torch.tensor([0.3, 0.8])
    assert torch.equal(loss_scaling_factors(torch.zeros(2), alpha), torch.ones(2))
    # A factor without labels in the batch must not raise the weight of the others.
    factors = loss_scaling_factors(torch.tensor([0.6, 0.6, 0.0]), torch.tensor([0.3, 0.8, 0.8]))
    assert torch.equal(factors, torch.tensor([1.0, 1.0, 0.0]))


def test_carries_no_gradient():
    losses = torch.tensor([0.3, 1.2], requires_grad=True)
    factors = DynamicLossScaling()(losses)
    assert not factors.requires_grad
    (factors * losses).sum().backward()
    assert torch.equal(losses.grad, factors)


def test_first_task_has_its_own_exponent():
    losses = torch.tensor([2.0, 1.0, 3.0])
    factors = DynamicLossScaling(0.5, 2.0, 0.0)(losses)
    torch.testing.assert_close(factors, torch.tensor([1.0, 0.25, 2.25]))


def test_equation_3():
    scaling = DynamicLossScaling(0.3, 0.8, 0.4)
    engine = Engine(lambda engine, batch: None)
    scaling.attach(engine)
    seen = []
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda: seen.append(scaling.alpha_y))
    assert scaling.alpha_y == 0.3
    engine.run([0, 1], max_epochs=4)
    assert seen == pytest.approx([0.3 + epoch / 4 * 0.4 for epoch in (1, 1, 2, 2, 3, 3, 4, 4)])
    assert scaling.alpha_z == 0.8


def test_state():
    scaling = DynamicLossScaling(0.3, 0.8, 0.4)
    scaling.alpha_y = 0.5
    other = DynamicLossScaling(0.3, 0.8, 0.4)
    other.load_state_dict(scaling.state_dict())
    losses = torch.tensor([2.0, 1.0])
    assert torch.equal(other(losses), scaling(losses))


@pytest.mark.parametrize("name", ["alpha_y", "alpha_z"])
def test_refusals(name):
    with pytest.raises(ValueError, match=f"{name} must be 0 or more, got -0.1"):
        DynamicLossScaling(**{name: -0.1})
