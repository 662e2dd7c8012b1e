# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""The weights of a checkpoint, loaded when an engine starts."""

from __future__ import annotations

import os
from pathlib import Path

from ignite.engine import Engine, Events
from torch import nn

from monai_mimmx.trained_model import load_model

__all__ = ["WeightsLoader"]


class WeightsLoader:
    """
    Load a checkpoint's weights into a network when an engine starts.

    MONAI's :class:`~monai.handlers.CheckpointLoader` does the same; this one says which file does not fit, and why it may.

    Args:
        network: to load into.
        path: the checkpoint, a state dict or a file that has one under a usual name.

    Raises:
        FileNotFoundError: when the engine starts, if there is no such file.
        ValueError: then, if it holds no weights or does not fit the network.

    Example:
        >>> import torch
        >>> torch.save(nn.Linear(2, 1).state_dict(), "model.pt")
        >>> evaluator = Engine(lambda engine, batch: None)
        >>> WeightsLoader(nn.Linear(3, 1), "model.pt").attach(evaluator)
        >>> evaluator.run([0])
        Traceback (most recent call last):
            ...
        ValueError: the checkpoint model.pt does not fit the network; ...
    """

    def __init__(self, network: nn.Module, path: str | os.PathLike[str]) -> None:
        self.network, self.path = network, Path(path)

    def attach(self, engine: Engine) -> None:
        """Load when ``engine`` starts."""
        engine.add_event_handler(Events.STARTED, lambda: load_model(self.network, self.path))
