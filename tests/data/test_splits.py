# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools
import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monai_mimmx.data.splits import (
    SUBSETS,
    CorrelatedSplit,
    balanced_weights,
    cell_index,
    describe_joint,
    describe_subsets,
    make_subsets,
    subject_partition,
)
from monai_mimmx.data.tables import parse_tasks


def uniform_labels(repeats, classes=(2, 2, 2)):
    return np.array(list(itertools.product(*map(range, classes))) * repeats)


def counts_of(labels, rows, classes=(2, 2, 2)):
    counts = np.zeros(classes, dtype=int)
    np.add.at(counts, tuple(labels[rows].T), 1)
    return counts


def two_tasks(factors=2):
    return parse_tasks(
        [{"name": n, "column": n, "negative": [0], "positive": [1]} for n in ["sick", "sex", "site"][: factors + 1]]
    )


def test_a_smaller_subset_can_need_more_of_a_rare_cell():
    labels = np.repeat(uniform_labels(1), [15, 5, 25, 1, 7, 7, 16, 11], axis=0)
    split = CorrelatedSplit([0.5, 0.8], num_classes=(2, 2, 2))
    assert split.max_size(labels, "correlated") == len(split.correlated(labels, 34)) == 34
    with pytest.raises(ValueError, match="the largest size possible is 34, and up to 32 it is 30"):
        split.correlated(labels, 32)
    assert split.max_size(labels, "correlated", cap=32) == len(split.correlated(labels, 30)) == 30
    frame = pd.DataFrame(np.tile(labels, (3, 1)), columns=["sick", "sex", "site"])
    frame = frame.assign(split=np.repeat(["train", "val", "test"], len(labels)), subject=range(len(frame)))
    frame = frame.assign(image=[f"{row}.png" for row in range(len(frame))])
    subsets = make_subsets(frame, two_tasks(), agreement=[0.5, 0.8], sizes={"train": 32})
    assert len(subsets["train"]) == 30


def cohort(seed=0, subjects=600, images=3):
    rng = np.random.default_rng(seed)
    count = subjects * images
    frame = pd.DataFrame(rng.integers(0, 2, (count, 3)), columns=["sick", "sex", "site"])
    return frame.assign(
        image=[f"{i}.png" for i in range(count)], subject=np.repeat(np.arange(subjects), images).astype(str)
    )


@pytest.mark.parametrize(("kind", "agree"), [("correlated", 0.9), ("inverted", 0.1), ("balanced", 0.5)])
def test_exact_composition(kind, agree):
    labels = uniform_labels(1000)
    rows = getattr(CorrelatedSplit(0.9, seed=3), kind)(labels, 2000)
    expected = np.empty((2, 2, 2))
    for y, z1, z2 in itertools.product((0, 1), repeat=3):
        expected[y, z1, z2] = 1000 * (agree if z1 == y else 1 - agree) * (agree if z2 == y else 1 - agree)
    assert len(set(rows.tolist())) == 2000
    np.testing.assert_array_equal(counts_of(labels, rows), np.round(expected))


@pytest.mark.parametrize("size", [1, 2, 3, 7, 10, 11, 99, 101, 1234])
def test_composition_holds_within_rounding(size):
    labels = uniform_labels(1000)
    counts = counts_of(labels, CorrelatedSplit((0.9, 0.7)).correlated(labels, size))
    assert counts.sum() == size
    assert abs(counts[0].sum() - counts[1].sum()) <= 1
    for y, z1, z2 in itertools.product((0, 1), repeat=3):
        share = (0.9 if z1 == y else 0.1) * (0.7 if z2 == y else 0.3)
        assert abs(counts[y, z1, z2] - counts[y].sum() * share) < 1


def test_three_classes_share_the_rest_evenly():
    labels = uniform_labels(300, (3, 3))
    counts = counts_of(labels, CorrelatedSplit(0.8).correlated(labels, 300), (3, 3))
    np.testing.assert_array_equal(counts, [[80, 10, 10], [10, 80, 10], [10, 10, 80]])
    inverted = counts_of(labels, CorrelatedSplit(0.8).inverted(labels, 300), (3, 3))
    np.testing.assert_array_equal(inverted, [[10, 45, 45], [45, 10, 45], [45, 45, 10]])


