# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""What happened in each epoch: one line to read, and one row on file."""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
import math
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.utils import optional_import
from torch import Tensor

from monai_mimmx.files import write_text

__all__ = ["EpochRecorder", "has_tensorboard", "read_history"]


def has_tensorboard() -> bool:
    """Whether TensorBoard is installed, which MONAI's `TensorBoardStatsHandler` needs; for bundle configs."""
    return bool(optional_import("tensorboard")[1])


def read_history(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """
    The rows that an :class:`EpochRecorder` wrote, one per epoch: where a training went on from an earlier epoch,
    those of the last run.

    Args:
        path: the ``history.jsonl``; an absent file gives no rows.

    Example:
        >>> read_history("there/is/no/such/file.jsonl")
        []
    """
    file = Path(path)
    if not file.is_file():
        return []
    rows: list[dict[str, Any]] = []
    for line in file.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(json.JSONDecodeError):  # a line that a killed training left unfinished
            row = json.loads(line)
            while rows and rows[-1]["epoch"] >= row["epoch"]:
                rows.pop()
            rows.append(row)
    return rows


class EpochRecorder:
    """
    Average the scalar outputs of a trainer over each epoch, write them as a row of a JSON lines file, and log one line.

    Attach it AFTER the handler that runs the validation, whose metrics join the row as ``select_<metric>``, and BEFORE
    MONAI's loggers (`TensorBoardStatsHandler`, `MLFlowHandler`): the row becomes the trainer's metrics, and an output that
    is not decollated the one entry of a list, since they read the scalars of an iteration from the first entry of one.

    Args:
        path: the file to append to; ``None`` writes none. Rows of epochs that are trained anew are removed from it.
        task_names: names in the output keys, the primary task first.
        evaluator: the validation engine, or ``None``.
        after: epochs that another engine trained before, whose rows the file holds; these go on from there.

    Example:
        >>> import torch
        >>> trainer = Engine(lambda engine, batch: {"loss_y": torch.tensor(float(batch))})
        >>> EpochRecorder("history.jsonl", task_names=("y",)).attach(trainer)
        >>> _ = trainer.run([1, 2], max_epochs=2)
        >>> [(row["epoch"], row["loss_y"]) for row in read_history("history.jsonl")]
        [(1, 1.5), (2, 1.5)]
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None,
        *,
        task_names: Sequence[str],
        evaluator: Engine | None = None,
        after: int = 0,
    ) -> None:
        self.path = None if path is None else Path(path)
        self.task_names = tuple(task_names)
        self.evaluator = evaluator
        self.after = after
        self.logger = logging.getLogger("monai_mimmx")
        self._sums: dict[str, Tensor | float] = {}
        self._count = 0
        self._started = 0.0
        self._validated = 0
        self._begun = False
        self._durations: list[float] = []

    def attach(self, engine: Engine) -> None:
        """Record every epoch of ``engine``."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._start_epoch)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._add)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._end_epoch)
        if self.evaluator is not None:
            self.evaluator.add_event_handler(Events.COMPLETED, self._note_validation)

    def _start_epoch(self, engine: Engine) -> None:
        # Not at STARTED, where a checkpoint that restores the epoch may not have been loaded yet.
        epoch = self.after + engine.state.epoch
        if self.path is not None and (epoch == 1 or not self._begun):
            self._begun = True
            self.path.parent.mkdir(parents=True, exist_ok=True)
            earlier = [row for row in read_history(self.path) if row["epoch"] < epoch]
            write_text(self.path, "".join(json.dumps(row) + "\n" for row in earlier))
        self._sums, self._count, self._started = {}, 0, time.perf_counter()
        self._validated = 0

    def _add(self, engine: Engine) -> None:
        self._count += 1
        output: Any = engine.state.output
        if not isinstance(output, list):
            engine.state.output = output = [output]  # type: ignore[assignment]
        for key, value in output[0].items():
            if isinstance(value, Tensor) and value.ndim == 0:
                value = value.detach().to(torch.float32 if value.device.type == "mps" else torch.float64)
            elif not isinstance(value, int | float):  # which decollation makes of a scalar
                continue
            self._sums[key] = self._sums[key] + value if key in self._sums else value

    def _note_validation(self, engine: Engine) -> None:
        self._validated += 1

    def _end_epoch(self, engine: Engine) -> None:
        row: dict[str, Any] = {"epoch": self.after + engine.state.epoch}
        row |= {key: float(total) / self._count for key, total in self._sums.items()}
        if self.evaluator is not None and self._validated:
            metrics = {f"select_{key}": float(value) for key, value in self.evaluator.state.metrics.items()}
            row |= {key: value for key, value in metrics.items() if not math.isnan(value)}  # of a task without labels
        row["seconds"] = time.perf_counter() - self._started
        self._durations.append(row["seconds"])
        kept = {key: value for key, value in engine.state.metrics.items() if not key.startswith("select_")}
        engine.state.metrics = kept | {key: value for key, value in row.items() if key != "epoch"}
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        max_epochs = self.after + (engine.state.max_epochs or engine.state.epoch)
        left = max_epochs - row["epoch"]
        seconds_left = left * statistics.median(self._durations)  # the first epoch may hold what is done once
        self.logger.info(self.describe(row, max_epochs, seconds_left))

    def describe(self, row: dict[str, Any], max_epochs: int, seconds_left: float = 0.0) -> str:
        """One line of text for a row."""
        parts = [f"epoch {row['epoch']:{len(str(max_epochs))}d}/{max_epochs}"]
        parts.append("loss " + " ".join(f"{name} {row[f'loss_{name}']:.3f}" for name in self.task_names))
        if "mi" in row:
            parts.append(f"MI {row['mi']:.3f} x {row['lambda']:.2f}")
        selected = [name for name in self.task_names if f"select_accuracy_{name}" in row]
        if selected:
            parts.append(
                "select " + " ".join(f"{name} {100 * row[f'select_accuracy_{name}']:.1f}" for name in selected)
            )
        if "select_robust" in row:
            parts.append(f"robust {100 * row['select_robust']:.1f} %")
        parts.append(f"{row['seconds']:.1f} s")
        if seconds_left:
            parts[-1] += f", {datetime.timedelta(seconds=round(seconds_left))} left"
        return " | ".join(parts)
