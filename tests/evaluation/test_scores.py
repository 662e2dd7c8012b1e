# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""Tests of the scores: numbers by hand, scikit-learn as an oracle, invariances."""

from __future__ import annotations

import json
import time
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from sklearn import metrics

from monai_mimmx.evaluation.predictions import Predictions
from monai_mimmx.evaluation.scores import (
    accuracy,
    auroc,
    balanced_accuracy,
    bootstrap_interval,
    cell_balanced_accuracy,
    drop_val_inv,
    final_scores,
    followed_factors,
    format_score_table,
    gap_interval,
    group_accuracies,
    score_table,
    switched_labels,
    verdict,
    verdict_on,
    worst_group,
)


def from_classes(labels, predicted, num_classes=None, subjects=None, names=("age", "sex", "site")) -> Predictions:
    """Predictions whose heads say exactly `predicted`."""
    labels, predicted = np.asarray(labels), np.asarray(predicted)
    n, tasks = labels.shape
    num_classes = num_classes or [2] * tasks
    logits = np.concatenate([np.eye(c)[predicted[:, i]] for i, c in enumerate(num_classes)], axis=1)
    subjects = range(n) if subjects is None else subjects
    return Predictions(
        logits, labels, np.zeros((n, tasks, 1)), np.ones((n, tasks - 1)), names[:tasks], num_classes, subjects
    )


def at_random(n: int = 300, seed: int = 0, classes=(2, 2, 3), missing: float = 0.1) -> Predictions:
    rng = np.random.default_rng(seed)
    labels = np.stack([rng.integers(c, size=n) for c in classes], axis=1)
    labels[rng.random(labels.shape) < missing] = -1
    logits = rng.normal(size=(n, sum(classes)))
    logits[:, 1] += labels[:, 0]
    return Predictions(
        logits,
        labels,
        rng.normal(size=(n, 3, 4)),
        rng.random((n, 2)),
        ["age", "sex", "site"],
        classes,
        rng.integers(60, size=n),
    )


# Cells (0,0): 2 of 2 right, (0,1): 1 of 2, (1,0): 0 of 1, (1,1): 3 of 3.
HAND = from_classes(
    [[0, 0], [0, 0], [0, 1], [0, 1], [1, 0], [1, 1], [1, 1], [1, 1]],
    [[0, 0], [0, 0], [0, 1], [1, 1], [0, 0], [1, 1], [1, 1], [1, 0]],
)


def test_numbers_by_hand():
    assert accuracy(HAND) == pytest.approx(6 / 8)
    assert accuracy(HAND, 1) == pytest.approx(7 / 8)
    assert balanced_accuracy(HAND) == pytest.approx((3 / 4 + 3 / 4) / 2)
    assert balanced_accuracy(HAND, 1) == pytest.approx((3 / 3 + 4 / 5) / 2)
    assert cell_balanced_accuracy(HAND) == pytest.approx((1 + 0.5 + 0 + 1) / 4)
    assert group_accuracies(HAND) == {(0, 0): (1.0, 2), (0, 1): (0.5, 2), (1, 0): (0.0, 1), (1, 1): (1.0, 3)}
    assert worst_group(HAND) == {"cell": "y=1, sex=0", "accuracy": 0.0, "n": 1}
    # Head y agrees with sex in rows 0, 1, 3, 4, 5, 6, 7; head sex with y in rows 0, 1, 5, 6.
    np.testing.assert_allclose(switched_labels(HAND), [[6 / 8, 7 / 8], [4 / 8, 7 / 8]])


def test_classes_of_another_number_are_not_compared():
    found = switched_labels(at_random(classes=(3, 2, 3)))
    assert np.isnan(found).tolist() == [[False, True, False], [True, False, True], [False, True, False]]


def test_missing_labels_are_left_out():
    p = from_classes([[0, 0], [1, -1], [-1, 1]], [[0, 1], [0, 0], [1, 1]])
    assert accuracy(p) == 0.5
    assert accuracy(p, 1) == 0.5
    assert group_accuracies(p) == {(0, 0): (1.0, 1)}
    np.testing.assert_allclose(switched_labels(p), [[0.5, 1.0], [0.0, 0.5]])


