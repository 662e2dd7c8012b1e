# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""What f_y tells of the spurious factors, the term that is minimised: MIMM-X's and those it is compared with."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from monai_mimmx.losses.dcor import distance_correlation, within_squares
from monai_mimmx.losses.mine import MINELoss
from monai_mimmx.options import require_options

__all__ = ["BlockAdversary", "BlockDistanceCorrelation", "BlockMMD", "BlockMutualInformation", "make_dependence"]


class BlockMutualInformation(nn.Module):
    """
    MINE estimates between f_y and the spurious feature blocks, in nats.

    The features must be standardised over the batch, as those of :class:`~monai_mimmx.networks.MIMMXNet` are: they are
    taken as they come, and a network could lower the value by shrinking them. For features of any other network take
    :class:`~monai_mimmx.losses.MINELoss`, which standardises.

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
        >>> dependence(torch.randn(16, 8), torch.randn(16, 2, 8), torch.zeros(16, 3, dtype=torch.long)).shape
        torch.Size([2])
    """

    capturable = True
    """As a CUDA graph: recorded, its operations depend on shapes alone."""

    _chosen: Tensor

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
        require_options(estimator=estimator)
        if not factors:
            raise ValueError("factors must name at least one spurious factor.")
        self.factors = tuple(factors)
        self.conditional = conditional
        self.groups = tuple((i,) for i in self.factors) if estimator == "per_factor" else (self.factors,)
        self.register_buffer("_chosen", torch.tensor(self.factors), persistent=False)
        # The network standardises its features already.
        self.estimator = MINELoss(
            feature_dim,
            feature_dim * len(self.groups[0]),
            hidden=hidden,
            negatives=negatives,
            conditional=conditional,
            num_classes=num_classes,
            standardize=False,
            num_blocks=len(self.groups),
        )

    def forward(self, f_y: Tensor, f_z: Tensor, labels: Tensor) -> Tensor:
        """
        Args:
            f_y: primary feature block `(B, D)`.
            f_z: spurious feature blocks `(B, N, D)`.
            labels: class indices `(B, 1 + N)`; those of the primary task are used when ``conditional``.

        Returns:
            the estimates in nats, `(number of factors,)`, or `(1,)` for a joint estimator.
        """
        blocks = f_z.index_select(1, self._chosen).flatten(1).unflatten(1, (len(self.groups), -1))
        return self.estimator(f_y, blocks, labels[:, 0] if self.conditional else None)  # type: ignore[no-any-return]

    def resolvable_nats(self, batch_size: int) -> float:
        """The logarithm of the number of product pairs of a batch: an estimate beyond it is none."""
        return math.log(max(1, batch_size * min(self.estimator.negatives, batch_size - 1)))


class BlockDistanceCorrelation(nn.Module):
    """
    The distance correlation between f_y and each spurious feature block, in [0, 1]; it has no parameters to train.

    When ``conditional`` it is that within each class of y, averaged with the classes' shares of the batch.

    Args:
        factors: which of the spurious factors count (0 is z_1).
        conditional: within each class of y.

    Raises:
        ValueError: for no factor.

    Example:
        >>> f_y = torch.arange(6.0).unsqueeze(1)
        >>> BlockDistanceCorrelation(factors=(0,))(f_y, -2 * f_y.unsqueeze(1), torch.zeros(6, 2, dtype=torch.long))
        tensor([1.])
    """

    def __init__(self, *, factors: Sequence[int], conditional: bool = False) -> None:
        super().__init__()
        if not factors:
            raise ValueError("factors must name at least one spurious factor.")
        self.factors, self.conditional = tuple(factors), conditional

    def forward(self, f_y: Tensor, f_z: Tensor, labels: Tensor) -> Tensor:
        """
        Args:
            f_y: primary feature block `(B, D)`.
            f_z: spurious feature blocks `(B, N, D)`.
            labels: class indices `(B, 1 + N)`; those of the primary task are used when ``conditional``, and samples that
                miss it (-1) do not count then.

        Returns:
            the distance correlations `(number of factors,)`.
        """
        if not self.conditional:
            return torch.stack([distance_correlation(f_y, f_z[:, i]) for i in self.factors])
        known = labels[:, 0] >= 0
        if not bool(known.any()):
            return f_y.new_zeros(len(self.factors))
        if not bool(known.all()):
            f_y, f_z, labels = f_y[known], f_z[known], labels[known]
        strata = [labels[:, 0] == value for value in labels[:, 0].unique()]
        within = [torch.stack([distance_correlation(f_y[rows], f_z[rows, i]) for i in self.factors]) for rows in strata]
        return torch.stack([rows.float().mean() * terms for rows, terms in zip(strata, within, strict=True)]).sum(0)


