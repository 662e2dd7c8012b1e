# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""The network that is evaluated and saved: averaged weights with batch normalization statistics of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import ignite.distributed as idist
import torch
import torch.distributed as dist
from ignite.engine import Engine, Events
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, update_bn

from monai_mimmx.options import require_options

__all__ = ["WeightAveraging"]


def _only_norms_train(module: nn.Module, _: Any) -> None:
    """Forward pre-hook: dropout rests, so that the statistics are those of the features that evaluation sees."""
    for layer in module.modules():
        layer.training = isinstance(layer, nn.modules.batchnorm._BatchNorm)


@dataclass
class _Inputs:
    """What a network is called with: an image, and what `prepare_batch` gave beside it and the label, (args, kwargs)."""

    image: Tensor
    more: Sequence[Any]


def _unpack(_: nn.Module, inputs: tuple[_Inputs], __: Any) -> tuple[tuple, dict]:
    """Forward pre-hook: :func:`torch.optim.swa_utils.update_bn` calls a network with one argument only."""
    args, kwargs = inputs[0].more or ((), {})
    return (inputs[0].image, *args), kwargs


class WeightAveraging:
    """
    Keep an exponential moving average of a network's weights, and re-estimate its batch normalization statistics.

    The adversarial game between features and estimator makes single iterates swing, and running statistics lag
    behind weights that move; the average with fresh statistics does neither. Attach it to the trainer BEFORE the
    handler that starts a validation, and give :attr:`averaged` to the evaluator and the checkpoint. In a process group
    the statistics are those of the batches of all processes.

    Args:
        network: the network in training.
        loader: the training batches from which statistics are re-estimated.
        prepare_batch: turns a batch into (image, label), or (image, label, args, kwargs), on the device, as in MONAI's
            engines.
        device: where the network is.
        decay: weight of the past in the average, in [0, 1). It starts lower, (1 + n) / (5 + n) after n updates, so that
            the first weights are soon forgotten. 0: the averaged network is a copy of the current one.
        num_batches: batches for the statistics.
        interval: re-estimate at the end of every ``interval``-th epoch and of the last.

    Raises:
        ValueError: for a decay or count out of range.

    Example:
        >>> from monai.engines import default_prepare_batch
        >>> network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
        >>> batches = [{"image": torch.randn(8, 3), "label": torch.zeros(8)}]
        >>> averaging = WeightAveraging(network, batches, prepare_batch=default_prepare_batch, device="cpu")
        >>> averaging.update_statistics()
        >>> averaging.averaged.training, network.training
        (False, True)
    """

    def __init__(
        self,
        network: nn.Module,
        loader: Iterable,
        *,
        prepare_batch: Callable[..., tuple],
        device: torch.device | str,
        decay: float = 0.998,
        num_batches: int = 20,
        interval: int = 1,
    ) -> None:
        require_options(decay=decay, num_batches=num_batches, interval=interval)
        self.network = network.module if isinstance(network, nn.parallel.DistributedDataParallel) else network
        self.loader, self.prepare_batch, self.device = loader, prepare_batch, torch.device(device)
        self.num_batches, self.interval, self.decay = num_batches, interval, decay
        self._average = AveragedModel(self.network, multi_avg_fn=self._update)

    @property
    def averaged(self) -> nn.Module:
        """The averaged network, a module of the same class as ``network``."""
        return self._average.module

    @torch.no_grad()
    def _update(self, averages: Any, currents: Any, num_averaged: Tensor | int) -> None:
        count = float(num_averaged)
        decay = min(self.decay, (1.0 + count) / (5.0 + count))
        torch._foreach_lerp_(list(averages), list(currents), 1.0 - decay)

    def attach(self, engine: Engine) -> None:
        """Average at every iteration of ``engine``; re-estimate statistics at the end of every ``interval``-th epoch."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, lambda: self._average.update_parameters(self.network))
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._end_epoch)

    def _end_epoch(self, engine: Engine) -> None:
        if engine.state.epoch % self.interval == 0 or engine.state.epoch == engine.state.max_epochs:
            self.update_statistics()

    def update_statistics(self) -> None:
        """Re-estimate the averaged network's batch normalization statistics now, with dropout off."""
        prepared = (self.prepare_batch(batch, self.device, False) for batch in islice(self.loader, self.num_batches))
        batches = (_Inputs(image, more) for image, _, *more in prepared)
        if (first := next(batches, None)) is None:  # the statistics would be started anew and stay so
            raise ValueError(
                "the loader of a WeightAveraging gave no batch: it must be one that can be iterated again."
            )
        with (
            self.averaged.register_forward_pre_hook(_only_norms_train),
            self.averaged.register_forward_pre_hook(_unpack, with_kwargs=True),
        ):
            update_bn(chain([first], batches), self.averaged)
        self.averaged.eval()
        running = ("running_mean", "running_var")
        statistics = [part for name, part in self.averaged.named_buffers() if name.endswith(running)]
        if (processes := idist.get_world_size()) > 1 and statistics:
            joint = torch.cat(statistics)  # one message: DenseNet-121 has 242 of them
            dist.all_reduce(joint)
            for part, total in zip(statistics, joint.split([len(part) for part in statistics]), strict=True):
                part.copy_(total / processes)

    def state_dict(self) -> dict[str, Any]:
        """The averaged weights, their statistics and the number of updates."""
        return self._average.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave."""
        self._average.load_state_dict(state_dict)