@pytest.mark.parametrize("task", [0, 1, 2])
@pytest.mark.parametrize("seed", [0, 1])
def test_agrees_with_scikit_learn(task, seed):
    p = at_random(seed=seed)
    used = p.labels[:, task] >= 0
    truth, predicted = p.labels[used, task], p.predicted(task)[used]
    assert accuracy(p, task) == pytest.approx(metrics.accuracy_score(truth, predicted))
    assert balanced_accuracy(p, task) == pytest.approx(metrics.balanced_accuracy_score(truth, predicted))
    probabilities = p.probabilities(task)[used]
    if task == 2:  # macro one-versus-rest, written out
        expected = np.mean([metrics.roc_auc_score(truth == c, probabilities[:, c]) for c in range(3)])
    else:
        expected = metrics.roc_auc_score(truth, probabilities[:, 1])
    assert auroc(p, task) == pytest.approx(expected)


def test_auroc_is_undefined_without_every_class_and_does_not_saturate():
    assert auroc(from_classes([[1, 0], [1, 1]], [[0, 0], [1, 1]])) is None
    assert auroc(from_classes([[0], [1]], [[0], [1]], num_classes=[3])) is None
    p = from_classes([[0], [1]], [[0], [1]])
    p.logits = np.array([[0.0, 800.0], [0.0, 900.0]])  # both probabilities are 1.0 in float64
    assert auroc(p) == 1.0


def test_order_of_rows_does_not_matter():
    p = at_random()
    q = p.take(np.random.default_rng(5).permutation(len(p)))
    for score in (accuracy, balanced_accuracy, cell_balanced_accuracy, auroc):
        assert score(q) == pytest.approx(score(p))
    assert worst_group(q) == worst_group(p)
    np.testing.assert_allclose(switched_labels(q), switched_labels(p))


def test_cell_balanced_accuracy_ignores_how_frequent_a_cell_is():
    repeated = HAND.take(np.array([0, 1] * 50 + [2, 3, 4, 5, 6, 7]))
    assert cell_balanced_accuracy(repeated) == pytest.approx(cell_balanced_accuracy(HAND))
    assert accuracy(repeated) > accuracy(HAND)


def test_drop_is_signed():
    right, wrong = from_classes([[0, 0]], [[0, 0]]), from_classes([[0, 0]], [[1, 0]])
    assert (drop_val_inv(right, wrong), drop_val_inv(wrong, right), drop_val_inv(right, wrong, 1)) == (1.0, -1.0, 0.0)


def test_no_labels_is_an_error():
    empty = from_classes([[-1, 0]], [[0, 0]])
    with pytest.raises(ValueError, match="no row has the labels that the score of task 'age' needs"):
        accuracy(empty)
    with pytest.raises(ValueError, match="no row has the labels that the score of task 'age' needs"):
        bootstrap_interval(empty, "accuracy")
    with pytest.raises(ValueError, match="no cell"):
        worst_group(empty)
    assert np.isnan(switched_labels(empty)[:, 0]).all()


@pytest.mark.parametrize("name", ["accuracy", "balanced_accuracy", "cell_balanced_accuracy"])
def test_bootstrap_of_a_named_statistic_agrees_with_the_plain_loop(name):
    p = at_random()
    score = {
        "accuracy": accuracy,
        "balanced_accuracy": balanced_accuracy,
        "cell_balanced_accuracy": cell_balanced_accuracy,
    }
    fast = bootstrap_interval(p, name, resamples=4000, seed=1)
    plain = bootstrap_interval(p, score[name], resamples=1500, seed=2)
    np.testing.assert_allclose(fast, plain, atol=0.015)  # about 3 standard errors of these quantiles
    assert fast[0] < score[name](p) < fast[1]


def test_bootstrap_covers_the_truth_at_its_level():
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(300):
        labels = np.zeros((150, 1), dtype=int)
        low, high = bootstrap_interval(
            from_classes(labels, (rng.random((150, 1)) > 0.8).astype(int)),
            "accuracy",
            resamples=400,
            level=0.9,
            seed=trial,
        )
        covered += low <= 0.8 <= high
    assert 0.84 < covered / 300 < 0.95  # 0.9 with a standard error of 0.017


