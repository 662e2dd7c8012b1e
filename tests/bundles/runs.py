# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""How the tests run a bundle in this process at tiny size."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigWorkflow

from monai_mimmx.data.fashion_mnist import DEFAULT_SOURCE
from monai_mimmx.evaluation import ExperimentEvaluation

ROOT = Path(__file__).parents[2] / "bundles"
BUNDLES = [
    "brain_age",
    pytest.param(
        "fashion_mnist",
        marks=pytest.mark.skipif(
            not DEFAULT_SOURCE.is_dir(), reason="Fashion-MNIST is not installed: apt-get install dataset-fashion-mnist"
        ),
    ),
    "pleural_effusion",
    "pleural_effusion_natural",
]
NAMES = ["brain_age", "fashion_mnist", "pleural_effusion", "pleural_effusion_natural"]
FIGURES = ExperimentEvaluation._figures
TINY = {
    "cohort_scale": 0.02,
    "image_size": 32,
    "batch_size": 16,
    "epochs": 2,
    "val_interval": 1,
    "device": os.environ.get("MIMMX_TEST_DEVICE", "cpu"),
}
OWN = {
    "brain_age": {"network_def#encoder#strides": [2, 2, 2, 1], "refine_epochs": 0},
    "fashion_mnist": {"network_def#encoder#strides": [2, 2, 2, 1]},
    "pleural_effusion": {  # DenseNet-121, whole
        "cohort_scale": 0.06,
        "subset_sizes": {"train": 260, "select": 60, "probe": 40, "val": 100, "inv": 100, "bal": 100},
        "epochs": 1,
        "refine_epochs": 2,
    },
    # Small enough that some combination of classes is missing from the training data.
    "pleural_effusion_natural": {"network_def#encoder": "four_conv", "sampling": "correlated", "refine_epochs": 2},
}
"""What each bundle needs to be tiny."""


def options(bundle, folders, output, **more):
    shared = {"cohort_dir": str(folders / bundle / "cohort"), "cache_dir": str(folders / bundle / "cache")}
    return TINY | OWN[bundle] | shared | {"bundle_root": str(ROOT / bundle), "output_dir": str(output)} | more


def workflow(bundle, *configs, workflow_type="train", tracking=None, **override):
    files = [str(ROOT / bundle / "configs" / f"{name}.json") for name in configs]
    made = ConfigWorkflow(
        config_file=files,
        meta_file=str(ROOT / bundle / "configs/metadata.json"),
        logging_file=False,
        workflow_type=workflow_type,
        tracking=tracking,
        **override,
    )
    made.initialize()
    return made


def results(output):
    """What two equal runs have in common: figures and weights, without what is different by nature, time and place."""
    metrics = json.loads((output / "metrics.json").read_text())
    model = torch.load(output / "models/model.pt", weights_only=True)
    del metrics["seconds"], metrics["commit"], metrics["config"]["output_dir"]
    return metrics, {name: value.tolist() for name, value in model.items()}


def child_environment():
    """Of a process that runs this checkout, on one thread."""
    path = os.pathsep.join([str(ROOT.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}


def torchrun(bundle, processes, given):
    """A training by torchrun, on one machine; it must end well."""
    configs = [str(ROOT / bundle / "configs" / f"{name}.json") for name in ("train", "multi_gpu_train")]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command += ["-m", "monai.bundle", "run", "--config_file", str(configs)]
    command += [word for key, value in given.items() for word in (f"--{key}", str(value))]
    environment = child_environment()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "FutureWarning" not in done.stderr  # nothing that its user could act on
    return done


def train(bundle, folders, output, *, pictures=False, **more):
    with pytest.MonkeyPatch.context() as patch:
        if pictures:
            patch.setattr(ExperimentEvaluation, "_figures", FIGURES)
        workflow(bundle, "train", **options(bundle, folders, output, **more)).run()
    return json.loads((output / "metrics.json").read_text())
