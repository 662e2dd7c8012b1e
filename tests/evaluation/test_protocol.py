# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""What an evaluation records of the code that made it, and its words; the evaluation itself is tested with the bundles."""

from __future__ import annotations

import subprocess

import pytest

from monai_mimmx.data import parse_tasks
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


def test_a_class_in_a_picture_s_title_tells_its_task_where_its_name_does_not():
    sex, age, finding = parse_tasks(
        [
            {"name": "sex", "column": "Sex", "negative": ["Female"], "positive": ["Male"]},
            {"name": "age", "column": "Age", "negative": "< 50", "positive": "> 60"},
            {"name": "effusion", "column": "Pleural Effusion", "negative": [0], "positive": [1]},
        ]
    )
    told = [protocol._told_class(task, label) for task, label in ((sex, 1), (age, 0), (finding, 1))]
    assert [text.replace("\xa0", " ") for text in told] == ["Male", "age < 50", "effusion 1"]


def test_the_selected_epoch_is_the_best_and_of_equals_the_last():
    robust = {1: 0.5, 2: None, 3: 0.7, 4: 0.7, 5: 0.6}
    history = [{"epoch": epoch, "select_robust": value, "lambda": epoch / 10} for epoch, value in robust.items()]
    assert protocol._selected(history, {}) == {"selected_epoch": 4, "selected_lambda": 0.4}
    assert protocol._selected([{"epoch": 1, "select_robust": 0.5}], {}) == {"selected_epoch": 1}  # without a term
    second = [*history, {"epoch": 6, "lambda": 1.0}, {"epoch": 7, "lambda": 1.0}]
    parts = {"epochs": 5, "refine_epochs": 2}
    assert protocol._selected(second, parts) == {
        "encoder_epoch": 4,
        "encoder_lambda": 0.4,
    }  # the rest goes on to the end
    for settings in ({"epochs": 5, "refine_epochs": 0}, {"epochs": 5}, {"epochs": 9, "refine_epochs": 2}, {}):
        assert protocol._selected(second, settings) == {"selected_epoch": 4, "selected_lambda": 0.4}
    assert protocol._selected([{"epoch": 1}], {}) == protocol._selected([], {}) == {}
