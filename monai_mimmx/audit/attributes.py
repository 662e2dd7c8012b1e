# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""Which attributes the features and predictions of a classifier hold, beyond what the label explains."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import log_softmax
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tqdm import tqdm

from monai_mimmx.data import cell_index
from monai_mimmx.evaluation.predictions import Predictions
from monai_mimmx.evaluation.probes import PROBES
from monai_mimmx.evaluation.scores import (
    accuracy,
    auroc,
    balanced_accuracy,
    bootstrap_group_accuracies,
    cell_balanced_accuracy,
    verdict,
)

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
    progress: bool = False,
) -> dict[str, Any]:
    """
    What a classifier makes of each attribute z of its images, given their label y.

    - Reading: a logistic regression, fitted and scored on different subjects in 5 folds, reads z from the features, and
      another one from the logits; of both, the mean of each class of y is subtracted first. Every (y, z) cell weighs the
      same. What z shares with y helps nothing: chance is 1 / classes of z.
    - Gap: the accuracy of y with z as it is distributed within each class of y ("val"), as if it were distributed alike in
      all classes ("bal"), and as if it deviated from that to the other side ("inv": 2 p(z) - p(z | y), not below 0). The
      classes of y keep their frequencies. For two balanced binary labels that agree with probability a, "inv" is
      agreement 1 - a. A network that ignores z has no gap, whatever the frequencies.

    Whether a gap above 0 is a shortcut depends on the training data: it is where they had the association of these images.

    Args:
        logits: of the label's classes, `(n, K)`.
        features: `(n, F)`.
        labels: class of y, `(n,)`, 0 to K - 1.
        attributes: name to class of z, `(n,)`, -1 where unknown. A class with fewer than 5 subjects in some class of y
            counts as unknown.
        subjects: subject of each row, `(n,)`; rows of one subject stay together.
        class_names: attribute to the names of its classes, for the cells; "y" for the label.
        resamples: bootstrap samples, by subject, of the 95 % intervals.
        seed: of folds and bootstrap.
        progress: show a progress bar.

    Returns:
        "accuracy", "balanced_accuracy", "auroc" of y, "n", and "attributes": name to
        "n", "verdict" (see `audit_verdict`), "association" (Cramér's V with y, 0 to 1), "chance", "features" and
        "predictions" (the readings: `{"value", "interval"}`), "accuracy" `{"val", "bal", "inv"}`, "gap"
        `{"value", "interval"}` (val minus inv, which turns the association round as far as the rarest cell allows), "turned"
        (how far that is: from 0 to 1, where inv has the whole of the association the other way round), "groups"
        (`[{"cell", "accuracy", "n"}]`, the worst first), "rare" (names of classes that count as unknown); or
        "verdict" and "skipped", the reason.

    Raises:
        ValueError: for arrays that do not belong together, values that are no classes, or that are not finite.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> y, z = rng.integers(0, 2, (2, 400))
        >>> report = audit_attributes(np.eye(2)[y], z[:, None] + 0.1 * rng.normal(size=(400, 1)), y, {"sex": z}, range(400))
        >>> found = report["attributes"]["sex"]
        >>> found["features"]["value"], found["gap"]["value"], found["verdict"]
        (1.0, 0.0, 'in the features')
    """
    subjects = np.asarray([str(subject) for subject in subjects])
    arrays = {"logits": logits, "features": features, "labels": labels, "subjects": subjects, **attributes}
    counts = {name: len(array) for name, array in arrays.items()}
    if len({*counts.values()}) > 1:
        raise ValueError(
            f"expected logits, features, labels, subjects and attributes of the same images, got rows {counts}"
        )
    for name, values in (("logits", logits), ("features", features)):
        if not (finite := np.isfinite(values)).all():
            place = np.unravel_index(int(finite.argmin()), values.shape)
            raise ValueError(f"expected finite {name}, got {values[place]} in row {place[0]}")
    names = {"y": [str(i) for i in range(logits.shape[1])], **(class_names or {})}
    labels = _class_indices("labels of 0", labels, 0, logits.shape[1])
    attributes = {
        name: _class_indices(f"{name!r} of -1 (unknown)", z, -1, len(names[name]) if name in names else None)
        for name, z in attributes.items()
    }
    whole = _predictions(logits, labels, np.zeros_like(labels), subjects, 2)
    result: dict[str, Any] = {
        "n": len(labels),
        "accuracy": accuracy(whole),
        "balanced_accuracy": balanced_accuracy(whole),
        "auroc": auroc(whole),
        "attributes": {},
    }
    for name, z in tqdm(attributes.items(), desc="auditing", unit="column", disable=not progress):
        classes = names.get(name) or [str(i) for i in range(int(z.max(initial=0)) + 1)]
        kept, rare = _frequent(labels, z, subjects, logits.shape[1], len(classes))
        if len(kept) < 2:
            reason = f"fewer than two of its classes have {FOLDS} subjects in every class of y"
            found: dict[str, Any] = {"skipped": reason, "n": int((z >= 0).sum())}
        else:
            rows = np.isin(z, kept)
            pair = _predictions(logits[rows], labels[rows], np.searchsorted(kept, z[rows]), subjects[rows], len(kept))
            titles = [names["y"], [classes[i] for i in kept]]
            found = _audit_one(pair, features[rows], name, titles, resamples=resamples, seed=seed)
            found["rare"] = [classes[i] for i in rare]
        balanced = result["balanced_accuracy"]
        word = audit_verdict(found, balanced=balanced, chance=1 / logits.shape[1])
        result["attributes"][name] = {"verdict": word, **found}
    return result


