# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
import json

import pytest

from monai_mimmx.files import replacing, write_json, write_text


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path):
    write_text(tmp_path / "a.txt", "old")
    with pytest.raises(KeyError), replacing(tmp_path / "a.txt") as part:
        part.write_text("half")
        raise KeyError
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"] and (tmp_path / "a.txt").read_text() == "old"


def test_the_file_is_old_until_it_is_whole(tmp_path):
    write_text(tmp_path / "a.txt", "old")
    with replacing(tmp_path / "a.txt") as part:
        part.write_text("new")
        assert (tmp_path / "a.txt").read_text() == "old"
    assert (tmp_path / "a.txt").read_text() == "new"


def test_json_that_cannot_be_written_leaves_nothing(tmp_path):
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_json(tmp_path / "a.json", object())
    assert not list(tmp_path.iterdir())
    write_json(tmp_path / "a.json", {"ä": [1]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"ä": [1]}
