# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""Scores of predictions: accuracy on sets of opposite correlation, the worst group, and how sure each number is."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
from scipy.special import logsumexp
from sklearn.metrics import roc_auc_score

from monai_mimmx.data import cell_index
from monai_mimmx.evaluation.predictions import Predictions
from monai_mimmx.options import NATURAL

__all__ = [
    "accuracy",
    "auroc",
    "balanced_accuracy",
    "bootstrap_interval",
    "cell_balanced_accuracy",
    "drop_val_inv",
    "final_scores",
    "followed_factors",
    "format_score_table",
    "gap_interval",
    "group_accuracies",
    "score_table",
    "switched_labels",
    "verdict",
    "verdict_on",
    "worst_group",
]

SUBSET_TITLES = {"val": "Val", "inv": "Inv", "bal": "Bal"}
FEW_POINTS = 0.05
"""What a gap, or a probe above chance, may be before it is told as a shortcut or a leak."""


def _groups(predictions: Predictions, task: int, by: str) -> np.ndarray:
    """Group index of each row, shape (n,); -1 for a row that misses the task's label or one that `by` needs."""
    labels = predictions.labels
    if by == "all":
        return np.where(labels[:, task] >= 0, 0, -1)
    if by == "class":
        return labels[:, task]
    return cell_index(labels, predictions.num_classes)


def _mean_over_groups(predictions: Predictions, task: int, by: str) -> float:
    group = _groups(predictions, task, by)
    used = group >= 0
    if not used.any():
        raise ValueError(f"no row has the labels that the score of task '{predictions.task_names[task]}' needs.")
    hits = (predictions.predicted(task) == predictions.labels[:, task])[used]
    n = np.bincount(group[used])
    correct = np.bincount(group[used], weights=hits)
    return float((correct[n > 0] / n[n > 0]).mean())


def accuracy(predictions: Predictions, task: int = 0) -> float:
    """
    Share of rows where a head predicts its own task. Rows without that label are left out.

    Args:
        predictions: outputs and labels.
        task: 0 for the primary task, i for the i-th spurious factor.

    Raises:
        ValueError: where no row has the label.
    """
    return _mean_over_groups(predictions, task, "all")


def balanced_accuracy(predictions: Predictions, task: int = 0) -> float:
    """Mean over the classes that are present of the accuracy within the class. See `accuracy`."""
    return _mean_over_groups(predictions, task, "class")


def cell_balanced_accuracy(predictions: Predictions, task: int = 0) -> float:
    """
    Mean over the populated cells of `(y, z_1..z_N)` of the accuracy within the cell: what accuracy would be if every
    cell were equally frequent. On a correlated set it falls for a shortcut and for an over-correction alike, so it can
    select models without a look at balanced data. See `accuracy`.
    """
    return _mean_over_groups(predictions, task, "cell")


def auroc(predictions: Predictions, task: int = 0) -> float | None:
    """
    Area under the ROC curve of a head for its own task; with three or more classes, the macro mean of one-versus-rest.

    Returns:
        None where a class is absent, since the area is then undefined.
    """
    used = predictions.labels[:, task] >= 0
    labels, classes = predictions.labels[used, task], predictions.num_classes[task]
    if len(np.unique(labels)) < classes:
        return None
    logits = predictions.head_logits(task)[used].astype(np.float64)
    if classes == 2:
        # The logit difference ranks as the probability does, without saturating at 0 and 1.
        return float(roc_auc_score(labels, logits[:, 1] - logits[:, 0]))
    # So do the log odds of each class against the others; rounded, so that the order of a sum parts no equals.
    odds = [logits[:, k] - logsumexp(np.delete(logits, k, axis=1), axis=1) for k in range(classes)]
    return float(np.mean([roc_auc_score(labels == k, np.nan_to_num(odds[k].round(9))) for k in range(classes)]))


def group_accuracies(predictions: Predictions, task: int = 0) -> dict[tuple[int, ...], tuple[float, int]]:
    """
    Accuracy and count of every populated cell.

    Returns:
        `{(y, z_1, ..., z_N): (accuracy of the task, number of rows)}`. Rows that miss any label belong to no cell.

    Example:
        >>> group_accuracies(predictions)[(0, 1)]  # doctest: +SKIP
        (0.25, 40)
    """
    cell = _groups(predictions, task, "cell")
    hits = predictions.predicted(task) == predictions.labels[:, task]
    return {
        tuple(int(c) for c in np.unravel_index(index, predictions.num_classes)): (
            float(hits[cell == index].mean()),
            int((cell == index).sum()),
        )
        for index in np.unique(cell[cell >= 0])
    }