def _class_indices(what: str, values: Any, low: int, end: int | None) -> np.ndarray:
    """Whole numbers from low, below the end where there is one, as integers; whatever their type was."""
    numbers = pd.to_numeric(pd.Series(np.asarray(values)), errors="coerce").to_numpy(dtype=np.float64)
    right = (numbers == np.floor(numbers)) & (numbers >= low) & (numbers < (math.inf if end is None else end))
    if not right.all():
        row = int(right.argmin())
        upwards = "on" if end is None else f"to {end - 1}"
        raise ValueError(f"expected {what} {upwards}, got {np.asarray(values)[row]} in row {row}")
    return numbers.astype(np.int64)


def _frequent(
    y: np.ndarray, z: np.ndarray, subjects: np.ndarray, classes: int, count: int
) -> tuple[list[int], list[int]]:
    """The classes of z with enough subjects in each class of y to be read and weighed, and those without."""
    _, subject = np.unique(subjects, return_inverse=True)
    cells = cell_index(np.stack([y, z], axis=1), [classes, count])
    seen = np.unique(np.stack([cells, subject], axis=1)[cells >= 0], axis=0)[:, 0]
    people = np.bincount(seen, minlength=classes * count).reshape(classes, count)
    enough = people.min(axis=0) >= FOLDS
    present = [i for i in range(count) if (z == i).any()]
    return [i for i in present if enough[i]], [i for i in present if not enough[i]]


def _predictions(logits: np.ndarray, y: np.ndarray, z: np.ndarray, subjects: np.ndarray, count: int) -> Predictions:
    """y and one attribute as two tasks; the attribute's logits are still to come."""
    return Predictions(
        logits=np.concatenate([logits, np.zeros((len(y), count))], axis=1),
        labels=np.stack([y, z], axis=1),
        features=np.zeros((len(y), 2, 0)),
        attention=np.ones((len(y), 1)),
        task_names=["label", "attribute"],
        num_classes=[logits.shape[1], count],
        subjects=subjects,
    )


def _audit_one(
    pair: Predictions, features: np.ndarray, name: str, titles: Sequence[Sequence[str]], *, resamples: int, seed: int
) -> dict[str, Any]:
    cells = cell_index(pair.labels, pair.num_classes)
    size, (classes, count) = math.prod(pair.num_classes), pair.num_classes
    numbers = np.bincount(cells, minlength=size)
    folds = list(
        StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed).split(cells, cells, np.asarray(pair.subjects))
    )
    readings = {}
    for source, values in (("features", features), ("predictions", log_softmax(pair.head_logits(0), axis=1))):
        pair.logits[:, classes:] = _cross_fitted(values, pair.labels, cells, folds, count)
        rates = bootstrap_group_accuracies(pair, cells, task=1, resamples=resamples, seed=seed)
        readings[source] = {
            "value": cell_balanced_accuracy(pair, 1),
            "interval": np.nanquantile(np.nanmean(rates, axis=1), [0.025, 0.975]).tolist(),
        }
    hits = pair.predicted(0) == pair.labels[:, 0]
    accuracies = np.bincount(cells, weights=hits, minlength=size) / numbers
    weights, turned = _cell_weights(numbers.reshape(classes, count) / len(cells))
    scores = {subset: float((weight.ravel() * accuracies).sum()) for subset, weight in weights.items()}
    rates = bootstrap_group_accuracies(pair, cells, resamples=resamples, seed=seed)
    val, inv = (_weighted(rates, weights[subset]) for subset in ("val", "inv"))
    groups = [
        {
            "cell": f"y: {titles[0][cell // count]}, {name}: {titles[1][cell % count]}",
            "accuracy": float(accuracies[cell]),
            "n": int(numbers[cell]),
        }
        for cell in range(size)
    ]
    return {
        "n": len(cells),
        "association": _cramers_v(numbers.reshape(classes, count) / len(cells)),
        "turned": turned,
        "chance": 1 / count,
        **readings,
        "accuracy": scores,
        "gap": {"value": scores["val"] - scores["inv"], "interval": np.nanquantile(val - inv, [0.025, 0.975]).tolist()},
        "groups": sorted(groups, key=lambda group: (group["accuracy"], group["n"])),
    }


