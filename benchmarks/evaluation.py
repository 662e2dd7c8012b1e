# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""The matrix of probes, and the pictures' t-SNE, of features of many samples."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from benchmarks.timing import interleaved
from monai_mimmx.evaluation import Predictions, probe_matrix, tsne


def make_predictions(samples: int, *, factors: int = 2, dim: int = 16, seed: int = 0) -> Predictions:
    """Random features that hold a little of every label."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, (samples, 1 + factors))
    features = rng.standard_normal((samples, 1 + factors, dim)) + labels[:, None, :1] + 0.3 * labels[:, :, None]
    logits = np.stack([1 - labels, labels], 2).reshape(samples, -1).astype(float)
    names = ["sick", *(f"z{i}" for i in range(factors))]
    attention = np.full((samples, factors), 1 / factors)
    return Predictions(
        logits, labels, features, attention, names, [2] * len(names), [f"{seed}_{i}" for i in range(samples)]
    )


def measure(quick: bool = False) -> dict[str, list[dict[str, Any]]]:
    """All rows; ``quick``: sizes that only show that it runs."""
    samples = 500 if quick else 20_000
    fit, score = make_predictions(samples), make_predictions(samples, seed=1)
    seconds = interleaved(
        {"probes": partial(probe_matrix, fit, score), "tsne": partial(tsne, score.features.reshape(samples, -1))},
        repeats=1 if quick else 3,
        warm_up=0,
    )
    embedded = len(tsne(score.features.reshape(samples, -1))[1])  # it draws some
    row = {"samples": samples, "embedded": embedded, **{f"{name}_seconds": value for name, value in seconds.items()}}
    return {"evaluation": [row]}
