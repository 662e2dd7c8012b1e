# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""The model card: what a trained model was made of, how far it can be trusted, and where it cannot."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai_mimmx.evaluation.scores import FEW_POINTS, SUBSET_TITLES, cell_name, describe_sets, verdict_on
from monai_mimmx.files import write_text
from monai_mimmx.report.html import (
    EXPLAINED,
    NOT_INVERTED,
    gap_points,
    interval_ends,
    percent,
    plain_value,
    row_name,
    subsets_of,
)
from monai_mimmx.report.page import markdown_table, markdown_text

__all__ = ["final_table", "write_model_card"]

SAME_TABLE = (
    "Measured on images of the same table as the training data, of other subjects. Elsewhere the figures can be others."
)
TOO_GOOD = "Where images are of subjects of its training, the figures are too good."
TRAINED_ON = {
    "other rows": "The network was trained on other rows than train here, or on more or fewer of them.",
    "unknown rows": "It is not known which rows the network was trained on.",
}
LIMITS = (
    "Not for clinical use. A bundle's embedded cohort stands in for data: figures on it tell nothing about patients.",
    SAME_TABLE,
    "Only the factors above were looked at. A shortcut through anything else is not seen here.",
    "One training with one seed: another seed gives other figures. The intervals cover the choice of test subjects only.",
)


def _images(number: int) -> str:
    return f"{number} image{'' if number == 1 else 's'}"


def _counts(metrics: Mapping[str, Any]) -> str:
    """The images of every cell in every subset."""
    cells = metrics.get("cells") or {}
    names = sorted({name for table in cells.values() for name in table})
    rows = [[name, *(table.get(name, 0) for table in cells.values())] for name in names]
    totals = [metrics.get("n", {}).get(subset, "–") for subset in cells]
    titles = [SUBSET_TITLES.get(subset, subset) for subset in cells]
    unknown = [
        None if total == "–" else total - sum(table.values())
        for total, table in zip(totals, cells.values(), strict=True)
    ]
    if any(unknown):
        rows.append(["in no group, as a label is missing", *("–" if count is None else count for count in unknown)])
    return markdown_table(["images", *titles], [["all", *totals], *rows]) if cells else ""


def _trained_on(metrics: Mapping[str, Any]) -> list[str]:
    classes = metrics.get("classes") or {}
    excluded = metrics.get("excluded") or {}
    refit = ", and the last layer of y fitted anew there" if metrics.get("method") == "dfr" else ""
    learnt = f"The network learns from train; the epoch is chosen on select{refit}"
    elsewhere = metrics.get("trained_on")
    if elsewhere:
        learnt = f"{TRAINED_ON[elsewhere]} Nothing is told here of those; train and select are what this table gives"
    parts = [
        markdown_table(
            ["task", "classes"],
            [
                [row_name(key, metrics), ", ".join(f"{i}: {name}" for i, name in enumerate(names))]
                for key, names in classes.items()
            ],
        )
        if classes
        else "",
        f"Table: `{metrics['table']}`." if metrics.get("table") else "",
        f"Train, val and test: {metrics['partition']}." if metrics.get("partition") else "",
        _counts(metrics),
        f"Left out{'' if elsewhere else ', and therefore unknown to the model'}:\n\n"
        + markdown_table(["reason", "rows"], [(reason, count) for reason, count in excluded.items()])
        if excluded
        else "",
        f"{learnt}; probes are fitted on probe. {describe_sets(metrics)}",
    ]
    return [part for part in parts if part]


def _scores(metrics: Mapping[str, Any]) -> list[str]:
    table = metrics.get("accuracy") or {}
    if not table:
        return []
    subsets = subsets_of(table)
    intervals, worst = metrics.get("interval") or {}, metrics.get("worst_group") or {}
    rows = [[row_name(key, metrics), *(percent(table[s].get(key)) for s in subsets)] for key in table[subsets[0]]]
    if intervals:
        rows.insert(1, ["y, 95 % interval", *(interval_ends(intervals.get(s), percent) for s in subsets)])
    auroc = metrics.get("auroc") or {}
    if auroc:
        rows.append(["y, AUROC", *(percent(auroc.get(s, {}).get("y")) for s in subsets)])
    if worst:
        groups = (worst.get(s) for s in subsets)
        told = (f"{percent(g['accuracy'])} ({g['cell']}; {_images(g['n'])})" if g else "–" for g in groups)
        rows.append(["y, worst group", *told])
    parts = [markdown_table(["accuracy (%)", *(SUBSET_TITLES.get(s, s) for s in subsets)], rows)]
    if (word := verdict_on(metrics)) is not None:
        gap = metrics.get("drop_val_inv", table["val"]["y"] - table["inv"]["y"])
        interval = metrics.get("drop_val_inv_interval")
        sure = f" (95 % interval {interval_ends(interval, gap_points)})" if interval else ""
        parts.insert(0, f"**{word.capitalize()}**: Val − Inv is {gap_points(gap)} points{sure}. {EXPLAINED[word]}")
    elif None not in (pair := [table.get(subset, {}).get("y") for subset in ("val", "bal")]):
        parts.insert(0, f"**No verdict**: Val − Bal is {gap_points(pair[0] - pair[1])} points. {NOT_INVERTED}")
    return parts


