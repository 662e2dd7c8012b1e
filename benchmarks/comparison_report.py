# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""How long the page of a comparison takes, for runs whose records and pictures are copies of one finished run.

python benchmarks/comparison_report.py --run bundles/brain_age/output --runs 60
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import tempfile
import time
from pathlib import Path

from monai_mimmx.comparison import write_comparison
from monai_mimmx.comparison.methods import METHODS

RECORDS = ("metrics.json", "history.jsonl", "tsne.png", "training.png", "samples.png", "cooccurrence.png")


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="output_dir of a finished run")
    parser.add_argument("--runs", type=int, default=60)
    options = parser.parse_args()
    names = list(METHODS)
    with tempfile.TemporaryDirectory() as folder:
        for i in range(options.runs):
            name, seed = names[i % len(names)], i // len(names)
            place = Path(folder) / name / f"seed_{seed}"
            place.mkdir(parents=True)
            (place / "run.json").write_text(json.dumps({"name": name, "seed": seed, "options": {"seed": seed}}))
            for record in RECORDS:
                shutil.copy(options.run / record, place)
        started = time.perf_counter()
        page = write_comparison(folder)
        seconds = time.perf_counter() - started
        size = page.stat().st_size
    result = {"runs": options.runs, "seconds": round(seconds, 2), "page_megabytes": round(size / 1e6, 1)}
    print(json.dumps({**result, "python": platform.python_version(), "machine": platform.machine()}))


if __name__ == "__main__":
    main()
