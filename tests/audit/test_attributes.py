# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""What an audit says of networks whose use of an attribute is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats.contingency import association

from monai_mimmx.audit import audit_attributes, audit_verdict
from monai_mimmx.audit.attributes import _cell_weights

RNG = np.random.default_rng(0)
# 1,000 images, in which the attribute agrees with the label in exactly 90 %.
Y = np.repeat([0, 1], 500)
Z = np.concatenate([np.repeat([0, 1], [450, 50]), np.repeat([0, 1], [50, 450])])


def audit(predicted, features, y=Y, z=Z, subjects=None, **more):
    logits = np.eye(int(np.max(y)) + 1)[predicted] * 4.0
    features = np.asarray(features, dtype=float).reshape(len(y), -1)
    subjects = range(len(y)) if subjects is None else subjects
    return audit_attributes(logits, features, np.asarray(y), {"sex": np.asarray(z)}, subjects, resamples=200, **more)


def noise(*shape):
    return RNG.normal(size=shape)


def test_a_network_that_follows_the_attribute():
    found = audit(Z, Z + 0.1 * noise(1000))["attributes"]["sex"]
    assert found["accuracy"] == pytest.approx({"val": 0.9, "bal": 0.5, "inv": 0.1})
    assert found["gap"]["value"] == pytest.approx(0.8) and found["gap"]["interval"] == pytest.approx(
        [0.8, 0.8], abs=0.05
    )
    assert found["features"]["value"] == found["predictions"]["value"] == 1 and found["chance"] == 0.5
    assert found["groups"][0] == {"cell": "y: 0, sex: 1", "accuracy": 0.0, "n": 50}
    assert audit_verdict(found) == "shortcut"


def test_what_the_label_explains_is_no_leak():
    found = audit(Y, Y + 0.1 * noise(1000))["attributes"]["sex"]
    low, high = found["features"]["interval"]
    assert low <= 0.5 <= high and found["predictions"]["value"] == 0.5  # the label alone tells 90 % of the attribute
    assert found["gap"] == {"value": 0.0, "interval": [0.0, 0.0]} and audit_verdict(found) == "no sign of it"


def test_folds_of_uneven_subjects_do_not_read_less_than_chance():
    """A probe that only knew which class is frequent where it was fitted would be wrong where it is scored."""
    for seed in range(5):
        subjects = np.random.default_rng(seed).integers(0, 12, 1000) ** 2  # few, with several images each
        found = audit(Y, Y + 0.1 * noise(1000), subjects=subjects, seed=seed)["attributes"]["sex"]
        assert found["predictions"]["value"] == 0.5


def test_a_leak_that_the_predictions_do_not_use():
    found = audit(Y, np.stack([Y, Z], axis=1) + 0.1 * noise(1000, 2))["attributes"]["sex"]
    assert found["features"]["value"] == 1 and found["predictions"]["value"] == 0.5
    assert audit_verdict(found) == "in the features"


def test_a_network_that_does_not_know_the_label_is_told():
    found = audit(np.zeros_like(Y), Z + 0.1 * noise(1000))["attributes"]["sex"]
    assert found["gap"]["value"] == pytest.approx(0) and found["verdict"] == "at chance (not learned), in the features"
    logits = np.stack([0 * Z, Z - 9.0], axis=1)  # constant too, though not in how sure it is
    found = audit_attributes(logits, noise(1000, 1), Y, {"sex": Z}, range(1000), resamples=50)["attributes"]["sex"]
    assert found["verdict"] == "at chance (not learned), in the predictions"
    assert audit(np.zeros_like(Y), np.zeros(1000))["attributes"]["sex"]["verdict"] == "at chance (not learned)"
    unequal = np.repeat([0, 1], [900, 100])  # of which a constant guess has 90 %
    z = np.tile([0, 1], 500)
    found = audit(unequal, np.zeros(1000), y=unequal, z=z)
    assert found["attributes"]["sex"]["verdict"] == "no sign of it"


def test_over_correction():
    contrary = np.where((Y == 1) & (Z == 1), 0, Y)
    found = audit(contrary, noise(1000))["attributes"]["sex"]
    # Right in all cells but (1, 1): 0.55 as found, 0.75 balanced, 0.95 inverted.
    assert found["accuracy"] == pytest.approx({"val": 0.55, "bal": 0.75, "inv": 0.95})
    assert audit_verdict(found) == "over-corrected (anti-shortcut)"