def _leaks(probes: Mapping[str, Any]) -> list[str]:
    """What is read from f_y well above chance, in words."""
    chance = probes.get("chance") or {}
    return [
        f"{name} ({kind} probe {percent(value)} %, chance {percent(chance[name])} %)"
        for kind, matrix in probes.items()
        if kind != "chance"
        for name, value in matrix.get("f_y", {}).items()
        if name != "y" and value is not None and chance.get(name) is not None and value > chance[name] + FEW_POINTS
    ]


def _probes(metrics: Mapping[str, Any]) -> list[str]:
    probes = metrics.get("probes") or {}
    parts = []
    for kind, matrix in probes.items():
        if kind != "chance":
            columns = list(next(iter(matrix.values())))
            rows = [[block, *(percent(row.get(column)) for column in columns)] for block, row in matrix.items()]
            rows.append(["chance", *(percent((probes.get("chance") or {}).get(column)) for column in columns)])
            parts.append(markdown_table([f"{kind} probe (%)", *columns], rows))
    if parts:
        leaks = _leaks(probes)
        told = (
            f"From f_y a probe still reads: {', '.join(leaks)}."
            if leaks
            else "From f_y no probe reads a factor more than five points above chance."
        )
        parts.insert(0, f"What a fresh classifier reads from each feature block. {told}")
    return parts


def _limits(metrics: Mapping[str, Any]) -> list[str]:
    elsewhere = metrics.get("trained_on")
    limits = [TOO_GOOD if limit == SAME_TABLE and elsewhere else limit for limit in LIMITS]
    if agreement := (metrics.get("config") or {}).get("agreement"):
        limits.append(
            f"The classes of y are equally frequent in all sets, and P(factor = y) was set to {plain_value(agreement)}, by "
            "leaving out rows (of a natural factor none): that is the composition of no clinic."
        )
    if (train := (metrics.get("cells") or {}).get("train")) and not elsewhere:
        classes = metrics.get("classes") or {}
        groups = [cell_name(list(classes), cell) for cell in itertools.product(*map(range, map(len, classes.values())))]
        counts = dict.fromkeys(groups if classes else (), 0) | train
        least = min(counts.values())
        rarest = [cell for cell, count in counts.items() if count == least]
        more = f" and {len(rarest) - 3} more" if len(rarest) > 3 else ""
        limits.append(
            f"The rarest group{'s' if len(rarest) > 1 else ''} in training, {'; '.join(rarest[:3])}{more}: "
            f"{_images(least)}."
        )
    return ["\n".join(f"- {limit}" for limit in limits)]


def final_table(metrics: Mapping[str, Any]) -> str:
    """
    The figures of a finished run as Markdown: the verdict, the accuracies by head and set, and what probes read.

    Args:
        metrics: the content of `metrics.json`; what it lacks is left out.

    Example:
        >>> print(final_table({"accuracy": {"bal": {"y": 0.7, "sex": 0.9}}}))
        | accuracy (%) | Bal |
        | --- | ---: |
        | y | 70.0 |
        | sex | 90.0 |
    """
    return "\n\n".join([*_scores(metrics), *_probes(metrics)])


def write_model_card(folder: str | os.PathLike[str], metrics: Mapping[str, Any], *, title: str) -> Path:
    """
    Write `model_card.md`: what the model predicts, what it was trained on, its figures by group, and its limits.

    Every number in it stands in the metrics, as it is, rounded or as a difference; a gap is in points, an accuracy in per
    cent. Names are text: what looks like an HTML tag is made harmless.

    Args:
        folder: where to write; made where it is missing.
        metrics: the content of `metrics.json`; what it lacks is left out.
        title: of the model.

    Returns:
        Path of the file.

    Example:
        >>> accuracy = {"val": {"y": 0.9}, "inv": {"y": 0.7}}
        >>> card = write_model_card("output", {"accuracy": accuracy, "drop_val_inv": 0.2}, title="Brain age")
        >>> [line for line in card.read_text(encoding="utf-8").splitlines() if line.startswith("**")]
        ['**Shortcut**: Val − Inv is +20.0 points. The network leans on the spurious factors: ...']
    """
    formats = {
        "method": "",
        "seed": "",
        "epochs": "",
        "selected_epoch": "",
        "encoder_epoch": "",
        "seconds": ".0f",
        "mi": ".3f",
        "version": "",
        "commit": "",
    }
    told = ", ".join(f"{key} {metrics[key]:{form}}" for key, form in formats.items() if metrics.get(key) is not None)
    settings = [(key, f"`{plain_value(value)}`") for key, value in (metrics.get("config") or {}).items()]
    on = "Evaluated on" if metrics.get("trained_on") else "Trained on"
    sections = {
        on: _trained_on(metrics) if metrics.get("cells") or metrics.get("table") else [],
        "Figures": _scores(metrics),
        "Probes": _probes(metrics),
        "Limits": _limits(metrics),
        "Settings": [markdown_table(["option", "value"], settings)] if settings else [],
    }
    parts = [f"# Model card: {title}", told] + [
        part for name, content in sections.items() if content for part in (f"## {name}", *content)
    ]
    path = Path(folder) / "model_card.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "\n\n".join(part for part in parts if part) + "\n"
    write_text(path, markdown_text(text))
    return path
