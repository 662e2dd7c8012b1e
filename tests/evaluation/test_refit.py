# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from monai_mimmx.evaluation import refit_last_layer
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


def test_refusals(tmp_path):
    network, data = make((3, 2), feature_dim=2)
    torch.save(network.state_dict(), tmp_path / "model.pt")
    with pytest.raises(ValueError, match="the logits of 3 classes need feature_dim 3 or more, got 2"):
        refit_last_layer(network, data, tmp_path / "model.pt", num_classes=(3, 2), device="cpu")
    network, data = make()
    torch.save(network.state_dict(), tmp_path / "model.pt")
    lonely = Rows(data.images, torch.tensor([[0, 0], [1, 1]]).repeat(300, 1))
    lonely.labels[0] = torch.tensor([0, 1])
    for rows, message in (
        (lonely, "every .* cell needs 2 or more rows"),
        (Rows(data.images[:9], torch.zeros(9, 2, dtype=torch.long)), "every class of the primary task needs rows"),
    ):
        with pytest.raises(ValueError, match=message):
            refit_last_layer(network, rows, tmp_path / "model.pt", num_classes=(2, 2), device="cpu")
    with pytest.raises(ValueError, match="draws must be 1 or more, got 0"):
        refit_last_layer(network, data, tmp_path / "model.pt", num_classes=(2, 2), device="cpu", draws=0)
    with pytest.raises(FileNotFoundError, match="there is no checkpoint"):
        refit_last_layer(network, data, tmp_path / "none.pt", num_classes=(2, 2), device="cpu")
