# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""From a table of CheXpert's size, in its columns, and from one of a million rows, to the six subsets."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.timing import interleaved
from monai_mimmx.data import CheXpertColumns, make_subsets, parse_tasks, read_table
from monai_mimmx.data.chexpert import LABELS

TASKS = [
    {"name": "effusion", "column": "Pleural Effusion", "negative": [0], "positive": [1]},
    {"name": "sex", "column": "Sex", "negative": ["Female"], "positive": ["Male"]},
    {"name": "age", "column": "Age", "negative": "< 50", "positive": "> 60"},
]


def write_table(path: Path, rows: int) -> None:
    """A table of random labels in CheXpert's columns, about 3.5 images a patient as in the original."""
    rng = np.random.default_rng(0)
    patients = np.sort(rng.integers(1, rows * 64_540 // 223_414 + 2, rows))
    table = pd.DataFrame(
        {
            "Path": [f"CheXpert-v1.0/train/patient{p:05d}/study{i}/view1.jpg" for i, p in enumerate(patients)],
            "Sex": rng.choice(["Male", "Female"], rows),
            "Age": rng.integers(18, 91, rows),
            "Frontal/Lateral": rng.choice(["Frontal", "Lateral"], rows, p=[0.855, 0.145]),
            "AP/PA": "AP",
        }
    )
    for label in LABELS:
        table[label] = rng.choice([1.0, 0.0, -1.0, np.nan], rows, p=[0.25, 0.1, 0.05, 0.6])
    table.to_csv(path, index=False)


def measure(quick: bool = False) -> dict[str, list[dict[str, Any]]]:
    """All rows; ``quick``: sizes that only show that it runs."""
    tasks, rows = parse_tasks(TASKS), []
    for size in (20_000,) if quick else (223_414, 1_000_000):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "train.csv"
            write_table(path, size)
            read = partial(read_table, path, tasks, image_column="Path", prepare=CheXpertColumns(), check_images=False)
            frame = read()
            seconds = interleaved({"read": read, "split": partial(make_subsets, frame, tasks)}, 1 if quick else 3)
        rows.append({"table_rows": size, "read_seconds": seconds["read"], "split_seconds": seconds["split"]})
    return {"table": rows}
