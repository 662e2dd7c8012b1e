# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist, squareform

from monai_mimmx.losses import DistanceCorrelationLoss, distance_correlation


def oracle(x, z):
    """Definition 5 of Szekely et al. (2007), with SciPy's distances and a centring matrix."""
    centre = np.eye(len(x)) - 1 / len(x)
    a, b = (centre @ squareform(pdist(v)) @ centre for v in (np.asarray(x, float), np.asarray(z, float)))
    variance = np.sqrt((a * a).mean() * (b * b).mean())
    return np.sqrt((a * b).mean() / variance) if variance > 0 else 0.0


def samples(batch=20, widths=(3, 2), seed=0):
    generator = torch.Generator().manual_seed(seed)
    x, z = (torch.randn(batch, width, generator=generator, dtype=torch.float64) for width in widths)
    return x, z + x[:, :1]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("batch", "widths"), [(2, (1, 1)), (3, (2, 5)), (40, (3, 2)), (128, (16, 16))])
def test_against_scipy(batch, widths, seed):
    x, z = samples(batch, widths, seed)
    assert distance_correlation(x, z).item() == pytest.approx(oracle(x, z), abs=1e-10)
    single = distance_correlation(x.float(), z.float())
    assert single.dtype == torch.float32 and single.item() == pytest.approx(oracle(x, z), abs=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_for_a_linear_map(dtype):
    x = samples()[0].to(dtype)
    rotation = torch.linalg.qr(torch.randn(3, 3, dtype=dtype))[0]
    assert distance_correlation(x, x).item() == pytest.approx(1.0, abs=1e-6)
    assert distance_correlation(x, -2 * x @ rotation + 7).item() == pytest.approx(1.0, abs=1e-5)
    assert distance_correlation(x[:, :1], -4 * x[:, :1]).item() == pytest.approx(1.0, abs=1e-6)


def test_two_samples_always_agree():
    assert distance_correlation(torch.tensor([[0.0], [1.0]]), torch.tensor([[5.0, 1.0], [2.0, 2.0]])).item() == 1.0


def test_uncorrelated_but_dependent():
    x = torch.linspace(-1, 1, 201, dtype=torch.float64).unsqueeze(1)
    assert abs(np.corrcoef(x.flatten(), (x**2).flatten())[0, 1]) < 1e-10
    assert distance_correlation(x, x**2).item() > 0.4


def test_independent_samples_are_low():
    generator = torch.Generator().manual_seed(0)
    x, z = (torch.randn(1000, 1, generator=generator) for _ in range(2))
    assert distance_correlation(x, z).item() < 0.1


def test_invariances():
    x, z = samples()
    value = distance_correlation(x, z).item()
    order = torch.randperm(len(x))
    rotation = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))[0]
    assert distance_correlation(z, x).item() == pytest.approx(value, abs=1e-12)
    assert distance_correlation(x[order], z[order]).item() == pytest.approx(value, abs=1e-12)
    assert distance_correlation(x @ rotation, z).item() == pytest.approx(value, abs=1e-12)
    assert distance_correlation(x + 100, z - 100).item() == pytest.approx(value, abs=1e-10)
    assert distance_correlation(x[order], z).item() < value  # pairing matters


@pytest.mark.parametrize("scale", [1e-5, 1e-3, 1e3, 1e5])
def test_scale_invariance_in_float32(scale):
    x, z = (v.float() for v in samples())
    value = distance_correlation(x, z).item()
    assert distance_correlation(x * scale, z).item() == pytest.approx(value, rel=1e-3)
    assert distance_correlation(x * scale, z * scale).item() == pytest.approx(value, rel=1e-3)


@pytest.mark.parametrize("constant", ["x", "z", "both"])
def test_constant_features_are_independent(constant):
    x, z = (v.float() for v in samples())
    x = torch.full_like(x, 0.1) if constant != "z" else x
    z = torch.full_like(z, 1e3) if constant != "x" else z
    x, z = x.requires_grad_(), z.requires_grad_()
    value = distance_correlation(x, z)
    value.backward()
    assert value.item() == pytest.approx(0.0, abs=1e-6)
    assert bool(torch.isfinite(x.grad).all()) and bool(torch.isfinite(z.grad).all())


def test_gradcheck():
    x, z = (v.requires_grad_() for v in samples(batch=6))
    assert torch.autograd.gradcheck(distance_correlation, (x, z))


def test_equal_rows_have_finite_gradients():
    x, z = (v.float() for v in samples(batch=8))
    x[1] = x[0]
    x = x.requires_grad_()
    distance_correlation(x, z).backward()
    assert bool(torch.isfinite(x.grad).all())


def test_descent_removes_the_dependence():
    torch.manual_seed(0)
    z, noise = torch.randn(64, 1), torch.randn(64, 1)
    weight = torch.nn.Parameter(torch.tensor([1.0, 0.3]))
    optimizer = torch.optim.Adam([weight], lr=0.05)
    loss = DistanceCorrelationLoss()
    first = None
    for _ in range(60):
        value = loss(weight[0] * z + weight[1] * noise, z)
        first = first or value.item()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    assert first > 0.9 and value.item() < 0.3


def test_half_precision_and_autocast():
    x, z = (v.float() for v in samples())
    expected = distance_correlation(x.bfloat16().float(), z.bfloat16().float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = distance_correlation(x.bfloat16(), z.bfloat16())
    assert value.dtype == torch.float32 and value.item() == pytest.approx(expected.item(), abs=1e-6)


@pytest.mark.parametrize(("x", "z"), [((4,), (4, 1)), ((4, 1), (4, 1, 1)), ((4, 1), (5, 1))])
def test_wrong_shapes(x, z):
    with pytest.raises(ValueError, match=r"must have shapes \(B, D_x\) and \(B, D_z\), got"):
        DistanceCorrelationLoss()(torch.zeros(x), torch.zeros(z))