@pytest.mark.parametrize("agreement", [0.3, 0.4, 0.5, 0.9])
def test_four_classes_are_inverted_at_any_agreement_above_chance(agreement):
    labels = np.array([[y, z] for y in range(4) for z in range(4)] * 500)
    share = {
        kind: np.mean(
            [labels[row, 0] == labels[row, 1] for row in getattr(CorrelatedSplit(agreement), kind)(labels, 1200)]
        )
        for kind in ("correlated", "inverted")
    }
    assert share["correlated"] == pytest.approx(agreement, abs=0.004)
    assert share["inverted"] == pytest.approx((1 - agreement) / 3, abs=0.004) and share["inverted"] < 0.25


@pytest.mark.parametrize(
    ("classes", "size"), [((3, 3, 4, 2), 100), ((3, 3, 4, 2), 158), ((2, 2, 2, 2), 24), ((2, 5), 9)]
)
def test_small_balanced_subsets_are_even_and_independent_of_y(classes, size):
    labels = np.array(list(np.ndindex(classes)) * 30)
    drawn = labels[CorrelatedSplit("natural", num_classes=classes).balanced(labels, size)]
    assert np.ptp(np.bincount(drawn[:, 0], minlength=classes[0])) <= 1
    for column, number in zip(drawn.T[1:], classes[1:], strict=True):
        assert np.ptp(np.bincount(column, minlength=number)) <= classes[0]
        together = np.zeros((classes[0], number))
        np.add.at(together, (drawn[:, 0], column), 1)
        of_y = together.sum(1, keepdims=True)
        assert np.abs(together - of_y * together.sum(0) / size).max() <= 1  # nothing of y in it


@pytest.mark.parametrize("kind", ["correlated", "inverted", "balanced"])
def test_max_size_is_the_largest_that_can_be_drawn(kind):
    rng = np.random.default_rng(1)
    for _ in range(20):
        labels = rng.integers(0, 2, (int(rng.integers(40, 200)), 3))
        split = CorrelatedSplit((0.8, 0.6), num_classes=(2, 2, 2))
        largest = split.max_size(labels, kind)
        possible = []
        for size in range(1, len(labels) + 1):
            try:
                possible.append(len(getattr(split, kind)(labels, size)))
            except ValueError:
                continue
        assert largest == max(possible, default=0)


def test_natural_factor_keeps_its_distribution():
    rng = np.random.default_rng(0)
    y, sex = rng.integers(0, 2, 40_000), rng.integers(0, 2, 40_000)
    age = (rng.random(40_000) < np.where(y == 1, 0.76, 0.62)).astype(int)
    labels = np.stack([y, sex, age], axis=1)
    split = CorrelatedSplit((0.9, "natural"), seed=2)
    for kind, agree in (("correlated", 0.9), ("inverted", 0.1)):
        drawn = labels[getattr(split, kind)(labels, 10_000)]
        assert (drawn[:, 0] == drawn[:, 1]).mean() == pytest.approx(agree)
        for value, share in ((0, 0.62), (1, 0.76)):  # five standard errors of a share of 5,000
            assert drawn[drawn[:, 0] == value, 2].mean() == pytest.approx(share, abs=0.035)
    balanced = counts_of(labels, split.balanced(labels, 8000))
    assert (balanced == 1000).all()


def test_rows_without_a_needed_factor_are_never_drawn():
    labels = np.concatenate([uniform_labels(50), [[0, -1, 0]] * 50, [[1, 1, -1]] * 5000])
    assert (labels[CorrelatedSplit(0.7).correlated(labels)] >= 0).all()
    natural = CorrelatedSplit((0.7, "natural"))
    drawn = labels[natural.correlated(labels)]
    assert (drawn[:, 1] >= 0).all()
    assert (drawn[:, 2] == -1).any()
    assert (labels[natural.balanced(labels)] >= 0).all()


def test_draws_repeat_and_differ_by_seed_and_kind():
    labels = uniform_labels(200)
    first = CorrelatedSplit(0.5, seed=1).correlated(labels, 400)
    np.testing.assert_array_equal(first, CorrelatedSplit(0.5, seed=1).correlated(labels, 400))
    assert set(first) != set(CorrelatedSplit(0.5, seed=2).correlated(labels, 400))
    assert set(first) != set(CorrelatedSplit(0.5, seed=1).balanced(labels, 400))
    assert (np.diff(labels[first, 0]) != 0).sum() > 100  # shuffled, not grouped by class


