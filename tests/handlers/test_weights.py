# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that do not fit, told in a few words."""

import pytest
import torch
from torch import nn

from monai_mimmx.handlers.weights import load_model


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
