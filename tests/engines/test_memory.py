# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""Freed memory is used again."""

import platform
import subprocess
import sys

import pytest

from monai_mimmx.engines import memory

CODE = """
import resource, runpy, torch
if {reuse}:
    assert runpy.run_path({path!r})["reuse_freed_memory"]()
pages = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.set_num_threads(1)
values = torch.rand(2**24)  # 64 MB
for _ in range(30):  # until every size that is asked for has its place
    values + 1
before = pages()
for _ in range(20):
    values + 1
print(pages() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it does nothing elsewhere")
def test_the_system_clears_no_page_twice():
    faults = [
        int(
            subprocess.run(
                [sys.executable, "-c", CODE.format(reuse=reuse, path=memory.__file__)], check=True, capture_output=True
            ).stdout
        )
        for reuse in (False, True)
    ]
    assert faults[1] < faults[0] / 10


def test_nothing_happens_elsewhere(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.delattr(memory.ctypes, "CDLL")
    assert memory.reuse_freed_memory() is False
