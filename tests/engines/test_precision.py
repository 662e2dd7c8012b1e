# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from monai_mimmx.engines import computes_in_bfloat16


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [({"avx512_bf16": True}, True), ({"amx_bf16": True, "avx512_bf16": False}, True), ({"avx512_f": True}, False)],
)
def test_a_cpu_is_asked(monkeypatch, capabilities, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert computes_in_bfloat16("cpu") is computes_in_bfloat16(torch.device("cpu")) is expected
    assert computes_in_bfloat16("cuda:0") is False


def test_an_older_torch_cannot_tell(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert computes_in_bfloat16("cpu") is False
