# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
import re

import pytest

from monai_mimmx.comparison import format_tables, make_tables, paired_differences, summarise


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
    assert "| method | f_y -> y | f_y -> sex | f_sex -> y | f_sex -> sex |" in text
    assert "| mimmx | 90.0 | 55.0 | 50.0 | 100.0 |" in text and "| chance | 50.0 | 50.0 | 50.0 | 50.0 |" in text
    assert "| mimmx | - | 60.0 | - | - |" in text  # kNN
    assert "Failed runs: dcor seed 0: CUDA out of memory" in text


def test_agreements_are_rows_of_their_own():
    rows = [row("a", 0, 0.5) | {"agreement": 0.9}, row("a", 0, 0.7) | {"agreement": 0.6}]
    assert [summary["agreement"] for summary in summarise(rows)] == [0.9, 0.6]
    assert "| a @ 0.9 |" in format_tables(rows) and "| a @ 0.6 |" in format_tables(rows)
    sized = [row | {"n": {"train": size, "val": 10}} for row, size in zip(rows, (100, 300), strict=True)]
    assert "Measured (a @ 0.9): 100 of them to train" in format_tables(sized)


def glance(rows):
    return next(table for table in make_tables(rows) if table.name == "summary")


def test_opposite_failures_of_seeds_do_not_cancel_to_a_verdict():
    apart = [row("a", 0, 0.46), row("a", 1, 1.12), row("a", 2, 1.10)]  # gaps +44, -22, -20: mean +0.7, size 28.7
    within = [row("b", 0, 0.86), row("b", 1, 0.93), row("b", 2, 0.91)]  # gaps +4, -3, -1
    above = [row("c", 0, 0.60), row("c", 1, 0.97)]  # gaps +30, -7: a shortcut by the mean
    table = glance([*apart, *within, *above])
    verdicts = {line[0]: line[1] for line in table.lines}
    assert verdicts == {"a": "differs between seeds", "b": "balanced", "c": "shortcut"}
    hidden = row("d", 0, 0.89, switched_labels={"bal": {"f_y": {"y": 0.8, "sex": 0.43}}})
    assert glance([hidden]).lines[0][1] == "hidden shortcut"
    size = table.header.index("size of y Val - Inv")
    assert [line[size] for line in table.lines] == ["28.7 ± 33.1", "2.7 ± 3.8", "18.5 ± 146.1"]


def test_opposite_hidden_shortcuts_of_seeds_do_not_cancel_to_balanced():
    def follows(name, *shares):
        return [
            row(name, seed, 0.89, switched_labels={"bal": {"f_y": {"y": 0.8, "sex": share}}})
            for seed, share in enumerate(shares)
        ]

    rows = [*follows("a", 0.62, 0.39), *follows("b", 0.53, 0.48), *follows("c", 0.70, 0.44)]
    verdicts = {line[0]: line[1] for line in glance(rows).lines}
    assert verdicts == {"a": "differs between seeds", "b": "balanced", "c": "hidden shortcut"}
    assert glance(follows("a", 0.62)).lines[0][1] == glance(follows("a", 0.39)).lines[0][1] == "hidden shortcut"


def test_a_seed_that_learns_does_not_make_up_for_those_that_do_not():
    def learns(name, *values):
        return [
            row(name, n, value, accuracy=dict.fromkeys(("val", "inv", "bal"), {"y": value}), drop_val_inv=0.0)
            for n, value in enumerate(values)
        ]

    rows = [*learns("a", 0.9, 0.5, 0.5), *learns("b", 0.9, 0.8, 0.7), *learns("c", 0.5, 0.51, 0.52)]
    verdicts = {line[0]: line[1] for line in glance(rows).lines}
    assert verdicts == {"a": "differs between seeds", "b": "balanced", "c": "at chance (not learned)"}
    follows = {"switched_labels": {"bal": {"f_y": {"y": 0.55, "sex": 0.9}}}}
    assert glance([one | follows for one in learns("d", 0.54, 0.56, 0.56)]).lines[0][1] == "hidden shortcut"
    five = {"probes": {"linear": {}, "chance": {"y": 0.65, "sex": 0.5}}}
    assert glance([one | five for one in learns("e", 0.70, 0.71)]).lines[0][1] == "balanced"


def test_the_leak_is_above_the_chance_of_its_own_run():
    def read(name, chance):
        probes = {"linear": {"f_y": {"sex": 0.6}}, "chance": {"y": 0.5, "sex": chance}}
        return row(name, 0, 0.9, probes=probes)

    table = glance([read("a", 0.5), read("b", 0.7)])
    leak = table.header.index("leak into f_y")
    assert [line[leak] for line in table.lines] == ["sex +10.0", "sex -10.0"]


