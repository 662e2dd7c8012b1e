# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""Probes of a frozen network: how well each task's label can be read from each feature block."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from monai_mimmx.evaluation.predictions import Predictions

__all__ = ["probe_matrix"]

PROBES: dict[str, Callable[[], Any]] = {
    "linear": lambda: LogisticRegression(max_iter=1000),
    "knn": lambda: KNeighborsClassifier(n_neighbors=15),
}


def probe_matrix(
    fit: Predictions,
    score: Predictions,
    *,
    probes: Sequence[str] = ("linear", "knn"),
    seed: int = 0,
    max_fit: int | None = None,
) -> dict[str, dict[str, Any]]:
    """
    Fit a classifier for every task on every feature block, and score it on other subjects.

    Args:
        fit: balanced data that the network was not trained on, to fit the probes. Rows without a label are left out.
        score: balanced data of other subjects, to score them.
        probes: "linear" (logistic regression) and/or "knn" (15 nearest neighbours; of fewer than 60 samples a quarter), on
            standardised features.
        seed: seed of the choice of `max_fit` rows.
        max_fit: fit on this many rows at most; None for all.

    Returns:
        Accuracies: `{probe: {"f_y": {"y": ..., factor: ...}, "f_<factor>": {...}}, "chance": {"y": ..., factor: ...}}`.
        Chance is the share of the largest class in `score`, i.e. the best constant guess. None where a task has no
        label in `score` or fewer than two classes in `fit`.

    Raises:
        ValueError: for an unknown probe, different tasks, no rows, or subjects in both sets.

    Example:
        >>> probe_matrix(probe_set, balanced_test_set)["linear"]["f_y"]["sex"]  # doctest: +SKIP
        0.51
    """
    unknown = [name for name in probes if name not in PROBES]
    if unknown or not probes:
        raise ValueError(f"probes must be one or more of {sorted(PROBES)}; got {list(probes)}.")
    if max_fit is not None and max_fit < 2:
        raise ValueError(f"max_fit must be 2 or more, or None; got {max_fit}.")
    if fit.keys != score.keys:
        raise ValueError(f"fit and score must have the same tasks; got {fit.keys} and {score.keys}.")
    if not len(fit) or not len(score):
        raise ValueError(f"fit and score must hold one or more rows each; got {len(fit)} and {len(score)}.")
    overlap = np.intersect1d(fit.subjects, score.subjects)
    if overlap.size:
        raise ValueError(
            f"fit and score must be subject-disjoint, but share {overlap.size} subjects (e.g. '{overlap[0]}'): "
            "fit on the probe subset, score on the balanced test subset."
        )
    if max_fit is not None and max_fit < len(fit):
        fit = fit.take(np.random.default_rng(seed).permutation(len(fit))[:max_fit])

    keys = fit.keys
    result: dict[str, dict[str, Any]] = {name: {f"f_{key}": {} for key in keys} for name in probes}
    result["chance"] = {}
    for task, key in enumerate(keys):
        rows, test_rows = fit.labels[:, task] >= 0, score.labels[:, task] >= 0
        labels, test_labels = fit.labels[rows, task], score.labels[test_rows, task]
        counts = np.bincount(test_labels)
        result["chance"][key] = float(counts.max() / counts.sum()) if counts.size else None
        # Of a class that it has not seen a probe reads nothing, however much there is.
        possible = counts.size > 0 and len(np.unique(labels)) > 1 and not np.setdiff1d(test_labels, labels).size
        for name in probes:
            for block, block_key in enumerate(keys):
                value = None
                if possible:
                    model = make_pipeline(StandardScaler(), PROBES[name]())
                    if name == "knn" and len(labels) < 60:
                        # Of as many neighbours as samples the vote is always the same, which looks like chance.
                        model[-1].set_params(n_neighbors=max(1, len(labels) // 4))
                    # float64: a nearly constant feature stays nearly constant when it is standardised.
                    model.fit(fit.features[rows, block].astype(np.float64), labels)
                    value = float(model.score(score.features[test_rows, block].astype(np.float64), test_labels))
                result[name][f"f_{block_key}"][key] = value
    return result
