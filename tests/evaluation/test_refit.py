# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax
from torch import nn

from monai_mimmx.evaluation import refit, refit_last_layer
from monai_mimmx.networks import MIMMXNet


class Flat(nn.Module):
    """An encoder whose output is the image."""

    out_features = 6

    def forward(self, x):
        return x.flatten(1)


class Rows(torch.utils.data.Dataset):
    def __init__(self, images, labels):
        self.images, self.labels = images, labels

    def __len__(self):
        return len(self.images)

    def __getitems__(self, rows):
        return {"image": self.images[rows], "label": self.labels[rows]}


def make(classes=(2, 2), size=600, feature_dim=2, seed=0):
    """Features: y (weak) in the first, z (strong) in the second; z agrees with y in 90 %."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes[0], size)
    z = np.where(rng.random(size) < 0.9, y % 2, 1 - y % 2)
    x = rng.normal(size=(size, 6))
    x[:, 0] += 1.2 * y
    x[:, 1] = 3 * (z + 0.2 * x[:, 1])
    images = torch.tensor(x, dtype=torch.float32).view(size, 1, 2, 3)
    torch.manual_seed(seed)
    network = MIMMXNet(num_classes=classes, feature_dim=feature_dim, encoder=Flat())
    return network, Rows(images, torch.tensor(np.stack([y, z], 1)))


def worst_cell(network, data):
    with torch.no_grad():
        right = network.eval()(data.images)[:, : network.num_classes[0]].argmax(1) == data.labels[:, 0]
    cells = 2 * data.labels[:, 0] + data.labels[:, 1]
    return min(right[cells == cell].float().mean().item() for cell in cells.unique())


@pytest.mark.parametrize("classes", [(2, 2), (3, 2)])
def test_a_shortcut_is_unlearned_and_the_rest_stays(tmp_path, classes):
    network, data = make(classes, feature_dim=3)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.05)
    network.train()
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(data.images)[:, : classes[0]], data.labels[:, 0]).backward()
        optimizer.step()
    torch.save(network.state_dict(), tmp_path / "model.pt")
    _, test = make(classes, seed=1)
    before = worst_cell(network, test)
    with torch.no_grad():
        factor = network.eval()(test.images)[:, classes[0] :]
    refit_last_layer(network, data, tmp_path / "model.pt", num_classes=classes, device="cpu")
    assert worst_cell(network, test) > before + 0.2
    with torch.no_grad():
        logits, features, _ = network.eval()(test.images, return_features=True)
    torch.testing.assert_close(logits[:, classes[0] :], factor)
    expected = features[:, 0, :1] * torch.tensor([-0.5, 0.5]) if classes[0] == 2 else features[:, 0]
    torch.testing.assert_close(logits[:, : classes[0]], expected)
    saved = MIMMXNet(num_classes=classes, feature_dim=3, encoder=Flat())
    saved.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    assert torch.equal(saved.eval()(test.images), network(test.images))
    assert not list(tmp_path.glob("*.part"))


def correlated(n=300, size=128, classes=3):
    """More features than directions, as those of an encoder are."""
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(n, 12))
    y = np.arange(n) % classes
    hidden[:, 0] += 1.2 * y
    hidden[:, 1] += 2.0 * (y == 1)
    features = np.maximum(hidden @ rng.normal(size=(12, size)) + 0.3 * rng.normal(size=(n, size)), 0)
    return (features - features.mean(0)) / features.std(0), y


@pytest.mark.parametrize("strength", [1.0, 0.1, 0.03])
def test_three_classes_are_fitted_to_the_optimum_and_without_a_warning(strength):
    x, y = correlated()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        coefficients, intercepts = refit._fit(x, y, strength)
    logits = x @ coefficients.T + intercepts
    slope = strength * (softmax(logits, axis=1) - np.eye(3)[y])
    # At the optimum the loss's slope is that of the penalty, of the other sign, and within [-1, 1] where a coefficient is 0.
    by_coefficient, used = slope.T @ x, np.abs(coefficients) > 1e-6
    assert used.any() and not used.all()
    np.testing.assert_allclose(by_coefficient[used], -np.sign(coefficients[used]), atol=5e-3)
    assert np.abs(by_coefficient).max() < 1.005 and np.abs(slope.sum(0)).max() < 5e-3
    value = np.abs(coefficients).sum() - strength * log_softmax(logits, axis=1)[np.arange(len(y)), y].sum()
    assert value < strength * len(y) * np.log(3)


def test_a_fit_that_has_not_converged_is_told_in_one_line(monkeypatch):
    monkeypatch.setattr(refit, "ITERATIONS", 3)
    with pytest.warns(UserWarning, match="fitted anew .dfr., has not converged in 3 iterations") as told:
        refit._fit(*correlated(), 1.0)
    assert len(told) == 1


def test_refusals(tmp_path):
    network, data = make((3, 2), feature_dim=2)
    torch.save(network.state_dict(), tmp_path / "model.pt")
    with pytest.raises(ValueError, match="the logits of 3 classes need feature_dim 3 or more, got 2"):
        refit_last_layer(network, data, tmp_path / "model.pt", num_classes=(3, 2), device="cpu")
    network, data = make()
    torch.save(network.state_dict(), tmp_path / "model.pt")
    lonely = Rows(data.images, torch.tensor([[0, 0], [1, 1]]).repeat(300, 1))
    lonely.labels[0] = torch.tensor([0, 1])
    without = Rows(data.images, torch.tensor([[0, 0], [0, 1], [1, 0]]).repeat(200, 1))
    for rows, message in (
        (lonely, r"every .* cell needs 2 or more rows .* the classes \(1, 0\) have 0"),
        (without, r"every .* cell needs 2 or more rows .* the classes \(1, 1\) have 0"),
        (Rows(data.images[:9], torch.zeros(9, 2, dtype=torch.long)), "every class of the primary task needs rows"),
    ):
        with pytest.raises(ValueError, match=message):
            refit_last_layer(network, rows, tmp_path / "model.pt", num_classes=(2, 2), device="cpu")
    with pytest.raises(ValueError, match="draws must be 1 or more, got 0"):
        refit_last_layer(network, data, tmp_path / "model.pt", num_classes=(2, 2), device="cpu", draws=0)
    with pytest.raises(FileNotFoundError, match="there is no checkpoint"):
        refit_last_layer(network, data, tmp_path / "none.pt", num_classes=(2, 2), device="cpu")
