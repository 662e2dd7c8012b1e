# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""The distance correlation of two feature vectors, as a loss."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["DistanceCorrelationLoss", "distance_correlation"]


def within_squares(values: Tensor, dim: tuple[int, ...] = (0, 1)) -> Tensor:
    """
    Values `(B, D)` whose squares are finite: those beyond 2^50 bring all along `dim` down with them, infinite ones give NaN.

    For measures that do not depend on the scale. Ordinary values are returned as they are: one more step of the graph, even
    a factor of 1, would change the order in which gradients are summed.
    """
    limit, largest = 2.0**50, values.detach().abs().amax(dim, keepdim=True)
    return values * (limit / largest.clamp(min=limit)) if bool((largest > limit).any()) else values


def _centred_distances(x: Tensor) -> Tensor:
    # Without the matrix product form: that one is inexact near 0, and this one has gradient 0 at distance 0.
    distances = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
    return distances - distances.mean(0, keepdim=True) - distances.mean(1, keepdim=True) + distances.mean()


def distance_correlation(x: Tensor, z: Tensor) -> Tensor:
    r"""
    The (biased, V-statistic) sample distance correlation, in [0, 1].

    .. math:: dCor^2(x, z) = dCov^2(x, z) / \sqrt{dCov^2(x, x) \, dCov^2(z, z)}

    Args:
        x: `(B, D_x)`.
        z: `(B, D_z)`.

    Returns:
        a scalar; 0 when x or z is constant. Its biased form is above 0 for independent samples of finite size.

    Raises:
        ValueError: for shapes other than `(B, D)`, or different B.

    Example:
        >>> x = torch.arange(6.0).unsqueeze(1)
        >>> round(distance_correlation(x, 3 * x + 1).item(), 4)
        1.0

    Reference:
        Szekely, Rizzo and Bakirov, Measuring and testing dependence by correlation of distances, 2007, definition 5.
    """
    if x.ndim != 2 or z.ndim != 2 or x.shape[0] != z.shape[0]:
        raise ValueError(f"x and z must have shapes (B, D_x) and (B, D_z), got {tuple(x.shape)} and {tuple(z.shape)}.")
    with torch.autocast(x.device.type, enabled=False):
        x, z = (value.float() if value.dtype in (torch.float16, torch.bfloat16) else value for value in (x, z))
        a, b = _centred_distances(within_squares(x)), _centred_distances(within_squares(z))
        covariance = (a * b).mean().clamp(min=0.0)
        # A constant x or z has variance 0: no dependence, rather than 0 / 0. The floor is one of each variance, as that
        # of their product would lower the value of two small-scale features.
        floor = torch.finfo(a.dtype).eps ** 2
        ratio = covariance / ((a * a).mean().clamp(min=floor).sqrt() * (b * b).mean().clamp(min=floor).sqrt())
        return (ratio + torch.finfo(a.dtype).tiny).sqrt()


class DistanceCorrelationLoss(nn.Module):
    """
    Distance correlation as a term to minimise; see :func:`distance_correlation`.

    Time and memory grow with B * B, as the definition asks. Its gradient reaches x and z; it has no parameters. Pass
    ``z.detach()`` where only x should pay. In a process group the value is that of each process's own batch: use
    :class:`~monai_mimmx.engines.MIMMXTrainer`, or gather the features of all processes first.

    Example:
        >>> loss = DistanceCorrelationLoss()
        >>> loss(torch.ones(4, 2), torch.randn(4, 3)).item() < 1e-6
        True
    """

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """x `(B, D_x)` and z `(B, D_z)` to a scalar in [0, 1]."""
        return distance_correlation(x, z)
