# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""
Images per second of two bundles on two processes of one thread each, against one process of one thread.

The two share the batch of the one, which makes the same training, or have a batch as large each, as they do where only
`multi_gpu_train.json` is added to the command. The brain bundle's encoder, four convolutions of large images, waits for
memory, which both share; a chest bundle's, DenseNet-121, computes. Beside it what the machine gives at most: two processes
that know nothing of each other. All of them stay, and train an epoch in turn.
"""

from __future__ import annotations

import contextlib
import io
import os
import statistics
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.epoch import make_trainer
from benchmarks.timing import FRESH, median_ratio, take_turns
from monai_mimmx.engines import reuse_freed_memory


class Form(NamedTuple):
    """A way to train on `processes` processes with `batches` batches among them, in one group or apart."""

    processes: int
    batches: int
    apart: bool = False


FORMS = {
    "one": Form(1, 1),
    "two": Form(2, 1),
    "two, a batch each": Form(2, 2),
    "two apart": Form(2, 1, apart=True),
    "two apart, a batch each": Form(2, 2, apart=True),
}
SIZES: dict[str, dict[str, Any]] = {
    "brain_age": {"scale": 0.5, "batch_size": 150, "repeats": 25},
    "pleural_effusion": {"scale": 0.05, "batch_size": 100, "repeats": 5},
}


def _train(pipe: Any, bundle: str, folder: Path, form: Form, rank: int, scale: float, options: dict[str, Any]) -> None:
    """Train an epoch whenever asked, and tell how many images that takes; for a process of its own."""
    torch.set_num_threads(1)
    reuse_freed_memory()
    together = form.processes > 1 and not form.apart
    if together:
        os.environ["RANK"] = os.environ["LOCAL_RANK"] = str(rank)
        store = f"file://{folder / f'group_of_{form.batches}'}"
        torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=form.processes)
        options = {**options, "backend": "gloo"}
    else:
        options = {**options, "device": "cpu"}
    overlays = ["multi_gpu_train"] if together else []
    with contextlib.redirect_stdout(io.StringIO()):
        trainer = make_trainer(folder, scale, options, bundle=bundle, overlays=overlays)
        while True:  # until it is terminated
            pipe.send(len(trainer.data_loader) * options["batch_size"])
            pipe.recv()
            trainer.run()


def _images(pipes: list[Any]) -> int:
    """Wait for all processes of a form; what they tell."""
    try:
        return sum(pipe.recv() for pipe in pipes)
    except EOFError:
        raise RuntimeError("a training of the benchmark ended early; see its message above.") from None


def _start(
    stack: ExitStack, bundle: str, folder: Path, form: Form, scale: float, options: dict[str, Any]
) -> tuple[Callable[[], Any], int]:
    """What trains an epoch of a form when called, and how many images that takes."""
    pipes = []
    options = {**options, "batch_size": options["batch_size"] * form.batches // form.processes}
    for rank in range(form.processes):
        ours, theirs = FRESH.Pipe()
        arguments = (theirs, bundle, folder, form, rank, scale, options)
        process = FRESH.Process(target=_train, args=arguments, daemon=True)
        process.start()
        theirs.close()
        stack.callback(process.join)
        stack.callback(process.terminate)
        pipes.append(ours)

    def epoch() -> None:
        for pipe in pipes:
            pipe.send(None)
        _images(pipes)

    return epoch, _images(pipes)


def _compare(bundle: str, scale: float, repeats: int, options: dict[str, Any]) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        with contextlib.redirect_stdout(io.StringIO()):
            make_trainer(Path(name), scale, options, bundle=bundle)  # which writes the cohort and decodes its images
        start = partial(_start, stack, bundle, Path(name), scale=scale, options=options)
        started = {label: start(form=form) for label, form in FORMS.items()}
        turns = take_turns({label: epoch for label, (epoch, _) in started.items()}, repeats)
    # An epoch of processes apart, or of smaller joint batches, takes other numbers of images.
    for label, (_, images) in started.items():
        turns[label] = [seconds / images for seconds in turns[label]]
    return [
        {
            "bundle": bundle,
            "processes": label,
            "images_per_second": 1 / statistics.median(seconds),
            "times_faster": median_ratio(turns["one"], seconds),
        }
        for label, seconds in turns.items()
    ]


def measure(quick: bool = False) -> dict[str, list[dict[str, Any]]]:
    """All rows; ``quick``: sizes that only show that it runs."""
    rows = []
    for bundle, size in SIZES.items():
        options = {"batch_size": size["batch_size"], "method": "mimmx"}
        scale, repeats = size["scale"], size["repeats"]
        if quick:
            scale, repeats, options = 0.02, 1, options | {"image_size": 32, "batch_size": 16}
        rows += _compare(bundle, scale, repeats, options)
    return {"processes": rows}
