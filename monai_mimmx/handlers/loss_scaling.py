# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""Dynamic Loss Scaling (DLS): the factor of each task's loss, from the losses themselves."""

from __future__ import annotations

from typing import Any

import ignite.distributed as idist
import torch
import torch.distributed as dist
from ignite.engine import Engine, Events
from torch import Tensor

from monai_mimmx.options import require_options

__all__ = ["DynamicLossScaling", "loss_scaling_factors"]


def loss_scaling_factors(losses: Tensor, alpha: Tensor) -> Tensor:
    r"""
    .. math:: \gamma_i = (L_i / \bar L)^{\alpha_i}, \quad \bar L = \frac{1}{N + 1} \sum_i L_i

    A task of loss 0, such as one without any label in the batch, does not count in the mean.

    Args:
        losses: the tasks' losses `(1 + N,)`, the primary task first, 0 or more. No gradient flows through the result.
        alpha: the exponents `(1 + N,)`.

    Returns:
        gamma `(1 + N,)`; 1 for every task when all losses are 0.

    Example:
        >>> loss_scaling_factors(torch.tensor([1.0, 3.0]), torch.tensor([1.0, 1.0]))
        tensor([0.5000, 1.5000])

    Reference:
        MIMM-X, equation (2).
    """
    losses = losses.detach()
    counts = losses > 0
    if not bool(counts.any()):
        return torch.ones_like(losses)
    mean, largest = losses[counts].mean(), losses[counts].max()
    # A sum beyond the largest number would make every factor 0, and the loss with them.
    mean = torch.where(torch.isinf(mean), largest * (losses[counts] / largest).mean(), mean)
    return (losses / mean) ** alpha


class DynamicLossScaling:
    """
    The scaling factors gamma of a multi-task loss; as an Ignite handler it moves alpha_Y with the epoch.

    It is a callable from losses to factors, so it also serves as ``scaling`` of
    :class:`~monai_mimmx.losses.MultiTaskCrossEntropy` in any trainer. In a process group the losses are averaged over
    the processes first, so that all use the same factors.

    Args:
        alpha_y: initial exponent of the primary task, 0 or more.
        alpha_z: exponent of every spurious factor, 0 or more.
        beta_y: what alpha_Y gains over the whole training: alpha_Y = alpha_y + epoch / max_epochs * beta_y.

    Raises:
        ValueError: for a negative exponent.

    Example:
        >>> scaling = DynamicLossScaling(1.0, 1.0, 0.0)
        >>> scaling(torch.tensor([1.0, 3.0]))
        tensor([0.5000, 1.5000])

    Reference:
        MIMM-X, equations (2) and (3); published values: alpha_y 0.3, alpha_z 0.8 or 0.7, beta_y 0.01.
    """

    def __init__(self, alpha_y: float = 0.3, alpha_z: float = 0.8, beta_y: float = 0.01) -> None:
        require_options(alpha_y=alpha_y, alpha_z=alpha_z, beta_y=beta_y)
        self.alpha_y_initial, self.alpha_z, self.beta_y = alpha_y, alpha_z, beta_y
        self.alpha_y = alpha_y

    def attach(self, engine: Engine) -> None:
        """Update alpha_Y at the start of every epoch of ``engine``."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._start_epoch)

    def _start_epoch(self, engine: Engine) -> None:
        self.alpha_y = self.alpha_y_initial + engine.state.epoch / (engine.state.max_epochs or 1) * self.beta_y

    def __call__(self, losses: Tensor) -> Tensor:
        """Losses `(1 + N,)`, the primary task first, to gamma `(1 + N,)`."""
        losses = losses.detach()
        if idist.get_world_size() > 1:
            losses = losses.clone()
            dist.all_reduce(losses)
            losses /= dist.get_world_size()
        alpha = torch.full_like(losses, self.alpha_z)
        alpha[0] = self.alpha_y
        return loss_scaling_factors(losses, alpha)

    def state_dict(self) -> dict[str, Any]:
        """The current alpha_Y."""
        return {"alpha_y": self.alpha_y}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave."""
        self.alpha_y = state_dict["alpha_y"]
