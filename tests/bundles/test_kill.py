# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""A training that the system kills at any moment ends, resumed, as one that was left alone."""

import json
import os
import random
import subprocess
import sys
import time

import torch
from runs import ROOT, options, train

KILLS = int(os.environ.get("MIMMX_KILLS", "1"))
"""How often the training is killed; the suite has time for few."""


def test_killed_again_and_again(folders, tmp_path):
    more = {"epochs": 6, "val_interval": 1}
    whole = train("brain_age", folders, tmp_path / "whole", **more)
    given = options("brain_age", folders, tmp_path / "killed", resume=True, **more)
    command = [sys.executable, "-m", "monai.bundle", "run"]
    command += ["--config_file", str(ROOT / "brain_age/configs/train.json")]
    command += [word for key, value in given.items() for word in (f"--{key}", str(value))]
    path = os.pathsep.join([str(ROOT.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    rng, started, kills = random.Random(0), time.monotonic(), 0
    subprocess.run(
        command + ["--epochs", "1", "--output_dir", str(tmp_path / "timed")], env=environment, check=True, **silent
    )
    longest = 1.2 * (time.monotonic() - started)
    while kills < KILLS:
        process = subprocess.Popen(command, env=environment, **silent)
        try:
            process.wait(rng.uniform(0.3, 1.0) * longest)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
        else:  # it was faster than that: begin anew
            assert process.returncode == 0
            (tmp_path / "killed/metrics.json").unlink()
            for checkpoint in (tmp_path / "killed/models").glob("state*.pt"):
                checkpoint.unlink()
    subprocess.run(command, env=environment, check=True, **silent)
    metrics = json.loads((tmp_path / "killed/metrics.json").read_text())
    for key in ("accuracy", "auroc", "probes", "attention", "mi", "epochs"):
        assert metrics[key] == whole[key], key
    models = [torch.load(tmp_path / name / "models/model.pt", weights_only=True) for name in ("whole", "killed")]
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])
