# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""What an uncaught exception leaves as the last line."""

import subprocess
import sys

import pytest

from monai_mimmx.errors import check_writable, root_cause


def test_root_cause_goes_through_wrappers_only():
    inner = OSError("disk full")
    chosen = ValueError("cannot write the cohort")
    chosen.__cause__ = inner
    wrapper = RuntimeError("Failed to instantiate component 'x'")
    wrapper.__cause__ = chosen
    assert root_cause(wrapper) is chosen
    assert root_cause(inner) is inner


def test_last_line_tells_the_cause():
    code = (
        "from monai_mimmx.errors import show_root_cause\n"
        "show_root_cause()\n"
        "try:\n    raise ValueError('n_b is 0')\n"
        "except ValueError as e:\n    raise RuntimeError('Failed to evaluate ConfigExpression') from e\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "ValueError: n_b is 0"


def test_writable(tmp_path):
    check_writable(tmp_path / "new" / "folder")
    assert list((tmp_path / "new" / "folder").iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="cannot write to out .*file/x: Not a directory; name another folder with --out"):
        check_writable(tmp_path / "file" / "x", "out")
