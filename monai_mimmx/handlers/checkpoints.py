# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""What a checkpoint of a training holds, which one it goes on from, and which model it has to beat."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ignite.handlers import Checkpoint
from monai.handlers import CheckpointSaver

__all__ = ["best_so_far", "latest_checkpoint", "training_state"]


def best_so_far(saver: CheckpointSaver) -> Checkpoint:
    """
    What a saver of the best model remembers of it, to save and restore with the training's state.

    Without it the first validation of a resumed training overwrites the best model, however much worse it is.

    Args:
        saver: with ``save_key_metric``.

    Returns:
        an object with ``state_dict`` and ``load_state_dict``.

    Raises:
        ValueError: the saver does not look for the best model.
    """
    checkpoint = saver._key_metric_checkpoint
    if checkpoint is None:
        raise ValueError("saver must have save_key_metric=True, got one that does not look for the best model.")
    return checkpoint


def latest_checkpoint(folder: str | os.PathLike[str], prefix: str = "state") -> str:
    """
    The newest checkpoint file of a training.

    Args:
        folder: where the training saved.
        prefix: start of the files' names.

    Raises:
        FileNotFoundError: there is none.
    """
    found = sorted(Path(folder).glob(f"{prefix}*.pt"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise FileNotFoundError(
            f"there is no checkpoint {prefix}*.pt in {folder} to resume from; train without --resume."
        )
    return str(found[-1])


def training_state(best: CheckpointSaver, **parts: Any) -> dict[str, Any]:
    """
    What a training must save to go on from where it stopped, as :class:`~monai.handlers.CheckpointSaver` takes it.

    Args:
        best: the saver of the best model, so that a resumed training does not overwrite it with a worse one.
        parts: networks, optimizers, the trainer and whatever else has a state, by name. ``None`` and what has an empty
            state are left out: the same declaration serves methods that lack some of the parts.

    Returns:
        name to object, to save and to load.

    Raises:
        ValueError: the saver does not look for the best model.

    Example:
        >>> from torch import nn
        >>> saver = CheckpointSaver("models", {"model": nn.Linear(1, 1)}, save_key_metric=True)
        >>> list(training_state(saver, network=nn.Linear(1, 1), dependence=None, loss=nn.ReLU()))
        ['network', 'best']
    """
    kept = {name: part for name, part in parts.items() if part is not None and part.state_dict()}
    return {**kept, "best": best_so_far(best)}
