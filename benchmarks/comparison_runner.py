# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""
What a comparison costs beyond its runs, which are processes of their own.

Each run of the brain bundle is made by its command alone and by the runner, in turns. `start` is the time to import the
package and plan the runs, once a comparison; `around a run` what the runner adds to each; `report` the tables and the page.
The overhead is all of it as a share of these plain runs, which are few and short.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from monai_mimmx.comparison import execute_runs, method_options, plan_runs, write_comparison

ROOT = Path(__file__).parents[1]
BUNDLE = ROOT / "bundles" / "brain_age"
PLAN = """
from monai_mimmx.__main__ import main
main(["compare", "--bundle", {bundle!r}, "--seeds", "3", "--output_dir", {output!r}, "--list"])
"""
TIMED = """
import pathlib, subprocess, sys, time
started = time.perf_counter()
status = subprocess.run(sys.argv[2:]).returncode
pathlib.Path(sys.argv[1]).write_text(str(time.perf_counter() - started))
sys.exit(status)
"""


def _seconds(command: list[str], environment: dict[str, str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, env=environment, check=True, capture_output=True)
    return time.perf_counter() - started


def measure(quick: bool = False) -> dict[str, list[dict[str, Any]]]:
    """All rows; ``quick``: sizes that only show that it runs."""
    sizes = {"epochs": 1, "image_size": 32} if quick else {"epochs": 60, "image_size": 96}
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    with tempfile.TemporaryDirectory() as folder:
        options = {
            **{"cohort_dir": f"{folder}/cohort", "cache_dir": f"{folder}/cache", "device": "cpu"},
            **{"cohort_scale": 0.02 if quick else 0.05, "batch_size": 16, "val_interval": sizes["epochs"], **sizes},
        }
        planned = plan_runs(
            BUNDLE, method_options(["baseline", "mimmx"]), seeds=[0], output_dir=f"{folder}/runs", options=options
        )
        start = _seconds([sys.executable, "-c", PLAN.format(bundle=str(BUNDLE), output=folder)], environment)
        plain, inside, around = [], [], []
        for i, run in enumerate(planned[:1] if quick else planned):
            alone = [word.replace(str(run.folder), f"{folder}/alone") for word in run.command]
            if i == 0:
                _seconds(alone, environment)  # which also writes the cohort
            plain.append(_seconds(alone, environment))
            timed = (sys.executable, "-c", TIMED, f"{folder}/seconds", *run.command)
            started = time.perf_counter()
            counts = execute_runs([dataclasses.replace(run, command=timed)], progress=False, report=lambda line: None)
            whole = time.perf_counter() - started
            if counts["finished"] != 1:
                raise RuntimeError((run.folder / "log.txt").read_text(encoding="utf-8"))
            inside.append(float(Path(f"{folder}/seconds").read_text(encoding="utf-8")))
            around.append(whole - inside[-1])
        started = time.perf_counter()
        write_comparison(f"{folder}/runs")
        report = time.perf_counter() - started
    each = statistics.mean(around)
    row: dict[str, Any] = {"runs": len(plain), "plain_seconds": sum(plain), "seconds_in_the_runner": sum(inside)}
    row |= {"start_seconds": start, "seconds_around_a_run": each, "report_seconds": report}
    row["overhead_percent"] = 100 * (start + sum(around) + report) / sum(plain)
    return {"runner": [row]}
