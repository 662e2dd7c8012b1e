# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""What the files of a trained model tell: its weights, and the settings and the rows that it was trained with."""

from __future__ import annotations

import glob
import hashlib
import itertools
import json
import os
import pickle
import re
import textwrap
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

__all__ = ["load_model", "training_settings"]

_EPOCH = re.compile(r"epoch=(\d+)")
_COUNT = re.compile(r"_?((epoch|iteration)=)?\d*\.pt$")
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


def newest_whole(folder: str | os.PathLike[str], prefix: str) -> tuple[Path | None, list[Path]]:
    """
    The newest checkpoint file that is whole, and those newer than it that are cut short.

    The newest is that of the highest epoch in its name: a copy of the folder may have written the files in any order.
    Raises ValueError where files of several savers have that prefix, and none of them the prefix alone.
    """

    def age(path: Path) -> tuple[int, int]:
        epoch = _EPOCH.search(path.name)
        return int(epoch[1]) if epoch else -1, path.stat().st_mtime_ns

    series: dict[str, list[Path]] = {}
    for path in Path(folder).glob(f"{glob.escape(prefix)}*.pt"):
        series.setdefault(_COUNT.sub("", path.name), []).append(path)
    if prefix in series:
        series = {prefix: series[prefix]}
    # Beside those of its epochs a saver may have written others, such as its best.
    counted = {name for name, paths in series.items() if any(_COUNT.search(path.name)[1] for path in paths)}  # type: ignore[index]
    series = {name: series[name] for name in counted or series}
    if len(series) > 1:
        raise ValueError(
            f"checkpoints of several savers in {folder} begin with {prefix!r}: name one of {', '.join(sorted(series))}."
        )
    damaged: list[Path] = []
    for path in sorted(itertools.chain(*series.values()), key=age, reverse=True):
        if zipfile.is_zipfile(path):  # the archive's table of contents is its end
            return path, damaged
        damaged.append(path)
    return None, damaged


def subset_digest(frame: pd.DataFrame, task_names: list[str]) -> str:
    """Of a subset's subjects and labels, in their order: equal where two trainings had the same."""
    content = hashlib.sha256(frame[task_names].to_numpy(dtype=np.float64).tobytes())
    content.update("\0".join(map(str, frame["subject"])).encode())
    return content.hexdigest()


def stored_identity(checkpoint: str | os.PathLike[str]) -> dict[str, Any] | None:
    """The state of the `TrainingIdentity` of a model's training, whose checkpoints lie beside it; None where none does."""
    try:
        found, _ = newest_whole(Path(checkpoint).parent, "state")
        if found is None:
            return None
        return torch.load(found, map_location="cpu", weights_only=True, mmap=True)["identity"]  # type: ignore[no-any-return]
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, pickle.UnpicklingError):
        return None  # of something else


def stored_metrics(checkpoint: str | os.PathLike[str]) -> dict[str, Any]:
    """
    What `metrics.json` above a model's folder tells of its training: its `config`, and its `tasks` as pairs of name and
    class names; empty where none does.
    """
    try:
        metrics = json.loads((Path(checkpoint).parent.parent / "metrics.json").read_text(encoding="utf-8"))
        tasks = [
            (name, [*names]) for name, names in zip(metrics["task_names"], metrics["classes"].values(), strict=True)
        ]
        return {"config": dict(metrics["config"]), "tasks": tasks}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}  # moved, not yet there, or not of this toolkit


def training_settings(checkpoint: str | os.PathLike[str], settings: Mapping[str, Any]) -> dict[str, Any]:
    """
    The settings to record with the evaluation of a model: those of its training, as far as these are known.

    Args:
        checkpoint: the model's file. The training's `metrics.json` is looked for above its folder, and checkpoints of the
            training beside it.
        settings: what the evaluation was called with; where it runs and writes, and what data it finds and draws (`agreement`),
            is taken from them.

    Returns:
        option to value, for the options in `settings`; None for those of the training where nothing is known of it.

    Example:
        >>> training_settings("no/models/model.pt", {"lambda_mi": 1.0, "image_size": 96, "device": "cpu"})
        {'lambda_mi': None, 'image_size': 96, 'device': 'cpu'}
    """
    trained = stored_metrics(checkpoint).get("config", {}) | (stored_identity(checkpoint) or {}).get("settings", {})
    own: tuple[str, ...] = ("agreement", "amp", "dataset_dir", "device", "output_dir")
    if not trained:  # but for what the weights and the images must be
        own += ("feature_dim", "image_size", "slice_position", "spatial_dims", "strides")
        trained = dict.fromkeys(settings)
    return {name: trained.get(name, value) if name not in own else value for name, value in settings.items()}
