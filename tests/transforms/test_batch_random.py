# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch

from monai_mimmx.transforms import RandBatchAffine, RandBatchAugment
from monai_mimmx.transforms.batch_random import RandBatch


@pytest.mark.parametrize(
    "make",
    [
        lambda seed: RandBatchAffine(max_rotation=20, max_scale=0.2, max_shear=0.1, seed=seed),
        lambda seed: RandBatchAugment(max_shift=2, noise_std=0.1, seed=seed),
    ],
)
def test_repeats_and_resumes(make):
    batch = torch.rand(5, 1, 12, 12)
    first, second = make(3), make(3)
    assert torch.equal(first(batch), second(batch))
    stored = first.state_dict()
    expected = first(batch)
    other = make(None)
    assert not torch.equal(other(batch), expected)
    other.load_state_dict(stored)
    assert torch.equal(other(batch), expected)
    assert torch.equal(make(9).set_random_state(seed=np.uint32(3))(batch), make(3)(batch))


def test_no_seed_is_a_random_one():
    assert not torch.equal(RandBatch(None).generator.get_state(), RandBatch(None).generator.get_state())


def test_each_process_draws_its_own(monkeypatch):
    draws = []
    for rank in (0, 1, 2):
        monkeypatch.setattr("ignite.distributed.get_rank", lambda rank=rank: rank)
        draws.append(torch.rand(4, generator=RandBatch(seed=5).generator).tolist())
    assert draws[0] == torch.rand(4, generator=torch.Generator().manual_seed(5)).tolist()
    assert len({tuple(values) for values in draws}) == 3
