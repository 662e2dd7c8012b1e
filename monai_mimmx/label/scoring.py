# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""Which image to label next: the one whose prediction leans most on spurious factors, or that of the rarest cell."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import softmax

from monai_mimmx.data.splits import cell_index

__all__ = ["factor_effects", "rare_cell_scores", "shortcut_scores"]

ROWS_PER_PARAMETER = 5


def _split(logits: np.ndarray, labels: np.ndarray, num_classes: Sequence[int]) -> list[np.ndarray]:
    """The logits of each head in float64, after a check of the shapes."""
    logits, tasks = np.asarray(logits, dtype=np.float64), len(num_classes)
    if logits.ndim != 2 or logits.shape[1] != sum(num_classes):
        raise ValueError(f"expected logits of shape (n, {sum(num_classes)}), got {logits.shape}")
    if np.shape(labels) != (len(logits), tasks):
        raise ValueError(f"expected labels of shape ({len(logits)}, {tasks}), got {np.shape(labels)}")
    return np.split(logits, np.cumsum(num_classes)[:-1], axis=1)


def factor_effects(logits: np.ndarray, labels: np.ndarray, num_classes: Sequence[int]) -> list[np.ndarray]:
    r"""
    How much each spurious factor moves the logits of the primary task, among images of equal primary label.

    The least squares fit over the images of

    .. math:: l_c(x) = \mu_c(y) + \sum_i \delta_{i,c}(z_i), \quad \sum_k \delta_{i,c}(k) = 0,

    where l_c is the primary head's logit of class c. Fitted on the images with all labels, if these are at least 5 per
    parameter and tell the factors from y and each other; else on all images, with the predicted classes in place of the
    missing labels (where factors cannot be told apart, the shortest solution shares the effect between them).

    Args:
        logits: all heads' logits `(n, sum C)`, the primary task first.
        labels: class indices `(n, 1 + N)`, -1 where unknown.
        num_classes: classes of each task.

    Returns:
        one array `(C_i, C_0)` per factor, in units of logits (nats): row k is the effect of class k.

    Raises:
        ValueError: for shapes that do not belong together.

    Example:
        >>> labels = np.array([[0, 0], [0, 1], [1, 0], [1, 1]] * 4)
        >>> y, z = labels.T
        >>> logits = np.stack([0 * y, 2.0 * y + 3.0 * z, 0 * z, z], axis=1)
        >>> factor_effects(logits, labels, (2, 2))[0].round(6).tolist()
        [[0.0, -1.5], [0.0, 1.5]]
    """
    heads = _split(logits, labels, num_classes)
    labels = np.asarray(labels)
    rank = 1 + sum(classes - 1 for classes in num_classes)
    complete = (labels >= 0).all(axis=1)
    used = complete if complete.sum() >= ROWS_PER_PARAMETER * rank else np.ones_like(complete)
    if used is complete and np.linalg.matrix_rank(_one_hot(labels[complete], num_classes)) < rank:
        used = np.ones_like(complete)
    filled = np.where(labels >= 0, labels, np.stack([head.argmax(axis=1) for head in heads], axis=1))
    solution = np.linalg.lstsq(_one_hot(filled[used], num_classes), heads[0][used], rcond=None)[0]
    effects = np.split(solution, np.cumsum(num_classes)[:-1])[1:]
    return [effect - effect.mean(axis=0) for effect in effects]


def _one_hot(labels: np.ndarray, num_classes: Sequence[int]) -> np.ndarray:
    """Class indices `(n, 1 + N)` to `(n, sum C)` zeros and ones."""
    return np.concatenate([np.eye(classes)[labels[:, i]] for i, classes in enumerate(num_classes)], axis=1)


def shortcut_scores(logits: np.ndarray, labels: np.ndarray, num_classes: Sequence[int]) -> np.ndarray:
    r"""
    How much of the probability of each image's predicted primary class is owed to its spurious factors.

    .. math:: s(x) = p_{\hat y}(l(x)) - p_{\hat y}\Big(l(x) - \sum_i \sum_k p(z_i = k | x) \, \delta_i(k)\Big)

    with l the primary head's logits, p the softmax, the effects delta of `factor_effects`, and p(z_i | x) the factor's
    own head (the label, where it is known).

    Args:
        logits: all heads' logits `(n, sum C)`, the primary task first.
        labels: class indices `(n, 1 + N)`, -1 where unknown.
        num_classes: classes of each task.

    Returns:
        `(n,)` in (-1, 1): 0 for a network whose primary logits do not move with the factors; above 0 where the
        factors speak for the prediction, most where it would turn without them; below 0 where it stands against them.

    Raises:
        ValueError: for shapes that do not belong together.

    Example:
        >>> labels = np.array([[0, 0], [0, 1], [1, 0], [1, 1]] * 4)
        >>> logits = np.eye(2)[labels[:, 1]].repeat(2, axis=0).reshape(16, 4) * 20
        >>> shortcut_scores(logits, labels, (2, 2))[:2].round(3).tolist()
        [0.5, 0.5]
    """
    heads = _split(logits, labels, num_classes)
    labels = np.asarray(labels)
    shift = np.zeros_like(heads[0])
    for i, effect in enumerate(factor_effects(logits, labels, num_classes), start=1):
        known = labels[:, [i]] >= 0
        shift += np.where(known, np.eye(num_classes[i])[labels[:, i]], softmax(heads[i], axis=1)) @ effect
    rows, predicted = np.arange(len(shift)), heads[0].argmax(axis=1)
    return (softmax(heads[0], axis=1) - softmax(heads[0] - shift, axis=1))[rows, predicted]


def rare_cell_scores(logits: np.ndarray, labels: np.ndarray, num_classes: Sequence[int]) -> np.ndarray:
    r"""
    How rare the cell of (y, z_1 .. z_N) that each image is predicted to be in still is among the labelled ones.

    .. math:: s(x) = \Big(1 + \sum_c n_c \prod_i p(i = c_i | x)\Big)^{-1}

    over all cells c, with n_c images of complete label in it and the heads' probabilities: an image that may as well be in
    a common cell is not taken for a rare one.

    Args:
        logits: all heads' logits `(n, sum C)`, the primary task first.
        labels: class indices `(n, 1 + N)`, -1 where unknown.
        num_classes: classes of each task.

    Returns:
        `(n,)` in (0, 1]: 1 for an image that is surely in a cell without labelled images.

    Raises:
        ValueError: for shapes that do not belong together.

    Example:
        >>> logits = np.array([[9.0, -9, 9, -9], [9, -9, -9, 9]])
        >>> rare_cell_scores(logits, np.array([[0, 0], [-1, -1]]), (2, 2)).round(3).tolist()
        [0.5, 1.0]
    """
    heads = _split(logits, labels, num_classes)
    cells = cell_index(np.asarray(labels), num_classes)
    counts = np.bincount(cells[cells >= 0], minlength=math.prod(num_classes))
    joint = np.ones((len(cells), 1))
    for head in heads:
        joint = (joint[:, :, None] * softmax(head, axis=1)[:, None, :]).reshape(len(cells), -1)
    return 1.0 / (1.0 + joint @ counts)