def test_three_classes_and_unequal_frequencies():
    y, z = RNG.choice(3, 3000, p=[0.6, 0.3, 0.1]), RNG.choice(3, 3000, p=[0.5, 0.3, 0.2])
    z = np.where(RNG.random(3000) < 0.1, y, z)
    right = y == z
    found = audit(np.where(right, y, (y + 1) % 3), noise(3000), y=y, z=z)["attributes"]["sex"]
    assert found["accuracy"]["val"] == pytest.approx(right.mean())
    # Right where z == y: the expected share of that among the images of each class.
    same = np.array([(z == c).mean() for c in range(3)])
    own = np.array([(z[y == c] == c).mean() for c in range(3)])
    of_y = np.bincount(y) / 3000
    assert found["accuracy"]["bal"] == pytest.approx((of_y * same).sum())
    assert (2 * same > own).all()  # so that nothing is cut off at 0
    assert found["accuracy"]["inv"] == pytest.approx((of_y * (2 * same - own)).sum())
    counts = np.histogram2d(y, z, bins=(3, 3))[0]
    assert found["association"] == pytest.approx(association(counts.astype(int), method="cramer"))
    assert found["chance"] == pytest.approx(1 / 3) and found["features"]["interval"][0] < 1 / 3


@pytest.mark.parametrize("counts", [[[800, 50], [100, 50]], [[700, 100], [100, 100]], [[500, 5], [300, 195]]])
def test_a_network_that_ignores_the_attribute_has_no_gap_whatever_the_frequencies(counts):
    y = np.repeat([0, 0, 1, 1], np.ravel(counts))
    z = np.repeat([0, 1, 0, 1], np.ravel(counts))
    # Recall 0.8 of class 0 and 0.4 of class 1, in every cell alike.
    order = np.concatenate([np.arange(n) / n for n in np.ravel(counts)])
    predicted = np.where(order < np.where(y == 0, 0.8, 0.4) - 1e-9, y, 1 - y)
    found = audit(predicted, noise(len(y)), y=y, z=z)["attributes"]["sex"]
    assert found["accuracy"]["val"] == pytest.approx((predicted == y).mean())
    assert found["gap"]["value"] == pytest.approx(0, abs=0.02) and found["verdict"] == "no sign of it"


@pytest.mark.parametrize("counts", [[[742, 8], [12, 238]], [[700, 50], [240, 10]], [[500, 5], [300, 195]]])
def test_a_class_that_is_harder_whatever_the_label_leaves_no_gap(counts):
    """Inv must not hold more of a hard class of z than Val, only because a class of y is rare."""
    y = np.repeat([0, 0, 1, 1], np.ravel(counts))
    z = np.repeat([0, 1, 0, 1], np.ravel(counts))
    weights, share = _cell_weights(np.asarray(counts) / len(y))
    assert 0 < share <= 1
    np.testing.assert_allclose(weights["bal"] - weights["inv"], share * (weights["val"] - weights["bal"]), atol=1e-12)
    assert share == 1 or weights["inv"].min() == pytest.approx(0, abs=1e-12)  # the rarest cell is empty then
    for subset in ("val", "bal", "inv"):
        assert weights[subset].sum(axis=0) == pytest.approx(np.bincount(z) / len(z))
        assert weights[subset].sum(axis=1) == pytest.approx(np.bincount(y) / len(y))
        assert (weights[subset] > -1e-12).all()
    turned = weights["inv"] - weights["bal"]
    assert (turned * (weights["val"] - weights["bal"]) < 0).all()
    assert float((weights["val"] - weights["inv"]).sum(axis=0) @ [0.97, 0.5]) == pytest.approx(0)


def test_a_leak_within_the_classes_of_y_is_read():
    y, z = RNG.integers(0, 2, (2, 1000))
    logit = 6.0 * (2 * y - 1) + (2 * z - 1) + 0.1 * noise(1000)  # never wrong about y
    logits = np.stack([np.zeros(1000), logit], axis=1)
    found = audit_attributes(logits, logit[:, None], y, {"sex": z}, range(1000), resamples=50)["attributes"]["sex"]
    assert found["predictions"]["value"] > 0.99 and found["features"]["value"] > 0.99
    assert found["gap"]["value"] == 0 and found["verdict"] == "in the predictions"


def test_samples_that_miss_a_cell_do_not_widen_the_interval():
    y, z = np.repeat([0, 1], 60), np.tile(np.repeat(np.arange(6), [5, 5, 5, 5, 20, 20]), 2)
    found = audit(y, noise(120), y=y, z=z)["attributes"]["sex"]
    assert found["gap"]["value"] == pytest.approx(0) and found["gap"]["interval"] == pytest.approx([0, 0])


