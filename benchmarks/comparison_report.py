# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""The page of a comparison, for runs whose records and pictures are copies of one small run."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from monai.bundle import ConfigWorkflow

from monai_mimmx.comparison import write_comparison
from monai_mimmx.comparison.methods import VARIANTS

BUNDLE = Path(__file__).parents[1] / "bundles" / "brain_age"
RECORDS = ("metrics.json", "history.jsonl", "tsne.png", "training.png", "samples.png", "cooccurrence.png")
SMALL = {"cohort_scale": 0.05, "image_size": 64, "batch_size": 16, "epochs": 2, "val_interval": 1}


def measure(quick: bool = False) -> dict[str, list[dict[str, Any]]]:
    """All rows; ``quick``: sizes that only show that it runs."""
    runs, names = 2 if quick else 60, list(VARIANTS)
    with tempfile.TemporaryDirectory() as folder:
        one, several = Path(folder) / "one", Path(folder) / "several"
        paths = {"bundle_root": str(BUNDLE), "output_dir": str(one), "cohort_dir": f"{folder}/cohort"}
        with contextlib.redirect_stdout(io.StringIO()):
            workflow = ConfigWorkflow(
                config_file=str(BUNDLE / "configs/train.json"),
                meta_file=str(BUNDLE / "configs/metadata.json"),
                workflow_type="train",
                cache_dir=None,
                **paths,
                **SMALL,
            )
            workflow.initialize()
            workflow.run()
        for i in range(runs):
            name, seed = names[i % len(names)], i // len(names)
            place = several / name / f"seed_{seed}"
            place.mkdir(parents=True)
            (place / "run.json").write_text(json.dumps({"name": name, "seed": seed, "options": {"seed": seed}}))
            for record in RECORDS:
                shutil.copy(one / record, place)
        started = time.perf_counter()
        page = write_comparison(several)
        row = {"runs": runs, "seconds": time.perf_counter() - started, "page_megabytes": page.stat().st_size / 1e6}
    return {"report": [row]}
