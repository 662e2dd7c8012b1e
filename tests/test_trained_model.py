# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints are loaded, or told in a few words why they do not fit."""

import pytest
import torch
from torch import nn

from monai_mimmx.trained_model import load_model


def network(width):
    return nn.Sequential(*(nn.Linear(width, width) for _ in range(200)))


def test_a_checkpoint_of_other_shapes_is_told_in_short(tmp_path):
    torch.save(network(3).state_dict(), tmp_path / "model.pt")
    with pytest.raises(ValueError, match="model.pt does not fit the network") as caught:
        load_model(network(4), tmp_path / "model.pt")
    told = str(caught.value)
    assert "size mismatch for 0.weight" in told and "[3, 3]" in told and "[4, 4]" in told
    assert told.endswith("(and 398 more)") and len(told) < 800 and "\n" not in told


def test_a_checkpoint_of_other_names_is_told_in_short(tmp_path):
    torch.save({f"old.{key}": value for key, value in network(3).state_dict().items()}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match='Missing key.*"0.weight", .*Unexpected key.*"old.0.weight"') as caught:
        load_model(network(3), tmp_path / "model.pt")
    assert len(str(caught.value)) < 800


def test_the_weights_of_a_distributed_network_are_its_networks(tmp_path):
    trained, fresh = network(3), network(3)
    torch.save({f"module.{key}": value for key, value in trained.state_dict().items()}, tmp_path / "model.pt")
    load_model(fresh, tmp_path / "model.pt")
    assert all(torch.equal(mine, its) for mine, its in zip(fresh.parameters(), trained.parameters(), strict=True))


def test_entries_without_names_are_no_weights(tmp_path):
    torch.save({0: torch.zeros(3)}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match="model.pt holds no state_dict: its entries have no names"):
        load_model(network(3), tmp_path / "model.pt")
