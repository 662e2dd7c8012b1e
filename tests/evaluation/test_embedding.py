# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""Tests of the two-dimensional embedding."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from monai_mimmx.evaluation.embedding import tsne


def test_two_clusters_stay_apart():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 60)
    features = rng.normal(size=(120, 6)) + 8 * labels[:, None]
    points, rows = tsne(features)
    assert rows.tolist() == list(range(120))
    nearest = NearestNeighbors(n_neighbors=6).fit(points).kneighbors(points, return_distance=False)[:, 1:]
    assert (labels[nearest] == labels[:, None]).mean() > 0.99


def test_points_belong_to_the_rows_returned():
    rng = np.random.default_rng(0)
    features = np.where(np.arange(200)[:, None] < 100, 0.0, 9.0) + rng.normal(size=(200, 4))
    points, rows = tsne(features, max_points=80, seed=1)
    assert points.shape == (80, 2)
    assert (np.diff(rows) > 0).all()
    first = rows < 100
    centres = points[first].mean(axis=0), points[~first].mean(axis=0)
    nearer = np.linalg.norm(points - centres[0], axis=1) < np.linalg.norm(points - centres[1], axis=1)
    assert (nearer == first).mean() > 0.98
    again, same = tsne(features, max_points=80, seed=1)
    np.testing.assert_array_equal(again, points)
    assert not np.array_equal(tsne(features, max_points=80, seed=2)[1], same)


@pytest.mark.parametrize("shape", [(0, 3), (1, 3), (2, 3), (3, 3), (4, 3), (5, 1), (40, 1), (40, 16)])
@pytest.mark.parametrize("constant", [False, True])
def test_few_points_and_constant_features_give_finite_points_without_warnings(shape, constant):
    features = np.full(shape, 0.1) if constant else np.random.default_rng(0).normal(size=shape)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        points, rows = tsne(features)
    assert points.shape == (shape[0], 2)
    assert len(rows) == shape[0]
    assert np.isfinite(points).all()


@pytest.mark.parametrize(
    ("features", "options", "message"),
    [
        (np.zeros(3), {}, r"features must have shape \(n, D\); got \(3,\)"),
        (np.array([[np.nan, 1.0]]), {}, "features must be finite"),
        (np.zeros((3, 2)), {"max_points": 0}, "max_points must be 1 or more; got 0"),
    ],
)
def test_errors(features, options, message):
    with pytest.raises(ValueError, match=message):
        tsne(features, **options)
