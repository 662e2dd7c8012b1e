# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""The model card: closed (no number that the metrics lack), flagged, and complete from few metrics on."""

import re

import pytest
from test_html import EVIL, metrics

from monai_mimmx.report import write_model_card

NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d+)?")


def whole(**more) -> dict:
    return metrics() | {
        "version": "0.1.0",
        "table": "/data/labels.csv",
        "classes": {"y": ["< 51", "> 57"], "sex": ["female", "male"]},
        "n": {"train": 100, "val": 60},
        "cells": {"train": {"y=0, sex=0": 88, "y=1, sex=0": 12}, "val": {"y=0, sex=1": 60}},
        "interval": {"val": [0.961, 0.982], "inv": [0.288, 0.341]},
        "drop_val_inv": 0.661,
        "config": {"agreement": 0.9, "lambda_mi": 1.5, "seed": 3},
        **more,
    }


def numbers(value) -> set[str]:
    """Every number in a JSON value, in keys and texts too, as it may be written."""
    if isinstance(value, dict):
        return set().union(*map(numbers, value), *map(numbers, value.values()))
    if isinstance(value, list):
        return set().union(*map(numbers, value), map(str, range(len(value))))  # a class is told by its index
    if isinstance(value, str):
        return set(NUMBER.findall(value))
    if value is None or isinstance(value, bool):
        return set()
    return {str(abs(value)), f"{abs(value):.0f}", f"{abs(value):.3f}", f"{100 * abs(value):.1f}"}


def written(folder, values) -> str:
    return write_model_card(folder, values, title="Brain age").read_text(encoding="utf-8")


def test_every_number_stands_in_the_metrics(tmp_path):
    values = whole()
    found = set(NUMBER.findall(written(tmp_path, values)))
    assert len(found) >= 30
    assert found - {"0", "95"} <= numbers(values)  # a cell without images, and the level of the intervals


def test_without_an_inverted_set_none_is_spoken_of(tmp_path):
    values = whole()
    assert "Inv the opposite one" in written(tmp_path, values)
    tables = {name: {"val": table["val"], "bal": table["bal"]} for name, table in values.items() if name == "accuracy"}
    del values["drop_val_inv"], values["interval"], values["auroc"], values["worst_group"]
    text = written(tmp_path, values | tables)
    assert "Val has the correlation of the training data, Bal none." in text and "Inv" not in text
    assert "**No verdict**: Val − Bal is +32.8 points. Every factor has its natural correlation with y" in text


def test_images_in_no_group_are_told(tmp_path):
    assert "in no group" not in written(tmp_path, whole())
    text = written(tmp_path, whole(n={"train": 130, "val": 60}))
    assert "| in no group, as a label is missing | 30 | 0 |" in text


@pytest.mark.parametrize(
    ("trained_on", "told"),
    [
        ("other rows", "The network was trained on other rows than train here, or on more or fewer of them."),
        ("unknown rows", "It is not known which rows the network was trained on."),
    ],
)
def test_of_a_training_on_rows_that_are_not_here_nothing_is_said(tmp_path, trained_on, told):
    before = written(tmp_path, whole(excluded={"no label": 3}))
    text = written(tmp_path, whole(excluded={"no label": 3}, trained_on=trained_on))
    assert "## Evaluated on" in text and "## Trained on" not in text and told in text
    assert "Val has the correlation of train as it is here" in text and "training data" not in text
    assert "Where images are of subjects of its training, the figures are too good" in text
    for words in ("rarest group", "unknown to the model", "of the same table as the training data"):
        assert words in before and words not in text


def test_factors_that_are_not_turned_round_are_named(tmp_path):
    classes = {"y": ["no", "yes"], "sex": ["f", "m"], "age": ["young", "old"]}
    text = written(tmp_path, whole(classes=classes, config={"agreement": [0.9, "natural"]}))
    assert "Inv the opposite one of sex and the same of age, Bal none." in text


def test_tables_say_what_it_was_trained_on_and_how_each_group_fares(tmp_path):
    lines = written(tmp_path, whole()).splitlines()
    for line in (
        "# Model card: Brain age",
        "method mimmx, seed 3, epochs 60, seconds 12, mi 0.031, version 0.1.0",
        "| y (age) | 0: < 51, 1: > 57 |",
        "Table: `/data/labels.csv`.",
        "| images | train | Val |",
        "| all | 100 | 60 |",
        "| y=0, sex=0 | 88 | 0 |",
        "| age between 51 and 57 | 812 |",
        "| y (age) | 97.3 | 31.2 | 64.5 |",
        "| y, 95 % interval | 96.1 to 98.2 | 28.8 to 34.1 | – |",
        "| y, worst group | 12.5 (y=1, sex=0; 40 images) | – | – |",
        "| f_y | 91.5 | 53.2 |",
        "| chance | 50.0 | 51.0 |",
        "- The rarest groups in training, y=0, sex=1; y=1, sex=1: 0 images.",
        "| lambda_mi | `1.5` |",
    ):
        assert line in lines, line
    assert "- Not for clinical use." in "\n".join(lines)


@pytest.mark.parametrize(
    ("gap", "told"),
    [
        (0.661, "**Shortcut**: Val − Inv is +66.1 points."),
        (-0.071, "**Over-corrected (anti-shortcut)**: Val − Inv is −7.1 points. The network leans on the spurious"),
        (0.01, "**Balanced**: Val − Inv is +1.0 points."),
    ],
)
def test_the_gap_is_flagged(tmp_path, gap, told):
    assert told in written(tmp_path, whole(drop_val_inv=gap))


@pytest.mark.parametrize(
    ("read", "told"),
    [
        (0.532, "From f_y no probe reads a factor more than five points above chance."),
        (0.72, "From f_y a probe still reads: sex (linear probe 72.0 %, chance 51.0 %)."),
    ],
)
def test_what_probes_read_stands_beside_chance(tmp_path, read, told):
    matrix = {"f_y": {"y": 0.9, "sex": read}}
    assert told in written(tmp_path, whole(probes={"linear": matrix, "chance": {"y": 0.5, "sex": 0.51}}))


def test_the_rarest_group_is_told_with_its_images(tmp_path):
    cells = {"y=0, sex=0": 88, "y=1, sex=0": 12, "y=0, sex=1": 9, "y=1, sex=1": 40}
    assert "- The rarest group in training, y=0, sex=1: 9 images." in written(tmp_path, whole(cells={"train": cells}))
    many = whole(cells={"train": {"y=0, sex=0": 7}}, classes={"y": ["a", "b"], "sex": ["a", "b", "c"]})
    assert "y=0, sex=1; y=0, sex=2; y=1, sex=0 and 2 more: 0 images." in written(tmp_path, many)


def test_a_layer_that_was_fitted_on_the_selecting_images_is_told(tmp_path):
    told = "the epoch is chosen on select, and the last layer of y fitted anew there; probes"
    assert told in written(tmp_path, whole(method="dfr")) and told not in written(tmp_path, whole())


def test_few_metrics_are_enough_and_strange_names_keep_the_tables(tmp_path):
    assert "## Limits" in written(tmp_path / "new", {})
    cells = {"train": {EVIL: 3, "a|b\nc": 4}}
    card = written(tmp_path, whole(cells=cells))
    assert "| a\\|b c | 4 |" in card.splitlines()
    assert "<script" not in card and "&lt;script" in card
