# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""The newest checkpoint is found; a training's state has all parts that have one."""

import os
import random

import numpy as np
import pytest
import torch
from monai.handlers import CheckpointSaver
from monai.transforms import Compose

from monai_mimmx.data import make_sampler
from monai_mimmx.handlers import RandomStates, best_so_far, latest_checkpoint, training_state
from monai_mimmx.transforms import RandBatchAugment


def test_newest_of_the_prefix(tmp_path):
    for age, name in enumerate(("state_10.pt", "state_9.pt", "model.pt")):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (1000 + age, 1000 + age))
    assert latest_checkpoint(tmp_path) == str(tmp_path / "state_9.pt")


def test_none_is_told(tmp_path, caplog):
    assert latest_checkpoint(tmp_path) is None
    assert f"no checkpoint state*.pt in {tmp_path}" in caplog.text and "starts from the beginning" in caplog.text


def draws(parts):
    shift, sampler, _ = parts
    images = torch.zeros(3, 1, 8, 8)
    own = [float(shift.transforms[0](images).sum()), next(iter(sampler))]
    return [random.random(), float(np.random.rand()), float(torch.rand(1)), *own]  # noqa: NPY002


def test_every_generator_goes_on_where_it_was(tmp_path):
    shift = Compose([RandBatchAugment(seed=1)])
    parts = [shift, make_sampler(np.zeros((50, 2), int), (2, 2), "correlated"), torch.utils.data.SequentialSampler([1])]
    states = RandomStates(parts)
    draws(parts)
    torch.save(states.state_dict(), tmp_path / "state.pt")
    expected = draws(parts)
    assert draws(parts) != expected
    states.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert draws(parts) == expected


def test_other_processes_keep_their_own_states(monkeypatch):
    states = RandomStates()
    before = states.state_dict()
    torch.rand(1)
    now = torch.get_rng_state()
    monkeypatch.setattr("ignite.distributed.get_rank", lambda: 1)
    states.load_state_dict(before)
    assert torch.equal(torch.get_rng_state(), now)


def test_best_so_far(tmp_path):
    saver = CheckpointSaver(str(tmp_path), {"model": torch.nn.Linear(1, 1)}, save_key_metric=True)
    assert best_so_far(saver).state_dict()["_saved"] == []
    with pytest.raises(ValueError, match="save_key_metric=True"):
        best_so_far(CheckpointSaver(str(tmp_path), {"model": torch.nn.Linear(1, 1)}, save_interval=1))


def test_training_state_leaves_out_what_has_none(tmp_path):
    network = torch.nn.Linear(1, 1)
    saver = CheckpointSaver(str(tmp_path), {"model": network}, save_key_metric=True)
    parts = {"optimizer": torch.optim.SGD(network.parameters(), lr=0.1), "dependence": None, "loss": torch.nn.ReLU()}
    state = training_state(saver, network=network, **parts)
    assert list(state) == ["network", "optimizer", "best"]
    assert state["network"] is network and state["best"] is best_so_far(saver)


def test_training_state_needs_a_saver_of_the_best(tmp_path):
    with pytest.raises(ValueError, match="save_key_metric=True"):
        training_state(CheckpointSaver(str(tmp_path), {"model": torch.nn.Linear(1, 1)}, save_interval=1))
