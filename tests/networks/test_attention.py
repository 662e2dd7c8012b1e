# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch

from monai_mimmx.networks import ConfounderAttentionWeighter


def blocks(batch=5, factors=3, width=4):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, width, generator=generator), torch.randn(batch, factors, width, generator=generator)


@pytest.mark.parametrize("attention_dim", [None, 6])
def test_against_numpy(attention_dim):
    torch.manual_seed(0)
    caw = ConfounderAttentionWeighter(4, attention_dim)
    f_y, f_z = blocks()
    weights = caw(f_y, f_z).detach().numpy()
    (wq, bq, wk, bk) = (p.detach().numpy() for p in (*caw.query.parameters(), *caw.key.parameters()))
    query, key = f_y.numpy() @ wq.T + bq, f_z.numpy() @ wk.T + bk
    scores = np.einsum("bd,bnd->bn", query, key) / np.sqrt(attention_dim or 4)
    expected = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    np.testing.assert_allclose(weights, expected, rtol=1e-5)
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-6)


def test_one_factor_has_all_the_weight():
    assert torch.equal(ConfounderAttentionWeighter(4)(*blocks(factors=1)), torch.ones(5, 1))


def test_follows_the_order_of_the_factors():
    caw = ConfounderAttentionWeighter(4)
    f_y, f_z = blocks()
    torch.testing.assert_close(caw(f_y, f_z.flip(1)), caw(f_y, f_z).flip(1))


def test_primary_features_get_no_gradient():
    f_y, f_z = (v.requires_grad_() for v in blocks())
    caw = ConfounderAttentionWeighter(4)
    caw(f_y, f_z)[:, 0].sum().backward()
    assert f_y.grad is None and bool((f_z.grad != 0).any())
    assert all(bool((p.grad != 0).any()) for p in (caw.query.weight, caw.key.weight))
