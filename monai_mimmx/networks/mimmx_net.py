# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""The MIMM-X network: an encoder whose features split in one block and one head per task."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from monai_mimmx.networks.attention import ConfounderAttentionWeighter
from monai_mimmx.networks.encoders import make_encoder
from monai_mimmx.options import require_options

__all__ = ["MIMMXNet"]


class MIMMXNet(nn.Module):
    """
    Feature encoder, N + 1 feature blocks f_y, f_z1 .. f_zN, one linear head per block, and the attention weights.

    The encoder's output is projected to (N + 1) * feature_dim values, which are standardised over the batch (batch
    normalization without scale and shift, 1e-5 added to the variance), so that no block can lower a dependence estimate
    by shrinking; in training a batch needs two samples or more.

    By default the network returns ONE tensor, the logits of all heads side by side; that is what TorchScript, ONNX and
    MONAI's checks handle. ``return_features=True`` adds the feature blocks and attention weights.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        num_classes: classes of each task, the primary task first: N + 1 entries of 2 or more.
        feature_dim: width D of each feature block.
        encoder: ``"four_conv"``, ``"densenet121"``, or any module with an integer ``out_features``.
        caw: the Confounder Attention Weighter. ``"features"``: the weights times N (so that uniform attention is 1)
            multiply each f_zi before its head. ``"terms"``: the weights only weigh the factors' dependence terms in
            training. ``True`` is ``"features"``. ``False``: uniform weights.

    Raises:
        ValueError: for fewer than one spurious factor, a task with one class, a feature_dim below 1, or an unknown
            ``encoder`` or ``caw``.

    Example:
        >>> network = MIMMXNet(num_classes=(2, 2, 3), feature_dim=8, caw="features")
        >>> image = torch.randn(4, 1, 64, 64)
        >>> network(image).shape
        torch.Size([4, 7])
        >>> logits, features, attention = network(image, return_features=True)
        >>> features.shape, attention.shape
        (torch.Size([4, 3, 8]), torch.Size([4, 2]))
    """

    def __init__(
        self,
        *,
        spatial_dims: int = 2,
        in_channels: int = 1,
        num_classes: Sequence[int] = (2, 2, 2),
        feature_dim: int = 16,
        encoder: str | nn.Module = "four_conv",
        caw: bool | str = False,
    ) -> None:
        super().__init__()
        if len(num_classes) < 2:
            raise ValueError(f"num_classes needs the primary task and 1 or more spurious factors, got {num_classes}.")
        if min(num_classes) < 2:
            raise ValueError(f"every task needs 2 or more classes, got {tuple(num_classes)}.")
        require_options(feature_dim=feature_dim, caw=caw)
        self.num_classes = tuple(num_classes)
        self.num_tasks = len(num_classes)
        self.num_factors = self.num_tasks - 1
        self.feature_dim = feature_dim
        self.encoder = make_encoder(encoder, spatial_dims, in_channels)
        width: int = self.encoder.out_features  # type: ignore[assignment]
        self.projection = nn.Linear(width, self.num_tasks * feature_dim)
        self.standardize = nn.BatchNorm1d(self.num_tasks * feature_dim, affine=False)
        self.caw = ConfounderAttentionWeighter(feature_dim) if caw else None
        self.attend_features = bool(caw) and caw != "terms"
        self.heads = nn.ModuleList(nn.Linear(feature_dim, classes) for classes in num_classes)

    @torch.jit.unused
    def without_encoder(self) -> MIMMXNet:
        """
        A network that takes the encoder's output `(B, out_features)` instead of images.

        Projection, statistics, attention and heads are the very modules of this network: training one trains both.

        Example:
            >>> network = MIMMXNet(num_classes=(2, 2), feature_dim=8).eval()
            >>> image = torch.randn(4, 1, 64, 64)
            >>> torch.equal(network.without_encoder()(network.encoder(image)), network(image))
            True
        """
        view = copy.copy(self)
        view._modules = {**self._modules, "encoder": nn.Identity()}
        return view

    def forward(self, x: Tensor, return_features: bool = False) -> Tensor:
        """
        Args:
            x: image `(B, C, *spatial)`.
            return_features: also return features and attention (eager mode only).

        Returns:
            logits `(B, sum of num_classes)`, task after task; with ``return_features`` the tuple (logits, features
            `(B, 1 + N, D)` before any attention, attention `(B, N)`); in the "terms" reading attention carries no
            gradient.
        """
        flat = self.standardize(self.projection(self.encoder(x)))
        features = flat.view(flat.shape[0], self.num_tasks, self.feature_dim)
        f_y, f_z = features[:, 0], features[:, 1:]
        if self.caw is not None:
            attention = self.caw(f_y, f_z)
            if not self.attend_features:
                attention = attention.detach()  # no part of the logits: only the trainer's weighter trains it
        else:
            attention = torch.full_like(f_z[:, :, 0], 1.0 / self.num_factors)
        if self.attend_features:
            f_z = f_z * (attention * self.num_factors).unsqueeze(-1)
        blocks = torch.cat([f_y.unsqueeze(1), f_z], dim=1)
        outputs = []
        for i, head in enumerate(self.heads):
            outputs.append(head(blocks[:, i]))
        logits = torch.cat(outputs, dim=1)
        if not torch.jit.is_scripting():  # noqa: SIM102 (TorchScript would compile what stands behind an "and")
            if return_features:
                return logits, features, attention  # type: ignore[return-value]
        return logits
