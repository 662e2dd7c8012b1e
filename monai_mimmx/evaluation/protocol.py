# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""The evaluation of one trained network on Val, Inverted and Balanced, its records, pictures and report."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.inferers import Inferer
from torch import nn
from torch.utils.data import DataLoader

import monai_mimmx
from monai_mimmx.data import CachedImages, Task, cell_index, keep_batch
from monai_mimmx.evaluation.embedding import tsne
from monai_mimmx.evaluation.predictions import Predictions, collect_predictions
from monai_mimmx.evaluation.probes import probe_matrix
from monai_mimmx.evaluation.scores import (
    bootstrap_interval,
    cell_name,
    describe_sets,
    final_scores,
    format_score_table,
    gap_interval,
    score_table,
)
from monai_mimmx.files import write_json
from monai_mimmx.handlers import read_history
from monai_mimmx.options import OF_THE_MACHINE
from monai_mimmx.report import (
    accuracy_figure,
    cooccurrence_figure,
    final_table,
    probe_figure,
    sample_figure,
    save_figures,
    training_figure,
    tsne_figure,
    upright,
    write_model_card,
    write_report,
)
from monai_mimmx.trained_model import load_model, stored_identity, subset_digest

__all__ = ["ExperimentEvaluation", "write_final_scores"]

TEST_SETS = ("val", "inv", "bal")
PICTURES = ("accuracy", "probes", "tsne", "cooccurrence", "samples", "training")


def _fingerprint(digests: Mapping[str, str]) -> str:
    """Of the subjects and labels of all subsets."""
    return hashlib.sha256(json.dumps(digests).encode()).hexdigest()[:16]


