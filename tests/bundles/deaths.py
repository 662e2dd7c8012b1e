# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""A bundle's run in a process of its own, which the system kills (SIGKILL) at a chosen place, such as in the middle of a file."""

import collections
import contextlib
import functools
import io
import json
import multiprocessing
import os
import signal
import time

import torch
from monai.bundle import run as run_bundle
from monai.engines import SupervisedEvaluator
from runs import ROOT, options

from monai_mimmx import files
from monai_mimmx.data import EncodedBatches
from monai_mimmx.engines import MIMMXTrainer
from monai_mimmx.evaluation import ExperimentEvaluation
from monai_mimmx.handlers import EpochRecorder, WeightAveraging

PLACES = {
    "start": (ExperimentEvaluation, "discard"),
    "step": (MIMMXTrainer, "_iteration"),
    "estimator step": (MIMMXTrainer, "_update_estimator"),
    "statistics": (WeightAveraging, "update_statistics"),
    "validation": (SupervisedEvaluator, "_iteration"),
    "history": (EpochRecorder, "_end_epoch"),
    "encoding": (EncodedBatches, "_encode"),
    "evaluation": (ExperimentEvaluation, "__call__"),
    "prediction": (ExperimentEvaluation, "_predict"),
}
"""What is counted, by name: a death "at step 3" comes as that call begins."""

SERVER = multiprocessing.get_context("forkserver")


def live(bundle, folders, output, log, at, more):
    """Run a bundle as `python -m monai.bundle run` does, on one thread; be killed `at` (place, count), if given."""
    torch.set_num_threads(1)
    counts = collections.Counter()

    def die():
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)

    def due(place):
        counts[place] += 1
        return (place, counts[place]) == at

    def watched(place, call):
        @functools.wraps(call)
        def wrapper(*args, **kwargs):
            if due(place):
                die()
            return call(*args, **kwargs)

        return wrapper

    for place, (owner, name) in PLACES.items():
        setattr(owner, name, watched(place, getattr(owner, name)))
    save, replace = torch.save, os.replace

    def torn_save(content, file, *args, **kwargs):
        if due("saving"):
            buffer = io.BytesIO()
            save(content, buffer)
            target = file if hasattr(file, "write") else open(file, "wb")  # noqa: SIM115
            target.write(buffer.getvalue()[: len(buffer.getvalue()) // 2])
            target.flush()
            die()
        return save(content, file, *args, **kwargs)

    # Pictures are no part of what is compared, and take longer than all the rest.
    ExperimentEvaluation._figures = watched("pictures", lambda *args: {})
    torch.save, files.os.replace = torn_save, watched("renaming", replace)
    configs = ROOT / bundle / "configs"
    given = options(bundle, folders, output, **more)
    with log.open("a") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        run_bundle(
            config_file=str(configs / "train.json"),
            meta_file=str(configs / "metadata.json"),
            logging_file=False,
            **given,
        )
    (output / "counts.json").write_text(json.dumps(counts))


def run(bundle, folders, output, *, at=None, **more):
    """The exit code of such a run, and how often each place was met, if it lived to tell."""
    log = output.with_suffix(".log")
    process = SERVER.Process(target=live, args=(bundle, folders, output, log, at, more))
    process.start()
    process.join(300)
    if process.is_alive():
        process.kill()
        raise TimeoutError(f"the run did not end; see {log}")
    path = output / "counts.json"
    return process.exitcode, json.loads(path.read_text()) if path.exists() else {}
