# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""
One epoch of `mimmx` with each switch for speed against one without: mixed precision, channels last, compilation, graph.

In the brain bundle, whose encoder has four convolutions, and in a chest bundle, whose encoder is DenseNet-121. A switch
is worth its place where it is faster than none by more than the turns differ.
"""

from __future__ import annotations

import contextlib
import io
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.epoch import make_trainer
from benchmarks.timing import median_ratio, take_turns
from monai_mimmx.engines import computes_in_bfloat16

NONE: dict[str, Any] = {"amp": False, "channels_last": False, "compile": False, "cuda_graph": False}


def switches(device: str) -> dict[str, dict[str, Any]]:
    """Those of a device, by name; each with what it changes. A CPU that imitates bfloat16 would take minutes."""
    on_gpu, last = device != "cpu", {"channels_last": True}
    names = ["bfloat16"] if on_gpu or computes_in_bfloat16(device) else []
    mixed = {name: {"amp": True, "amp_dtype": name} for name in names + ["float16"] * on_gpu}
    both = {f"{name}, channels_last": given | last for name, given in mixed.items()}
    # To compile for a processor takes longer than such an epoch, and a compiler that may not be there.
    others = {name: {name: True} for name in ("compile", "cuda_graph")} if on_gpu else {}
    return {"none": {}, **mixed, "channels_last": last, **both, **others}


def measure(quick: bool = False, device: str = "cpu") -> dict[str, list[dict[str, Any]]]:
    """All rows; ``quick``: the first bundle alone, at a size that only shows that it runs."""
    rows = []
    scales = {"brain_age": 0.25, "pleural_effusion": 0.04 if device == "cpu" else 0.1}
    repeats, more = 4, {"method": "mimmx", "device": device}
    if quick:
        scales, repeats, more = {"brain_age": 0.02}, 1, more | {"image_size": 32, "batch_size": 16}
    for bundle, scale in scales.items():
        torch.compiler.reset()  # else images of two sizes are compiled for any size
        with tempfile.TemporaryDirectory() as name, contextlib.redirect_stdout(io.StringIO()):
            trainers = {
                switch: make_trainer(Path(name), scale, NONE | given, bundle=bundle, **more)
                for switch, given in switches(device).items()
            }
            # The first epoch also finds out how to go about it, and compiles.
            turns = take_turns({switch: trainer.run for switch, trainer in trainers.items()}, repeats)
        for switch, seconds in turns.items():
            images = len(trainers[switch].data_loader) * trainers[switch].data_loader.batch_size
            rows.append(
                {
                    "bundle": bundle,
                    "switch": switch,
                    "seconds": statistics.median(seconds),
                    "times_none": median_ratio(seconds, turns["none"]),
                    "images_per_second": images / statistics.median(seconds),
                }
            )
    return {"switches": rows}
