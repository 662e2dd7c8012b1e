# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""The newest checkpoint is found; a training's state has all parts that have one."""

import os

import pytest
import torch
from monai.handlers import CheckpointSaver

from monai_mimmx.handlers import best_so_far, latest_checkpoint, training_state


def test_newest_of_the_prefix(tmp_path):
    for age, name in enumerate(("state_10.pt", "state_9.pt", "model.pt")):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (1000 + age, 1000 + age))
    assert latest_checkpoint(tmp_path) == str(tmp_path / "state_9.pt")


def test_none(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint state"):
        latest_checkpoint(tmp_path)


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