def test_bootstrap_draws_subjects_not_rows():
    rng = np.random.default_rng(0)
    right = (rng.random((40, 1)) > 0.7).astype(int)
    ten_each = np.repeat(right, 10, axis=0)
    rows = bootstrap_interval(from_classes(np.zeros((400, 1), dtype=int), ten_each), "accuracy")
    grouped = from_classes(np.zeros((400, 1), dtype=int), ten_each, subjects=np.repeat(np.arange(40), 10))
    subjects = bootstrap_interval(grouped, "accuracy")
    single = bootstrap_interval(from_classes(np.zeros((40, 1), dtype=int), right), "accuracy")
    assert np.diff(subjects) > 2.5 * np.diff(rows)  # sqrt(10) = 3.2 times as wide
    np.testing.assert_allclose(subjects, single, atol=0.03)


def test_auroc_of_several_classes_neither_saturates_nor_parts_equals():
    rng = np.random.default_rng(0)
    for scale in (1, 60, 2000):
        logits, labels = scale * rng.integers(-3, 4, (60, 4)), rng.integers(4, size=(60, 1))
        areas = []
        for k in range(4):
            rest = np.delete(logits, k, axis=1).tolist()
            odds = [
                round(Decimal(a) - sum(Decimal(v).exp() for v in b).ln(), 9)
                for a, b in zip(logits[:, k].tolist(), rest)
            ]
            of, others = (
                [x for x, y in zip(odds, labels[:, 0].tolist()) if (y == k) is wanted] for wanted in (True, False)
            )
            areas.append(np.mean([1.0 if x > y else 0.5 if x == y else 0.0 for x in of for y in others]))
        found = Predictions(logits, labels, np.zeros((60, 1, 1)), np.ones((60, 0)), ["y"], [4], range(60))
        assert auroc(found) == pytest.approx(np.mean(areas), abs=1e-12)


def test_resamples_in_which_a_statistic_is_undefined_are_left_out():
    rng = np.random.default_rng(0)
    labels = np.array([[0, 0]] * 27 + [[1, 1]] * 3)
    few = from_classes(labels, labels)
    few.logits[:] = rng.normal(size=few.logits.shape)
    low, high = bootstrap_interval(few, auroc, resamples=200)  # without a positive in 1 of 24
    assert 0 <= low < auroc(few) < high <= 1
    with pytest.raises(ValueError, match="undefined in every resample"):
        bootstrap_interval(few, lambda _: float("nan"), resamples=3)


def test_interval_of_the_gap_agrees_with_the_plain_loop():
    val, inv = at_random(seed=0), at_random(seed=1)  # of the same 60 subjects
    rng = np.random.default_rng(5)
    subjects = np.unique([*val.subjects, *inv.subjects])
    gaps = []
    for _ in range(1500):
        drawn = rng.choice(subjects, len(subjects))
        gaps.append(
            drop_val_inv(
                *(p.take(np.concatenate([np.flatnonzero(p.subjects == s) for s in drawn])) for p in (val, inv))
            )
        )
    found = gap_interval(val, inv, resamples=4000)
    np.testing.assert_allclose(found, np.quantile(gaps, [0.025, 0.975]), atol=0.015)
    assert found[0] < drop_val_inv(val, inv) < found[1]


def test_interval_of_the_gap_draws_a_subject_for_both_sets():
    p = at_random()
    assert gap_interval(p, p) == (0.0, 0.0)
    apart = from_classes([[0, 0]] * 8, [[0, 0]] * 4 + [[1, 1]] * 4)
    unlabelled = from_classes([[-1, 0]] * 8, [[0, 0]] * 8)
    with pytest.raises(ValueError, match="no row of inv has the label of task 'age'"):
        gap_interval(apart, unlabelled)


def test_bootstrap_is_seeded_and_wider_at_a_higher_level():
    p = at_random()
    assert bootstrap_interval(p, "accuracy", seed=3) == bootstrap_interval(p, "accuracy", seed=3)
    assert bootstrap_interval(p, "accuracy", seed=3) != bootstrap_interval(p, "accuracy", seed=4)
    assert np.diff(bootstrap_interval(p, "accuracy", level=0.99)) > np.diff(
        bootstrap_interval(p, "accuracy", level=0.8)
    )


