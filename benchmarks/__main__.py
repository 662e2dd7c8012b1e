# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""
Run the benchmarks and write their rows as JSON and as tables.

python -m benchmarks                                  all of them
python -m benchmarks --only mine_update epoch         some
python -m benchmarks --quick                          sizes that only show that they run
"""

from __future__ import annotations

import argparse
import importlib
import os
import platform
from pathlib import Path
from typing import Any

import monai
import torch

from monai_mimmx.files import write_json, write_text
from monai_mimmx.report.page import markdown_table

NAMES = (
    "mine_update",
    "epoch",
    "processes",
    "table_to_splits",
    "image_cache",
    "evaluation",
    "comparison_runner",
    "comparison_report",
)
HERE = Path(__file__).parent


def format_tables(results: dict[str, Any]) -> str:
    """Markdown: a paragraph and a table per group of rows, and a line on the machine."""
    machine = results["machine"]
    parts = [
        f"Measured on {machine['processor']}, {machine['threads']} thread(s) of {machine['cores']} cores, PyTorch "
        f"{machine['torch']}, MONAI {machine['monai']}, Python {machine['python']}."
    ]
    for name, groups in results["benchmarks"].items():
        parts.append(" ".join((importlib.import_module(f"benchmarks.{name}").__doc__ or "").split()))
        for rows in groups.values():
            keys = list(dict.fromkeys(key for row in rows for key in row))
            parts.append(markdown_table(keys, [[_cell(row.get(key, "")) for key in keys] for row in rows]))
    return "\n\n".join(parts).replace("_", " ") + "\n"


def _cell(value: Any) -> str:
    return (
        f"{value:.3g}"
        if isinstance(value, float) and abs(value) < 1000
        else f"{value:,}"
        if isinstance(value, int)
        else (f"{value:.0f}" if isinstance(value, float) else str(value))
    )


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def main() -> None:
    """Write `results.json` and `results.md`, beside this file unless told otherwise."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output_dir", type=Path, default=HERE)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    results: dict[str, Any] = {
        "machine": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "threads": options.threads,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "monai": monai.__version__,
        },
        "benchmarks": {},
    }
    options.output_dir.mkdir(parents=True, exist_ok=True)
    for name in options.only:
        print(f"{name} ...", flush=True)
        results["benchmarks"][name] = importlib.import_module(f"benchmarks.{name}").measure(options.quick)
        # After each, so that what was measured is not lost.
        write_json(options.output_dir / "results.json", results)
        write_text(options.output_dir / "results.md", format_tables(results))
    print(format_tables(results))


if __name__ == "__main__":
    main()
