# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import time

import pytest
import torch.distributed as dist

from monai_mimmx.engines import leave_process_group


@pytest.mark.skipif(not dist.is_available(), reason="PyTorch was built without torch.distributed")
def test_the_group_is_gone_before_its_threads_are_waited_for(tmp_path, monkeypatch):
    there = []
    monkeypatch.setattr(time, "sleep", lambda seconds: there.append((seconds, dist.is_initialized())))
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    leave_process_group(2.0)
    leave_process_group()  # without one there is nothing to do
    assert there == [(2.0, False)]
