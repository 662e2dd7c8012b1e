# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""An epoch of the brain bundle on two processes of one thread each against one process of one thread."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from monai_mimmx.handlers import read_history

BUNDLE = Path(__file__).parents[1] / "bundles" / "brain_age"


def _train(processes: int, folder: Path, turn: int, options: dict[str, Any]) -> float:
    """Median seconds of an epoch, without the first."""
    names = ("train",) if processes == 1 else ("train", "multi_gpu_train")
    configs = [str(BUNDLE / "configs" / f"{name}.json") for name in names]
    output = folder / f"output_{processes}_{turn}"
    given = {
        "bundle_root": BUNDLE,
        "cohort_dir": folder / "cohort",
        "cache_dir": folder / "cache",
        "output_dir": output,
    }
    if processes > 1:
        given["backend"] = "gloo"
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)] if processes > 1 else []
    command = [sys.executable, *start, "-m", "monai.bundle", "run", "--config_file", str(configs)]
    command += [word for key, value in {**given, **options}.items() for word in (f"--{key}", str(value))]
    path = os.pathsep.join([str(BUNDLE.parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run(command, env=environment, check=True, capture_output=True)
    return statistics.median(row["seconds"] for row in read_history(output / "history.jsonl")[1:])


def measure(quick: bool = False) -> dict[str, list[dict[str, Any]]]:
    """All rows; ``quick``: sizes that only show that it runs."""
    options: dict[str, Any] = {"epochs": 4, "val_interval": 4, "cohort_scale": 0.5, "batch_size": 75}
    if quick:
        options = {"epochs": 2, "val_interval": 2, "cohort_scale": 0.02, "image_size": 32, "batch_size": 8}
    rows: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(1 if quick else 3):
            for processes, seconds in rows.items():
                # As large a joint batch either way.
                size = options["batch_size"] * (2 if processes == 1 else 1)
                seconds.append(_train(processes, Path(folder), turn, {**options, "batch_size": size}))
    medians = {processes: statistics.median(seconds) for processes, seconds in rows.items()}
    return {
        "processes": [
            {"processes": processes, "seconds": seconds, "times_faster": medians[1] / seconds}
            for processes, seconds in medians.items()
        ]
    }
