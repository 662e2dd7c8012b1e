# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""Tests of the report: complete, escaped, self-contained, replaced as a whole."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser

import pytest
from matplotlib.figure import Figure

from monai_mimmx.report import html
from monai_mimmx.report.html import write_report

EVIL = "<script>alert('x')</script>\" onload=\"y"
PNG = b"\x89PNG\r\n\x1a\n-picture"


def metrics(factor: str = "sex", inv: float = 0.312) -> dict:
    tables = {subset: {"y": value, factor: 0.881} for subset, value in (("val", 0.973), ("inv", inv), ("bal", 0.645))}
    matrix = {"f_y": {"y": 0.915, factor: 0.532}, f"f_{factor}": {"y": 0.514, factor: None}}
    return {
        "method": "mimmx",
        "seed": 3,
        "epochs": 60,
        "seconds": 12.5,
        "mi": 0.031,
        "config": {"lambda_mi": 1.0, "tasks": [{"name": factor}]},
        "task_names": ["age", factor],
        "accuracy": tables,
        "balanced_accuracy": {subset: {**row, "y": 0.777} for subset, row in tables.items()},
        "auroc": {subset: {**row, "y": None} for subset, row in tables.items()},
        "chance": {subset: {"y": 0.5, factor: 0.52} for subset in tables},
        "worst_group": {"val": {"cell": f"y=1, {factor}=0", "accuracy": 0.125, "n": 40}, "inv": None},
        "probes": {"linear": matrix, "knn": matrix, "chance": {"y": 0.5, factor: 0.51}},
        "switched_labels": {"bal": matrix},
        "excluded": {"age between 51 and 57": 812},
    }