def _cell_weights(frequency: np.ndarray) -> tuple[dict[str, np.ndarray], float]:
    """
    Weights of the (y, z) cells: z given y as found, as in all classes together, and to the other side of that; and how
    far to it, as a share of the association that was found.

    The other side is as far away as the rarest cell allows, in all classes of y alike, so that each class of y and of z
    stays as frequent as it is, and an accuracy that depends on z alone leaves no gap.
    """
    of_y, of_z = frequency.sum(axis=1, keepdims=True), frequency.sum(axis=0, keepdims=True)
    away = frequency / of_y - of_z
    room = np.divide(of_z, away, where=away > 0, out=np.ones_like(away))
    turned = min(1.0, float(room.min()))
    return {"val": frequency, "bal": of_y * of_z, "inv": of_y * (of_z - turned * away)}, turned


def _weighted(rates: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted accuracy of each bootstrap sample; a cell that was not drawn leaves its weight to the others of its row."""
    rates = rates.reshape(len(rates), *weights.shape)
    drawn = np.where(np.isnan(rates), 0, weights)
    with np.errstate(invalid="ignore", divide="ignore"):
        drawn *= weights.sum(axis=1)[:, None] / drawn.sum(axis=2, keepdims=True)
    return np.where(np.isnan(drawn).any(axis=(1, 2)), np.nan, (drawn * np.nan_to_num(rates)).sum(axis=(1, 2)))


def _cramers_v(frequency: np.ndarray) -> float:
    expected = frequency.sum(axis=1, keepdims=True) * frequency.sum(axis=0, keepdims=True)
    return float(np.sqrt(((frequency - expected) ** 2 / expected).sum() / (min(frequency.shape) - 1)))


def _cross_fitted(
    values: np.ndarray,
    labels: np.ndarray,
    cells: np.ndarray,
    folds: Sequence[tuple[np.ndarray, np.ndarray]],
    count: int,
) -> np.ndarray:
    """One-hot z `(n, count)`, read by probes that were fitted on other subjects, with equal weight for every cell."""
    y, z = labels.T
    read = np.zeros((len(z), count))
    values = values.astype(np.float64)
    rounding = 1e-9 * np.abs(values).max(axis=0)
    for fit, score in folds:
        # What y alone explains, with every class of z weighing the same within a class of y.
        means = np.stack([values[fit][cells[fit] == cell].mean(axis=0) for cell in range(int(cells.max()) + 1)])
        centre = means.reshape(-1, count, values.shape[1]).mean(axis=1)
        left = values - centre[y]
        left[np.abs(left) < rounding] = 0.0  # where y explains all, the probe must not standardise what rounding left
        # The weights are those of this fold: a class that is frequent in it is rare in the rest, which is scored.
        weight = (1 / np.bincount(cells[fit]))[cells[fit]]
        weight *= len(weight) / weight.sum()
        model = make_pipeline(StandardScaler(), PROBES["linear"]())
        model.fit(left[fit], z[fit], logisticregression__sample_weight=weight)
        read[score, model.predict(left[score])] = 1
    return read


def audit_verdict(found: Mapping[str, Any], *, balanced: float | None = None, chance: float | None = None) -> str:
    """
    What was found about one attribute, in a few words.

    Args:
        found: an entry of "attributes" of `audit_attributes`.
        balanced: balanced accuracy of the label, and `chance`: that of a constant guess. With both, a network that has no
            gap only because it guesses is called so.

    Returns:
        "shortcut" or "over-corrected (anti-shortcut)" where the gap is more than 5 points and its interval leaves out 0
        (and the training data had the association of these images; where they had the opposite one, the two words change
        places); else "in the predictions" or "in the features" where the interval of what is read there lies above
        chance; else "no sign of it". Where the label is not predicted more than 5 points above chance, "at chance (not
        learned)", and where the attribute is read. "not audited" where it was skipped.

    Example:
        >>> sure = {"value": 0.2, "interval": [0.1, 0.3]}
        >>> audit_verdict({"gap": sure, "chance": 0.5, "features": sure, "predictions": sure})
        'shortcut'
    """
    if "skipped" in found:
        return "not audited"
    low, high = found["gap"]["interval"]
    word = verdict(found["gap"]["value"] if low > 0 or high < 0 else 0.0, balanced=balanced, chance=chance)
    guessed = word.startswith("at chance")
    if word != "balanced" and not guessed:
        return word
    for source in ("predictions", "features"):
        if found[source]["interval"][0] > found["chance"]:
            return f"{word}, in the {source}" if guessed else f"in the {source}"
    return word if guessed else "no sign of it"
