# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""Of several processes that train one network, none is left alone when another dies."""

import socket
import subprocess
import sys
import time

import pytest
import torch
from runs import ROOT, child_environment, options


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
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    shared = child_environment() | shared | {"CUDA_VISIBLE_DEVICES": ""}
    processes = []
    with (tmp_path / "errors").open("w") as errors:
        for rank in ("0", "1"):
            environment = shared | {"RANK": rank, "LOCAL_RANK": rank}
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
