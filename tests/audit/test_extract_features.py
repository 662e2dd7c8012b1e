# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""Logits and features come out of networks of every form."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.networks.nets import DenseNet
from torch import nn

from monai_mimmx.audit import extract_features
from monai_mimmx.errors import root_cause
from monai_mimmx.networks import MIMMXNet

IMAGES = [str(i) for i in range(7)]


def load(item):
    """An image of the file's name, so to speak."""
    torch.manual_seed(int(item["image"]))
    return {"image": torch.randn(1, 32, 32)}


def batch():
    return torch.stack([load({"image": name})["image"] for name in IMAGES])


def extract(network, classes=2, **more):
    return extract_features(
        network, IMAGES, load, num_classes=classes, device="cpu", batch_size=3, progress=False, **more
    )


class Wrapped(nn.Module):
    def __init__(self, form):
        super().__init__()
        self.body, self.head, self.form = nn.Conv2d(1, 4, 3), nn.Linear(4, 2), form

    def forward(self, x):
        return self.form(self.head(self.body(x).mean((2, 3))))


def test_the_input_of_the_last_linear_layer():
    network = DenseNet(spatial_dims=2, in_channels=1, out_channels=3, init_features=8, growth_rate=4, block_config=(2,))
    network.train()
    logits, features = extract(network, 3)
    network.eval()
    with torch.no_grad():
        expected = network(batch())
        head = network.class_layers.out
    np.testing.assert_allclose(logits, expected.numpy(), atol=1e-5)
    np.testing.assert_allclose(
        features @ head.weight.detach().numpy().T + head.bias.detach().numpy(), logits, atol=1e-5
    )


@pytest.mark.parametrize("form", [lambda x: x, lambda x: (x, None), lambda x: {"logits": x}, lambda x: [x]])
def test_outputs_of_every_form(form):
    network = Wrapped(form)
    logits, features = extract(network)
    assert logits.shape == (7, 2) and features.shape == (7, 4)


def test_another_layer_is_averaged_over_space():
    network = Wrapped(lambda x: x)
    _, features = extract(network, layer="body")
    np.testing.assert_allclose(features, network.body(batch()).mean((2, 3)).detach().numpy(), atol=1e-5)


def test_own_networks_give_the_block_of_y():
    network = MIMMXNet(num_classes=(2, 2, 3), feature_dim=5).eval()
    logits, features = extract(network)
    with torch.no_grad():
        expected, blocks, _ = network(batch(), return_features=True)
    np.testing.assert_allclose(logits, expected[:, :2].numpy(), atol=1e-5)
    np.testing.assert_allclose(features, blocks[:, 0].numpy(), atol=1e-5)


@pytest.mark.parametrize("form", [lambda x: x[:, :1] - 2, lambda x: x[:, 0] - 2])
def test_one_logit_of_two_classes(form):
    network = Wrapped(form)
    logits, _ = extract(network)
    np.testing.assert_array_equal(logits[:, 0], 0)
    np.testing.assert_allclose(logits[:, 1], network(batch()).detach().numpy().ravel(), atol=1e-5)


def test_a_network_that_ends_with_a_sigmoid():
    """Its outputs lie above 0, which as logits would be the second class throughout."""
    network = Wrapped(lambda x: torch.sigmoid(300 * (x[:, :1] - x[:, :1].mean())))
    logits, _ = extract_features(network, IMAGES, load, num_classes=2, device="cpu", batch_size=7, progress=False)
    probability = network(batch())[:, 0].detach().numpy()
    assert 0 < (probability > 0.5).sum() < len(IMAGES)
    np.testing.assert_array_equal(logits.argmax(1), probability > 0.5)
    np.testing.assert_allclose(np.exp(logits), np.stack([1 - probability, probability], 1), atol=1e-5)


@pytest.mark.parametrize("scale", [1, 300])
def test_a_network_that_ends_with_a_softmax(scale):
    plain = Wrapped(lambda x: scale * x)
    network = Wrapped(lambda x: torch.softmax(scale * x, 1))
    network.load_state_dict(plain.state_dict())
    expected = torch.log_softmax(plain(batch()), 1).detach().numpy()
    np.testing.assert_allclose(extract(network)[0], np.maximum(expected, np.log(np.finfo(np.float32).tiny)), atol=1e-3)


def test_logits_are_kept():
    network = Wrapped(lambda x: x.abs() + 3)  # above 0, but no probabilities
    np.testing.assert_allclose(extract(network)[0], network(batch()).detach().numpy(), atol=1e-5)


def test_volumes():
    network = DenseNet(spatial_dims=3, in_channels=1, out_channels=2, init_features=8, growth_rate=4, block_config=(2,))
    logits, features = extract_features(
        network, IMAGES, lambda item: {"image": torch.randn(1, 16, 16, 16)}, num_classes=2, device="cpu", progress=False
    )
    assert logits.shape == (7, 2) and features.shape == (7, 16)


def test_layers_that_give_tuples_and_heads_called_by_keyword():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.LSTM(32, 5, batch_first=True), nn.Linear(5, 2)

        def forward(self, x):
            return self.head(input=self.body(x[:, 0])[0][:, -1])

    network = Recurrent()
    assert extract(network)[1].shape == (7, 5)
    _, features = extract(network, layer="body")
    np.testing.assert_allclose(features, network.body(batch()[:, 0])[0].mean(1).detach().numpy(), atol=1e-5)


def test_hooks_are_taken_away_and_the_mode_is_kept():
    network = Wrapped(lambda x: x).train()
    extract(network)
    assert network.training and not any(module._forward_hooks for module in network.modules())


def test_errors():
    with pytest.raises(ValueError, match="no module 'neck'; it has body, head"):
        extract(Wrapped(lambda x: x), layer="neck")
    for network in (Wrapped(lambda x: x), MIMMXNet(num_classes=(2, 3), feature_dim=2)):
        with pytest.raises(
            ValueError, match=r"the label has 3 classes, but the network gives outputs of shape \(3, 2\)"
        ):
            extract(network, 3)
    with pytest.raises(ValueError, match="ran no linear layer"):
        extract(nn.Sequential(nn.Conv2d(1, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    network = Wrapped(lambda x: torch.where(torch.arange(len(x))[:, None] == 1, torch.nan, x))
    with pytest.raises(ValueError, match="^1: the network's output for it is not finite"):
        extract(network)


def test_an_image_that_cannot_be_read_is_named():
    def spoilt(item):
        if item["image"] == "4":
            raise OSError("image file is truncated")
        return load(item)

    with pytest.raises(RuntimeError) as caught:
        extract_features(Wrapped(lambda x: x), IMAGES, spoilt, num_classes=2, device="cpu", progress=False)
    assert str(root_cause(caught.value)) == "4: image file is truncated"


def test_a_frozen_part_is_frozen_after_it():
    network = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(32 * 32, 2))
    network[0].eval()
    extract(network)
    assert network.training and network[2].training and not network[0].training
