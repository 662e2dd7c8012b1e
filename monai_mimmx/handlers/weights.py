# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""The weights in a checkpoint file, loaded into a network or refused with what does not fit."""

from __future__ import annotations

import os
import textwrap
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import nn
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

__all__ = ["WeightsLoader"]

WEIGHTS = ("model", "state_dict", "network", "net")
"""Entries of a checkpoint that may hold the weights, the first found counts."""


def require_checkpoint(path: Path, *, advice: str = "train first, or name another with --ckpt") -> None:
    """Raise FileNotFoundError where there is no such checkpoint."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}; {advice}.")


def _read_weights(path: Path) -> dict[str, Any]:
    """
    The weights in a checkpoint file: its entry of a usual name, or all of it.

    Raises:
        ValueError: the file holds no state dict.
    """
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(
            f"{path} holds no weights that can be loaded ({type(error).__name__}): save the network's state_dict with "
            "torch.save, not the network itself or TorchScript"
        ) from error
    if not isinstance(stored, dict):
        raise ValueError(f"{path} holds a {type(stored).__name__}, not the network's state_dict")
    weights = next((stored[name] for name in WEIGHTS if isinstance(stored.get(name), dict)), stored)
    if not all(isinstance(name, str) for name in weights):
        raise ValueError(f"{path} holds no state_dict: its entries have no names")
    return weights


def load_model(
    network: nn.Module,
    path: Path,
    *,
    advice: str = "was it trained with the same tasks, feature_dim, encoder and caw?",
) -> None:
    """
    Load the weights of a checkpoint file into a network; they may be those of a DistributedDataParallel of it.

    Args:
        network: to load into.
        path: the checkpoint.
        advice: what to ask oneself where it does not fit.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it does not fit the network.
    """
    require_checkpoint(path)
    weights = _read_weights(path)
    if not hasattr(network, "module"):
        consume_prefix_in_state_dict_if_present(weights, "module.")
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        told = f"the checkpoint {path} does not fit the network; {advice} {_mismatch_in_short(error)}"
        raise ValueError(told) from error


def _mismatch_in_short(error: RuntimeError) -> str:
    """PyTorch's list of the parameters that do not fit, of which there may be hundreds: the first two lines, cut short."""
    lines = str(error).splitlines()[1:]
    more = f" (and {len(lines) - 2} more)" if len(lines) > 2 else ""
    return " ".join(textwrap.shorten(line, 250, placeholder=" ...") for line in lines[:2]) + more


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