def test_what_is_followed_is_judged_as_in_a_run():
    switched = {"switched_labels": {"bal": {"f_y": {"y": 0.8, "sex": 0.56}}}}
    words = [
        glance([row("a", 0, 0.89, **switched, **more)]).lines[0][1]
        for more in (
            {"n": {"bal": 2000}},
            {"n": {"bal": 160}},  # within the noise of so few
            {"n": {"bal": 2000}, "classes": {"y": ["a", "b"], "sex": ["0", "1", "2"]}},  # not the classes of y
        )
    ]
    assert words == ["hidden shortcut", "balanced", "balanced"]
    five = [row("b", 0, 0.0, drop_val_inv=0.9 - 0.85), row("b", 1, 0.0, drop_val_inv=0.85 - 0.9)]
    assert glance(five).lines[0][1] == "balanced"


def test_nothing_finished():
    assert "No run finished: a seed 0: x" in format_tables([{"name": "a", "seed": 0, "error": "x"}])


def test_names_and_errors_are_no_tags():
    probes = {"linear": {"f_y": {"<b>sex": 0.6}}, "chance": {"y": 0.5, "<b>sex": 0.5}}
    rows = [row("mimmx", n, 0.9, task_names=["sick", "<b>sex"], version=f"<i>{n}", probes=probes) for n in range(2)]
    rows.append({"name": "dcor", "seed": 0, "error": "expected <module>"})
    text = format_tables(rows)
    assert "f_&lt;b>sex" in text and "&lt;i>1" in text and "dcor seed 0: expected &lt;module>" in text
    assert not re.search("<[a-z]", text) and "&lt;module>" in format_tables(rows[2:])


def test_a_failed_run_of_two_names_is_told_once():
    failed = {"name": "mimmx_balanced", "seed": 0, "agreement": 0.9, "error": "no memory"}
    alias = failed | {"name": "mimmx_balanced_conditional", "same_as": "mimmx_balanced"}
    for more in ([row("mimmx", 0, 0.9)], []):
        text = format_tables([*more, failed, alias])
        assert text.count("no memory") == 1 and "mimmx_balanced @ 0.9 seed 0: no memory" in text


def test_differences_are_paired_by_seed():
    rows = [row("rebalance", seed, inv) for seed, inv in enumerate((0.60, 0.70, 0.80))]
    rows += [row("mimmx", seed, inv) for seed, inv in enumerate((0.62, 0.73, 0.84))] + [row("mimmx", 7, 0.1)]
    mean, half, pairs = paired_differences(rows, "rebalance", ("accuracy", "inv", "y"))["mimmx", None]
    assert (
        pairs == 3 and mean == pytest.approx(0.03) and half == pytest.approx(4.302653 * 0.01 / math.sqrt(3), rel=1e-6)
    )
    over = [row("rebalance", 0, 0.95), row("mimmx", 0, 0.87)]  # gaps -0.05 and +0.03
    assert paired_differences(over, "rebalance", ("drop_val_inv",), size=True)["mimmx", None][0] == pytest.approx(-0.02)
    assert "Difference to rebalance with the same seed" in format_tables(rows)
    assert "| mimmx | 3 | +0.0 ± 0.0 | +3.0 ± 2.5 | +0.0 ± 0.0 | -3.0 ± 2.5 | +0.0 ± 0.0 |" in format_tables(rows)


def test_nothing_is_less_than_nothing():
    rows = [row("baseline", seed, 0.5) for seed in range(2)] + [row("mimmx", seed, 0.4998) for seed in range(2)]
    assert "| mimmx | 2 | +0.0 ± 0.0 | +0.0 ± 0.0 |" in format_tables(rows) and "-0.0" not in format_tables(rows)


def test_differences_need_a_pair():
    assert "Difference" not in format_tables([row("a", 0, 0.5)])
    apart = [row("baseline", 0, 0.5), row("mimmx", 1, 0.8)]
    assert "Difference" not in format_tables(apart) and paired_differences(apart, "baseline", ("drop_val_inv",)) == {}


def test_differences_tell_of_how_many_pairs_they_are():
    rows = [row("rebalance", 0, 0.8), *(row("baseline", seed, 0.5) for seed in range(2)), row("mimmx", 7, 0.9)]
    (table,) = (table for table in make_tables(rows) if table.name == "differences")
    assert table.header[1] == "pairs" and [line[:3] for line in table.lines] == [["baseline", "1", "+0.0"]]


def test_switched_labels_stand_beside_chance():
    switched = {"bal": {"f_y": {"y": 0.8, "sex": 0.3}, "f_sex": {"y": 0.51, "sex": 0.97}}}
    text = format_tables([row("mimmx", 0, 0.88, switched_labels=switched), row("old", 0, 0.5)])
    table = text[text.index("## Switched labels") :].split("\n\n")[2]
    assert table.splitlines()[2:] == ["| mimmx | 80.0 | 30.0 | 51.0 | 97.0 |", "| chance | 50.0 | 50.0 | 50.0 | 50.0 |"]
    assert "Switched labels" not in format_tables([row("old", 0, 0.5)])