class BlockAdversary(nn.Module):
    """
    Discriminators that read each factor's label from f_y: what they gain over not looking, in nats.

    With the encoder descending on what the discriminators ascend, this is adversarial debiasing. The gain
    H(z_i) - cross-entropy is a lower bound of I(f_y; z_i), or of I(f_y; z_i | y) when ``conditional``.

    Args:
        feature_dim: width D of f_y.
        num_classes: classes of each task, the primary task first.
        conditional: the discriminators see y too.
        hidden: widths of the hidden layers of each discriminator.

    Example:
        >>> adversary = BlockAdversary(8, (2, 2, 3))
        >>> adversary(torch.randn(16, 8), torch.randn(16, 2, 8), torch.zeros(16, 3, dtype=torch.long)).shape
        torch.Size([2])

    Reference:
        Ganin et al., Domain-Adversarial Training of Neural Networks, JMLR 2016; the bound: Barber and Agakov, The IM
        Algorithm, NeurIPS 2003.
    """

    def __init__(
        self,
        feature_dim: int,
        num_classes: Sequence[int],
        *,
        conditional: bool = False,
        hidden: Sequence[int] = (64, 64),
    ) -> None:
        super().__init__()
        self.num_classes, self.conditional = tuple(num_classes), conditional
        self.factors = tuple(range(len(num_classes) - 1))
        self.discriminators = nn.ModuleList()
        for classes in num_classes[1:]:
            widths = [feature_dim + (num_classes[0] if conditional else 0), *hidden]
            layers: list[nn.Module] = []
            for width, following in zip(widths, widths[1:], strict=False):
                layers += [nn.Linear(width, following), nn.ReLU()]
            self.discriminators.append(nn.Sequential(*layers, nn.Linear(widths[-1], classes)))

    def forward(self, f_y: Tensor, f_z: Tensor, labels: Tensor) -> Tensor:
        """
        Args:
            f_y: primary feature block `(B, D)`.
            f_z: not used.
            labels: class indices `(B, 1 + N)`; a factor's missing ones (-1) do not count, nor, when ``conditional``, the
                samples that miss y.

        Returns:
            the gains in nats `(N,)`; 0 for a factor without any label.
        """
        with torch.autocast(f_y.device.type, enabled=False):
            return self._gains(f_y.to(next(self.parameters()).dtype), labels.long())

    def _gains(self, f_y: Tensor, labels: Tensor) -> Tensor:
        y, seen = labels[:, 0], f_y
        if self.conditional:
            seen = torch.cat([f_y, F.one_hot(y.clamp(min=0), self.num_classes[0]).to(f_y.dtype)], 1)
        gains = []
        for discriminator, z, classes in zip(
            self.discriminators, labels[:, 1:].unbind(1), self.num_classes[1:], strict=True
        ):
            known = (z >= 0) & (y >= 0) if self.conditional else z >= 0
            if not bool(known.any()):
                gains.append(f_y.new_zeros(()))
                continue
            z = z[known]
            context = y[known] if self.conditional else torch.zeros_like(z)
            counts = f_y.new_zeros(self.num_classes[0], classes)
            counts.index_put_((context, z), torch.ones_like(z, dtype=counts.dtype), accumulate=True)
            share = counts / counts.sum(1, keepdim=True).clamp(min=1)
            entropy = -share[context, z].log().mean()
            gains.append(entropy - F.cross_entropy(discriminator(seen[known]), z))
        return torch.stack(gains)


