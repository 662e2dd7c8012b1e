# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
import errno
import json
import os
import platform
import re
import subprocess
import sys

import pandas as pd
import pytest
import torch

from monai_mimmx import files
from monai_mimmx.files import replacing, write_checkpoint, write_csv, write_json, write_text


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


def test_what_a_killed_process_left_is_removed(tmp_path):
    child = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    pid, node = child.stdout.strip(), platform.node()
    dead, *others = (
        tmp_path / f".{name}.part"
        for name in (f"a[1].txt.{node}.{pid}", f"a[1].txt.{node}.1", f"a[1].txt.elsewhere.{pid}", f"b.{node}.{pid}")
    )
    for path in (dead, *others):
        path.touch()
    write_text(tmp_path / "a[1].txt", "new")
    assert sorted(tmp_path.iterdir()) == sorted([*others, tmp_path / "a[1].txt"])


def test_json_that_cannot_be_written_leaves_nothing(tmp_path):
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_json(tmp_path / "a.json", object())
    assert not list(tmp_path.iterdir())
    write_json(tmp_path / "a.json", {"ä": [1]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"ä": [1]}


def test_a_file_beyond_what_fits_is_told_by_its_cause_and_leaves_the_old_one(tmp_path):
    resource = pytest.importorskip("resource", reason="Windows has no such limits")
    write_checkpoint(tmp_path / "a.pt", {"value": 1})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # a real write that the system refuses
    try:
        with pytest.raises(
            OSError, match=r"cannot save .*a\.pt: File too large; a file saved there before is unharmed"
        ):
            write_checkpoint(tmp_path / "a.pt", {"value": torch.zeros(10**6)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"] and torch.load(tmp_path / "a.pt") == {"value": 1}


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"cannot save .*file/a\.pt: (File exists|Not a directory)"):
        write_checkpoint(tmp_path / "file/a.pt", {})


def test_no_text_of_a_table_is_a_formula_for_a_spreadsheet(tmp_path):
    cells = ["=1+1", "@x", "+1", "-0.5", "+HYPERLINK(1)", "-1-1", "\t=1", "plain", 3, None]
    write_csv(tmp_path / "t.csv", pd.DataFrame({"=head": cells, "b": range(10)}))
    read = pd.read_csv(tmp_path / "t.csv", dtype=str, keep_default_na=False)
    assert list(read.columns) == ["'=head", "b"]
    assert list(read["'=head"]) == ["'=1+1", "'@x", "+1", "-0.5", "'+HYPERLINK(1)", "'-1-1", "'\t=1", "plain", "3", ""]


def test_signed_figures_of_a_table_are_no_formulas(tmp_path):
    cells = ["+60.0 ± 1.0", "-3.2 ± 0.4", "-", "+5", "-1+cmd|' /C calc'!A0", "-x", "+60.0 ± 1.0+A1"]
    write_csv(tmp_path / "a.csv", pd.DataFrame({"gap": cells}))
    stored = (tmp_path / "a.csv").read_text(encoding="utf-8").splitlines()[1:]
    assert stored == [*cells[:4], *(f"'{cell}" for cell in cells[4:])]


def test_where_the_file_system_has_no_locks_nothing_counts_as_held(tmp_path, monkeypatch):
    def refuse(*arguments):
        raise OSError(errno.ENOSYS, "Function not implemented")

    with files.locked(tmp_path / "lock") as first, files.locked(tmp_path / "lock") as second:
        assert first is not None and second is None
    monkeypatch.setattr(files.fcntl, "flock", refuse)
    with files.locked(tmp_path / "lock") as held:
        assert held == -1


def test_a_folder_is_held_by_one_process_and_the_other_is_told_which(tmp_path):
    code = (
        "import sys; from monai_mimmx.files import FolderLock; lock = FolderLock(sys.argv[1]); lock.hold(); "
        "print('held', flush=True); sys.stdin.read()"
    )
    lock = files.FolderLock(tmp_path / "output")
    with subprocess.Popen([sys.executable, "-c", code, tmp_path / "output"], stdin=-1, stdout=-1) as other:
        assert other.stdout.readline() == b"held\n"
        told = f"another training writes to output_dir {tmp_path}/output (process {other.pid} on {platform.node()})"
        with pytest.raises(ValueError, match=re.escape(told)):
            lock.hold()
        other.communicate()
    lock.hold()  # it ended with that process
    lock.hold()
    assert subprocess.run([sys.executable, "-c", code, tmp_path / "output"], stderr=-1).returncode == 1  # still held
    assert (tmp_path / "output/.training.lock").read_text() == f"process {os.getpid()} on {platform.node()}"
    lock.release()
    lock.release()
    assert subprocess.run([sys.executable, "-c", code, tmp_path / "output"], stdin=subprocess.DEVNULL).returncode == 0


def test_a_folder_on_a_file_system_without_locks(tmp_path, monkeypatch):
    def refuse(*arguments):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files.fcntl, "lockf", refuse)
    for _ in range(2):
        files.FolderLock(tmp_path).hold()
