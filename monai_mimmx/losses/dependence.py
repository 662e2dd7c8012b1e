# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""The dependence between the primary feature block and the spurious ones, the term that MIMM-X minimises."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from monai_mimmx.losses.dcor import distance_correlation
from monai_mimmx.losses.mine import MINELoss

__all__ = ["BlockDistanceCorrelation", "BlockMutualInformation", "make_dependence"]


class BlockMutualInformation(nn.Module):
    """
    MINE estimates between f_y and the spurious feature blocks, in nats.

    Args:
        feature_dim: width D of every feature block.
        factors: which of the spurious factors count (0 is z_1).
        estimator: ``"per_factor"``, one estimate I(f_y; f_zi) per factor; or ``"joint"``, one estimate
            I(f_y; [f_zi of all factors]).
        conditional: estimate I(f_y; f_z | y).
        num_classes: classes of y; used when ``conditional``.
        hidden: widths of the hidden layers of each statistics network.
        negatives: product pairs per sample.

    Raises:
        ValueError: for an unknown estimator or no factor.

    Example:
        >>> dependence = BlockMutualInformation(8, factors=(0, 1))
        >>> dependence(torch.randn(16, 8), torch.randn(16, 2, 8), torch.zeros(16, dtype=torch.long)).shape
        torch.Size([2])
    """

    def __init__(
        self,
        feature_dim: int,
        *,
        factors: Sequence[int],
        estimator: str = "per_factor",
        conditional: bool = False,
        num_classes: int = 2,
        hidden: Sequence[int] = (64, 64),
        negatives: int = 4,
    ) -> None:
        super().__init__()
        if estimator not in ("per_factor", "joint"):
            raise ValueError(f"estimator must be 'per_factor' or 'joint', got {estimator!r}.")
        if not factors:
            raise ValueError("factors must name at least one spurious factor.")
        self.factors = tuple(factors)
        self.conditional = conditional
        groups = [(i,) for i in self.factors] if estimator == "per_factor" else [self.factors]
        self.groups = tuple(groups)
        # The network standardises its features already.
        self.estimators = nn.ModuleList(
            MINELoss(
                feature_dim,
                feature_dim * len(group),
                hidden=hidden,
                negatives=negatives,
                conditional=conditional,
                num_classes=num_classes,
                standardize=False,
            )
            for group in groups
        )

    def forward(self, f_y: Tensor, f_z: Tensor, y: Tensor) -> Tensor:
        """
        Args:
            f_y: primary feature block `(B, D)`.
            f_z: spurious feature blocks `(B, N, D)`.
            y: primary labels `(B,)`; used when ``conditional``.

        Returns:
            the estimates in nats, `(number of factors,)`, or `(1,)` for a joint estimator.
        """
        condition = y if self.conditional else None
        return torch.stack(
            [
                estimator(f_y, f_z[:, list(group)].flatten(1), condition)
                for group, estimator in zip(self.groups, self.estimators, strict=True)
            ]
        )


class BlockDistanceCorrelation(nn.Module):
    """
    The distance correlation between f_y and each spurious feature block, in [0, 1]; it has no parameters to train.

    Args:
        factors: which of the spurious factors count (0 is z_1).

    Raises:
        ValueError: for no factor.

    Example:
        >>> f_y = torch.arange(6.0).unsqueeze(1)
        >>> BlockDistanceCorrelation(factors=(0,))(f_y, -2 * f_y.unsqueeze(1), torch.zeros(6, dtype=torch.long))
        tensor([1.])
    """

    def __init__(self, *, factors: Sequence[int]) -> None:
        super().__init__()
        if not factors:
            raise ValueError("factors must name at least one spurious factor.")
        self.factors = tuple(factors)

    def forward(self, f_y: Tensor, f_z: Tensor, y: Tensor) -> Tensor:
        """f_y `(B, D)` and f_z `(B, N, D)` to distance correlations `(number of factors,)`; y is not used."""
        return torch.stack([distance_correlation(f_y, f_z[:, i]) for i in self.factors])


def make_dependence(
    method: str,
    feature_dim: int,
    num_classes: Sequence[int],
    *,
    estimator: str = "per_factor",
    conditional: bool = False,
    negatives: int = 4,
    hidden: Sequence[int] = (64, 64),
) -> nn.Module | None:
    """
    The dependence term of a named method, or ``None`` where the method has none.

    Args:
        method: ``"mimmx"`` (MINE on every factor), ``"mimm"`` (MINE on the first factor only), ``"dcor"`` (distance
            correlation on every factor), ``"baseline"`` or ``"rebalance"`` (none).
        feature_dim: width D of every feature block.
        num_classes: classes of each task, the primary task first.
        estimator: ``"per_factor"`` or ``"joint"``, see :class:`BlockMutualInformation`.
        conditional: whether MI is estimated within each class of y.
        negatives: product pairs per sample.
        hidden: widths of the hidden layers of each statistics network.

    Returns:
        a module from f_y `(B, D)`, f_z `(B, N, D)` and y `(B,)` to the terms, or ``None``.

    Raises:
        ValueError: for an unknown method.

    Example:
        >>> make_dependence("mimm", 8, (2, 2, 3)).factors
        (0,)
        >>> make_dependence("baseline", 8, (2, 2, 3)) is None
        True
    """
    factors = tuple(range(len(num_classes) - 1))
    if method in ("mimmx", "mimm"):
        return BlockMutualInformation(
            feature_dim,
            factors=factors if method == "mimmx" else factors[:1],
            estimator=estimator,
            conditional=conditional,
            num_classes=num_classes[0],
            hidden=hidden,
            negatives=negatives,
        )
    if method == "dcor":
        return BlockDistanceCorrelation(factors=factors)
    if method in ("baseline", "rebalance"):
        return None
    raise ValueError(f"method must be 'mimmx', 'mimm', 'dcor', 'baseline' or 'rebalance', got {method!r}.")
