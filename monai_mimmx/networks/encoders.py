# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""Encoders that turn an image into one feature vector."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks.blocks import Convolution
from monai.networks.nets import DenseNet121
from torch import Tensor, nn

__all__ = ["FourConvEncoder", "densenet121_encoder", "make_encoder"]


def grid_pool(x: Tensor, grid: int) -> Tensor:
    """
    Adaptive average pooling as the product with a constant matrix, whose gradient on a GPU is the same in every run.

    Args:
        x: `(B, C, *spatial)`.
        grid: positions per axis that are kept.

    Returns:
        `(B, C, grid ** axes)`, the values of :func:`torch.nn.functional.adaptive_avg_pool2d` and its like.

    Example:
        >>> grid_pool(torch.arange(4.0).view(1, 1, 4), 2)
        tensor([[[0.5000, 2.5000]]])
    """
    shares = torch.ones(1, 1, device=x.device, dtype=x.dtype)
    cell = torch.arange(grid, device=x.device)
    for size in x.shape[2:]:
        at = torch.arange(size, device=x.device)[:, None]
        begin, end = cell * size // grid, ((cell + 1) * size + grid - 1) // grid
        shares = torch.kron(shares, ((at >= begin) & (at < end)).to(x.dtype) / (end - begin).to(x.dtype))
    return x.flatten(2) @ shares


class FourConvEncoder(nn.Module):
    """
    Four strided convolutions, each with group normalization and ReLU, then average pooling to a small grid.

    The grid is flattened rather than averaged away, so that where a structure lies stays known to the heads.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        channels: output channels of the four convolutions, each a multiple of ``groups``.
        strides: their strides; a large first one makes large images cheap.
        kernel_sizes: their kernel sizes.
        groups: groups of the group normalization.
        grid: positions per axis that are kept.
        dropout: probability of dropping an output feature in training; small rare groups are learned by heart
            without it.

    Raises:
        ValueError: unless channels, strides and kernel_sizes have four entries each.

    Example:
        >>> import torch
        >>> encoder = FourConvEncoder(2, 1, strides=(4, 2, 2, 2))
        >>> encoder(torch.zeros(2, 1, 64, 64)).shape == (2, encoder.out_features)
        True
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        *,
        channels: Sequence[int] = (16, 32, 64, 64),
        strides: Sequence[int] = (2, 2, 2, 2),
        kernel_sizes: Sequence[int] = (5, 3, 3, 3),
        groups: int = 8,
        grid: int = 4,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        for name, values in {"channels": channels, "strides": strides, "kernel_sizes": kernel_sizes}.items():
            if len(values) != 4:
                raise ValueError(f"{name} must have 4 entries, got {tuple(values)}.")
        self.convolutions = nn.Sequential()
        for inputs, outputs, stride, size in zip(
            [in_channels, *channels[:3]], channels, strides, kernel_sizes, strict=True
        ):
            self.convolutions.append(
                Convolution(
                    spatial_dims,
                    inputs,
                    outputs,
                    strides=stride,
                    kernel_size=size,
                    act=("RELU", {"inplace": True}),  # one new tensor less per block
                    norm=("GROUP", {"num_groups": groups}),
                )
            )
        self.strides, self.grid = list(strides), grid
        self.dropout = nn.Dropout(dropout)
        self.out_features = channels[3] * grid**spatial_dims

    def forward(self, x: Tensor) -> Tensor:
        """Image `(B, C, *spatial)` to features `(B, out_features)`."""
        return self.dropout(grid_pool(self.convolutions(x), self.grid).flatten(1))


def densenet121_encoder(spatial_dims: int, in_channels: int) -> nn.Module:
    """
    MONAI's DenseNet-121 without its classification layer, with ``out_features`` 1024.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.

    Returns:
        a module from `(B, C, *spatial)`, each side 32 or more, to `(B, 1024)`.

    Example:
        >>> densenet121_encoder(2, 1).out_features
        1024

    Reference:
        Huang et al., Densely Connected Convolutional Networks, CVPR 2017.
    """
    encoder = DenseNet121(spatial_dims=spatial_dims, in_channels=in_channels, out_channels=1)
    encoder.out_features = encoder.class_layers.out.in_features  # type: ignore[union-attr, assignment]
    encoder.class_layers.out = nn.Identity()
    return encoder


def make_encoder(encoder: str | nn.Module, spatial_dims: int, in_channels: int) -> nn.Module:
    """
    The encoder of a name, or the given module, which must tell its output width as ``out_features``.

    Args:
        encoder: ``"four_conv"``, ``"densenet121"``, or any module from `(B, C, *spatial)` to `(B, out_features)`.
        spatial_dims: 2 or 3, for a named encoder.
        in_channels: channels of the image, for a named encoder.

    Returns:
        the encoder, from `(B, C, *spatial)` to `(B, out_features)`.

    Raises:
        ValueError: for an unknown name, or a module without an integer ``out_features``.

    Example:
        >>> make_encoder("four_conv", 3, 1).out_features  # 64 channels at 4 * 4 * 4 positions
        4096
    """
    if isinstance(encoder, nn.Module):
        if not isinstance(getattr(encoder, "out_features", None), int):
            raise ValueError(
                f"the encoder {type(encoder).__name__} must have an integer attribute `out_features`, the width F of "
                "its output (B, F); set it on the module before passing it."
            )
        return encoder
    if encoder == "four_conv":
        return FourConvEncoder(spatial_dims, in_channels)
    if encoder == "densenet121":
        return densenet121_encoder(spatial_dims, in_channels)
    raise ValueError(f"encoder must be 'four_conv', 'densenet121' or a torch.nn.Module, got {encoder!r}.")