class BlockMMD(nn.Module):
    """
    The squared maximum mean discrepancy of f_y between the classes of each factor, in [0, 2]; no parameters.

    For every class of a factor, its samples are compared with those of the factor's other classes, within each class
    of y when ``conditional``; the mean over these pairs is the term. The kernel is Gaussian, summed over several widths
    around the median distance, so that no width has to be chosen. Time and memory grow with B * B.

    Args:
        num_classes: classes of each task, the primary task first.
        conditional: compare within each class of y.

    Example:
        >>> f_y, labels = torch.randn(64, 2), torch.tensor([[0, 0], [0, 1]] * 32)
        >>> shifted = f_y + 3 * labels[:, 1:]
        >>> mmd = BlockMMD((2, 2))
        >>> bool(mmd(shifted, shifted[:, None], labels) > 5 * mmd(f_y, f_y[:, None], labels))
        True

    Reference:
        Gretton et al., A Kernel Two-Sample Test, JMLR 2012, equation 5 (biased, so never below 0).
    """

    SCALES = (0.25, 0.5, 1.0, 2.0, 4.0)

    def __init__(self, num_classes: Sequence[int], *, conditional: bool = False) -> None:
        super().__init__()
        self.num_classes, self.conditional = tuple(num_classes), conditional
        self.factors = tuple(range(len(num_classes) - 1))

    def forward(self, f_y: Tensor, f_z: Tensor, labels: Tensor) -> Tensor:
        """
        Args:
            f_y: primary feature block `(B, D)`.
            f_z: not used.
            labels: class indices `(B, 1 + N)`; a factor's missing ones (-1) do not count, nor do samples that miss y.

        Returns:
            the discrepancies `(N,)`; 0 for a factor of which no two classes are there to compare.
        """
        with torch.autocast(f_y.device.type, enabled=False):
            half = f_y.dtype in (torch.float16, torch.bfloat16)
            return self._discrepancies(within_squares(f_y.float() if half else f_y), labels)

    def _discrepancies(self, f_y: Tensor, labels: Tensor) -> Tensor:
        squared = torch.cdist(f_y, f_y, compute_mode="donot_use_mm_for_euclid_dist").square()
        width = squared.detach().median().clamp(min=torch.finfo(squared.dtype).eps ** 2)
        kernel = torch.stack([torch.exp(-squared / (scale * width)) for scale in self.SCALES]).mean(0)
        y = labels[:, 0]
        strata = [y == value for value in range(self.num_classes[0])] if self.conditional else [y >= 0]
        terms = []
        for z, classes in zip(labels[:, 1:].unbind(1), self.num_classes[1:], strict=True):
            weights = []
            for stratum in strata:
                for value in range(classes if classes > 2 else 1):
                    inside, outside = (
                        (stratum & rows).to(kernel.dtype) for rows in (z == value, (z >= 0) & (z != value))
                    )
                    if bool(inside.any()) and bool(outside.any()):
                        weights.append(inside / inside.sum() - outside / outside.sum())
            if not weights:
                terms.append(kernel.new_zeros(()))
                continue
            w = torch.stack(weights)
            terms.append(((w @ kernel) * w).sum(1).clamp(min=0).mean())
        return torch.stack(terms)


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

    Those of ``"mimmx"``, ``"mimm"`` and ``"adversarial"`` ask for features that are standardised over the batch, as those
    of :class:`~monai_mimmx.networks.MIMMXNet` are: a network that does not could lower them by shrinking its features.
    For such a network take :class:`~monai_mimmx.losses.MINELoss`, which standardises.

    Args:
        method: ``"mimmx"`` (MINE on every factor), ``"mimm"`` (MINE on the first factor only), ``"dcor"`` (distance
            correlation on every factor), ``"adversarial"`` (discriminators of every factor), ``"mmd"`` (maximum mean
            discrepancy between every factor's classes), ``"baseline"``, ``"rebalance"``, ``"groupdro"`` or
            ``"dfr"`` (none).
        feature_dim: width D of every feature block.
        num_classes: classes of each task, the primary task first.
        estimator: ``"per_factor"`` or ``"joint"``, see :class:`BlockMutualInformation`.
        conditional: whether the term is that within each class of y.
        negatives: product pairs per sample.
        hidden: widths of the hidden layers of each statistics network or discriminator.

    Returns:
        a module from f_y `(B, D)`, f_z `(B, N, D)` and labels `(B, 1 + N)` to the terms, or ``None``.

    Raises:
        ValueError: for an unknown method.

    Example:
        >>> make_dependence("mimm", 8, (2, 2, 3)).factors
        (0,)
        >>> make_dependence("baseline", 8, (2, 2, 3)) is None
        True
    """
    require_options(method=method)
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
        return BlockDistanceCorrelation(factors=factors, conditional=conditional)
    if method == "adversarial":
        return BlockAdversary(feature_dim, num_classes, conditional=conditional, hidden=hidden)
    if method == "mmd":
        return BlockMMD(num_classes, conditional=conditional)
    return None