class ExperimentEvaluation:
    """
    Evaluate a network on the test sets and write ``metrics.json``, ``predictions_*.npz``, pictures, ``report.html``
    and ``model_card.md``.

    The probes are fitted on the ``probe`` subset and scored on ``bal``: both are balanced, and their subjects are
    disjoint from each other and from those of training.

    Args:
        network: gives logits, features and attention, such as :class:`~monai_mimmx.networks.MIMMXNet`.
        data: the datasets by subset name: ``train``, ``select``, ``probe``, ``val``, ``bal`` and, where a correlation is
            induced, ``inv``; without it there is no gap.
        tasks: the tasks, the primary one first.
        output_dir: where to write.
        device: where to run.
        checkpoint: file whose weights are loaded into the network first, its entry ``model``, ``state_dict``, ``network`` or
            ``net``, else all of it; ``None`` for none.
        history: the training's ``history.jsonl``, or ``None``.
        settings: what the run was called with, for the records; must be JSON-able.
        batch_size: images per forward pass.
        inferer: MONAI inferer; by default the plain one.
        amp: run under autocast.
        title: of the report.
        origin: where the images' y begins, for the sample pictures; see :func:`~monai_mimmx.report.upright`.

    Raises:
        FileNotFoundError: when called, if the checkpoint does not exist.
        ValueError: when called, if the checkpoint does not fit the network.
    """

    def __init__(
        self,
        network: nn.Module,
        data: Mapping[str, CachedImages],
        tasks: Sequence[Task],
        *,
        output_dir: str | os.PathLike[str],
        device: str | torch.device,
        checkpoint: str | os.PathLike[str] | None = None,
        history: str | os.PathLike[str] | None = None,
        settings: Mapping[str, Any] | None = None,
        batch_size: int = 250,
        inferer: Inferer | None = None,
        amp: bool = False,
        title: str = "MIMM-X",
        origin: str = "upper",
    ) -> None:
        self.network, self.data, self.tasks = network, data, list(tasks)
        self.output_dir, self.device = Path(output_dir), torch.device(device)
        self.checkpoint = None if checkpoint is None else Path(checkpoint)
        self.history = history
        self.settings = dict(settings or {})
        self.batch_size, self.inferer, self.amp, self.title = batch_size, inferer, amp, title
        self.origin = origin
        self.commit = source_commit()  # now, as a checkout may change while a network trains
        self.names = ["y", *(task.name for task in self.tasks[1:])]
        self.logger = logging.getLogger("monai_mimmx")

    def __call__(self, handlers: Sequence[Any] = ()) -> dict[str, Any]:
        """
        Evaluate, write everything, log the table, and return the content of ``metrics.json``.

        Args:
            handlers: loggers, such as MONAI's `TensorBoardStatsHandler` and `MLFlowHandler`. They are attached to an
                engine that ends the training's last epoch with `final_scores` as its metrics and `final_table` as its output.
        """
        if self.checkpoint is not None:
            load_model(self.network, self.checkpoint)
        test = {name: self._predict(name) for name in TEST_SETS if name in self.data}
        predictions = {"probe": self._predict("probe"), **test}
        scores = score_table(test)
        probes = probe_matrix(predictions["probe"], predictions["bal"])
        history = read_history(self.history) if self.history is not None else []
        digests = self._digests()
        metrics = {
            "method": self.settings.get("method"),
            "seed": self.settings.get("seed"),
            "version": monai_mimmx.__version__,
            "commit": self.commit,
            "config": self.settings,
            **scores,
            "table": self.data["train"].frame.attrs.get("table"),
            "partition": self.data["train"].frame.attrs.get("partition"),
            "classes": {name: task.class_names for name, task in zip(self.names, self.tasks, strict=True)},
            "n": {name: len(data) for name, data in self.data.items()},
            "cells": {name: self._cells(data.labels) for name, data in self.data.items()},
            "interval": {name: list(bootstrap_interval(subset, "accuracy")) for name, subset in test.items()},
            **({"drop_val_inv_interval": list(gap_interval(test["val"], test["inv"]))} if "inv" in test else {}),
            "probe": probes["linear"],
            "probes": probes,
            "attention": {
                name: dict(zip(subset.keys[1:], map(float, subset.attention.mean(0)), strict=True))
                for name, subset in test.items()
            },
            "mi": history[-1].get("mi") if history else None,
            "epochs": history[-1]["epoch"] if history else None,
            **_selected(history, self.settings),
            **({} if history else self._trained_on(digests)),
            "fingerprint": _fingerprint(digests),
            "seconds": sum(row["seconds"] for row in history) if history else None,
            "excluded": self._excluded(),
        }
        for part, what in {"selected": "weights", "encoder": "encoder's weights"}.items():
            if metrics.get(f"{part}_lambda") == 0:
                self.logger.warning(
                    f"the {what} selected are of epoch {metrics[f'{part}_epoch']}, when the dependence term had no weight "
                    "yet: train for longer, or with a smaller lambda_warmup"
                )
        if history and history[-1]["epoch"] < self._epochs():
            metrics["unfinished"] = True
        self.output_dir.mkdir(parents=True, exist_ok=True)
        for name, subset in predictions.items():
            subset.save(self.output_dir / f"predictions_{name}.npz")
        figures = self._figures(metrics, predictions, history)
        paths = save_figures({name: figure for name, (figure, _) in figures.items()}, self.output_dir)
        pictures = {
            name: (path.read_bytes(), caption)
            for path, (name, (_, caption)) in zip(paths, figures.items(), strict=True)
        }
        report = write_report(self.output_dir, metrics, pictures, title=self.title)
        write_model_card(self.output_dir, metrics, title=self.title)
        write_json(self.output_dir / "metrics.json", metrics)
        _log(handlers, metrics)
        self.logger.info("\n" + format_score_table(metrics))
        self.logger.info(f"report: {report}")
        return metrics

    def _digests(self) -> dict[str, str]:
        """Subset to what its subjects and labels come to."""
        return {name: subset_digest(data.frame, data.task_names) for name, data in self.data.items()}

    def _epochs(self) -> int:
        """Those that the settings ask for, in both parts of a training."""
        return sum(self.settings.get(name) or 0 for name in ("epochs", "refine_epochs"))

    def is_finished(self) -> bool:
        """
        Whether this very evaluation was written before: of a whole training, with the same rows, settings and version.

        Device, precision and folders may be others: a finished run may have moved.
        """
        try:
            metrics = json.loads((self.output_dir / "metrics.json").read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError):
            return False
        settings = json.loads(json.dumps(self.settings))  # as they are read back
        free = (*OF_THE_MACHINE, "dataset_dir")
        stored, own = (
            {name: value for name, value in config.items() if name not in free}
            for config in (metrics.get("config", {}), settings)
        )
        if stored != own or metrics.get("version") != monai_mimmx.__version__ or metrics.get("unfinished"):
            return False
        if metrics.get("fingerprint") != _fingerprint(self._digests()):
            return False
        self.logger.info(f"the run in {self.output_dir} is finished: nothing is left to resume.")
        return True

    def discard(self, *models: str | os.PathLike[str] | None) -> None:
        """
        Remove what an earlier run left, so that a new one that stops early does not look whole.

        Args:
            models: files of the earlier models, where the new run does not go on from them.
        """
        names = ("metrics.json", "report.html", "model_card.md", *(f"{name}.png" for name in PICTURES))
        written = (*map(self.output_dir.joinpath, names), *self.output_dir.glob("predictions_*.npz"))
        for path in (*written, *(Path(model) for model in models if model is not None)):
            path.unlink(missing_ok=True)

    def _predict(self, name: str) -> Predictions:
        data = self.data[name]
        loader = DataLoader(data, batch_size=self.batch_size, collate_fn=keep_batch)
        return collect_predictions(
            self.network,
            loader,
            device=self.device,
            task_names=[task.name for task in self.tasks],
            num_classes=[task.num_classes for task in self.tasks],
            subjects=data.frame["subject"].tolist(),
            inferer=self.inferer,
            amp=self.amp,
        )

    def _cells(self, labels: np.ndarray) -> dict[str, int]:
        """How many images each populated cell has."""
        shape = [task.num_classes for task in self.tasks]
        cells = cell_index(labels, shape)
        index, count = np.unique(cells[cells >= 0], return_counts=True)
        return {cell_name(self.names, np.unravel_index(i, shape)): int(n) for i, n in zip(index, count, strict=True)}

    def _trained_on(self, digests: Mapping[str, str]) -> dict[str, str]:
        """Where the rows that are here are not known to be those of the checkpoint's training, what is known of that."""
        if self.checkpoint is None:
            return {}
        if (stored := (stored_identity(self.checkpoint) or {}).get("subsets")) is None:
            return {"trained_on": "unknown rows"}
        return {} if stored == {name: digests[name] for name in stored} else {"trained_on": "other rows"}

    def _excluded(self) -> dict[str, int]:
        return dict(self.data["train"].frame.attrs.get("excluded", {}))

    def _figures(
        self, metrics: Mapping[str, Any], predictions: Mapping[str, Predictions], history: list[dict[str, Any]]
    ) -> dict[str, tuple[Any, str]]:
        names = self.names
        balanced = predictions["bal"]
        points, labels = {}, {}
        for i, name in enumerate(names):
            points[f"f_{name}"], chosen = tsne(balanced.features[:, i], max_points=500)
            labels[name] = balanced.labels[:, i]
        labels = {name: values[chosen] for name, values in labels.items()}
        figures = {
            "accuracy": (
                accuracy_figure(metrics),
                f"Accuracy of every head on the test sets: {describe_sets(metrics)}",
            ),
            "probes": (
                probe_figure(metrics["probes"]),
                "What fresh probes read from each feature block. Off the diagonal, chance is what disentangled features "
                "give.",
            ),
            "tsne": (
                tsne_figure(points, labels, {n: task.class_names for n, task in zip(names, self.tasks, strict=True)}),
                "t-SNE of each feature block on Bal, coloured by each label. A block should separate its own label only.",
            ),
            "cooccurrence": (
                cooccurrence_figure(
                    {name: data.labels for name, data in self.data.items()},
                    names,
                    [task.class_names for task in self.tasks],
                ),
                "How often the primary label and each factor occur together in every subset.",
            ),
            "samples": (self._sample_figure(), "One image of every cell of the Bal set."),
        }
        if history:
            figures["training"] = (training_figure(history), "The course of the training.")
        return figures

    def _sample_figure(self) -> Any:
        data = self.data["bal"]
        cells = cell_index(data.labels, [task.num_classes for task in self.tasks])
        _, first = np.unique(cells, return_index=True)
        titles = [
            ", ".join(_told_class(task, label) for task, label in zip(self.tasks, data.labels[row], strict=True))
            for row in first
        ]
        return sample_figure(np.stack([upright(data[int(row)]["image"].numpy(), self.origin) for row in first]), titles)


