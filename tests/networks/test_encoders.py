# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from monai.networks.nets import DenseNet121
from torch import nn
from torch.nn import functional as F

from monai_mimmx.networks import FourConvEncoder, densenet121_encoder, make_encoder
from monai_mimmx.networks.encoders import grid_pool


@pytest.mark.parametrize("grid", [1, 3, 4])
@pytest.mark.parametrize(
    ("spatial", "oracle"),
    [((7,), F.adaptive_avg_pool1d), ((8, 5), F.adaptive_avg_pool2d), ((2, 12, 3), F.adaptive_avg_pool3d)],
)
def test_grid_pool_is_adaptive_average_pooling(spatial, oracle, grid):
    x = torch.randn(2, 3, *spatial, dtype=torch.float64, requires_grad=True)
    ours, theirs = grid_pool(x, grid), oracle(x, grid).flatten(2)
    torch.testing.assert_close(ours, theirs)
    weights = torch.randn_like(ours)
    slopes = (torch.autograd.grad((value * weights).sum(), x)[0] for value in (ours, theirs))
    torch.testing.assert_close(*slopes)


class TestFourConvEncoder:
    @pytest.mark.parametrize(("spatial_dims", "size"), [(2, (64, 48)), (2, (28, 28)), (3, (32, 32, 16))])
    def test_shapes(self, spatial_dims, size):
        encoder = FourConvEncoder(spatial_dims, 2, channels=(8, 8, 16, 24), grid=2)
        assert encoder.out_features == 24 * 2**spatial_dims
        assert encoder(torch.zeros(3, 2, *size)).shape == (3, encoder.out_features)

    def test_has_four_convolutions_as_told(self):
        encoder = FourConvEncoder(2, 1, channels=(8, 16, 24, 32), strides=(4, 2, 1, 2), kernel_sizes=(7, 5, 3, 1))
        convolutions = [m for m in encoder.modules() if isinstance(m, nn.Conv2d)]
        assert [c.out_channels for c in convolutions] == [8, 16, 24, 32]
        assert [c.stride[0] for c in convolutions] == [4, 2, 1, 2]
        assert [c.kernel_size[0] for c in convolutions] == [7, 5, 3, 1]

    def test_position_stays_known(self):
        # Averaging over the whole image would make a shifted spot look (nearly) the same.
        torch.manual_seed(0)
        encoder = FourConvEncoder(2, 1)
        images = torch.zeros(2, 1, 64, 64)
        images[0, 0, 8:16, 8:16] = images[1, 0, 48:56, 48:56] = 1
        first, second = encoder(images)
        assert (first - second).norm() > 0.1 * first.norm()

    def test_samples_do_not_depend_on_their_batch(self):
        torch.manual_seed(0)
        encoder = FourConvEncoder(2, 1).train()
        images = torch.randn(4, 1, 32, 32)
        torch.testing.assert_close(encoder(images)[:1], encoder(images[:1]))

    @pytest.mark.parametrize("name", ["channels", "strides", "kernel_sizes"])
    def test_refusals(self, name):
        with pytest.raises(ValueError, match=rf"{name} must have 4 entries, got \(8, 8, 8\)"):
            FourConvEncoder(2, 1, **{name: (8, 8, 8)})


class TestDenseNet121:
    def test_is_monais_without_the_last_layer(self):
        torch.manual_seed(0)
        reference = DenseNet121(spatial_dims=2, in_channels=3, out_channels=1).eval()
        encoder = densenet121_encoder(2, 3).eval()
        encoder.load_state_dict({k: v for k, v in reference.state_dict().items() if "class_layers.out" not in k})
        image = torch.randn(1, 3, 48, 48)
        features = encoder(image)
        assert encoder.out_features == 1024 and features.shape == (1, 1024)
        torch.testing.assert_close(reference.class_layers.out(features), reference(image))


class TestMakeEncoder:
    def test_names(self):
        assert isinstance(make_encoder("four_conv", 3, 1), FourConvEncoder)
        assert make_encoder("densenet121", 2, 1).out_features == 1024

    def test_any_module(self):
        module = nn.Linear(4, 7)
        assert make_encoder(module, 2, 1) is module

    def test_refusals(self):
        with pytest.raises(ValueError, match="'four_conv', 'densenet121' or a torch.nn.Module, got 'resnet'"):
            make_encoder("resnet", 2, 1)
        with pytest.raises(ValueError, match="encoder Flatten must have an integer attribute `out_features`"):
            make_encoder(nn.Flatten(), 2, 1)