def worst_group(predictions: Predictions, task: int = 0) -> dict[str, Any]:
    """
    The populated cell with the lowest accuracy; of equals the smaller one, since that one is overlooked.

    Returns:
        `{"cell": "y=0, sex=1", "accuracy": ..., "n": ...}`.

    Raises:
        ValueError: where no row has all labels.
    """
    groups = group_accuracies(predictions, task)
    if not groups:
        raise ValueError("no row has all labels, so there is no cell to find the worst of.")
    cell, (value, n) = min(groups.items(), key=lambda item: item[1])
    return {"cell": cell_name(predictions.keys, cell), "accuracy": value, "n": n}


def cell_name(keys: Sequence[str], cell: Sequence[int]) -> str:
    """A cell in words, such as `y=0, sex=1`."""
    return ", ".join(f"{key}={index}" for key, index in zip(keys, cell))


def drop_val_inv(val: Predictions, inv: Predictions, task: int = 0) -> float:
    """
    Accuracy on Val minus accuracy on Inv: positive for a shortcut, negative for an over-correction; the aim is 0.
    """
    return accuracy(val, task) - accuracy(inv, task)


def switched_labels(predictions: Predictions) -> np.ndarray:
    """
    Every head's predictions scored against every task's labels, the cheap form of a probe.

    On balanced data the off-diagonal entries are at chance when no head follows another task.

    Returns:
        Shape `(1 + N, 1 + N)`: row i is head i, column j is task j; the diagonal is `accuracy`. NaN where a task has
        no labels, and where the two have different numbers of classes: their indices say nothing of each other.
    """
    labels = predictions.labels
    used = labels >= 0
    heads = np.stack([predictions.predicted(i) for i in range(labels.shape[1])], axis=1)  # (n, 1 + N)
    hits = (heads[:, :, None] == labels[:, None, :]).sum(axis=0)
    count = used.sum(axis=0)
    classes = np.asarray(predictions.num_classes)
    told = (count > 0) & (classes[:, None] == classes)
    return np.where(told, hits / np.maximum(count, 1), np.nan)


def bootstrap_interval(
    predictions: Predictions,
    statistic: str | Callable[[Predictions], float],
    *,
    task: int = 0,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """
    Percentile bootstrap interval of a score, with whole subjects drawn with replacement.

    Too narrow where errors are few: around 97 % right of 30 images it holds the truth in 56 of 100 cases, and where all are
    right it has no width. From 200 images at 90 % it holds it in 94 to 96.

    Args:
        predictions: outputs and labels.
        statistic: "accuracy", "balanced_accuracy" or "cell_balanced_accuracy", all resamples at once; or any function
            of Predictions, called once per resample. Where it is undefined, None or NaN, the resample is left out.
        task: the task that a named statistic scores.
        resamples: number of bootstrap samples, 1 or more.
        level: share of the bootstrap distribution inside the interval, in (0, 1).
        seed: seed of the draw.

    Returns:
        Lower and upper bound.

    Raises:
        ValueError: for an unknown statistic, a level outside (0, 1), fewer than 1 resample, no rows to score, or a
            statistic that is undefined in every resample.

    Example:
        >>> low, high = bootstrap_interval(predictions, "accuracy", seed=1)  # doctest: +SKIP
    """
    named = {"accuracy": "all", "balanced_accuracy": "class", "cell_balanced_accuracy": "cell"}
    if not callable(statistic) and statistic not in named:
        raise ValueError(f"statistic must be one of {sorted(named)} or a function of Predictions; got {statistic!r}.")
    if not 0 < level < 1:
        raise ValueError(f"level must lie in (0, 1); got {level}.")
    if resamples < 1:
        raise ValueError(f"resamples must be 1 or more; got {resamples}.")
    if len(predictions) == 0:
        raise ValueError("there are no rows to draw from.")
    tails = [(1 - level) / 2, (1 + level) / 2]

    if callable(statistic):
        rng = np.random.default_rng(seed)
        names, subject = np.unique(predictions.subjects, return_inverse=True)
        rows_of = np.split(np.argsort(subject, kind="stable"), np.cumsum(np.bincount(subject))[:-1])
        draws = rng.integers(len(names), size=(resamples, len(names)))
        found = [statistic(predictions.take(np.concatenate([rows_of[s] for s in draw]))) for draw in draws]
        values = np.array(found, dtype=np.float64)  # NaN for None
        values = values[~np.isnan(values)]
        if not len(values):
            raise ValueError("the statistic is undefined in every resample.")
    else:
        group = _groups(predictions, task, named[statistic])
        if not (group >= 0).any():
            raise ValueError(f"no row has the labels that the score of task '{predictions.task_names[task]}' needs.")
        rate = bootstrap_group_accuracies(
            predictions,
            np.unique(group, return_inverse=True)[1] - (group < 0).any(),
            task=task,
            resamples=resamples,
            seed=seed,
        )
        rate = rate[~np.isnan(rate).all(axis=1)]
        values = np.nanmean(rate, axis=1)
    low, high = np.quantile(values, tails)
    return float(low), float(high)


def bootstrap_group_accuracies(
    predictions: Predictions, group: np.ndarray, *, task: int = 0, resamples: int = 1000, seed: int = 0
) -> np.ndarray:
    """
    The accuracy of every group in each of many bootstrap samples of whole subjects.

    Args:
        predictions: outputs and labels.
        group: group of each row, 0 or more, shape (n,); -1 for a row that counts nowhere.
        task: the task that is scored.
        resamples: number of bootstrap samples.
        seed: seed of the draw.

    Returns:
        `(resamples, number of groups)`; NaN where a sample holds no row of a group.
    """
    names, subject = np.unique(predictions.subjects, return_inverse=True)
    used = group >= 0
    hits = predictions.predicted(task) == predictions.labels[:, task]
    n, correct = np.zeros((2, len(names), int(group.max(initial=0)) + 1))
    np.add.at(n, (subject[used], group[used]), 1.0)
    np.add.at(correct, (subject[used], group[used]), hits[used])
    # A bootstrap sample is a multinomial count per subject, so all samples are one matrix product.
    rng = np.random.default_rng(seed)
    times = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples).astype(np.float64)
    with np.errstate(invalid="ignore"):
        return (times @ correct) / (times @ n)


