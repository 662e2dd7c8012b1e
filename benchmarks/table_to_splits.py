# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""How long it takes from a table of CheXpert's size, in its columns, to the six subsets; the median of several runs.

python benchmarks/table_to_splits.py --rows 223414
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

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
            "Path": [f"CheXpert-v1.0/train/patient{p:05d}/study{i % 5}/view1.jpg" for i, p in enumerate(patients)],
            "Sex": rng.choice(["Male", "Female"], rows),
            "Age": rng.integers(18, 91, rows),
            "Frontal/Lateral": rng.choice(["Frontal", "Lateral"], rows, p=[0.855, 0.145]),
            "AP/PA": "AP",
        }
    )
    for label in LABELS:
        table[label] = rng.choice([1.0, 0.0, -1.0, np.nan], rows, p=[0.25, 0.1, 0.05, 0.6])
    table.to_csv(path, index=False)


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=223_414)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    tasks = parse_tasks(TASKS)
    reading, splitting = [], []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.csv"
        write_table(path, options.rows)
        for _ in range(options.repeats + 1):
            started = time.perf_counter()
            frame = read_table(path, tasks, image_column="Path", prepare=CheXpertColumns(), check_images=False)
            read = time.perf_counter()
            make_subsets(frame, tasks)
            reading.append(read - started)
            splitting.append(time.perf_counter() - read)
    result = {
        "rows": options.rows,
        "read_seconds": round(statistics.median(reading[1:]), 3),  # the first is a warm-up
        "split_seconds": round(statistics.median(splitting[1:]), 3),
        "python": platform.python_version(),
        "pandas": pd.__version__,
        "machine": platform.processor() or platform.machine(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