def test_short_cell_is_named():
    labels = np.concatenate([uniform_labels(100), [[0, 0, 0]] * 1000])
    split = CorrelatedSplit(0.9, task_names=["age", "sex", "site"])
    largest = split.max_size(labels, "correlated")
    match = rf"correlated subset of 2000 rows needs 810 rows with \(age=1, sex=1, site=1\).* has 100; .* {largest}$"
    with pytest.raises(ValueError, match=match):
        split.correlated(labels, 2000)
    assert len(split.correlated(labels)) == largest


def test_empty_cell_is_named(caplog):
    labels = uniform_labels(100)
    labels = labels[~((labels == (0, 1, 1)).all(axis=1))]
    with pytest.raises(ValueError, match=r"rows with \(y=0, z1=1, z2=1\), but the table has 0"):
        CorrelatedSplit(0.5).balanced(labels, 80)
    CorrelatedSplit(0.9).correlated(labels)
    assert "no rows with (y=0, z1=1, z2=1)" in caplog.text


@pytest.mark.parametrize("agreement", [1.1, -0.1, "naturally", True, (0.9, None), float("nan")])
def test_wrong_agreement(agreement):
    with pytest.raises(ValueError, match="number from 0 to 1 or 'natural'"):
        CorrelatedSplit(agreement)


def test_draw_errors():
    labels = uniform_labels(10)
    with pytest.raises(ValueError, match=r"one agreement per spurious factor \(2\), got 3"):
        CorrelatedSplit((0.9, 0.9, 0.9)).correlated(labels)
    with pytest.raises(ValueError, match="size to be 1 or more, got 0"):
        CorrelatedSplit().correlated(labels, 0)
    with pytest.raises(ValueError, match="one of correlated, inverted, balanced, got 'bal'"):
        CorrelatedSplit().max_size(labels, "bal")
    with pytest.raises(ValueError, match="integer labels"):
        CorrelatedSplit().correlated(labels.astype(float))
    with pytest.raises(ValueError, match="at least one row"):
        CorrelatedSplit().correlated(labels[:0])
    with pytest.raises(ValueError, match="between 'z1' and 'y' needs equal numbers of classes, got 3 and 2"):
        CorrelatedSplit().correlated(uniform_labels(5, (2, 3)))
    assert len(CorrelatedSplit("natural").correlated(uniform_labels(5, (2, 3)))) == 30


def test_partition_is_by_subject_and_independent_of_order():
    subjects = np.repeat(np.arange(100), 5).astype(str)
    part = subject_partition(subjects, fractions=(0.5, 0.2, 0.3), seed=4)
    owners = pd.DataFrame({"subject": subjects, "part": part}).drop_duplicates()
    assert len(owners) == 100
    assert owners["part"].value_counts().to_dict() == {"train": 50, "test": 30, "val": 20}
    order = np.random.default_rng(0).permutation(len(subjects))
    np.testing.assert_array_equal(subject_partition(subjects[order], fractions=(0.5, 0.2, 0.3), seed=4), part[order])


