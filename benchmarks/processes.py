# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""
An epoch of the brain bundle on two processes of one thread each against one process of one thread.

Beside it what the machine gives at most: two processes that know nothing of each other, with half of the batch each.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.timing import median_ratio
from monai_mimmx.handlers import read_history

BUNDLE = Path(__file__).parents[1] / "bundles" / "brain_age"


def _start(processes: int, folder: Path, name: str, options: dict[str, Any]) -> tuple[subprocess.Popen[bytes], Path]:
    """A training under way, and the history that it writes."""
    names = ("train",) if processes == 1 else ("train", "multi_gpu_train")
    configs = [str(BUNDLE / "configs" / f"{config}.json") for config in names]
    output = folder / f"output_{name}"
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
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command, env=environment, **silent), output / "history.jsonl"


def _finish(training: tuple[subprocess.Popen[bytes], Path]) -> float:
    """Median seconds of an epoch, without the first and the last, which also validates."""
    process, history = training
    if process.wait():
        raise subprocess.CalledProcessError(process.returncode, process.args)
    return statistics.median(row["seconds"] for row in read_history(history)[1:-1] or read_history(history))


def measure(quick: bool = False) -> dict[str, list[dict[str, Any]]]:
    """All rows; ``quick``: sizes that only show that it runs."""
    options: dict[str, Any] = {"epochs": 7, "val_interval": 7, "cohort_scale": 0.5}
    batch = 150  # of all processes together
    if quick:
        options, batch = {"epochs": 2, "val_interval": 2, "cohort_scale": 0.02, "image_size": 32}, 16
    whole, half = {**options, "batch_size": batch}, {**options, "batch_size": batch // 2}
    seconds: dict[str, list[float]] = {"one": [], "two": [], "two apart": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for turn in range(1 if quick else 3):
            seconds["one"].append(_finish(_start(1, folder, f"one_{turn}", whole)))
            seconds["two"].append(_finish(_start(2, folder, f"two_{turn}", half)))
            apart = [_start(1, folder, f"apart_{turn}_{i}", half) for i in (0, 1)]
            # An epoch of them has twice the steps of the others'.
            seconds["two apart"].append(max(_finish(training) for training in apart) / 2)
    return {
        "processes": [
            {
                "processes": processes,
                "seconds": statistics.median(values),
                "times_faster": median_ratio(seconds["one"], values),
            }
            for processes, values in seconds.items()
        ]
    }
