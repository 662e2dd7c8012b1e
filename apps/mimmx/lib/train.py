# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""Fine-tune the bundle's network on the final labels."""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from fastapi import HTTPException
from monai.bundle import ConfigWorkflow
from monailabel.interfaces.tasks.train import TrainTask
from monailabel.utils.others.generic import device_list, name_to_device

from lib.infer import MIMMXInfer
from lib.study import StudyFolder
from monai_mimmx.data import cell_index, subject_partition
from monai_mimmx.evaluation import collect_predictions, group_accuracies, score_table
from monai_mimmx.files import write_json
from monai_mimmx.options import known_options, option_problems
from monai_mimmx.trained_model import load_model

logger = logging.getLogger(__name__)

NUMBERS = ("batch_size", "learning_rate", "lambda_mi", "seed")
PARTITIONS_TRIED = 100


class MIMMXTrain(TrainTask):
    """
    Run the bundle's own training, from the checkpoint that is served, on the images with a final label; then serve the
    new checkpoint. A share of the subjects is held out, to select the epoch and for the figures of `stats`. A blank
    factor is no obstacle: its loss is skipped. Where some combination of classes has no label yet, batches are drawn as
    they come instead of balanced.

    Args:
        infer: of the same bundle.
    """

    def __init__(self, infer: MIMMXInfer) -> None:
        super().__init__(f"Fine-tune {infer.bundle.name} on the final labels")
        self.infer, self.bundle = infer, infer.bundle

    def config(self) -> dict[str, Any]:
        """What a request may set, with defaults."""
        parser = self.bundle.parse("train")
        numbers = {key: parser.get_parsed_content(key) for key in NUMBERS if key in parser}
        return {
            "max_epochs": parser.get_parsed_content("epochs"),
            "val_split": 0.2,
            "pretrained": True,
            "sampling": ["bundle", "balanced", "correlated"],
            "device": device_list(),
        } | numbers

    def stats(self) -> dict[str, Any]:
        """The figures of the last training, with those of the worst group; empty before it."""
        path = self.bundle.output_dir / "train_stats.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    def prepare(
        self, request: dict[str, Any], datastore: StudyFolder
    ) -> tuple[dict[str, pd.DataFrame], dict[str, Any]]:
        """
        The frames of the training and the held-out images, and what the request sets in the bundle's config.

        Raises:
            HTTPException: 400 for a wrong request, or labels of too few classes or subjects.
        """
        names = [task.name for task in self.bundle.tasks]
        rows = []
        for image, (classes, subject) in datastore.final_labels().items():
            path = datastore.get_image_uri(image)
            rows.append([path, subject or image, *classes])
        frame = pd.DataFrame(rows, columns=["image", "subject", *names])
        found = sorted(frame[names[0]].unique())
        if len(found) < 2:
            texts = [self.bundle.tasks[0].class_names[index] for index in found]
            raise HTTPException(
                400,
                f"expected final labels of 2 or more classes of {names[0]!r} "
                f"({', '.join(map(repr, self.bundle.tasks[0].class_names))}), got {len(frame)} "
                + (f"of {texts[0]!r} only" if texts else "labels"),
            )
        overrides = self._overrides(request)
        share = _number(request, "val_split", 0.2)
        if not 0 < share < 1:
            raise HTTPException(400, f"expected val_split to lie between 0 and 1, got {share}")
        for seed in range(PARTITIONS_TRIED):
            try:
                of = subject_partition(frame["subject"], fractions=(1 - share, share, 0.0), seed=seed)
            except ValueError:
                break
            parts = {
                name: frame[of == place].reset_index(drop=True)
                for name, place in (("train", "train"), ("select", "val"))
            }
            if all(sorted(part[names[0]].unique()) == found for part in parts.values()):
                return parts, overrides
        raise HTTPException(
            400,
            f"expected enough final labels that training and the {share:g} held out both have every class of "
            f"{names[0]!r}, got {frame.groupby(names[0])['subject'].nunique().to_dict()} subjects of each: label more, or raise "
            "val_split",
        )

    def _overrides(self, request: dict[str, Any]) -> dict[str, Any]:
        """Values only, checked: a text in a bundle's config can be code."""
        settable = self.config()
        if wrong := sorted({*request} & {*known_options()} - {*settable}):
            raise HTTPException(400, f"{wrong[0]} cannot be set by a request, only {', '.join(settable)}")
        if not isinstance(pretrained := request.get("pretrained", True), bool):
            raise HTTPException(400, f"expected pretrained to be true or false, got {pretrained!r}")
        given = {key: _number(request, key) for key in NUMBERS if request.get(key) is not None}
        if request.get("max_epochs") is not None:
            given["epochs"] = _number(request, "max_epochs")
        given = {key: int(value) if value == int(value) else value for key, value in given.items()}  # 8.0 is whole
        if problems := option_problems(**given):
            raise HTTPException(400, " ".join(map(str, problems)))
        sampling = request.get("sampling", "bundle")
        sampling = sampling[0] if isinstance(sampling, list) and sampling else sampling
        if sampling not in ("bundle", "balanced", "correlated"):
            raise HTTPException(400, f"expected sampling to be bundle, balanced or correlated, got {sampling!r}")
        return given if sampling == "bundle" else given | {"sampling": sampling}

    def __call__(self, request: dict[str, Any], datastore: StudyFolder) -> dict[str, Any]:
        """
        Train, put the new checkpoint in its place, and return the figures of `stats`.

        Raises:
            HTTPException: see `prepare`.
            ValueError: an image that cannot be used, or a bundle without the ids that this needs.
        """
        subsets, overrides = self.prepare(request, datastore)
        device = torch.device(name_to_device(request.get("device")))
        scratch = self.bundle.output_dir / "training"
        shutil.rmtree(scratch, ignore_errors=True)
        parser = self.bundle.parse("train", **overrides)
        if missing := [key for key in ("subsets", "sampling", "network", "validate", "run") if key not in parser]:
            raise ValueError(f"{self.bundle.root}: configs/train.json has no {missing[0]!r}")
        labels = subsets["train"][[task.name for task in self.bundle.tasks]].to_numpy()
        cells = cell_index(labels, self.bundle.num_classes)
        populated = len(np.unique(cells[cells >= 0]))
        if parser.get_parsed_content("sampling") == "balanced" and populated < math.prod(self.bundle.num_classes):
            logger.warning("some combination of classes has no training image: sampling is correlated")
            overrides["sampling"] = "correlated"
        overrides |= {
            "bundle_root": str(self.bundle.root),
            "output_dir": str(scratch),
            "cache_dir": None,
            "subsets": subsets,
            "device": device,
            # The bundle's evaluation needs test sets, which a study has not.
            "run": [step for step in parser.config["run"] if "@evaluation" not in step],
        }
        workflow = ConfigWorkflow(
            config_file=str(self.bundle.root / "configs" / "train.json"),
            meta_file=str(self.bundle.root / "configs" / "metadata.json"),
            logging_file=False,
            workflow_type="train",
            **self.bundle.options_of(parser.config) | overrides,
        )
        started = time.time()
        workflow.initialize()
        base = self.infer.get_path() if request.get("pretrained", True) else None
        if base is not None:
            load_model(workflow.parser.get_parsed_content("network"), Path(base))
        workflow.run()
        made = Path(workflow.parser.get_parsed_content("ckpt"))
        stats = self._score(workflow, made, device, subsets)
        stats |= {
            "from": base,
            "sampling": workflow.parser.get_parsed_content("sampling"),
            "epochs": sum(
                workflow.parser.get_parsed_content(name)
                for name in ("epochs", "refine_epochs")
                if name in workflow.parser
            ),
            "seconds": round(time.time() - started, 1),
        }
        workflow.finalize()
        self.bundle.tuned.parent.mkdir(parents=True, exist_ok=True)
        os.replace(made, self.bundle.tuned)
        write_json(self.bundle.output_dir / "train_stats.json", stats)
        return stats

    def _score(
        self, workflow: ConfigWorkflow, checkpoint: Path, device: torch.device, subsets: dict[str, pd.DataFrame]
    ) -> dict[str, Any]:
        """The new model on the held-out images: every task's accuracy, the worst group, and all groups."""
        network = self.bundle.network().to(device)
        load_model(network, checkpoint)
        held_out = collect_predictions(
            network,
            workflow.parser.get_parsed_content("validate#dataloader"),
            device=device,
            task_names=[task.name for task in self.bundle.tasks],
            num_classes=self.bundle.num_classes,
            subjects=subsets["select"]["subject"],
        )
        table = score_table({"held_out": held_out})
        names = ("accuracy", "balanced_accuracy", "cell_balanced_accuracy", "worst_group")
        groups = [
            {"cell": dict(zip(held_out.keys, cell, strict=True)), "accuracy": value, "n": n}
            for cell, (value, n) in group_accuracies(held_out).items()
        ]
        sizes = {"train": len(subsets["train"]), "held_out": len(held_out)}
        return {name: table[name]["held_out"] for name in names} | {"groups": groups, "n": sizes}


def _number(request: dict[str, Any], key: str, default: float | None = None) -> Any:
    value = request.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise HTTPException(400, f"expected {key} to be a number, got {value!r}")
    return value
