# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""The image cache of the chest bundle: what building, reading and decoding anew cost per image."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from monai.transforms import Compose, NormalizeIntensityd, Resized

from benchmarks.timing import interleaved
from monai_mimmx.data import CachedImages, write_chest_cohort
from monai_mimmx.transforms import LoadGrayscaled

BATCH = 100


def measure(quick: bool = False) -> dict[str, list[dict[str, Any]]]:
    """All rows; ``quick``: sizes that only show that it runs."""
    load = Compose(
        [LoadGrayscaled("image"), Resized("image", spatial_size=[96, 96], mode="area"), NormalizeIntensityd("image")]
    )
    with tempfile.TemporaryDirectory() as folder:
        write_chest_cohort(Path(folder) / "cohort", scale=0.02 if quick else 0.1, progress=False)
        images = sorted(map(str, Path(folder).rglob("*_frontal.jpg")))
        frame = pd.DataFrame({"image": images, "sick": 0, "sex": 0})
        rng, number = np.random.default_rng(0), iter(range(10**6))

        def build() -> CachedImages:
            place = Path(folder) / f"cache_{next(number)}"
            return CachedImages(frame, ["sick", "sex"], load, cache_dir=place, transform_key="", progress=False)

        cached = build()
        seconds = interleaved(
            {
                "build": build,
                "read": lambda: cached.__getitems__(rng.integers(0, len(images), BATCH)),
                "decode": lambda: [load({"image": images[i]}) for i in rng.integers(0, len(images), BATCH)],
            },
            repeats=1 if quick else 5,
        )
    row = {
        "images": len(images),
        "build_milliseconds_per_image": 1000 * seconds["build"] / len(images),
        "read_milliseconds_per_image": 1000 * seconds["read"] / BATCH,
        "decode_milliseconds_per_image": 1000 * seconds["decode"] / BATCH,
        "kilobytes_per_image": cached.nbytes / len(images) / 1000,
    }
    return {"cache": [row]}