def _selected(history: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> dict[str, Any]:
    """
    The epoch whose weights a saver of the best ones keeps, of equally good ones the last, and lambda then.

    Where a second part follows (`refine_epochs`), only the encoder keeps them.
    """
    validated = [row for row in history if row.get("select_robust") is not None]
    if not validated:
        return {}
    chosen = max(reversed(validated), key=lambda row: row["select_robust"])
    refined = settings.get("refine_epochs") and history[-1]["epoch"] > (settings.get("epochs") or math.inf)
    what = "encoder" if refined else "selected"
    return {f"{what}_epoch": chosen["epoch"]} | ({f"{what}_lambda": chosen["lambda"]} if "lambda" in chosen else {})


def _told_class(task: Task, label: int) -> str:
    """A class so that it can stand alone: `Female`, but `age < 50` and `effusion 1`."""
    name = task.class_names[label]
    return name if name[:1].isalpha() else f"{task.name} {name}".replace(" ", "\N{NO-BREAK SPACE}")


def _log(handlers: Sequence[Any], metrics: Mapping[str, Any]) -> None:
    """Show the handlers the end of an epoch that has the final figures."""
    engine = Engine(lambda engine, batch: None)
    for handler in handlers:
        handler.attach(engine)
    engine.state.epoch = engine.state.max_epochs = metrics["epochs"] or 0
    engine.state.metrics = final_scores(metrics)
    engine.state.output = final_table(metrics)  # type: ignore[assignment]
    for event in (Events.STARTED, Events.EPOCH_COMPLETED, Events.COMPLETED):
        engine.fire_event(event)


def write_final_scores(engine: Engine, writer: Any) -> None:
    """
    Write the final table to TensorBoard, as scalars and as text: the `epoch_event_writer` of a `TensorBoardStatsHandler`
    that an :class:`ExperimentEvaluation` is called with.

    Args:
        engine: what the handler was attached to.
        writer: of TensorBoard.
    """
    for name, value in engine.state.metrics.items():
        writer.add_scalar(name, value, engine.state.epoch)
    writer.add_text("final table", engine.state.output, engine.state.epoch)
    writer.flush()


def source_commit() -> str | None:
    """
    The git commit of the checkout that this package is imported from, and "-dirty" where that was changed since.

    Returns:
        None where there is no checkout, or no git to ask.
    """
    checkout = Path(__file__).parents[2]
    if not (checkout / ".git").exists():
        return None
    words = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=40", "--exclude", "*"]
    try:
        return subprocess.run(words, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