def test_partition_errors():
    with pytest.raises(ValueError, match="sum to 1"):
        subject_partition(["a"], fractions=(0.5, 0.1, 0.1))
    with pytest.raises(ValueError, match="2 subjects are too few"):
        subject_partition(["a", "b"])


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("with_split", [False, True])
def test_subsets_share_no_subject_across_partitions(seed, with_split):
    frame, tasks = cohort(seed), two_tasks()
    if with_split:
        frame["split"] = subject_partition(frame["subject"], seed=seed + 10)
    subsets = make_subsets(frame, tasks, seed=seed)
    assert list(subsets) == ["train", "select", "probe", "val", "inv", "bal"]
    subjects: dict[str, set[str]] = {part: set() for part in ("train", "val", "test")}
    for name, subset in subsets.items():
        subjects[SUBSETS[name][0]] |= set(subset["subject"])
        assert not subset["image"].duplicated().any()
        assert subset.index.tolist() == list(range(len(subset)))
        if with_split:
            assert (subset["split"] == SUBSETS[name][0]).all()
    assert not subjects["train"] & subjects["val"]
    assert not (subjects["train"] | subjects["val"]) & subjects["test"]
    for name, agree in {"train": 0.9, "select": 0.9, "probe": 0.5, "val": 0.9, "inv": 0.1, "bal": 0.5}.items():
        for factor in ("sex", "site"):
            share = (subsets[name]["sick"] == subsets[name][factor]).mean()
            assert share == pytest.approx(agree, abs=2.1 / len(subsets[name]))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    classes=st.integers(2, 3),
    factors=st.integers(1, 3),
    subjects=st.integers(20, 300),
    agreement=st.one_of(st.floats(0, 1), st.just("natural")),
    with_split=st.booleans(),
    missing=st.floats(0, 0.3),
)
def test_no_subject_leaks_and_compositions_hold_in_any_table(
    seed, classes, factors, subjects, agreement, with_split, missing
):
    rng = np.random.default_rng(seed)
    names = ["sick", "sex", "site", "coil"][: 1 + factors]
    rules = [{"name": name, "column": name, "classes": [[k] for k in range(classes)]} for name in names]
    owner = np.sort(rng.integers(0, subjects, int(rng.integers(subjects, 6 * subjects))))
    frame = pd.DataFrame(rng.integers(0, classes, (len(owner), len(names))), columns=names)
    frame[names[1:]] = frame[names[1:]].mask(rng.random((len(owner), factors)) < missing, -1)
    frame = frame.assign(subject=owner.astype(str), image=[f"{i}.png" for i in range(len(owner))])
    frame = frame.sample(frac=1, random_state=int(rng.integers(2**31)))
    try:
        if with_split:
            frame["split"] = subject_partition(frame["subject"], seed=seed % 1000)
        subsets = make_subsets(frame, parse_tasks(rules), agreement=agreement, seed=seed % 997)
    except ValueError as error:
        assert "cell" in str(error) or "rows" in str(error) or "subjects" in str(error)
        return
    owners = {part: set() for part in ("train", "val", "test")}
    for name, subset in subsets.items():
        part, kind = SUBSETS[name]
        owners[part] |= set(subset["subject"])
        assert not subset["image"].duplicated().any()
        labels, size = subset[names].to_numpy(), len(subset)
        assert np.ptp(np.bincount(labels[:, 0], minlength=classes)) <= 1
        if kind == "balanced":
            assert (labels >= 0).all()
            for column in labels.T[1:]:
                assert np.ptp(np.bincount(column, minlength=classes)) <= classes
                assert np.ptp(np.bincount(labels[:, 0] * classes + column, minlength=classes**2)) <= 2
            cells = np.bincount(
                np.ravel_multi_index(labels.T, (classes,) * len(names)), minlength=classes ** len(names)
            )
            assert np.ptp(cells) <= 2  # a rest of the rows of y, then a rest of the cells within it
        elif agreement != "natural":
            share = agreement if kind == "correlated" else (1 - agreement) / (classes - 1)
            for factor in range(1, 1 + factors):
                agreeing = int((labels[:, 0] == labels[:, factor]).sum())
                assert abs(agreeing - share * size) <= classes ** (1 + factors)  # each cell rounds by less than one row
    assert not owners["train"] & owners["val"] and not (owners["train"] | owners["val"]) & owners["test"]


def test_sizes_are_caps():
    subsets = make_subsets(cohort(), two_tasks(), sizes={"train": 100, "bal": 10**6, "inv": None})
    free = make_subsets(cohort(), two_tasks())
    assert len(subsets["train"]) == 100
    assert {name: len(subsets[name]) for name in ("bal", "inv")} == {name: len(free[name]) for name in ("bal", "inv")}


@pytest.mark.parametrize(
    ("agreement", "told"),
    [
        (0.7, "7 of 1800 rows miss a factor whose agreement is a number (sex 3, site 5): no subset can take them"),
        ([0.7, "natural"], "3 of 1800 rows miss a factor whose agreement is a number (sex 3): no subset can take them"),
        ("natural", None),
    ],
)
def test_rows_without_an_induced_factor_are_counted(caplog, agreement, told):
    frame = cohort()
    frame.loc[[5, 6, 7], "sex"] = -1
    frame.loc[[7, 8, 9, 10, 11], "site"] = -1
    subsets = make_subsets(frame, two_tasks(), agreement=agreement)
    assert [record.message for record in caplog.records if "miss a factor" in record.message] == [told] * (
        told is not None
    )
    induced = ["sex"] * (agreement != "natural") + ["site"] * (agreement == 0.7)
    assert all((subset[induced] >= 0).all(axis=None) for subset in subsets.values())


