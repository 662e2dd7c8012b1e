# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""The Confounder Attention Weighter (CAW): one weight per sample and spurious factor."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

__all__ = ["ConfounderAttentionWeighter"]


class ConfounderAttentionWeighter(nn.Module):
    """
    Scaled dot-product attention of the primary feature block over the spurious feature blocks.

    The query is made from the detached f_y, so that attention never pulls at the primary features; the keys are made
    from the f_zi.

    Args:
        feature_dim: width D of every feature block.
        attention_dim: width of queries and keys; D by default.

    Example:
        >>> caw = ConfounderAttentionWeighter(8)
        >>> weights = caw(torch.randn(4, 8), torch.randn(4, 3, 8))
        >>> weights.shape, bool(torch.allclose(weights.sum(1), torch.ones(4)))
        (torch.Size([4, 3]), True)
    """

    def __init__(self, feature_dim: int, attention_dim: int | None = None) -> None:
        super().__init__()
        self.query = nn.Linear(feature_dim, attention_dim or feature_dim)
        self.key = nn.Linear(feature_dim, attention_dim or feature_dim)
        self.scale = 1.0 / math.sqrt(attention_dim or feature_dim)

    def forward(self, f_y: Tensor, f_z: Tensor) -> Tensor:
        """
        Args:
            f_y: primary feature block `(B, D)`.
            f_z: spurious feature blocks `(B, N, D)`.

        Returns:
            weights `(B, N)`, positive, each row summing to 1.
        """
        scores = (self.key(f_z) * self.query(f_y.detach()).unsqueeze(1)).sum(-1) * self.scale
        return torch.softmax(scores, dim=1)