class Page(HTMLParser):
    """Tags, attributes and table rows of a page; refuses tags that do not close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "wbr"):
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data
        if "style" not in self.open:
            self.text += data


def written(folder, values, figures=None, title="Brain age") -> tuple[str, Page]:
    text = write_report(folder, values, figures or {}, title=title).read_text(encoding="utf-8")
    return text, Page(text)


def test_numbers_stand_in_their_tables(tmp_path):
    _, page = written(tmp_path, metrics())
    for row in (
        ["task", "Val", "Inv", "Bal", "Val − Inv"],
        ["y (age)", "97.3", "31.2", "64.5", "+66.1"],
        ["sex", "88.1", "88.1", "88.1", "+0.0"],
        ["y (age)", "77.7", "77.7", "77.7"],
        ["y (age)", "–", "–", "–"],
        ["Val", "y=1, sex=0", "12.5", "40"],
        ["f_y", "91.5", "53.2"],
        ["f_sex", "51.4", "–"],
        ["chance", "50.0", "51.0"],
        ["chance", "50.0", "52.0"],
        ["lambda_mi", "1.0"],
        ["tasks", '[{"name": "sex"}]'],
        ["seconds", "12.5"],
        ["age between 51 and 57", "812"],
    ):
        assert row in page.rows, row


def test_what_was_done_stands_before_what_was_asked_for(tmp_path):
    values = metrics() | {"epochs": 8, "config": {"epochs": 6, "refine_epochs": 2}}
    _, page = written(tmp_path, values)
    assert ["epochs", "8"] in page.rows and ["refine_epochs", "2"] in page.rows and ["epochs", "6"] not in page.rows


@pytest.mark.parametrize(
    ("inv", "word", "colour"),
    [(0.312, "Shortcut", "bad"), (0.96, "Balanced", "good"), (1.0, "Balanced", "good"), (0.5, "Shortcut", "bad")],
)
def test_headline_says_the_verdict(tmp_path, inv, word, colour):
    _, page = written(tmp_path, metrics(inv=inv))
    assert {"class": f"verdict {colour}"} in [attrs for tag, attrs in page.tags if tag == "div"]
    assert page.text.index(word) < page.text.index("Accuracy (%)")


def test_a_hidden_shortcut_is_no_success(tmp_path):
    values = metrics(inv=0.97)
    values["switched_labels"] = {"bal": {"f_y": {"y": 0.645, "sex": 0.66}}}
    text, _ = written(tmp_path, values)
    assert "Hidden shortcut" in text and "verdict bad" in text and "on balanced data" in text


def test_over_correction_and_guessing_are_no_success(tmp_path):
    values = metrics(inv=0.9)
    values["accuracy"]["val"]["y"] = 0.7
    text, _ = written(tmp_path, values)
    assert "Over-corrected (anti-shortcut)" in text and "−20.0" in text and "verdict bad" in text
    for subset in ("val", "inv", "bal"):
        values["accuracy"][subset]["y"] = 0.51
    text, _ = written(tmp_path, values)
    assert "At chance (not learned)" in text and "verdict bad" in text


def test_everything_is_escaped(tmp_path):
    values = metrics(EVIL)
    values.update(method=EVIL, task_names=[EVIL, EVIL], config={EVIL: EVIL, "list": [EVIL]}, excluded={EVIL: EVIL})
    for name in ("accuracy", "auroc", "balanced_accuracy", "chance", "switched_labels", "worst_group"):
        values[name][EVIL] = values[name].get("val") or values[name]["bal"]
    values["probes"][EVIL] = values["probes"]["linear"]
    text, page = written(tmp_path, values, {EVIL: (PNG, EVIL)}, title=EVIL)
    assert "<script" not in text
    assert page.text.count("<script>") > 20  # shown, as text
    assert not [attrs for _, attrs in page.tags if any(name.startswith("on") for name in attrs)]
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "iframe", "object"})


def test_nothing_is_loaded_from_elsewhere(tmp_path):
    figure = Figure()
    figure.subplots().plot([0, 1])
    text, page = written(tmp_path, metrics(), {"one": (PNG, "Bytes."), "two": (figure, "A figure.")})
    assert not re.search(r"https?:|//[a-z]|@import|url\(", re.sub(r"base64,[^\"]*", "", text))
    sources = [attrs["src"] for tag, attrs in page.tags if tag == "img"]
    assert len(sources) == 2
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert base64.b64decode(sources[0].partition(",")[2]) == PNG
    assert base64.b64decode(sources[1].partition(",")[2]).startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    assert "A figure." in page.text


def test_readable_on_a_phone_and_on_paper(tmp_path):
    text, page = written(tmp_path, metrics())
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in [attrs for _, attrs in page.tags]
    assert "@media print" in text and "@media (max-width" in text
    assert text.count("<div class=wide><table") == text.count("<table")


def test_least_metrics_of_the_contract_are_enough(tmp_path):
    least = {
        "accuracy": {"val": {"y": 0.9}, "inv": {"y": 0.88}, "bal": {"y": 0.89}},
        "probe": {"f_y": {"sex": 0.5}},
        "auroc": None,
        "worst_group": None,
        "config": None,
    }
    _, page = written(tmp_path / "made" / "here", least)
    assert ["y", "90.0", "88.0", "89.0", "+2.0"] in page.rows
    assert ["f_y", "50.0"] in page.rows
    written(tmp_path, {})


def test_a_report_is_replaced_as_a_whole(tmp_path, monkeypatch):
    path = write_report(tmp_path, metrics(), {}, title="first")
    assert path == tmp_path / "report.html"
    assert path.stat().st_mode & 0o777 == 0o644

    def fails(*args):
        raise OSError("disk full")

    monkeypatch.setattr(html.os, "replace", fails)
    with pytest.raises(OSError, match="disk full"):
        write_report(tmp_path, metrics(), {}, title="second")
    assert "first" in path.read_text(encoding="utf-8")
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


def test_intervals_stand_below_the_accuracy_of_y(tmp_path):
    intervals = {"interval": {"val": [0.951, 0.982], "bal": [0.6, 0.7]}, "drop_val_inv_interval": [0.6001, 0.712]}
    page = Page(write_report(tmp_path, metrics() | intervals, {}, title="t").read_text(encoding="utf-8"))
    assert ["95 % interval", "95.1 to 98.2", "–", "60.0 to 70.0", "+60.0 to +71.2"] in page.rows
    assert not any(
        "95 % interval" in row for row in Page(write_report(tmp_path, metrics(), {}, title="t").read_text()).rows
    )