def test_rare_classes_count_as_unknown():
    z = Z.copy()
    z[:4] = 2  # never with y = 1
    found = audit_attributes(
        np.eye(2)[Y],
        noise(1000, 1),
        Y,
        {"site": z},
        range(1000),
        resamples=20,
        class_names={"site": ["a", "b", "rare"]},
    )["attributes"]["site"]
    assert found["n"] == 996 and found["rare"] == ["rare"] and found["chance"] == 0.5


def test_a_subject_known_by_heart_is_no_leak():
    subjects = np.repeat(np.arange(60), 10)
    y, z = np.tile([0, 1], 300), np.repeat(RNG.permutation(np.repeat([0, 1], 30)), 10)
    found = audit(y, np.eye(60)[subjects], y=y, z=z, subjects=subjects)["attributes"]["sex"]
    assert found["features"]["value"] < 0.7  # 1.0 if rows of a subject stood on both sides


def test_unknown_values_are_left_out_of_their_attribute_only():
    z = Z.copy()
    z[::4] = -1
    found = audit_attributes(
        np.eye(2)[Y],
        noise(1000, 1),
        Y,
        {"part": z, "whole": Z},
        range(1000),
        resamples=20,
        class_names={"y": ["no", "yes"]},
    )
    assert found["n"] == 1000 and found["attributes"]["part"]["n"] == 750 and found["attributes"]["whole"]["n"] == 1000
    assert {group["cell"] for group in found["attributes"]["part"]["groups"]} == {
        f"y: {y}, part: {z}" for y in ("no", "yes") for z in "01"
    }
    assert found["accuracy"] == found["balanced_accuracy"] == found["auroc"] == 1


@pytest.mark.parametrize("z", [np.zeros(1000, dtype=int), np.full(1000, -1), Y])
def test_what_cannot_be_audited_is_said(z):
    found = audit(Y, noise(1000), z=z)["attributes"]["sex"]
    assert "fewer than two of its classes have 5 subjects" in found["skipped"] and found["verdict"] == "not audited"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"labels": np.where(np.arange(1000) == 7, np.nan, Y)}, "expected labels of 0 to 1, got nan in row 7"),
        ({"labels": Y - 1}, "expected labels of 0 to 1, got -1 in row 0"),
        ({"labels": Y + 0.5}, "expected labels of 0 to 1, got 0.5 in row 0"),
        ({"labels": np.where(Y, "yes", "0")}, "expected labels of 0 to 1, got yes in row 500"),
        ({"labels": Y[:9]}, "of the same images, got rows .*'labels': 9, .*'sex': 1000"),
        ({"features": np.zeros((9, 1))}, "of the same images, got rows .*'features': 9"),
        ({"subjects": range(9)}, "of the same images, got rows .*'subjects': 9"),
        ({"attributes": {"sex": Z[:9]}}, "of the same images, got rows .*'sex': 9"),
        ({"attributes": {"sex": np.where(Z, np.nan, 1)}}, "expected 'sex' of -1 .unknown. to 1, got nan in row 450"),
        ({"attributes": {"sex": Z + 1}}, "expected 'sex' of -1 .unknown. to 1, got 2 in row 450"),
        ({"logits": np.full((1000, 2), np.nan)}, "expected finite logits, got nan in row 0"),
        ({"features": np.full((1000, 2), np.inf)}, "expected finite features, got inf in row 0"),
    ],
)
def test_arrays_that_do_not_belong_together_are_told(changed, message):
    given = {"logits": np.eye(2)[Y], "features": noise(1000, 1), "labels": Y, "attributes": {"sex": Z}}
    given |= {"subjects": range(1000), "class_names": {"sex": ["f", "m"]}} | changed
    with pytest.raises(ValueError, match=message):
        audit_attributes(**given)


def test_whole_numbers_are_classes_whatever_their_type():
    features = noise(1000)
    assert audit(Y, features, y=Y, z=Z) == audit_attributes(
        np.eye(2)[Y] * 4.0,
        features[:, None],
        Y.astype(float),
        {"sex": Z.astype(np.float32)},
        range(1000),
        resamples=200,
    )


def test_the_same_seed_gives_the_same_audit():
    features = noise(1000, 3)
    assert audit(Z, features, seed=1) == audit(Z, features, seed=1)
