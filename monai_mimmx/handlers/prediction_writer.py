# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""Class probabilities and attention weights of each image, as rows of a CSV file."""

from __future__ import annotations

import csv
import logging
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.inferers import SimpleInferer
from monai.utils.enums import CommonKeys as Keys
from torch import Tensor, nn

from monai_mimmx.errors import first_three
from monai_mimmx.files import spreadsheet_text

__all__ = ["AttentionInferer", "PredictionWriter"]


class AttentionInferer(SimpleInferer):
    """
    A plain forward pass of a :class:`~monai_mimmx.networks.MIMMXNet` that returns logits and attention side by side.

    Its result is one tensor `(B, sum C + N)`, so that it fits any MONAI evaluator.
    """

    def __call__(self, inputs: Tensor, network: nn.Module, *args: Any, **kwargs: Any) -> Tensor:  # type: ignore[override]
        """Image `(B, C, *spatial)` to `(B, sum C + N)`."""
        logits, _, attention = network(inputs, *args, return_features=True, **kwargs)
        return torch.cat([logits, attention], dim=1)


class PredictionWriter:
    """
    Write one CSV row per image: its path, the probability of every class of every task, and the attention weights.

    Rows are written as they come to ``<path>.part``, which takes the final name when the engine has completed; after a
    failure it keeps the images done so far. Text that begins as a spreadsheet's formula does gets an apostrophe in front.

    Args:
        path: the CSV file.
        task_names: the tasks, the primary one first.
        class_names: names of the classes of each task.
        attention: the prediction carries the N attention weights behind the logits (:class:`AttentionInferer`).

    Raises:
        ValueError: in the run, for predictions that are not finite, with their images.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        task_names: Sequence[str],
        class_names: Sequence[Sequence[str]],
        attention: bool = True,
    ) -> None:
        self.path = Path(path)
        self.task_names = list(task_names)
        self.num_classes = [len(names) for names in class_names]
        self.attention = attention
        self.columns = ["image"]
        for task, names in zip(task_names, class_names, strict=True):
            self.columns += [f"{task}: {name}" for name in names]
        if attention:
            self.columns += [f"attention: {task}" for task in self.task_names[1:]]

    def attach(self, engine: Engine) -> None:
        """Write the output of every iteration of ``engine``, an evaluator without decollation."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._write)
        engine.add_event_handler(Events.COMPLETED, self._complete)

    def _part(self) -> Path:
        return self.path.with_name(self.path.name + ".part")

    def _start(self, engine: Engine) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._part().open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerow(map(spreadsheet_text, self.columns))

    def _write(self, engine: Engine) -> None:
        paths: Mapping | Sequence = engine.state.batch["path"]  # type: ignore[index, call-overload, assignment]
        rows = self.rows(engine.state.output[Keys.PRED])  # type: ignore[index, call-overload]
        failed = [path for path, row in zip(paths, rows, strict=True) if not all(map(math.isfinite, row))]
        with self._part().open("a", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows(
                [spreadsheet_text(path), *(f"{value:.6f}" for value in row)]
                for path, row in zip(paths, rows, strict=True)
                if path not in failed
            )
        if failed:
            raise ValueError(
                f"the prediction of {len(failed)} image(s) is NaN or infinite: {first_three(failed)}. Replace them or leave "
                f"them out where they hold such pixels; else the checkpoint does. The images done so far are in {self._part()}."
            )

    def rows(self, prediction: Tensor) -> list[list[float]]:
        """Predictions `(B, sum C [+ N])` to the numbers of the rows."""
        parts = prediction.float().split(
            [*self.num_classes, len(self.num_classes) - 1][: None if self.attention else -1], 1
        )
        heads = [part.softmax(1) for part in parts[: len(self.num_classes)]]
        return torch.cat([*heads, *parts[len(self.num_classes) :]], dim=1).tolist()

    def _complete(self, engine: Engine) -> None:
        self._part().replace(self.path)
        logging.getLogger("monai_mimmx").info(f"predictions: {self.path}")
