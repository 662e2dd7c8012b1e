# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""Rows of the predictions, and what a failure leaves."""

import csv

import pytest
import torch
from ignite.engine import Engine

from monai_mimmx.handlers import PredictionWriter


def engine_of(outputs, paths):
    left = iter(outputs)

    def step(engine, batch):
        value = next(left)
        if value is None:
            raise OSError("broken image")
        return {"pred": value}

    return Engine(step), [{"path": [path]} for path in paths]


def writer(path):
    return PredictionWriter(path, task_names=["age", "sex"], class_names=[["young", "old"], ["f", "m"]])


def test_rows(tmp_path):
    engine, batches = engine_of([torch.tensor([[0.0, 0.0, 1.0, 1.0, 1.0]])], ["a.png"])
    writer(tmp_path / "p.csv").attach(engine)
    engine.run(batches)
    (row,) = csv.DictReader((tmp_path / "p.csv").open())
    assert row == {
        "image": "a.png",
        "age: young": "0.500000",
        "age: old": "0.500000",
        "sex: f": "0.500000",
        "sex: m": "0.500000",
        "attention: sex": "1.000000",
    }
    assert not (tmp_path / "p.csv.part").exists()


def test_failure_keeps_what_was_done_under_another_name(tmp_path):
    engine, batches = engine_of([torch.zeros(1, 5), None], ["a.png", "b.png"])
    writer(tmp_path / "p.csv").attach(engine)
    with pytest.raises(OSError, match="broken image"):
        engine.run(batches)
    assert not (tmp_path / "p.csv").exists()
    assert len((tmp_path / "p.csv.part").read_text().splitlines()) == 2


def test_a_prediction_that_is_no_number_is_told_and_the_others_are_kept(tmp_path):
    outputs = torch.zeros(3, 5)
    outputs[1, 0] = float("nan")
    engine = Engine(lambda engine, batch: {"pred": outputs})
    writer(tmp_path / "p.csv").attach(engine)
    with pytest.raises(ValueError, match=r"the prediction of 1 image\(s\) is NaN or infinite: b\.png\. Replace"):
        engine.run([{"path": ["a.png", "b.png", "c.png"]}])
    assert [row["image"] for row in csv.DictReader((tmp_path / "p.csv.part").open())] == ["a.png", "c.png"]
    assert not (tmp_path / "p.csv").exists()


def test_an_image_that_is_given_twice_has_two_rows(tmp_path):
    engine = Engine(lambda engine, batch: {"pred": torch.zeros(2, 5)})
    writer(tmp_path / "p.csv").attach(engine)
    engine.run([{"path": ["a.png", "a.png"]}])
    assert [row["image"] for row in csv.DictReader((tmp_path / "p.csv").open())] == ["a.png", "a.png"]


def test_no_text_is_a_formula_for_a_spreadsheet(tmp_path):
    engine, batches = engine_of([torch.zeros(1, 5)], ["=HYPERLINK(1).png"])
    made = PredictionWriter(tmp_path / "p.csv", task_names=["@age", "sex"], class_names=[["young", "old"], ["f", "m"]])
    made.attach(engine)
    engine.run(batches)
    (row,) = csv.DictReader((tmp_path / "p.csv").open())
    assert row["image"] == "'=HYPERLINK(1).png" and "'@age: young" in row
    assert not any(text.startswith(("=", "+", "-", "@")) for text in [*row, *row.values()])