def test_how_subjects_were_dealt_is_told(caplog):
    with caplog.at_level("INFO", logger="monai_mimmx"):
        random = make_subsets(cohort(), two_tasks(), fractions=(0.5, 0.2, 0.3))
        part = subject_partition(cohort()["subject"])
        fixed = make_subsets(cohort().assign(split=part), two_tasks())
    told = ["dealt at random by subject, 0.5, 0.2, 0.3 (no column split)", "by the table's column split"]
    assert [line.removeprefix("train, val and test: ") for line in caplog.messages] == told
    assert [{subset.attrs["partition"] for subset in subsets.values()} for subsets in (random, fixed)] == [
        {line} for line in told
    ]


def test_subset_errors():
    frame, tasks = cohort(), two_tasks()
    with pytest.raises(ValueError, match="not 'test'"):
        make_subsets(frame, tasks, sizes={"test": 3})
    with pytest.raises(
        ValueError, match="sizes must be a whole number of 1 or more, or None, for 'val', got {'val': 0}"
    ):
        make_subsets(frame, tasks, sizes={"val": 0})
    with pytest.raises(ValueError, match="'select' comes from the partition 'val', which has no rows"):
        make_subsets(frame.assign(split="train"), tasks)
    all_sick = frame.assign(sick=1, split=np.array(["train", "val", "test"])[frame["subject"].astype(int) % 3])
    with pytest.raises(ValueError, match=r"subset 'train' .*needs 1 rows with \(sick=0, sex=0, site=0\).* has 0"):
        make_subsets(all_sick, tasks)


def test_an_empty_cell_that_a_subset_can_do_without_only_by_being_tiny():
    tasks, frame = two_tasks(), cohort()
    frame = frame[~((frame.sick == 1) & (frame.sex == 1) & (frame.site == 0))]
    match = (
        r"6 problems:(.|\n)*subset 'train' \(.*\): there are no rows with \(sick=1, sex=1, site=0\), without which a "
        r"correlated subset has \d+ rows at most: add such rows, .*, or accept it with 'train': \d+ in subset_sizes"
    )
    with pytest.raises(ValueError, match=match) as caught:
        make_subsets(frame, tasks)
    accepted = {name: int(size) for name, size in re.findall(r"with '(\w+)': (\d+) in", str(caught.value))}
    assert {name: len(subset) for name, subset in make_subsets(frame, tasks, sizes=accepted).items()} == accepted
    # A natural factor is not looked at in train: only the balanced subsets need the cell.
    with pytest.raises(ValueError, match="2 problems:") as caught:
        make_subsets(frame, tasks, agreement=[0.8, "natural"])
    assert "'probe'" in str(caught.value) and "'bal'" in str(caught.value)


def test_a_size_below_the_number_of_classes():
    with pytest.raises(
        ValueError, match=r"'train' .*: it has 1 row.s., .*: raise its number in subset_sizes to 2 or more"
    ):
        make_subsets(cohort(), two_tasks(), sizes={"train": 1})


def test_cell_index_and_weights():
    labels = np.array([[0, 0], [0, 0], [0, 0], [0, 1], [1, 0], [1, 1], [1, 1], [1, -1]])
    np.testing.assert_array_equal(cell_index(labels, (2, 3)), [0, 0, 0, 1, 3, 4, 4, -1])
    weights = balanced_weights(labels, (2, 2))
    per_cell = pd.Series(weights).groupby(cell_index(labels, (2, 2))).sum()
    assert per_cell.to_dict() == pytest.approx({-1: 0, 0: 0.25, 1: 0.25, 2: 0.25, 3: 0.25})
    with pytest.raises(ValueError, match=r"1 of 4 have none: \(age=1, sex=0\)"):
        balanced_weights(np.delete(labels, 4, axis=0), (2, 2), task_names=["age", "sex"])
    with pytest.raises(ValueError, match=r"shape \(n, 3\), got \(8, 2\)"):
        cell_index(labels, (2, 2, 2))
    with pytest.raises(ValueError, match="class indices below"):
        cell_index(labels, (2, 1))


def test_description_counts():
    subsets = make_subsets(cohort(), two_tasks(), sizes={"train": 200})
    lines = describe_subsets(subsets, two_tasks()).splitlines()
    assert lines[0].split()[:3] == ["subset", "rows", "subjects"]
    assert len(lines) == 7
    train = lines[1]
    assert train.split()[:3] == ["train", "200", str(subsets["train"]["subject"].nunique())]
    assert train.count("90 10 / 10 90") == 2
    assert train.count("0.900") == 2


