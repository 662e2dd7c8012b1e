# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""Two-dimensional pictures of feature blocks."""

from __future__ import annotations

import numpy as np
from sklearn.manifold import TSNE
from sklearn.preprocessing import StandardScaler

__all__ = ["tsne"]


def tsne(features: np.ndarray, *, seed: int = 0, max_points: int = 1000) -> tuple[np.ndarray, np.ndarray]:
    """
    t-SNE of one feature block, on standardised features.

    Args:
        features: shape `(n, D)`, finite.
        seed: seed of the choice of points and of t-SNE.
        max_points: embed this many rows at most, drawn without replacement; t-SNE's time grows with them.

    Returns:
        Points `(m, 2)` and the rows `(m,)` of `features` they stand for, ascending. Features without any variance, and
        fewer than four points, have no neighbourhood to show: their points lie on a small seeded cloud.

    Raises:
        ValueError: for features that are not 2-dimensional or not finite, or `max_points` below 1.

    Example:
        >>> points, rows = tsne(np.random.default_rng(0).normal(size=(50, 8)), max_points=20)
        >>> points.shape, rows.shape
        ((20, 2), (20,))
    """
    features = np.asarray(features, dtype=np.float64)
    if features.ndim != 2:
        raise ValueError(f"features must have shape (n, D); got {features.shape}.")
    if not np.isfinite(features).all():
        raise ValueError("features must be finite; got NaN or infinity.")
    if max_points < 1:
        raise ValueError(f"max_points must be 1 or more; got {max_points}.")
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.permutation(len(features))[:max_points])
    if not len(rows):
        return np.zeros((0, 2)), rows
    chosen = StandardScaler().fit_transform(features[rows])
    if len(rows) < 4 or np.abs(chosen).max() < 1e-6:  # rounding leaves more than 0
        return rng.normal(scale=1e-3, size=(len(rows), 2)), rows
    if chosen.shape[1] == 1:
        chosen = np.hstack([chosen, np.zeros_like(chosen)])  # PCA, the start, needs two columns
    perplexity = min(30.0, (len(rows) - 1) / 3)
    # From a PCA start the layout has settled after half of the default iterations.
    return TSNE(init="pca", perplexity=perplexity, max_iter=500, random_state=seed).fit_transform(chosen), rows
