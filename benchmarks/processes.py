# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""
An epoch of two bundles on two processes of one thread each against one process of one thread.

The brain bundle's encoder, four convolutions of large images, waits for memory, which both share; a chest bundle's,
DenseNet-121, computes. Beside it what the machine gives at most: two processes that know nothing of each other, with
half of the batch each.
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

BUNDLES = Path(__file__).parents[1] / "bundles"
TURNS = {"brain_age": 5, "pleural_effusion": 3}
"""Of the short epochs of four convolutions more: what a machine gives them differs from one half minute to the next."""

SIZES: dict[str, dict[str, Any]] = {  # with the batch of all processes together
    "brain_age": {"epochs": 7, "val_interval": 7, "refine_epochs": 0, "cohort_scale": 0.5, "batch_size": 150},
    "pleural_effusion": {"epochs": 4, "val_interval": 4, "refine_epochs": 0, "cohort_scale": 0.05, "batch_size": 100},
}


def _start(
    bundle: Path, processes: int, folder: Path, name: str, options: dict[str, Any]
) -> tuple[subprocess.Popen[bytes], Path]:
    """A training under way, and the history that it writes."""
    names = ("train",) if processes == 1 else ("train", "multi_gpu_train")
    configs = [str(bundle / "configs" / f"{config}.json") for config in names]
    output = folder / f"output_{name}"
    given = {
        "bundle_root": bundle,
        "cohort_dir": folder / "cohort",
        "cache_dir": folder / "cache",
        "output_dir": output,
    }
    if processes > 1:
        given["backend"] = "gloo"
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)] if processes > 1 else []
    command = [sys.executable, *start, "-m", "monai.bundle", "run", "--config_file", str(configs)]
    command += [word for key, value in {**given, **options}.items() for word in (f"--{key}", str(value))]
    path = os.pathsep.join([str(BUNDLES.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""}
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command, env=environment, **silent), output / "history.jsonl"


def _finish(training: tuple[subprocess.Popen[bytes], Path]) -> float:
    """Median seconds of an epoch, without the first and the last, which also validates."""
    process, history = training
    if process.wait():
        raise subprocess.CalledProcessError(process.returncode, process.args)
    return statistics.median(row["seconds"] for row in read_history(history)[1:-1] or read_history(history))


def _compare(bundle: Path, options: dict[str, Any], turns: int) -> list[dict[str, Any]]:
    half = {**options, "batch_size": options["batch_size"] // 2}
    seconds: dict[str, list[float]] = {"one": [], "two": [], "two apart": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for turn in range(turns):
            seconds["one"].append(_finish(_start(bundle, 1, folder, f"one_{turn}", options)))
            seconds["two"].append(_finish(_start(bundle, 2, folder, f"two_{turn}", half)))
            apart = [_start(bundle, 1, folder, f"apart_{turn}_{i}", half) for i in (0, 1)]
            # An epoch of them has twice the steps of the others'.
            seconds["two apart"].append(max(_finish(training) for training in apart) / 2)
    return [
        {
            "bundle": bundle.name,
            "processes": processes,
            "seconds": statistics.median(values),
            "times_faster": median_ratio(seconds["one"], values),
        }
        for processes, values in seconds.items()
    ]


def measure(quick: bool = False) -> dict[str, list[dict[str, Any]]]:
    """All rows; ``quick``: sizes that only show that it runs."""
    tiny = {"epochs": 2, "val_interval": 2, "cohort_scale": 0.02, "image_size": 32, "batch_size": 16} if quick else {}
    rows = [
        row
        for name, options in SIZES.items()
        for row in _compare(BUNDLES / name, {**options, **tiny}, turns=1 if quick else TURNS[name])
    ]
    return {"processes": rows}