def test_both_readings_of_the_weighter_stand_in_the_ablation():
    text = format_tables([row("mimmx", 0, 0.88), row("mimmx_caw_terms", 0, 0.7)])
    assert "| DLS yes, CAW yes | 90.0 | 88.0 |" in text and "| DLS yes, CAW terms | 90.0 | 70.0 |" in text


def test_methods_that_are_one_setting_are_told():
    ours = {"config": {"method": "mimmx", "conditional": True}}
    rows = [
        row(name, seed, 0.8, **ours) for name in ("mimmx_balanced", "mimmx_balanced_conditional") for seed in (0, 1)
    ]
    assert "mimmx_balanced and mimmx_balanced_conditional are the same setting here" in format_tables(rows)
    other = [*rows[:-1], row("mimmx_balanced_conditional", 1, 0.7, **ours)]  # equal settings, but not the same run
    assert "same setting" not in format_tables(other)


def test_different_versions_commits_and_tasks_are_told():
    old = row("mimmx", 0, 0.88, version="0.1")
    text = format_tables([old, row("mimmx", 1, 0.88, version="0.1", commit="a" * 40)])
    assert "of different commits, aaaaaaaaaaaa, unknown: they may not" in text
    text = format_tables([old | {"commit": "b" * 40}, row("mimmx", 1, 0.88, version="0.2", commit="a" * 40 + "-dirty")])
    assert "of different versions, 0.1, 0.2: they may not" in text
    assert "of different commits, aaaaaaaaaaaa-dirty, bbbbbbbbbbbb: they may not" in text
    text = format_tables([old, row("mimmx", 1, 0.88, task_names=["effusion", "sex"])])
    assert "of different tasks, effusion, sex; sick, sex: give each bundle an output_dir of its own" in text


def test_a_second_part_with_a_weight_of_its_own_is_told():
    config = {"method": "mimmx", "lambda_mi": 1.0, "refine_lambda_mi": 3.0, "refine_epochs": 16}
    weights = [glance([row("a", 0, 0.9, config=config | more)]).lines[0][-1] for more in ({}, {"refine_epochs": 0})]
    assert weights == ["1, then 3", "1"]


def test_an_unknown_commit_is_another_one():
    rows = [row("a", 0, 0.9, commit=None, version="1"), row("b", 0, 0.9, commit="3a2fb33f" * 5, version="1")]
    assert "different commits, 3a2fb33f3a2f, unknown:" in format_tables(rows)
    assert "commits" not in format_tables([rows[0]]) and "versions" not in format_tables(rows)


def test_different_precision_is_told():
    rows = [row("a", 0, 0.5, config={"amp": True}), row("b", 0, 0.5, config={"amp": False}), row("c", 0, 0.5)]
    rows += [row("a", 1, 0.5, config={"amp": True})]
    assert "With mixed precision: a; without: b." in format_tables(rows)
    assert "mixed precision" not in format_tables(rows[::3])
    of_fresh = {"amp": False, "amp_fresh": True}
    fresh = [row(str(n), 0, 0.5, config=of_fresh | {"feature_batches": n}) for n in (0, 2)]
    fresh.append(row("baseline", 0, 0.5, config=of_fresh | {"feature_batches": 0, "method": "baseline"}))
    assert "With mixed precision: 0; without: 2, baseline." in format_tables(fresh)


def test_tables_made_before_are_not_made_again(monkeypatch):
    rows = [row("mimmx", 0, 0.88)]
    tables, text = make_tables(rows), format_tables(rows)
    monkeypatch.setattr("monai_mimmx.comparison.tables.make_tables", None)
    assert format_tables(rows, (), tables) == text


def test_runs_of_a_table_that_changed_in_between_are_told():
    rows = [row("mimmx", seed, 0.88, fingerprint=digest) for seed, digest in enumerate("aab")]
    assert "of different rows or labels, mimmx 0, mimmx 1; mimmx 2: the table changed" in format_tables(rows)
    for same in (rows[:2], [row("mimmx", 0, 0.88), *rows[:2]]):  # one of an earlier version
        assert "different rows" not in format_tables(same)
    swept = [
        row("mimmx", 0, 0.88, fingerprint=digest, agreement=float(at)) for at, digest in (("0.5", "a"), ("0.9", "b"))
    ]
    assert "different rows" not in format_tables(swept)


def test_weights_selected_before_the_term_counted_are_told():
    rows = [
        row("dcor", 0, 0.88, selected_lambda=0.0),
        row("mimmx", 0, 0.88, selected_lambda=0.2),
        row("baseline", 0, 0.8),
    ]
    assert "Selected before the dependence term had any weight, in one seed or more: dcor." in format_tables(rows)
    assert "Selected before" not in format_tables(rows[1:])
