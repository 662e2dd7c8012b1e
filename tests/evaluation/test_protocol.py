# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""What the records of an evaluation say of the code that made them; the evaluation itself is tested with the bundles."""

from __future__ import annotations

import subprocess

import pytest

from monai_mimmx.evaluation import protocol


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A git checkout that holds the module, as far as its path tells."""
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    (tmp_path / "file.py").write_text("1")
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "x"], ["tag", "v1"]):
        subprocess.run([*git, *words], check=True)
    monkeypatch.setattr(protocol, "__file__", str(tmp_path / "monai_mimmx/evaluation/protocol.py"))
    return tmp_path


def test_the_commit_of_a_checkout_and_whether_it_was_changed(checkout):
    words = ["git", "-C", str(checkout), "rev-parse", "HEAD"]
    commit = subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()
    assert protocol.source_commit() == commit and len(commit) == 40
    (checkout / "file.py").write_text("2")
    assert protocol.source_commit() == commit + "-dirty"


def test_no_commit_where_the_package_is_installed_or_git_is_not(checkout, monkeypatch):
    monkeypatch.setenv("PATH", str(checkout))
    assert protocol.source_commit() is None
    monkeypatch.setattr(protocol, "__file__", str(checkout / "site-packages/monai_mimmx/evaluation/protocol.py"))
    assert protocol.source_commit() is None
