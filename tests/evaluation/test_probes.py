# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""Tests of the probes: a planted leak is found, independent features stay at chance."""

from __future__ import annotations

import time

import numpy as np
import pytest

from monai_mimmx.evaluation.predictions import Predictions
from monai_mimmx.evaluation.probes import probe_matrix


def made(n: int, prefix: str, *, seed: int, leak: float = 0.0, dim: int = 8, classes: int = 2) -> Predictions:
    """Balanced labels; every block knows its own task, and f_y knows `sex` as well where `leak` is above 0."""
    rng = np.random.default_rng(seed)
    labels = np.stack([rng.integers(2, size=n), rng.integers(2, size=n), rng.integers(classes, size=n)], axis=1)
    features = rng.normal(size=(n, 3, dim))
    for task in range(3):
        features[:, task, 0] += 4 * labels[:, task]
    features[:, 0, 1] += leak * labels[:, 1]
    features *= 10.0 ** np.random.default_rng(99).integers(-3, 4, size=dim)  # scales that only standardisation undoes
    subjects = np.array([f"{prefix}{i}" for i in range(n)])
    return Predictions(
        np.zeros((n, 4 + classes)), labels, features, np.ones((n, 2)), ["y", "sex", "site"], [2, 2, classes], subjects
    )


def test_independent_blocks_are_at_chance_and_own_tasks_are_read():
    fit, score = made(1000, "f", seed=0), made(2000, "s", seed=1)
    result = probe_matrix(fit, score)
    assert set(result) == {"linear", "knn", "chance"}
    for name in ("linear", "knn"):
        for block in ("f_y", "f_sex", "f_site"):
            for key in ("y", "sex", "site"):
                if block == f"f_{key}":
                    assert result[name][block][key] > 0.9
                else:
                    assert abs(result[name][block][key] - 0.5) < 0.045  # 4 standard errors


@pytest.mark.parametrize("name", ["linear", "knn"])
def test_planted_leak_is_found_where_it_is(name):
    fit, score = made(800, "f", seed=0, leak=4.0), made(800, "s", seed=1, leak=4.0)
    result = probe_matrix(fit, score, probes=[name])
    assert set(result) == {name, "chance"}
    assert result[name]["f_y"]["sex"] > 0.9
    assert result[name]["f_sex"]["y"] < 0.58
    assert result[name]["f_site"]["sex"] < 0.58


def test_knn_reads_a_leak_from_few_samples():
    """With as many neighbours as samples it would say one class to all, which reads like no leak."""
    fit, score = made(12, "f", seed=0, leak=8.0), made(800, "s", seed=1, leak=8.0)
    assert probe_matrix(fit, score, probes=["knn"])["knn"]["f_y"]["sex"] > 0.75


def test_knn_needs_the_nonlinear_part():
    """A ring around a disc: no line parts them, neighbours do."""

    def rings(prefix: str, seed: int) -> Predictions:
        rng = np.random.default_rng(seed)
        labels, angle = rng.integers(2, size=(600, 2)), rng.random(600) * 2 * np.pi
        radius = 1.0 + 2.0 * labels[:, 1] + 0.1 * rng.normal(size=600)
        features = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)[:, None].repeat(2, axis=1)
        subjects = np.array([f"{prefix}{i}" for i in range(600)])
        return Predictions(np.zeros((600, 4)), labels, features, np.ones((600, 1)), ["y", "sex"], [2, 2], subjects)

    result = probe_matrix(rings("f", 0), rings("s", 1))
    assert result["linear"]["f_y"]["sex"] < 0.65
    assert result["knn"]["f_y"]["sex"] > 0.98


def test_scale_and_shift_of_a_feature_do_not_matter():
    fit, score = made(200, "f", seed=0, leak=1.0), made(200, "s", seed=0, leak=1.0)
    before = probe_matrix(fit, score)
    factors, shift = np.random.default_rng(0).lognormal(sigma=3, size=8), np.arange(8.0)
    fit.features, score.features = fit.features * factors + shift, score.features * factors + shift
    after = probe_matrix(fit, score)
    for name in ("linear", "knn"):
        for block, row in before[name].items():
            assert after[name][block] == pytest.approx(row, abs=0.006)


def test_constant_features_give_the_share_of_one_class_and_chance_is_the_largest():
    fit, score = made(100, "f", seed=0), made(100, "s", seed=1)
    fit.features, score.features = np.full_like(fit.features, 0.1), np.full_like(score.features, 0.1)
    score.labels[:, 0] = np.arange(100) < 70
    result = probe_matrix(fit, score)
    assert result["chance"]["y"] == 0.7
    for name in ("linear", "knn"):
        assert any(result[name]["f_y"]["y"] == pytest.approx(share) for share in (0.3, 0.7))


def test_missing_labels_are_skipped():
    fit, score = made(300, "f", seed=0), made(300, "s", seed=0)
    full = probe_matrix(fit.take(np.arange(200)), score.take(np.arange(100)))
    fit.labels[200:], score.labels[100:] = -1, -1
    assert probe_matrix(fit, score) == full


def test_task_without_labels_or_with_one_class_gives_none():
    fit, score = made(50, "f", seed=0), made(50, "s", seed=1)
    fit.labels[:, 1], score.labels[:, 2] = 1, -1
    result = probe_matrix(fit, score)
    assert [result["linear"]["f_y"][key] is None for key in ("y", "sex", "site")] == [False, True, True]
    assert result["chance"]["site"] is None


def test_three_classes_and_few_rows():
    fit, score = made(12, "f", seed=0, classes=3), made(300, "s", seed=1, classes=3)
    result = probe_matrix(fit, score)
    assert 1 / 3 <= result["chance"]["site"] < 0.45
    assert 0 <= result["knn"]["f_site"]["site"] <= 1


def test_max_fit_is_a_seeded_choice():
    fit, score = made(400, "f", seed=0, leak=1.0), made(400, "s", seed=1, leak=1.0)
    few = probe_matrix(fit, score, max_fit=20, seed=0)
    assert few == probe_matrix(fit, score, max_fit=20, seed=0)
    assert few != probe_matrix(fit, score, max_fit=20, seed=1)
    assert probe_matrix(fit, score, max_fit=400) == probe_matrix(fit, score)


def test_is_fast():
    fit, score = made(1000, "f", seed=0, dim=64), made(2000, "s", seed=1, dim=64)
    start = time.perf_counter()
    probe_matrix(fit, score)
    assert time.perf_counter() - start < 3


def test_errors():
    fit, score = made(20, "f", seed=0), made(20, "s", seed=1)
    with pytest.raises(ValueError, match=r"probes must be one or more of \['knn', 'linear'\]; got \['svm'\]"):
        probe_matrix(fit, score, probes=["svm"])
    with pytest.raises(ValueError, match="max_fit must be 2 or more, or None; got 1"):
        probe_matrix(fit, score, max_fit=1)
    with pytest.raises(ValueError, match="got 20 and 0"):
        probe_matrix(fit, score.take(np.array([], dtype=int)))
    score.subjects[:3] = ["f4", "f4", "f7"]
    with pytest.raises(ValueError, match=r"share 2 subjects \(e.g. 'f4'\)"):
        probe_matrix(fit, score)
    score.task_names = ["y", "site", "sex"]
    with pytest.raises(ValueError, match="must have the same tasks"):
        probe_matrix(fit, score)
