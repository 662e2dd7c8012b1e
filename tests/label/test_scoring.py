# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""The scores that decide what is labelled next, against closed forms."""

import numpy as np
import pytest
from scipy.special import expit, softmax

from monai_mimmx.label import factor_effects, rare_cell_scores, shortcut_scores

CELLS = np.array([[y, z, w] for y in (0, 1) for z in (0, 1) for w in (0, 1)])
BINARY = (2, 2, 2)


def sure(labels, y_logits, num_classes):
    """All heads' logits: those given for y, and near certainty of the labels for the factors."""
    heads = [60.0 * np.eye(classes)[labels[:, i]] for i, classes in enumerate(num_classes)][1:]
    return np.concatenate([y_logits, *heads], axis=1)


def additive(labels, a, b, c):
    """Logits 0 and a (2 y - 1) + b (2 z - 1) + c (2 w - 1) of the primary head."""
    margin = (2 * labels - 1) @ np.array([a, b, c], dtype=float)
    return sure(labels, np.stack([0 * margin, margin], axis=1), BINARY), margin


def test_a_network_that_ignores_the_factors_scores_zero_however_correlated_they_are():
    labels = np.concatenate([np.repeat(CELLS[[0, 7]], 45, axis=0), CELLS])
    logits, _ = additive(labels, 1.3, 0.0, 0.0)
    assert shortcut_scores(logits, labels, BINARY) == pytest.approx(np.zeros(len(labels)), abs=1e-12)


@pytest.mark.parametrize(("b", "c"), [(2.0, 0.0), (0.0, -1.0), (2.0, 0.5)])
def test_effects_of_an_additive_network_are_found_exactly_on_correlated_data(b, c):
    labels = np.concatenate([np.repeat(CELLS[[0, 7]], 20, axis=0), CELLS])
    logits, margin = additive(labels, 0.4, b, c)
    first, second = factor_effects(logits, labels, BINARY)
    assert first == pytest.approx(np.array([[0, -b], [0, b]]), abs=1e-9)
    assert second == pytest.approx(np.array([[0, -c], [0, c]]), abs=1e-9)
    # p(predicted) less p(predicted) with the margin of y alone.
    own, sign = 0.4 * (2 * labels[:, 0] - 1), np.where(margin > 0, 1, -1)
    expected = expit(sign * margin) - expit(sign * own)
    assert shortcut_scores(logits, labels, BINARY) == pytest.approx(expected, abs=1e-9)


def test_the_highest_score_is_that_of_an_image_whose_prediction_would_turn():
    labels = np.tile(CELLS, (5, 1))
    logits, margin = additive(labels, 1.0, 2.0, 0.0)
    scores = shortcut_scores(logits, labels, BINARY)
    turned = labels[:, 0] != labels[:, 1]  # the factor outvotes y
    assert scores[turned].min() > scores[~turned].max() > 0


def test_a_prediction_against_the_factors_scores_below_zero():
    labels = np.tile(CELLS, (5, 1))
    logits, _ = additive(labels, 2.0, 1.0, 0.0)
    scores = shortcut_scores(logits, labels, BINARY)
    assert (scores[labels[:, 0] != labels[:, 1]] < 0).all() and (scores[labels[:, 0] == labels[:, 1]] > 0).all()


def test_few_labels_leave_the_predicted_classes_in_their_place():
    known = np.tile(CELLS, (5, 1))
    logits, _ = additive(known, 1.0, 0.3, 0.0)  # the predicted y is the true one
    few = known.copy()
    few[3:] = -1
    assert factor_effects(logits, few, BINARY)[0] == pytest.approx(factor_effects(logits, known, BINARY)[0])
    assert shortcut_scores(logits, few, BINARY) == pytest.approx(shortcut_scores(logits, known, BINARY))


def test_enough_labels_outweigh_wrong_predictions():
    labels = np.tile(CELLS, (5, 1))
    logits, _ = additive(labels, 0.1, 3.0, 0.0)  # the predicted y is z
    half = np.concatenate([labels, np.full_like(labels, -1)])
    effects = factor_effects(np.concatenate([logits, logits]), half, BINARY)
    assert effects[0][1, 1] == pytest.approx(3.0)


def test_a_shift_of_all_logits_changes_nothing_and_the_order_of_images_neither():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (60, 3))
    logits = rng.normal(size=(60, 6))
    scores = shortcut_scores(logits, labels, BINARY)
    order = rng.permutation(60)
    assert shortcut_scores(logits[order], labels[order], BINARY) == pytest.approx(scores[order])
    moved = logits + np.repeat(rng.normal(size=(60, 3)), 2, axis=1)
    assert shortcut_scores(moved, np.full_like(labels, -1), BINARY) == pytest.approx(
        shortcut_scores(logits, np.full_like(labels, -1), BINARY)
    )


def test_several_classes_and_an_uncertain_factor():
    rng = np.random.default_rng(1)
    labels = np.stack([rng.integers(0, 3, 90), rng.integers(0, 4, 90)], axis=1)
    effect = np.array([[0, 0, 0], [1, 0, 0], [0, 2, 0], [0, 0, 3.0]])
    y_logits = 2 * np.eye(3)[labels[:, 0]] + effect[labels[:, 1]]
    logits = sure(labels, y_logits, (3, 4))
    found = factor_effects(logits, labels, (3, 4))[0]
    assert found == pytest.approx(effect - effect.mean(axis=0), abs=1e-9)
    unsure = np.concatenate([logits, [[0, 1, 0, 0.2, 0.1, 0, 0.7]]])
    score = shortcut_scores(unsure, np.concatenate([labels, [[-1, -1]]]), (3, 4))[-1]
    shift = softmax([0.2, 0.1, 0, 0.7]) @ found
    assert score == pytest.approx(softmax([0.0, 1, 0])[1] - softmax(np.array([0.0, 1, 0]) - shift)[1], abs=1e-9)


def test_the_rarest_cell_comes_first():
    labels = np.array([[0, 0]] * 9 + [[1, 1]] * 4 + [[0, 1], [-1, -1], [-1, -1], [1, -1]])
    truth = np.array([[0, 0]] * 9 + [[1, 1]] * 4 + [[0, 1], [1, 0], [0, 0], [1, 1]])
    logits = np.concatenate([60.0 * np.eye(2)[truth[:, i]] for i in (0, 1)], axis=1)
    scores = rare_cell_scores(logits, labels, (2, 2))
    assert scores[-3:] == pytest.approx([1.0, 1 / 10, 1 / 5])  # the incomplete label counts in no cell


def test_an_image_that_may_be_in_any_cell_counts_as_in_one_of_mean_size():
    scores = rare_cell_scores(np.zeros((2, 5)), np.array([[0, 2], [-1, -1]]), (2, 3))
    assert scores == pytest.approx([1 / (1 + 1 / 6)] * 2)


@pytest.mark.parametrize("score", [shortcut_scores, rare_cell_scores])
def test_shapes_that_do_not_belong_together_are_told(score):
    with pytest.raises(ValueError, match=r"expected logits of shape \(n, 4\), got \(3, 5\)"):
        score(np.zeros((3, 5)), np.zeros((3, 2), dtype=int), (2, 2))
    with pytest.raises(ValueError, match=r"expected labels of shape \(3, 2\), got \(2, 2\)"):
        score(np.zeros((3, 4)), np.zeros((2, 2), dtype=int), (2, 2))