def test_bootstrap_is_fast():
    p = at_random(2000)
    p.subjects = np.arange(2000).astype(str)
    start = time.perf_counter()
    bootstrap_interval(p, "cell_balanced_accuracy")
    assert time.perf_counter() - start < 2  # 0.1 s where nothing else runs


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"statistic": "f1"}, r"statistic must be one of \['accuracy'.*got 'f1'"),
        ({"level": 1.0}, r"level must lie in \(0, 1\); got 1.0"),
        ({"resamples": 0}, "resamples must be 1 or more; got 0"),
    ],
)
def test_bootstrap_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        bootstrap_interval(HAND, options.pop("statistic", "accuracy"), **options)
    with pytest.raises(ValueError, match="no rows"):
        bootstrap_interval(HAND.take(np.array([], dtype=int)), "accuracy")


def test_score_table_holds_the_single_scores_and_is_json():
    val, inv = at_random(seed=1), at_random(seed=2)
    table = score_table({"val": val, "inv": inv, "bal": HAND_THREE})
    assert json.loads(json.dumps(table, allow_nan=False)) == table
    assert set(table["accuracy"]) == {"val", "inv", "bal"}
    assert table["accuracy"]["val"] == {"y": accuracy(val), "sex": accuracy(val, 1), "site": accuracy(val, 2)}
    assert table["auroc"]["inv"]["site"] == auroc(inv, 2)
    assert table["auroc"]["bal"]["site"] is None
    assert table["balanced_accuracy"]["inv"]["sex"] == balanced_accuracy(inv, 1)
    assert table["worst_group"]["val"] == worst_group(val)
    assert table["switched_labels"]["val"]["f_sex"]["y"] == switched_labels(val)[1, 0]
    assert table["chance"]["bal"] == {"y": 0.75, "sex": 0.5, "site": None}
    assert table["drop_val_inv"] == drop_val_inv(val, inv)
    assert table["n"] == {"val": 300, "inv": 300, "bal": 4}
    with pytest.raises(ValueError, match="one or more subsets"):
        score_table({})


# The third task has no labels at all.
HAND_THREE = from_classes(
    [[0, 0, -1], [0, 1, -1], [0, 0, -1], [1, 1, -1]],
    [[0, 0, 0], [0, 1, 0], [1, 0, 0], [1, 1, 0]],
    num_classes=[2, 2, 3],
)


def test_unlabelled_task_gives_none_not_an_error():
    table = score_table({"bal": HAND_THREE})
    assert table["accuracy"]["bal"] == {"y": 0.75, "sex": 1.0, "site": None}
    assert table["worst_group"]["bal"] is None
    assert table["switched_labels"]["bal"]["f_y"]["site"] is None
    assert "drop_val_inv" not in table
    site = next(line for line in format_score_table(table).splitlines() if line.startswith("site"))
    assert site.split() == ["site", "-"]


@pytest.mark.parametrize(
    ("gap", "expected"),
    [(0.051, "shortcut"), (0.049, "balanced"), (-0.049, "balanced"), (-0.051, "over-corrected (anti-shortcut)")],
)
def test_verdict_turns_at_five_points(gap, expected):
    assert verdict(gap) == expected
    assert verdict(gap, balanced=0.9, chance=0.5) == expected


@pytest.mark.parametrize(("val", "inv"), [(0.9, 0.85), (0.85, 0.8), (0.75, 0.7), (0.7, 0.65)])
def test_five_points_are_five_points(val, inv):
    assert verdict(val - inv) == verdict(inv - val) == "balanced"
    followed = followed_factors({"sex": 0.55}, {"y": 0.5, "sex": 0.5})
    assert verdict(0.0, followed=followed) == "balanced"


def test_a_factor_of_other_classes_is_not_followed():
    switched, chance = {"y": 0.6, "coil": 0.1}, {"y": 1 / 3, "coil": 0.25}
    assert followed_factors(switched, chance, classes={"y": ["a", "b", "c"], "coil": ["1", "2", "3", "4"]}) == {}
    # As many, though one of them is frequent: what a constant prediction gives does not count.
    classes = {"y": ["a", "b"], "sex": ["f", "m"]}
    found = followed_factors({"y": 0.9, "sex": 0.75}, {"y": 0.5, "sex": 0.62}, classes=classes)
    assert found == {"sex": pytest.approx(0.13)}


