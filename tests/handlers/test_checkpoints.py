# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""The newest checkpoint is found."""

import os

import pytest

from monai_mimmx.handlers import latest_checkpoint


def test_newest_of_the_prefix(tmp_path):
    for age, name in enumerate(("state_10.pt", "state_9.pt", "model.pt")):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (1000 + age, 1000 + age))
    assert latest_checkpoint(tmp_path) == str(tmp_path / "state_9.pt")


def test_none(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint state"):
        latest_checkpoint(tmp_path)
