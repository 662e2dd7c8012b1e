# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""Do labels that the MONAI Label strategies choose make a smaller gap between Val and Inv than labels chosen at random?

python -m benchmarks.next_sample --output next_sample.json

On the embedded brains: a first set of labels with the bundle's correlations, a network trained on it, then rounds in which
each strategy chooses images from one pool (correlated too, its labels hidden) and the network is fine-tuned on all labels
so far, as the app does it. Every strategy starts from the same labels and the same network; the rows hold the accuracy of
y on the bundle's three test sets after each round, and how many images each cell (y, z_1, z_2) got.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigWorkflow

from monai_mimmx.data import cell_index, keep_batch, make_subsets, read_table, subject_partition
from monai_mimmx.data.cache import CachedImages, cache_subsets
from monai_mimmx.evaluation import Predictions, accuracy, collect_predictions
from monai_mimmx.label import rare_cell_scores, shortcut_scores
from monai_mimmx.trained_model import load_model

BUNDLE = Path(__file__).parents[1] / "bundles" / "brain_age"
STRATEGIES = ("random", "shortcut", "rare_cell")


def workflow(**overrides: Any) -> ConfigWorkflow:
    """The bundle's training with some of its values replaced."""
    made = ConfigWorkflow(
        config_file=str(BUNDLE / "configs" / "train.json"),
        meta_file=str(BUNDLE / "configs" / "metadata.json"),
        logging_file=False,
        workflow_type="train",
        **{"bundle_root": str(BUNDLE)} | overrides,
    )
    return made


def train(data: CachedImages, rows: np.ndarray, base: Path | None, folder: Path, seed: int, **options: Any) -> Path:
    """Train on the rows, a fifth of their subjects held out, from the weights `base`; the new checkpoint."""
    part = subject_partition(data.frame["subject"].iloc[rows], fractions=(0.8, 0.2, 0.0), seed=seed)
    images = {name: data.subset(rows[part == of]) for name, of in (("train", "train"), ("select", "val"))}
    cells = cell_index(images["train"].labels, (2, 2, 2))
    if options.get("sampling") != "correlated" and len(np.unique(cells)) < 8:
        options["sampling"] = "correlated"  # as the app does
    made = workflow(images=images, output_dir=str(folder), seed=seed, initialize=["$import logging"], **options)
    made.parser["run"] = [step for step in made.parser["run"] if "@evaluation" not in step]
    made.initialize()
    torch.manual_seed(seed)
    if base is not None:
        load_model(made.parser.get_parsed_content("network"), base)
    made.run()
    return Path(made.parser.get_parsed_content("ckpt"))


def predict(checkpoint: Path, data: CachedImages, options: dict[str, Any]) -> Predictions:
    """What the network of a checkpoint says of all images of a set."""
    network = workflow(**options).parser.get_parsed_content("network_def")
    load_model(network, checkpoint)
    loader = torch.utils.data.DataLoader(data, batch_size=250, collate_fn=keep_batch)
    names = data.task_names
    return collect_predictions(network, loader, device="cpu", task_names=names, num_classes=[2] * len(names))


def choose(strategy: str, predictions: Predictions, labelled: np.ndarray, count: int, seed: int) -> np.ndarray:
    """The rows of the pool that a strategy chooses next."""
    pool = np.setdiff1d(np.arange(len(predictions)), labelled)
    if strategy == "random":
        return np.random.default_rng(seed).choice(pool, count, replace=False)
    labels = np.full_like(predictions.labels, -1)
    labels[labelled] = predictions.labels[labelled]
    score = {"shortcut": shortcut_scores, "rare_cell": rare_cell_scores}[strategy]
    values = score(predictions.logits, labels, predictions.num_classes)
    return pool[np.argsort(-values[pool], kind="stable")[:count]]


def main() -> None:
    """Write the rows and print the means over the seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True, help="JSON file of the rows")
    parser.add_argument("--cohort_dir", help="default: a temporary folder")
    parser.add_argument("--cohort_scale", type=float, default=0.5)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first", type=int, default=300, help="labels to begin with")
    parser.add_argument("--batch", type=int, default=100, help="labels a round")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--test", type=int, default=600, help="images of each test set")
    parser.add_argument("--epochs", type=int, default=20, help="of the first training and of each round")
    parser.add_argument("--method", default="mimmx")
    parser.add_argument("--image_size", type=int, default=96)
    options = parser.parse_args()
    shape = {"image_size": options.image_size, "network_def#encoder#strides": [2, 2, 2, 2]}
    training = shape | {"method": options.method, "epochs": options.epochs, "batch_size": 50, "device": "cpu"}
    training |= {"ema_decay": 0.98}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        made = workflow(**shape, cohort_dir=options.cohort_dir or str(folder), cohort_scale=options.cohort_scale)
        tasks = made.parser.get_parsed_content("parsed_tasks")
        frame = read_table(made.parser.get_parsed_content("table"), tasks)
        sizes = {"select": 1, "probe": 1, "val": options.test, "inv": options.test, "bal": options.test}
        subsets = make_subsets(frame, tasks, agreement=0.9, sizes=sizes)
        images = cache_subsets(
            {name: subsets[name] for name in ("train", "val", "inv", "bal")},
            [task.name for task in tasks],
            made.parser.get_parsed_content("load"),
            cache_dir=None,
            transform_key="",
            num_workers=1,
        )
        images["train"].frame["subject"] = subsets["train"]["subject"].to_numpy()
        rows = []
        for seed in range(options.seeds):
            order = np.random.default_rng(seed).permutation(len(images["train"]))
            first = order[: options.first]
            base = train(images["train"], first, None, folder / f"base{seed}", seed, **training)
            for strategy in STRATEGIES:
                labelled, checkpoint = first, base
                for round_ in range(options.rounds + 1):
                    started = time.perf_counter()
                    if round_:
                        picked = choose(
                            strategy, predict(checkpoint, images["train"], training), labelled, options.batch, seed
                        )
                        labelled = np.concatenate([labelled, picked])
                        target = folder / f"{strategy}{seed}_{round_}"
                        checkpoint = train(images["train"], labelled, checkpoint, target, seed, **training)
                    found = {
                        name: accuracy(predict(checkpoint, images[name], training)) for name in ("val", "inv", "bal")
                    }
                    cells = np.bincount(cell_index(images["train"].labels[labelled], (2, 2, 2)), minlength=8).tolist()
                    rows.append(
                        {"seed": seed, "strategy": strategy, "round": round_, "labels": len(labelled)}
                        | found
                        | {"gap": found["val"] - found["inv"], "cells": cells}
                        | {"seconds": round(time.perf_counter() - started, 1)}
                    )
                    print(json.dumps(rows[-1]), flush=True)
                    Path(options.output).write_text(
                        json.dumps({"options": vars(options), "rows": rows}, indent=1) + "\n"
                    )
    for strategy in STRATEGIES:
        last = [row for row in rows if row["strategy"] == strategy and row["round"] == options.rounds]
        gaps = [100 * row["gap"] for row in last]
        spread = statistics.stdev(gaps) / math.sqrt(len(gaps)) if len(gaps) > 1 else math.nan
        means = ", ".join(
            f"{name} {100 * statistics.mean(row[name] for row in last):.1f}" for name in ("val", "inv", "bal")
        )
        print(f"{strategy}: gap {statistics.mean(gaps):+.1f} (standard error {spread:.1f}); {means}")


if __name__ == "__main__":
    main()
