# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""What a checkpoint of a training holds, which one it goes on from, and which model it has to beat."""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from ignite.handlers import Checkpoint
from monai.handlers import CheckpointSaver

__all__ = ["RandomStates", "best_so_far", "latest_checkpoint", "training_state"]


class RandomStates:
    """
    The states of all random generators, so that a resumed training draws what an undisturbed one would have drawn.

    Those of Python, NumPy, PyTorch and its CUDA devices are always among them.

    Args:
        parts: what draws from a generator of its own: samplers, transforms, or a composition of such transforms. Parts
            without one, such as a sampler whose order follows from the epoch, are left alone.

    Example:
        >>> states = RandomStates()
        >>> before = states.state_dict()
        >>> first = torch.rand(2)
        >>> states.load_state_dict(before)
        >>> torch.equal(torch.rand(2), first)
        True
    """

    def __init__(self, parts: Sequence[Any] = ()) -> None:
        members = [member for part in parts for member in getattr(part, "transforms", [part])]
        found = [getattr(member, "generator", None) for member in members]
        self.generators = [generator for generator in found if isinstance(generator, torch.Generator)]

    def state_dict(self) -> dict[str, Any]:
        """The states, of types that load with ``weights_only=True``."""
        numpy_state: Any = np.random.get_state(legacy=False)  # noqa: NPY002 (transforms of others draw from it)
        inner = numpy_state["state"]
        return {
            "python": random.getstate(),
            "numpy": {**numpy_state, "state": {**inner, "key": torch.from_numpy(inner["key"].astype(np.int64))}},
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all(),
            "generators": [generator.get_state() for generator in self.generators],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """
        Go on from the states; those of CUDA devices only where there are as many.

        A checkpoint holds the states of the first process. The others keep theirs: with the same they would draw the
        same samples.
        """
        if idist.get_rank() > 0:
            return
        version, internal, gauss = state_dict["python"]
        random.setstate((version, tuple(internal), gauss))
        inner = state_dict["numpy"]["state"]
        key = inner["key"].cpu().numpy().astype(np.uint32)
        np.random.set_state({**state_dict["numpy"], "state": {**inner, "key": key}})  # noqa: NPY002
        torch.set_rng_state(state_dict["torch"].cpu())
        if len(state_dict["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all([state.cpu() for state in state_dict["cuda"]])
        for generator, state in zip(self.generators, state_dict["generators"], strict=True):
            generator.set_state(state.cpu())


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


def latest_checkpoint(folder: str | os.PathLike[str], prefix: str = "state") -> str | None:
    """
    The newest checkpoint file of a training; ``None`` where it stopped before the first, which the log says.

    Args:
        folder: where the training saved.
        prefix: start of the files' names.

    Example:
        >>> latest_checkpoint("there/is/no/such/folder") is None
        True
    """
    found = sorted(Path(folder).glob(f"{prefix}*.pt"), key=lambda path: path.stat().st_mtime_ns)
    if not found:
        logging.getLogger("monai_mimmx").warning(
            f"there is no checkpoint {prefix}*.pt in {folder} to resume from: the training starts from the beginning."
        )
        return None
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
