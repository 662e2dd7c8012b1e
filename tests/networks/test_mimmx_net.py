# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from monai.utils import version_geq
from torch import nn

from monai_mimmx.networks import FourConvEncoder, MIMMXNet


def small_encoder(spatial_dims=2, in_channels=1):
    return FourConvEncoder(spatial_dims, in_channels, channels=(8, 8, 8, 8), grid=2)


def network(caw=False, num_classes=(2, 2, 3), **options):
    torch.manual_seed(0)
    return MIMMXNet(num_classes=num_classes, feature_dim=4, encoder=small_encoder(), caw=caw, **options)


@pytest.mark.parametrize("num_classes", [(2, 2), (2, 3, 2), (4, 2, 2, 5)])
@pytest.mark.parametrize(("spatial_dims", "size"), [(2, (32, 24)), (3, (16, 16, 16))])
@pytest.mark.parametrize("caw", [False, "features", "terms"])
def test_shapes(num_classes, spatial_dims, size, caw):
    encoder = small_encoder(spatial_dims, 2)
    net = MIMMXNet(num_classes=num_classes, feature_dim=5, encoder=encoder, caw=caw)
    image = torch.randn(4, 2, *size)
    logits, features, attention = net(image, return_features=True)
    assert net(image).shape == logits.shape == (4, sum(num_classes))
    assert features.shape == (4, len(num_classes), 5) and attention.shape == (4, len(num_classes) - 1)
    torch.testing.assert_close(attention.sum(1), torch.ones(4))


def test_named_encoders():
    net = MIMMXNet(spatial_dims=3, in_channels=2, encoder="four_conv")
    assert net(torch.randn(2, 2, 32, 32, 32)).shape == (2, 6)
    net = MIMMXNet(encoder="densenet121", in_channels=3, num_classes=(2, 2)).eval()
    assert net(torch.randn(1, 3, 64, 64)).shape == (1, 4)


def test_any_module_encodes():
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(16, 10))
    encoder.out_features = 10
    assert MIMMXNet(encoder=encoder)(torch.randn(3, 1, 4, 4)).shape == (3, 6)


def test_every_block_is_standardised_over_the_batch():
    _, features, _ = network()(5 + 3 * torch.randn(64, 1, 32, 32), return_features=True)
    torch.testing.assert_close(features.mean(0), torch.zeros(3, 4), atol=1e-5, rtol=0)
    torch.testing.assert_close(features.var(0, unbiased=False), torch.ones(3, 4), atol=1e-2, rtol=0)


def test_each_head_reads_its_own_block():
    net = network().eval()
    image = torch.randn(3, 1, 32, 32)
    logits, features, _ = net(image, return_features=True)
    expected = torch.cat([head(features[:, i]) for i, head in enumerate(net.heads)], dim=1)
    torch.testing.assert_close(logits, expected)


@pytest.mark.parametrize("caw", [True, "features"])
def test_features_reading_scales_each_block_before_its_head(caw):
    net = network(caw).eval()
    logits, features, attention = net(torch.randn(3, 1, 32, 32), return_features=True)
    torch.testing.assert_close(attention, net.caw(features[:, 0], features[:, 1:]))
    assert attention.std() > 1e-3  # not the uniform case
    parts = [net.heads[0](features[:, 0])]
    parts += [net.heads[i](features[:, i] * 2 * attention[:, i - 1 : i]) for i in (1, 2)]
    torch.testing.assert_close(logits, torch.cat(parts, dim=1))


def test_uniform_attention_changes_nothing():
    plain, attended = network(False), network("features")
    attended.load_state_dict(plain.state_dict(), strict=False)
    for parameter in attended.caw.parameters():
        nn.init.zeros_(parameter)
    image = torch.randn(6, 1, 32, 32)
    torch.testing.assert_close(attended(image), plain(image))


def test_terms_reading_leaves_the_heads_alone():
    plain, weighed = network(False), network("terms")
    weighed.load_state_dict(plain.state_dict(), strict=False)
    image = torch.randn(6, 1, 32, 32)
    logits, _, attention = weighed(image, return_features=True)
    torch.testing.assert_close(logits, plain(image))
    assert attention.std() > 1e-3 and not weighed.attend_features and not attention.requires_grad


def test_one_and_zero_mean_true_and_false():
    # A command line gives 1 and 0 where true and false are meant.
    assert network(1).attend_features and network(1).caw is not None
    assert not network(0).attend_features and network(0).caw is None


def test_attention_pulls_not_at_the_primary_block():
    net = network("features")
    _, _, attention = net(torch.randn(6, 1, 32, 32), return_features=True)
    attention[:, 0].sum().backward()
    rows = net.projection.weight.grad
    assert bool((rows[:4] == 0).all()) and bool((rows[4:] != 0).any())


@pytest.mark.parametrize("caw", [False, "features", "terms"])
def test_torchscript(caw):
    net = network(caw).eval()
    image = torch.randn(3, 1, 32, 32)
    torch.testing.assert_close(torch.jit.script(net)(image), net(image))
    torch.testing.assert_close(torch.jit.trace(net, image)(image), net(image))


@pytest.mark.skipif(not version_geq(torch.__version__, "2.6"), reason="torch.export of torch 2.5 fixes the batch size")
@pytest.mark.parametrize("caw", [False, "features"])
def test_export(caw):
    net = network(caw).eval()
    image = torch.randn(3, 1, 32, 32)
    program = torch.export.export(net, (image,), dynamic_shapes={"x": {0: torch.export.Dim("batch")}})
    larger = torch.randn(5, 1, 32, 32)
    torch.testing.assert_close(program.module()(larger), net(larger))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": (2,)}, r"the primary task and 1 or more spurious factors, got \(2,\)"),
        ({"num_classes": (2, 1)}, r"every task needs 2 or more classes, got \(2, 1\)"),
        ({"feature_dim": 0}, "feature_dim must be 1 or more, got 0"),
        ({"caw": "maps"}, "caw must be True, False, 'features' or 'terms', got 'maps'"),
        ({"encoder": "vgg"}, "encoder must be 'four_conv', 'densenet121' or a torch.nn.Module, got 'vgg'"),
        ({"encoder": nn.Flatten()}, "must have an integer attribute `out_features`"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        MIMMXNet(**options)


@pytest.mark.parametrize("caw", [False, "features"])
def test_without_encoder_shares_what_stands_behind_it(caw):
    net = network(caw)
    image = torch.randn(6, 1, 32, 32)
    short = net.without_encoder()
    short(net.encoder(image).detach()).square().sum().backward()
    assert net.projection.weight.grad.any() and all(p.grad is None for p in net.encoder.parameters())
    assert {id(p) for p in short.parameters()} == {id(p) for p in net.parameters()} - {
        id(p) for p in net.encoder.parameters()
    }
    for old, new in zip(
        net.eval()(image, return_features=True), short.eval()(net.encoder(image), return_features=True)
    ):
        assert torch.equal(old, new)
    assert isinstance(net.encoder, FourConvEncoder), "the network itself keeps its encoder"
