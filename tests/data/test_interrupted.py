# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""A process that is killed while its workers decode or write leaves neither workers, nor locks, nor folders for good."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from monai_mimmx.data import CachedImages
from monai_mimmx.data.cohort_folder import publish_folder, write_items

if not hasattr(os, "fork"):  # pragma: no cover
    pytest.skip("what is inherited here is Unix's", allow_module_level=True)

CACHE = """
import time, sys, numpy as np, pandas as pd
from pathlib import Path
from monai_mimmx.data import CachedImages
def slow(item):
    Path(sys.argv[1], "begun").touch()
    time.sleep(0.3)
    return {"image": np.eye(4)[None]}
frame = pd.DataFrame({"image": sorted(map(str, Path(sys.argv[1]).glob("*.png"))), "y": 0})
CachedImages(frame, ["y"], slow, cache_dir=sys.argv[2], transform_key="k", num_workers=2, progress=False)
"""
COHORT = """
import functools, sys, time
from pathlib import Path
from monai_mimmx.data.cohort_folder import publish_folder, write_items
def slow(items):
    Path(sys.argv[1], "begun").touch()
    time.sleep(60)
def write(new):
    write_items(slow, list(range(99)), new, bytes_each=1, what="x", unit="x", num_workers=2, progress=False)
publish_folder(Path(sys.argv[2]), {"seed": 0}, write)
"""


def children(process):
    path = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    if not path.exists():  # pragma: no cover
        pytest.skip("the system does not tell a process's children")
    return [int(child) for child in path.read_text().split()]


def is_running(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def interrupt(code, folder, target, how):
    """Run `code` until its workers work, and end it; the workers."""
    process = subprocess.Popen([sys.executable, "-c", code, str(folder), str(target)], stderr=subprocess.DEVNULL)
    until = time.monotonic() + 120
    while not (folder / "begun").exists() or len(children(process)) < 2:
        assert time.monotonic() < until and process.poll() is None
        time.sleep(0.05)
    workers = children(process)
    process.send_signal(how)
    process.wait()
    return workers


def require_end(workers):
    until = time.monotonic() + 20
    while any(map(is_running, workers)):
        assert time.monotonic() < until, "a worker outlived the process that started it"
        time.sleep(0.05)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_cache_is_built_after_a_kill(tmp_path, how):
    for index in range(64):
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / f"{index:02}.png")
    workers = interrupt(CACHE, tmp_path, tmp_path / "cache", how)
    require_end(workers)
    frame = pd.DataFrame({"image": sorted(map(str, tmp_path.glob("*.png"))), "y": 0})
    options = {"cache_dir": tmp_path / "cache", "transform_key": "k", "progress": False}
    assert len(CachedImages(frame, ["y"], lambda item: {"image": np.eye(4)[None]}, **options)) == 64


def test_a_cohort_is_written_after_a_kill(tmp_path):
    workers = interrupt(COHORT, tmp_path, tmp_path / "cohort", signal.SIGKILL)
    require_end(workers)
    assert len(left := list(tmp_path.glob(".cohort.*.part"))) == 1 and left[0].is_dir()

    def write(new):
        items = list(range(99))
        write_items(print, items, new, bytes_each=1, what="x", unit="x", num_workers=1, progress=False)

    publish_folder(tmp_path / "cohort", {"seed": 0}, write)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["begun", "cohort"]
