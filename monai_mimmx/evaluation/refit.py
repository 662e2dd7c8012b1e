# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""Deep feature reweighting: the primary head fitted anew on balanced held-out features of a finished network."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from torch import Tensor
from torch.utils.data import DataLoader

from monai_mimmx.data import CachedImages, keep_batch
from monai_mimmx.data.splits import cell_index
from monai_mimmx.errors import raise_problems
from monai_mimmx.files import write_checkpoint
from monai_mimmx.networks import MIMMXNet
from monai_mimmx.networks.modes import evaluated
from monai_mimmx.trained_model import load_model

__all__ = ["refit_last_layer"]

STRENGTHS = (1.0, 0.7, 0.3, 0.1, 0.07, 0.03, 0.01)
"""Inverse L1 penalties that are tried, as in the reference."""

ITERATIONS = 10_000
"""Of a fit with three or more classes, at most; some hundreds are usual."""


def _balanced(cells: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """As many rows of every populated cell as the rarest one has, drawn without replacement."""
    values, counts = np.unique(cells, return_counts=True)
    return np.concatenate([rng.permutation(np.flatnonzero(cells == value))[: counts.min()] for value in values])


def _fit(features: np.ndarray, y: np.ndarray, strength: float) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients `(k, F)` and intercepts `(k,)`, k the number of classes, or 1 for two classes."""
    if len(np.unique(y)) > 2:
        return _fit_softmax(features, y, strength)
    # scikit-learn 1.8 names the penalty by l1_ratio and warns of the older argument.
    kind = (
        {"l1_ratio": 1}
        if "deprecated" in str(getattr(LogisticRegression(), "penalty", "deprecated"))
        else {"penalty": "l1"}
    )
    model = LogisticRegression(**kind, C=strength, solver="liblinear", max_iter=1000, random_state=0)
    model.fit(features, y)
    return model.coef_, model.intercept_


def _fit_softmax(features: np.ndarray, y: np.ndarray, strength: float) -> tuple[np.ndarray, np.ndarray]:
    """
    The minimum of `strength * sum(cross-entropy) + |coefficients|_1`, classes 0 to k - 1.

    By L-BFGS-B, the coefficients being the difference of two parts that are not negative. scikit-learn's saga, its one solver
    for this, takes far more passes where features are correlated.
    """
    rows, (k, size) = np.arange(len(y)), (int(y.max()) + 1, features.shape[1])
    target = np.eye(k)[y]
    split = k * size

    def parts(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return (values[:split] - values[split : 2 * split]).reshape(k, size), values[2 * split :]

    def objective(values: np.ndarray) -> tuple[float, np.ndarray]:
        coefficients, intercepts = parts(values)
        logits = features @ coefficients.T + intercepts
        log_probabilities = log_softmax(logits, axis=1)
        residual = strength * (np.exp(log_probabilities) - target)
        slope = (residual.T @ features).ravel()
        value = values[: 2 * split].sum() - strength * log_probabilities[rows, y].sum()
        return value, np.concatenate([1 + slope, 1 - slope, residual.sum(0)])

    bounds = [(0, None)] * (2 * split) + [(None, None)] * k
    options = {"maxiter": ITERATIONS, "maxfun": 2 * ITERATIONS, "ftol": 1e-10, "gtol": 1e-4}
    start = np.zeros(2 * split + k)
    found = minimize(objective, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    if not found.success:
        told = f"the last layer of y, fitted anew (dfr), has not converged in {found.nit} iterations: its scores may be too low"
        warnings.warn(told, stacklevel=2)
    return parts(found.x)


def _worst_cell(logits: np.ndarray, y: np.ndarray, cells: np.ndarray) -> float:
    predicted = logits.argmax(1) if logits.shape[1] > 1 else (logits[:, 0] > 0).astype(int)
    return min(float((predicted == y)[cells == value].mean()) for value in np.unique(cells))


def _encode(network: MIMMXNet, data: CachedImages, device: torch.device | str) -> tuple[np.ndarray, np.ndarray]:
    outputs: list[Tensor] = []
    labels: list[Tensor] = []
    with evaluated(network):
        for batch in DataLoader(data, batch_size=250, collate_fn=keep_batch):
            outputs.append(network.encoder(batch["image"].to(device)).float().cpu())
            labels.append(batch["label"])
    return torch.cat(outputs).double().numpy(), torch.cat(labels).numpy()


def check_refit(labels: np.ndarray, num_classes: Sequence[int], feature_dim: int) -> None:
    """
    Raise ValueError where `refit_last_layer` cannot work with these labels, or this width of the feature blocks.

    Args:
        labels: class indices `(n, 1 + N)` of the data to refit on, -1 where one is missing.
        num_classes: classes of each task, the primary task first.
        feature_dim: width of every feature block.
    """
    problems = []
    width = 1 if num_classes[0] == 2 else num_classes[0]
    if feature_dim < width:
        told = f"the logits of {num_classes[0]} classes need feature_dim {width} or more, got {feature_dim}."
        problems.append(ValueError(told))
    cells = cell_index(labels, num_classes)
    y = np.unique(labels[cells >= 0, 0])
    if len(y) < num_classes[0]:
        problems.append(ValueError(f"every class of the primary task needs rows in the data to refit on, got {y}."))
    elif (counts := np.bincount(cells[cells >= 0], minlength=math.prod(num_classes))).min() < 2:
        least = ", ".join(map(str, np.unravel_index(int(counts.argmin()), tuple(num_classes))))
        told = (
            "every (y, z) cell needs 2 or more rows in the data to refit on, the subset select: the classes "
            f"({least}) have {counts.min()}; give it more rows, or a lower agreement."
        )
        problems.append(ValueError(told))
    raise_problems(problems)


def refit_last_layer(
    network: MIMMXNet,
    data: CachedImages,
    checkpoint: str | os.PathLike[str],
    *,
    num_classes: Sequence[int],
    device: torch.device | str,
    draws: int = 10,
    seed: int = 0,
) -> float:
    """
    Replace the primary head of a trained network by a logistic regression on its encoder's output, and save it.

    The regression (L1 penalty, standardised features) is fitted on `draws` subsets in which every (y, z) cell has as
    many rows as the rarest one, and averaged. The penalty is the one with the best worst-cell accuracy over two folds.
    The primary feature block then holds the new logits. No other weight changes; but a Confounder Attention Weighter reads
    that block, so that attention does, and in its "features" reading the factors' logits with it.

    Args:
        network: whose architecture fits the checkpoint; it ends with the new weights.
        data: held-out data, correlated as in training, such as the select subset.
        checkpoint: file that is read and then replaced.
        num_classes: classes of each task, the primary task first.
        device: where the network is.
        draws: balanced subsets to average over, 1 or more.
        seed: of the subsets.

    Returns:
        The inverse penalty that was chosen.

    Raises:
        ValueError: where a class of y is missing or a cell has fewer than two rows, or the feature block is too narrow
            for the logits of three or more classes.

    Example:
        `refit_last_layer(network, images["select"], "output/models/model.pt", num_classes=(2, 2, 2), device="cpu")`

    Reference:
        Kirichenko et al., Last Layer Re-Training is Sufficient for Robustness to Spurious Correlations, ICLR 2023.
    """
    if draws < 1:
        raise ValueError(f"draws must be 1 or more, got {draws}.")
    check_refit(data.labels, num_classes, network.feature_dim)
    load_model(network, Path(checkpoint))
    features, labels = _encode(network, data, device)
    cells = cell_index(labels, num_classes)
    features, labels, cells = features[cells >= 0], labels[cells >= 0], cells[cells >= 0]
    y = labels[:, 0]
    mean, scale = features.mean(0), features.std(0)
    scale[scale < 1e-12] = 1.0
    standard = (features - mean) / scale
    rng = np.random.default_rng(seed)

    scores = np.zeros(len(STRENGTHS))
    for fit, score in StratifiedKFold(2, shuffle=True, random_state=seed).split(standard, cells):
        rows = fit[_balanced(cells[fit], rng)]
        for place, strength in enumerate(STRENGTHS):
            coefficients, intercepts = _fit(standard[rows], y[rows], strength)
            scores[place] += _worst_cell(standard[score] @ coefficients.T + intercepts, y[score], cells[score])
    strength = STRENGTHS[int(scores.argmax())]

    fits = []
    for _ in range(draws):
        rows = _balanced(cells, rng)
        fits.append(_fit(standard[rows], y[rows], strength))
    coefficients, intercepts = (np.mean(parts, axis=0) for parts in zip(*fits, strict=True))
    weight = coefficients / scale
    _write(network, weight, intercepts - weight @ mean)
    write_checkpoint(checkpoint, network.state_dict())
    return strength


@torch.no_grad()
def _write(network: MIMMXNet, weight: np.ndarray, bias: np.ndarray) -> None:
    """Make the first entries of f_y the new logits, the others 0, and the head hand them on."""
    block = slice(0, network.feature_dim)
    rows = len(weight)
    projection, standardize = network.projection, network.standardize
    head: Any = network.heads[0]
    mean: Any = standardize.running_mean
    variance: Any = standardize.running_var
    for values in (projection.weight, projection.bias):
        values[block] = 0
    projection.weight[:rows] = torch.from_numpy(weight).to(projection.weight)
    projection.bias[:rows] = torch.from_numpy(bias).to(projection.bias)
    mean[block] = 0
    variance[block] = 1 - standardize.eps
    head.weight.zero_()
    head.bias.zero_()
    if rows == 1:
        head.weight[:, 0] = torch.tensor([-0.5, 0.5])
    else:
        head.weight[:, :rows] = torch.eye(rows)
