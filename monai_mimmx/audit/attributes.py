# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""Which attributes the features and predictions of a classifier hold, beyond what the label explains."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import softmax
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from monai_mimmx.data import cell_index
from monai_mimmx.evaluation.predictions import Predictions
from monai_mimmx.evaluation.probes import PROBES
from monai_mimmx.evaluation.scores import accuracy, auroc, balanced_accuracy, bootstrap_interval, verdict

__all__ = ["audit_attributes", "audit_verdict"]

FOLDS = 5


def audit_attributes(
    logits: np.ndarray,
    features: np.ndarray,
    labels: np.ndarray,
    attributes: Mapping[str, np.ndarray],
    subjects: Iterable[Any],
    *,
    class_names: Mapping[str, Sequence[str]] | None = None,
    resamples: int = 500,
    seed: int = 0,
) -> dict[str, Any]:
    """
    What a classifier makes of each attribute z of its images, given their label y.

    - Reading: a logistic regression, fitted and scored on different subjects in 5 folds, reads z from the features, and
      another one from the predicted probabilities. Every (y, z) cell weighs the same, so that what z shares with y helps
      nothing: chance is 1 / classes of z.
    - Gap: the accuracy of y if the cells were as frequent as they are ("val"), if z and y were independent ("bal") and if
      their association were the opposite ("inv"). With p(y, z) the frequencies and r = p(y, z) / (p(y) p(z)), the cells
      weigh r, 1 and 1 / r. For two balanced binary labels that agree with probability a, "inv" is agreement 1 - a.

    Args:
        logits: of the label's classes, `(n, K)`.
        features: `(n, F)`.
        labels: class of y, `(n,)`, 0 to K - 1.
        attributes: name to class of z, `(n,)`, -1 where unknown.
        subjects: subject of each row, `(n,)`; rows of one subject stay together.
        class_names: attribute to the names of its classes, for the cells; "y" for the label.
        resamples: bootstrap samples, by subject, of the 95 % intervals.
        seed: of folds and bootstrap.

    Returns:
        "accuracy", "balanced_accuracy", "auroc" of y, "n", and "attributes": name to
        "n", "association" (Cramér's V with y, 0 to 1), "chance", "features" and "predictions" (the readings:
        `{"value", "interval"}`), "accuracy" `{"val", "bal", "inv"}`, "gap" `{"value", "interval"}` (val minus inv),
        "worst_group", "groups" (`[{"cell", "accuracy", "n"}]`); or "skipped", the reason.

    Raises:
        ValueError: for arrays that do not belong together.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> y, z = rng.integers(0, 2, (2, 400))
        >>> report = audit_attributes(np.eye(2)[y], z[:, None] + 0.1 * rng.normal(size=(400, 1)), y, {"sex": z}, range(400))
        >>> found = report["attributes"]["sex"]
        >>> found["features"]["value"], abs(round(found["gap"]["value"], 6))
        (1.0, 0.0)
    """
    subjects = np.asarray([str(subject) for subject in subjects])
    classes = logits.shape[1]
    whole = _predictions(
        logits, features, labels, np.zeros(len(labels), dtype=int), subjects, np.zeros((len(labels), 2))
    )
    result: dict[str, Any] = {
        "n": len(labels),
        "accuracy": accuracy(whole),
        "balanced_accuracy": balanced_accuracy(whole),
        "auroc": auroc(whole),
        "attributes": {},
    }
    names = class_names or {}
    for name, z in attributes.items():
        known = np.asarray(z) >= 0
        rows = {"logits": logits, "features": features, "labels": labels, "z": np.asarray(z), "subjects": subjects}
        rows = {key: np.asarray(value)[known] for key, value in rows.items()}
        count = int(np.max(z, initial=0)) + 1
        reason = _cannot(rows["labels"], rows["z"], rows["subjects"], classes, count)
        result["attributes"][name] = (
            {"skipped": reason, "n": int(known.sum())}
            if reason
            else _audit_one(name, rows, count, names, resamples=resamples, seed=seed)
        )
    return result


def _cannot(y: np.ndarray, z: np.ndarray, subjects: np.ndarray, classes: int, count: int) -> str:
    """Why an attribute cannot be audited; empty where it can."""
    if count < 2 or len(np.unique(z)) < 2:
        return "it has one class only"
    cells = cell_index(np.stack([y, z], axis=1), [classes, count])
    for cell in range(classes * count):
        people = len(np.unique(subjects[cells == cell]))
        if people < FOLDS:
            where = f"y = {cell // count}, class {cell % count} of it"
            return f"{people} subjects with {where}; {FOLDS} are needed to read it and to weigh it"
    return ""


def _predictions(
    logits: np.ndarray, features: np.ndarray, y: np.ndarray, z: np.ndarray, subjects: np.ndarray, read: np.ndarray
) -> Predictions:
    """y and one attribute as two tasks; `read` are the attribute's logits."""
    return Predictions(
        logits=np.concatenate([logits, read], axis=1),
        labels=np.stack([y, z], axis=1),
        features=np.repeat(features[:, None, :1], 2, axis=1),
        attention=np.ones((len(y), 1)),
        task_names=["label", "attribute"],
        num_classes=[logits.shape[1], read.shape[1]],
        subjects=subjects,
    )