def gap_interval(
    val: Predictions,
    inv: Predictions,
    *,
    task: int = 0,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """
    Percentile bootstrap interval of `drop_val_inv`, with whole subjects drawn with replacement.

    A subject with rows in both sets is drawn for both at once.

    Args:
        val: outputs and labels on Val, and `inv`: on Inv.
        task: the task that is scored.
        resamples: number of bootstrap samples, 1 or more.
        level: share of the bootstrap distribution inside the interval, in (0, 1).
        seed: seed of the draw.

    Returns:
        Lower and upper bound, as fractions.

    Raises:
        ValueError: where no row of a set has the label, for `resamples` below 1, or a level outside (0, 1).

    Example:
        >>> logits, parts = [[1, 0, 1, 0]] * 40, (np.zeros((40, 2, 1)), np.ones((40, 1)), ["age", "sex"], [2, 2], range(40))
        >>> val, inv = (Predictions(logits, [[0, 0]] * n + [[1, 0]] * (40 - n), *parts) for n in (40, 10))
        >>> low, high = gap_interval(val, inv)
        >>> low < drop_val_inv(val, inv) == 0.75 < high
        True
    """
    if not 0 < level < 1:
        raise ValueError(f"level must lie in (0, 1); got {level}.")
    if resamples < 1:
        raise ValueError(f"resamples must be 1 or more; got {resamples}.")
    both = val.join(inv)
    group = np.where(both.labels[:, task] >= 0, np.arange(len(both)) >= len(val), -1).astype(int)
    for index, name in enumerate(("val", "inv")):
        if not (group == index).any():
            raise ValueError(f"no row of {name} has the label of task '{val.task_names[task]}'.")
    rates = bootstrap_group_accuracies(both, group, task=task, resamples=resamples, seed=seed)
    low, high = np.nanquantile(rates[:, 0] - rates[:, 1], [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def score_table(predictions_by_subset: Mapping[str, Predictions]) -> dict[str, Any]:
    """
    All scores of a run's test sets, ready for JSON.

    Args:
        predictions_by_subset: Predictions by subset name; "val", "inv" and "bal" for a complete table.

    Returns:
        - `accuracy`, `balanced_accuracy`, `auroc` and `chance` (the largest class's share):
          `{subset: {"y": ..., factor: ...}}`, None where undefined;
        - `cell_balanced_accuracy` (of y): `{subset: ...}`;
        - `worst_group` (of y): `{subset: {"cell", "accuracy", "n"}}`;
        - `switched_labels`: `{subset: {"f_y": {"y": ..., factor: ...}, "f_<factor>": {...}}}`;
        - `drop_val_inv`: accuracy of y on Val minus Inv, where both are given;
        - `n`: `{subset: number of rows}`, and `subjects`: of subjects; `task_names`.

    Example:
        >>> score_table({"val": val, "inv": inv, "bal": bal})["accuracy"]["inv"]["y"]  # doctest: +SKIP
        0.83
    """
    if not predictions_by_subset:
        raise ValueError("predictions_by_subset must hold one or more subsets; got none.")
    table: dict[str, Any] = {
        name: {}
        for name in (
            "accuracy",
            "balanced_accuracy",
            "auroc",
            "chance",
            "cell_balanced_accuracy",
            "worst_group",
            "switched_labels",
            "n",
            "subjects",
        )
    }
    for subset, predictions in predictions_by_subset.items():
        keys, labels = predictions.keys, predictions.labels
        labelled = {key: bool((labels[:, i] >= 0).any()) for i, key in enumerate(keys)}
        for name, score in (
            ("accuracy", accuracy),
            ("balanced_accuracy", balanced_accuracy),
            ("auroc", auroc),
            ("chance", _largest_share),
        ):
            table[name][subset] = {key: score(predictions, i) if labelled[key] else None for i, key in enumerate(keys)}
        complete = bool((labels >= 0).all(axis=1).any())
        table["cell_balanced_accuracy"][subset] = cell_balanced_accuracy(predictions) if complete else None
        table["worst_group"][subset] = worst_group(predictions) if complete else None
        table["switched_labels"][subset] = {
            f"f_{key}": {other: None if np.isnan(value) else float(value) for other, value in zip(keys, row)}
            for key, row in zip(keys, switched_labels(predictions))
        }
        table["n"][subset] = len(predictions)
        table["subjects"][subset] = len(np.unique(predictions.subjects))
    table["task_names"] = next(iter(predictions_by_subset.values())).task_names
    val, inv = (table["accuracy"].get(subset, {}).get("y") for subset in ("val", "inv"))
    if val is not None and inv is not None:
        table["drop_val_inv"] = val - inv
    return table


def _largest_share(predictions: Predictions, task: int) -> float:
    counts = np.bincount(predictions.labels[predictions.labels[:, task] >= 0, task])
    return float(counts.max() / counts.sum())


def has_learned(balanced: float, chance: float) -> bool:
    """Whether an accuracy on Bal is 5 points or more above that of a constant guess."""
    return round(balanced - chance, 9) >= FEW_POINTS  # 0.7 - 0.65 is a little less


def verdict(
    gap: float,
    *,
    balanced: float | None = None,
    chance: float | None = None,
    followed: Mapping[str, float] | None = None,
) -> str:
    """
    A gap between Val and Inv in words.

    Args:
        gap: accuracy on Val minus accuracy on Inv, as a fraction, in [-1, 1].
        balanced: accuracy on Bal, and `chance`: the accuracy of a constant guess on Bal. With both, a network that has
            no gap only because it guesses is called so.
        followed: per factor, the share of Bal where the prediction of y is the class of the factor, above chance. Inv
            turns all induced factors at once, so that a network which follows one and goes against another may have no
            gap.

    Returns:
        "shortcut" above 5 points, "over-corrected (anti-shortcut)" below -5; else "hidden shortcut" where a factor is
        followed or gone against by more than 5 points, else "balanced" or "at chance (not learned)".

    Example:
        >>> verdict(0.43), verdict(-0.2), verdict(0.01), verdict(0.01, followed={"sex": -0.13, "site": 0.14})
        ('shortcut', 'over-corrected (anti-shortcut)', 'balanced', 'hidden shortcut')
    """
    gap = round(gap, 9)  # 0.9 - 0.85 is a little more than 0.05, and 0.85 - 0.8 a little less
    if gap > FEW_POINTS:
        return "shortcut"
    if gap < -FEW_POINTS:
        return "over-corrected (anti-shortcut)"
    if any(abs(share) > FEW_POINTS for share in (followed or {}).values()):
        return "hidden shortcut"
    if balanced is not None and chance is not None and not has_learned(balanced, chance):
        return "at chance (not learned)"
    return "balanced"


def verdict_on(scores: Mapping[str, Any]) -> str | None:
    """
    The verdict on a run.

    Args:
        scores: what :func:`score_table` returns, or the content of `metrics.json`.

    Returns:
        a word of :func:`verdict`; None without accuracies of y on Val and Inv.
    """
    accuracy, chance = scores.get("accuracy") or {}, (scores.get("chance") or {}).get("bal", {})
    val, inv, bal = (accuracy.get(subset, {}).get("y") for subset in ("val", "inv", "bal"))
    if val is None or inv is None:
        return None
    gap = scores.get("drop_val_inv", val - inv)
    switched = (scores.get("switched_labels") or {}).get("bal", {}).get("f_y", {})
    followed = followed_factors(switched, chance, classes=scores.get("classes"), subjects=subjects_of_bal(scores))
    return verdict(gap, balanced=bal, chance=chance.get("y"), followed=followed)


def subjects_of_bal(scores: Mapping[str, Any]) -> int | None:
    """The number of subjects of Bal; where it was not recorded, of images."""
    return (scores.get("subjects") or scores.get("n") or {}).get("bal")


def followed_factors(
    switched: Mapping[str, float | None],
    chance: Mapping[str, float | None],
    *,
    classes: Mapping[str, Sequence[str]] | None = None,
    subjects: int | None = None,
) -> dict[str, float]:
    """
    What :func:`verdict` takes of the switched labels.

    Args:
        switched: per task, the share of Bal where the prediction of y is the class of that task.
        chance: per task, the accuracy of a constant guess on Bal.
        classes: per task, its classes. None: their numbers are taken to be equal where the chances are alike.
        subjects: of Bal. On few of them a network whose errors have nothing to do with any factor follows one by chance:
            what is within the 95 % interval of that, over all factors (Bonferroni) and at the largest standard error,
            1 / sqrt(4 subjects) where the images of one are all alike, counts as 0. None: nothing is.

    Returns:
        `switched - chance` of the factors that have as many classes as y; class indices say nothing of the others. Where
        the factor itself is not balanced, what a constant prediction gives, either way, does not count.

    Example:
        >>> followed_factors({"y": 0.9, "sex": 0.75, "site": 0.4}, {"y": 0.5, "sex": 0.5, "site": 0.25})
        {'sex': 0.25}
        >>> followed_factors({"sex": 0.45}, {"y": 0.5, "sex": 0.58})
        {'sex': 0.0}
    """
    guess, followed = chance.get("y"), {}
    factors = sum(name != "y" and share is not None for name, share in switched.items())
    noise = NormalDist().inv_cdf(1 - 0.025 / max(factors, 1)) / math.sqrt(4 * subjects) if subjects else 0.0
    for name, share in switched.items():
        if name == "y" or share is None or guess is None:
            continue
        own = chance.get(name) or 0
        alike = len(classes[name]) == len(classes["y"]) if classes else abs(own - guess) < 0.1
        if not alike:
            continue
        low, high = sorted((own, 2 * guess - own))
        found = round(share - high if share > high else min(share - low, 0.0), 9)  # 0.55 - 0.5 is more than 0.05
        followed[name] = found if abs(found) > noise else 0.0
    return followed


def signed_points(gap: float) -> str:
    """
    A difference of two fractions in points, with its sign.

    Example:
        >>> signed_points(0.0345), signed_points(-0.0004)
        ('+3.5', '+0.0')
    """
    return f"{round(100 * gap, 1) + 0.0:+.1f}"


def describe_sets(metrics: Mapping[str, Any]) -> str:
    """
    What the test sets are, in a sentence or two.

    Args:
        metrics: the content of `metrics.json`: `accuracy`, and where present `config`, whose `agreement` tells which factors
            are turned round in Inv, the names of the tasks in `classes`, and `trained_on`.

    Example:
        >>> describe_sets({"accuracy": {"val": {}, "bal": {}}})
        'Val has the correlation of the training data, Bal none.'
        >>> sets = {"val": {}, "inv": {}, "bal": {}}
        >>> agreement = {"agreement": [0.9, "natural"]}
        >>> describe_sets({"accuracy": sets, "config": agreement, "classes": {"y": [], "sex": [], "age": []}})
        'Val has the correlation of the training data, Inv the opposite one of sex and the same of age, Bal none.'
    """
    subsets = metrics.get("accuracy") or {}
    agreement = (metrics.get("config") or {}).get("agreement")
    factors = [name for name in metrics.get("classes") or {} if name != "y"]
    inverted = "Inv the opposite one, "
    values = agreement if isinstance(agreement, list | tuple) and len(agreement) == len(factors) else ()
    if len({value == NATURAL for value in values}) == 2:
        turned, kept = (
            " and ".join(name for name, value in zip(factors, values, strict=True) if (value == NATURAL) is natural)
            for natural in (False, True)
        )
        inverted = f"Inv the opposite one of {turned} and the same of {kept}, "
    data = "train as it is here" if metrics.get("trained_on") else "the training data"
    return f"Val has the correlation of {data}, {inverted if 'inv' in subsets else ''}Bal none."


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def final_scores(metrics: Mapping[str, Any]) -> dict[str, float]:
    """
    The final table as one flat mapping, for loggers of scalars.

    Args:
        metrics: the content of `metrics.json`: `accuracy` by subset and head, and `probes`, by kind, block and task.

    Returns:
        `final/accuracy_<subset>_<head>`, `final/gap_<head>` (Val - Inv, a fraction) and `final/<kind>_probe_<block>_<task>`;
        what was not measured is left out.

    Example:
        >>> final_scores({"accuracy": {"val": {"y": 0.75}, "inv": {"y": 0.5}}, "probes": {"linear": {"f_y": {"sex": 0.5}}}})
        {'final/accuracy_val_y': 0.75, 'final/accuracy_inv_y': 0.5, 'final/gap_y': 0.25, 'final/linear_probe_f_y_sex': 0.5}
    """
    table, probes = metrics["accuracy"], metrics.get("probes") or {}
    found = {f"final/accuracy_{subset}_{key}": value for subset, row in table.items() for key, value in row.items()}
    for key, value in table.get("val", {}).items():
        other = table.get("inv", {}).get(key)
        found[f"final/gap_{key}"] = None if value is None or other is None else value - other
    found |= {
        f"final/{kind}_probe_{block}_{task}": value
        for kind, matrix in probes.items()
        if kind != "chance"
        for block, row in matrix.items()
        for task, value in row.items()
    }
    return {name: float(value) for name, value in found.items() if value is not None}


def format_score_table(scores: Mapping[str, Any]) -> str:
    """
    The table printed at the end of a run.

    Args:
        scores: what `score_table` returns. With `scores["probes"]`, what `probe_matrix` returns, the probes follow
            (or `scores["probe"]`, the linear ones alone).

    Returns:
        Text: accuracy in % per task (rows) and subset (columns), the gap Val - Inv and what it means (without Inv,
        Val - Bal), then the probes.
    """
    table = scores["accuracy"]
    subsets = [s for s in SUBSET_TITLES if s in table] + [s for s in table if s not in SUBSET_TITLES]
    keys = list(table[subsets[0]])
    names = scores.get("task_names") or keys
    rows = [f"y ({names[0]})" if key == "y" and names[0] != "y" else key for key in keys]
    width = max(len("accuracy %"), *map(len, rows))
    other = next((subset for subset in ("inv", "bal") if subset in table and "val" in table), None)
    lines = [
        f"{'accuracy %':<{width}}"
        + "".join(f"{SUBSET_TITLES.get(s, s):>8}" for s in subsets)
        + (f"   Val - {SUBSET_TITLES[other]}" if other else "")
    ]
    for key, row in zip(keys, rows):
        line = f"{row:<{width}}" + "".join(f"{_percent(table[s][key]):>8}" for s in subsets)
        if other and table["val"][key] is not None and table[other][key] is not None:
            line += f"{signed_points(table['val'][key] - table[other][key]):>12}"
            if key == "y" and other == "inv":
                line += f"  {verdict_on(scores)}"
        lines.append(line)
    worst = scores.get("worst_group") or {}
    for subset in subsets:
        if worst.get(subset):
            group = worst[subset]
            title = SUBSET_TITLES.get(subset, subset)
            lines.append(f"worst group {title}: {_percent(group['accuracy'])} % of {group['n']} ({group['cell']})")

    probes = scores.get("probes") or ({"linear": scores["probe"]} if scores.get("probe") else {})
    for name, matrix in probes.items():
        if name == "chance":
            continue
        columns = list(next(iter(matrix.values())))
        block = max(len(f"{name} probe %"), *map(len, matrix))
        cell = max(8, *(len(column) + 2 for column in columns))
        lines += ["", f"{name + ' probe %':<{block}}" + "".join(f"{column:>{cell}}" for column in columns)]
        for feature, row_of in matrix.items():
            lines.append(
                f"{feature:<{block}}" + "".join(f"{_percent(row_of.get(column)):>{cell}}" for column in columns)
            )
        if "chance" in probes:
            values = "".join(f"{_percent(probes['chance'].get(column)):>{cell}}" for column in columns)
            lines.append(f"{'chance':<{block}}" + values)
    return "\n".join(lines)
