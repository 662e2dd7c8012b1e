# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""What an uncaught exception leaves as the last line."""

import sys

import pytest

from monai_mimmx.errors import check_writable, root_cause, show_root_cause


def test_root_cause_goes_through_wrappers_only():
    inner = OSError("disk full")
    chosen = ValueError("cannot write the cohort")
    chosen.__cause__ = inner
    wrapper = RuntimeError("Failed to instantiate component 'x'")
    wrapper.__cause__ = chosen
    assert root_cause(wrapper) is chosen
    assert root_cause(inner) is inner


def test_last_line_tells_the_cause(monkeypatch, capsys):
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    show_root_cause()
    wrapper = RuntimeError("Failed to evaluate ConfigExpression")
    wrapper.__cause__ = ValueError("n_b is 0")
    sys.excepthook(RuntimeError, wrapper, None)
    assert capsys.readouterr().err.splitlines()[-1] == "ValueError: n_b is 0"


def test_writable(tmp_path):
    check_writable(tmp_path / "new" / "folder")
    assert list((tmp_path / "new" / "folder").iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="cannot write to out .*file/x: Not a directory; name another folder with --out"):
        check_writable(tmp_path / "file" / "x", "out")
