# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import pytest

from monai_mimmx.comparison import format_tables, paired_differences, summarise


def row(name, seed, inv, **more):
    return {
        "name": name,
        "seed": seed,
        "agreement": None,
        "task_names": ["sick", "sex"],
        "accuracy": {"val": {"y": 0.9, "sex": 1.0}, "inv": {"y": inv, "sex": 1.0}, "bal": {"y": 0.8, "sex": 1.0}},
        "drop_val_inv": 0.9 - inv,
        "worst_group": {"bal": {"cell": "y=1", "accuracy": 0.5, "n": 10}},
        "probes": {
            "linear": {"f_y": {"y": 0.9, "sex": 0.55}, "f_sex": {"y": 0.5, "sex": 1.0}},
            "knn": {"f_y": {"sex": 0.6}},
            "chance": {"y": 0.5, "sex": 0.5},
        },
        **more,
    }


def test_mean_and_interval_by_hand():
    values = (0.80, 0.84, 0.88)
    summary = summarise([row("a", seed, inv) for seed, inv in enumerate(values)])[0]
    mean, half = summary["values"]["accuracy", "inv", "y"]
    # Student's t for 2 degrees of freedom at 97.5 %: 4.302653; standard deviation 0.04.
    assert mean == pytest.approx(0.84) and half == pytest.approx(4.302653 * 0.04 / math.sqrt(3), rel=1e-6)
    assert summary["seeds"] == 3 and summary["failed"] == 0


def test_tables_hold_every_row_losing_and_failed_ones_too():
    rows = [row("mimmx", 0, 0.88), row("baseline", 0, 0.5), row("baseline", 1, 0.6)]
    rows.append({"name": "dcor", "seed": 0, "agreement": None, "error": "CUDA out of memory"})
    text = format_tables(rows)
    assert "| mimmx | 1 | 90.0 | 88.0 | 80.0 | 100.0 | 100.0 | 100.0 | +2.0 | 50.0 |" in text
    assert "| baseline | 2 | 90.0 ± 0.0 | 55.0 ± 63.5 | " in text
    assert "| mimmx | 55.0 | 50.0 | 60.0 |" in text and "| chance | 50.0 | 50.0 | 50.0 |" in text
    assert "Failed runs: dcor seed 0: CUDA out of memory" in text


def test_agreements_are_rows_of_their_own():
    rows = [row("a", 0, 0.5) | {"agreement": 0.9}, row("a", 0, 0.7) | {"agreement": 0.6}]
    assert [summary["agreement"] for summary in summarise(rows)] == [0.9, 0.6]
    assert "| a @ 0.9 |" in format_tables(rows) and "| a @ 0.6 |" in format_tables(rows)


def test_nothing_finished():
    assert "No run finished: a seed 0: x" in format_tables([{"name": "a", "seed": 0, "error": "x"}])


def test_differences_are_paired_by_seed():
    rows = [row("rebalance", seed, inv) for seed, inv in enumerate((0.60, 0.70, 0.80))]
    rows += [row("mimmx", seed, inv) for seed, inv in enumerate((0.62, 0.73, 0.84))] + [row("mimmx", 7, 0.1)]
    mean, half = paired_differences(rows, "rebalance", ("accuracy", "inv", "y"))["mimmx", None]
    assert mean == pytest.approx(0.03) and half == pytest.approx(4.302653 * 0.01 / math.sqrt(3), rel=1e-6)
    over = [row("rebalance", 0, 0.95), row("mimmx", 0, 0.87)]  # gaps -0.05 and +0.03
    assert paired_differences(over, "rebalance", ("drop_val_inv",), size=True)["mimmx", None][0] == pytest.approx(-0.02)
    assert "Difference to `rebalance` with the same seed" in format_tables(rows)
    assert "| mimmx | +0.0 ± 0.0 | +3.0 ± 2.5 | +0.0 ± 0.0 | -3.0 ± 2.5 | +0.0 ± 0.0 |" in format_tables(rows)


def test_differences_need_a_pair():
    assert "Difference" not in format_tables([row("a", 0, 0.5)])
    apart = [row("baseline", 0, 0.5), row("mimmx", 1, 0.8)]
    assert "Difference" not in format_tables(apart) and paired_differences(apart, "baseline", ("drop_val_inv",)) == {}
