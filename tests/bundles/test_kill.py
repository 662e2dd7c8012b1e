# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""A training that the system kills at any moment ends, resumed, as one that was left alone; of several processes, all end."""

import json
import os
import random
import socket
import subprocess
import sys
import time

import pytest
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


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.skipif(not torch.distributed.is_available(), reason="PyTorch was built without torch.distributed")
def test_a_killed_process_ends_the_other(folders, tmp_path):
    """Without torchrun, which would end it too: by what the process itself notices."""
    output = tmp_path / "output"
    configs = [str(ROOT / "brain_age/configs" / f"{name}.json") for name in ("train", "multi_gpu_train")]
    given = options("brain_age", folders, output, backend="gloo", epochs=100_000, val_interval=1000)
    del given["device"]
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(configs)]
    command += [word for key, value in given.items() for word in (f"--{key}", str(value))]
    path = os.pathsep.join([str(ROOT.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    shared |= {"PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""}
    processes = []
    with (tmp_path / "errors").open("w") as errors:
        for rank in ("0", "1"):
            environment = os.environ | shared | {"RANK": rank, "LOCAL_RANK": rank}
            stderr = errors if rank == "0" else subprocess.DEVNULL
            processes.append(subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=stderr))
        try:
            until = time.monotonic() + 600
            while not (history := output / "history.jsonl").exists() or not history.read_text():
                assert time.monotonic() < until and all(process.poll() is None for process in processes)
                time.sleep(0.1)
            processes[1].kill()
            assert processes[0].wait(180) == 1
        finally:
            for process in processes:
                process.kill()
                process.wait()
    last = (tmp_path / "errors").read_text().splitlines()[-1]
    assert last.removeprefix("[rank0]: ") == (  # which PyTorch puts before every line
        "RuntimeError: process 0 of 2 stops, because another one has ended or no longer answers: why stands in what that "
        "one printed. What was saved is intact; --resume true goes on from it."
    )