def test_on_few_images_chance_is_no_hidden_shortcut():
    def scores(n):
        accuracy = dict.fromkeys(("val", "inv", "bal"), {"y": 0.75})
        chance, switched = {"bal": {"y": 0.5, "sex": 0.5}}, {"bal": {"f_y": {"y": 0.75, "sex": 0.56}}}
        return {"accuracy": accuracy, "chance": chance, "switched_labels": switched, "n": {"bal": n}}

    assert verdict_on(scores(160)) == "balanced" and verdict_on(scores(500)) == "hidden shortcut"
    rng = np.random.default_rng(0)
    y, sex = np.repeat([0, 1], 80), np.tile([0, 1], 80)
    words = []
    for _ in range(200):
        said = np.where(rng.random(160) < 0.75, y, 1 - y)
        share = float((said == sex).mean())
        words.append(verdict_on(scores(160) | {"switched_labels": {"bal": {"f_y": {"y": 0.75, "sex": share}}}}))
    assert words.count("balanced") >= 180


def test_images_of_one_subject_are_no_evidence_of_their_own():
    accuracy = dict.fromkeys(("val", "inv", "bal"), {"y": 0.75})
    chance, switched = {"bal": {"y": 0.5, "sex": 0.5}}, {"bal": {"f_y": {"y": 0.75, "sex": 0.58}}}
    scores = {"accuracy": accuracy, "chance": chance, "switched_labels": switched, "n": {"bal": 800}}
    assert verdict_on(scores) == verdict_on(scores | {"subjects": {"bal": 800}}) == "hidden shortcut"
    assert verdict_on(scores | {"subjects": {"bal": 100}}) == "balanced"
    # Of many factors one is followed by chance sooner.
    many = {"bal": {"f_y": {"y": 0.75, "sex": 0.58, "site": 0.5, "age": 0.5, "coil": 0.5}}}
    more = {"switched_labels": many, "chance": {"bal": dict.fromkeys(many["bal"]["f_y"], 0.5)}}
    assert verdict_on(scores | {"subjects": {"bal": 170}}) == "hidden shortcut"
    assert verdict_on(scores | more | {"subjects": {"bal": 170}}) == "balanced"


def test_verdict_knows_a_network_that_guesses():
    assert verdict(0.0, balanced=0.51, chance=0.5) == "at chance (not learned)"
    assert verdict(0.3, balanced=0.51, chance=0.5) == "shortcut"


def test_factors_that_cancel_out_are_a_hidden_shortcut():
    """A network that follows one factor and goes against another has no gap, since Inv turns both."""
    rng = np.random.default_rng(0)
    y = np.repeat([0, 1], 4000)

    def subset(agreement):
        sex, site = (np.where(rng.random(len(y)) < agreement, y, 1 - y) for _ in range(2))
        says = rng.random(len(y))
        said = np.where(says < 0.6, y, np.where(says < 0.8, site, 1 - sex))
        labels = np.stack([y, sex, site], axis=1)
        logits = np.concatenate([np.eye(2)[said], np.eye(2)[sex], np.eye(2)[site]], axis=1)
        return Predictions(
            logits=logits,
            labels=labels,
            features=np.zeros((len(y), 3, 1)),
            attention=np.ones((len(y), 2)) / 2,
            task_names=["sick", "sex", "site"],
            num_classes=[2, 2, 2],
            subjects=[str(i) for i in range(len(y))],
        )

    scores = score_table({"val": subset(0.9), "inv": subset(0.1), "bal": subset(0.5)})
    assert abs(scores["drop_val_inv"]) < 0.03 and verdict_on(scores) == "hidden shortcut"
    assert "hidden shortcut" in format_score_table(scores)
    switched = scores["switched_labels"]["bal"]["f_y"]
    followed = followed_factors(switched, scores["chance"]["bal"])
    assert followed["sex"] == pytest.approx(-0.1, abs=0.02) and followed["site"] == pytest.approx(0.1, abs=0.02)
    assert verdict_on(scores | {"switched_labels": None}) == "balanced"
    assert verdict_on(scores | {"accuracy": {"val": {"y": 0.9}}}) is None
    assert verdict(0.2, followed=followed) == "shortcut"