def _audit_one(
    name: str,
    rows: Mapping[str, np.ndarray],
    count: int,
    names: Mapping[str, Sequence[str]],
    *,
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    y, z, subjects, logits = rows["labels"], rows["z"], rows["subjects"], rows["logits"]
    classes = logits.shape[1]
    cells = cell_index(np.stack([y, z], axis=1), [classes, count])
    frequency = np.bincount(cells, minlength=classes * count).reshape(classes, count) / len(y)
    readings = {}
    probabilities = softmax(logits.astype(np.float64), axis=1)
    for source, values in (("features", rows["features"]), ("predictions", probabilities[:, 1:])):
        read = _cross_fitted(values, z, cells, subjects, count, seed=seed)
        pair = _predictions(logits, rows["features"], y, z, subjects, read)
        interval = bootstrap_interval(pair, "cell_balanced_accuracy", task=1, resamples=resamples, seed=seed)
        value = float(_cell_accuracies(pair, 1).mean())
        readings[source] = {"value": value, "interval": list(interval)}
    weights = _cell_weights(frequency)
    scores = {subset: float((weight * _cell_accuracies(pair, 0)).sum()) for subset, weight in weights.items()}
    gaps = bootstrap_interval(
        pair,
        lambda some: float(np.nansum((weights["val"] - weights["inv"]) * _cell_accuracies(some, 0))),
        resamples=resamples,
        seed=seed,
    )
    shown = {
        "y": names.get("y", [str(i) for i in range(classes)]),
        name: names.get(name, [str(i) for i in range(count)]),
    }

    def title(cell: int) -> str:
        return f"y: {shown['y'][cell // count]}, {name}: {shown[name][cell % count]}"

    accuracies = _cell_accuracies(pair, 0).ravel()
    numbers = np.bincount(cells, minlength=classes * count)
    groups = [
        {"cell": title(cell), "accuracy": float(accuracies[cell]), "n": int(numbers[cell])}
        for cell in range(classes * count)
    ]
    return {
        "n": len(y),
        "association": _cramers_v(frequency),
        "chance": 1 / count,
        **readings,
        "accuracy": scores,
        "gap": {"value": scores["val"] - scores["inv"], "interval": list(gaps)},
        "worst_group": min(groups, key=lambda group: (group["accuracy"], group["n"])),
        "groups": groups,
    }


def _cell_accuracies(pair: Predictions, task: int) -> np.ndarray:
    """Accuracy of a task in every (y, z) cell, `(K, classes of z)`; NaN where the cell is empty."""
    cells = cell_index(pair.labels, pair.num_classes)
    n = np.bincount(cells, minlength=math.prod(pair.num_classes))
    hits = np.bincount(cells, weights=pair.predicted(task) == pair.labels[:, task], minlength=len(n))
    with np.errstate(invalid="ignore"):
        return (hits / n).reshape(pair.num_classes)


def _cell_weights(frequency: np.ndarray) -> dict[str, np.ndarray]:
    """Weights of the (y, z) cells under the association found, none, and the opposite one; each sums to 1."""
    ratio = frequency / (frequency.sum(axis=1, keepdims=True) * frequency.sum(axis=0, keepdims=True))
    return {key: weight / weight.sum() for key, weight in (("val", ratio), ("bal", ratio**0), ("inv", 1 / ratio))}


def _cramers_v(frequency: np.ndarray) -> float:
    expected = frequency.sum(axis=1, keepdims=True) * frequency.sum(axis=0, keepdims=True)
    return float(np.sqrt(((frequency - expected) ** 2 / expected).sum() / (min(frequency.shape) - 1)))


def _cross_fitted(
    values: np.ndarray, z: np.ndarray, cells: np.ndarray, subjects: np.ndarray, count: int, *, seed: int
) -> np.ndarray:
    """One-hot z `(n, count)` that probes read which were fitted on other subjects, with equal weight for every cell."""
    weight = (1 / np.bincount(cells))[cells]
    weight *= len(weight) / weight.sum()
    read = np.zeros((len(z), count))
    values = values.astype(np.float64)
    for fit, score in StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed).split(values, cells, subjects):
        model = make_pipeline(StandardScaler(), PROBES["linear"]())
        model.fit(values[fit], z[fit], logisticregression__sample_weight=weight[fit])
        read[score, model.predict(values[score])] = 1
    return read


def audit_verdict(found: Mapping[str, Any]) -> str:
    """
    What was found about one attribute, in a few words.

    Args:
        found: an entry of "attributes" of `audit_attributes`.

    Returns:
        "shortcut" or "over-corrected (anti-shortcut)" where the gap is more than 5 points and its interval leaves out 0;
        else "in the predictions" or "in the features" where the interval of what is read there lies above chance; else
        "no sign of it". "not audited" where it was skipped.

    Example:
        >>> sure = {"value": 0.2, "interval": [0.1, 0.3]}
        >>> audit_verdict({"gap": sure, "chance": 0.5, "features": sure, "predictions": sure})
        'shortcut'
    """
    if "skipped" in found:
        return "not audited"
    low, high = found["gap"]["interval"]
    word = verdict(found["gap"]["value"])
    if word != "balanced" and (low > 0 or high < 0):
        return word
    for source in ("predictions", "features"):
        if found[source]["interval"][0] > found["chance"]:
            return f"in the {source}"
    return "no sign of it"