class TestDescribeJoint:
    tasks = parse_tasks(
        [{"name": name, "column": name, "negative": [0], "positive": [1]} for name in ("sick", "sex", "age")]
    )

    def frame(self):
        return pd.DataFrame({"sick": [0, 0, 0, 1], "sex": [0, 1, -1, 1], "age": [0, 0, 1, 1]})

    def test_missing_factors_are_left_out(self):
        lines = describe_joint(self.frame(), self.tasks).splitlines()
        assert lines[1].split() == ["sex", "0.33", "0.33", "/", "0.00", "0.33"]
        assert lines[2].split() == ["age", "0.50", "0.25", "/", "0.00", "0.25"]

    @pytest.mark.parametrize(
        ("published", "message"),
        [
            (
                {"sex": {"classes": {}, "joint": [[0.5, 0.5], [0.5, 0.5]]}},
                "distribution of 'sex' as numbers that sum to 1",
            ),
            ({"sex": [[0.5, 0], [0, 0.5]]}, "distribution of 'sex' with its classes and joint, got"),
        ],
    )
    def test_wrong_published(self, published, message):
        with pytest.raises(ValueError, match=message):
            describe_joint(self.frame(), self.tasks, published)

    @pytest.mark.parametrize(
        ("factor", "classes", "shown"),
        [
            ("sex", {"sick": ["0", "1"], "sex": ["0", "1"]}, True),
            ("site", {"sick": ["0", "1"], "site": ["0", "1"]}, False),
            ("sex", {"ill": ["0", "1"], "sex": ["0", "1"]}, False),
            ("sex", {"sick": ["0", "1"], "sex": ["0", "2"]}, False),
        ],
    )
    def test_published_of_other_tasks_is_not_shown(self, factor, classes, shown):
        published = {factor: {"classes": classes, "joint": [[0.5, 0], [0, 0.5]]}}
        told = describe_joint(self.frame(), self.tasks, published)
        assert (told != describe_joint(self.frame(), self.tasks)) == shown == ("0.50 0.00 / 0.00 0.50" in told)


@pytest.mark.parametrize("agreement", ["natural", ["natural", "natural"]])
def test_nothing_is_inverted_where_nothing_is_induced(agreement):
    frame = pd.DataFrame(uniform_labels(20), columns=["sick", "sex", "site"]).assign(image="a.png", subject=range(160))
    subsets = make_subsets(frame, two_tasks(), agreement=agreement)
    assert list(subsets) == ["train", "select", "probe", "val", "bal"]
    assert "inv" in make_subsets(frame, two_tasks(), agreement=["natural", 0.8])


@pytest.mark.parametrize("agreement", [np.float32(0.9), np.float64(0.9), np.int64(1)])
def test_an_agreement_is_any_number(agreement):
    labels = np.array([(y, z) for y in (0, 1) for z in (0, 1)] * 50)
    rows = CorrelatedSplit(agreement).correlated(labels, 20)
    assert (labels[rows, 0] == labels[rows, 1]).mean() == pytest.approx(float(agreement))


def own_frame(subjects, **more):
    rows = [(y, z) for y in (0, 1) for z in (0, 1)] * 100
    return pd.DataFrame(rows, columns=["sick", "sex"]).assign(image="a.png", subject=subjects, **more)


OWN_TASKS = [{"name": n, "column": n, "negative": [0], "positive": [1]} for n in ("sick", "sex")]


def test_an_own_frame_may_not_have_a_subject_in_two_splits():
    split = np.resize(["train", "val", "test", "train", "train"], 400)
    with pytest.raises(ValueError, match=r"the subject '1' is in more than one split, and 38 others"):
        make_subsets(own_frame(np.arange(400) % 39, split=split), parse_tasks(OWN_TASKS))
    subsets = make_subsets(own_frame(np.arange(400), split=split), parse_tasks(OWN_TASKS))
    assert not {*subsets["train"]["subject"]} & {*subsets["bal"]["subject"]}


def test_an_own_frame_needs_a_subject_in_every_row():
    subjects = pd.Series(np.arange(400), dtype="Int64").where(np.arange(400) != 7)
    with pytest.raises(ValueError, match="every row needs a subject.*row 7 has none"):
        make_subsets(own_frame(subjects), parse_tasks(OWN_TASKS))