def test_format_shows_the_numbers_in_their_places():
    scores: dict[str, Any] = {
        "accuracy": {
            "inv": {"y": 0.339, "sex": 0.977},  # any order: shown as Val, Inv, Bal
            "val": {"y": 0.971, "sex": 0.979},
            "bal": {"y": 0.744, "sex": 0.983},
        },
        "task_names": ["age", "sex"],
        "worst_group": {"val": {"cell": "y=1, sex=0", "accuracy": 0.25, "n": 40}},
        "probes": {
            "linear": {"f_y": {"y": 0.99, "sex": 0.84}, "f_sex": {"y": 0.51, "sex": None}},
            "chance": {"y": 0.5, "sex": 0.52},
        },
    }
    lines = [line.split() for line in format_score_table(scores).splitlines()]
    assert lines == [
        ["accuracy", "%", "Val", "Inv", "Bal", "Val", "-", "Inv"],
        ["y", "(age)", "97.1", "33.9", "74.4", "+63.2", "shortcut"],
        ["sex", "97.9", "97.7", "98.3", "+0.2"],
        ["worst", "group", "Val:", "25.0", "%", "of", "40", "(y=1,", "sex=0)"],
        [],
        ["linear", "probe", "%", "y", "sex"],
        ["f_y", "99.0", "84.0"],
        ["f_sex", "51.0", "-"],
        ["chance", "50.0", "52.0"],
    ]
    natural = {name: row for name, row in scores["accuracy"].items() if name != "inv"}
    assert [line.split() for line in format_score_table({"accuracy": natural}).splitlines()] == [
        ["accuracy", "%", "Val", "Bal", "Val", "-", "Bal"],
        ["y", "97.1", "74.4", "+22.7"],
        ["sex", "97.9", "98.3", "-0.4"],
    ]
    only_linear = {"accuracy": scores["accuracy"], "probe": scores["probes"]["linear"]}
    text = format_score_table(only_linear)
    assert "linear probe %" in text
    assert "chance" not in text


class TestFinalScores:
    METRICS = {
        "accuracy": {"val": {"y": 0.9, "sex": None}, "inv": {"y": 0.5, "sex": 0.75}, "bal": {"y": 0.75, "sex": 1.0}},
        "probes": {"linear": {"f_y": {"sex": 0.5, "y": None}}, "knn": {"f_sex": {"y": 0.625}}, "chance": {"y": 0.5}},
    }

    def test_the_table_is_flat_and_has_what_was_measured(self):
        assert final_scores(self.METRICS) == {
            "final/accuracy_val_y": 0.9,
            "final/accuracy_inv_y": 0.5,
            "final/accuracy_inv_sex": 0.75,
            "final/accuracy_bal_y": 0.75,
            "final/accuracy_bal_sex": 1.0,
            "final/gap_y": pytest.approx(0.4),
            "final/linear_probe_f_y_sex": 0.5,
            "final/knn_probe_f_sex_y": 0.625,
        }

    def test_without_inverted_set_or_probes(self):
        assert final_scores({"accuracy": {"val": {"y": 0.5}}}) == {"final/accuracy_val_y": 0.5}


def test_a_gap_needs_resamples():
    with pytest.raises(ValueError, match=r"resamples must be 1 or more; got 0\."):
        gap_interval(None, None, resamples=0)


@pytest.mark.parametrize("males", [12, 13, 14, 15, 16])
def test_one_class_for_everything_follows_no_factor(males):
    """28 images, of which a factor's classes cannot always have the same share."""
    labels = [
        [y, z] for y in (0, 1) for z in [1] * (males // 2 + y * (males % 2)) + [0] * (14 - males // 2 - y * (males % 2))
    ]
    n = len(labels)
    parts = (np.zeros((n, 2, 1)), np.ones((n, 1)), ["age", "sex"], [2, 2], range(n))
    bal = Predictions([[1, 0, 1, 0]] * n, labels, *parts)
    scores = score_table({"val": bal, "inv": bal, "bal": bal})
    assert verdict_on(scores) == "at chance (not learned)"
    follows = [[1 - z, z, 1 - z, z] for _, z in labels]
    scores = score_table({"val": bal, "inv": bal, "bal": Predictions(follows, labels, *parts)})
    assert verdict_on(scores) == "hidden shortcut"
