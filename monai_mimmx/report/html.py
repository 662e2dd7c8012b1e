# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""One self-contained page that tells what a run found."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from monai_mimmx.evaluation.scores import SUBSET_TITLES, describe_sets, signed_points, verdict_on
from monai_mimmx.report.page import html_table, picture, section, write_page

__all__ = ["write_report"]

EXPLAINED = {
    "shortcut": "The network leans on the spurious factors: it does worse where they point the other way.",
    "over-corrected (anti-shortcut)": "The network leans on the spurious factors in reverse: it does better where they "
    "point the other way. This is a failure too. Where it comes of a dependence term, a smaller lambda helps, or balanced "
    "sampling where that is off.",
    "hidden shortcut": "Val and Inv are alike, yet on balanced data the prediction of y follows a factor, or goes against it (see the "
    "switched labels): either factors that cancel out, or one that is not turned round in Inv.",
    "balanced": "The network does equally well where the spurious factors that Inv turns round point the other way.",
    "at chance (not learned)": "There is no gap, but only because the network guesses: it did not learn the task.",
}

NOT_INVERTED = (
    "Every factor has its natural correlation with y, so there is no set in which it is turned round. A loss from Val to "
    "Bal, where there is none, can come of a shortcut, or of a class of a factor that is rarer in Val and harder: "
    "python -m monai_mimmx audit tells them apart."
)


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def gap_points(gap: float) -> str:
    return signed_points(gap).replace("-", "−")


def interval_ends(interval: Sequence[float] | None, form: Callable[[float], str]) -> str:
    return "–" if interval is None else " to ".join(map(form, interval))


def subsets_of(table: Mapping[str, Any]) -> list[str]:
    return [subset for subset in SUBSET_TITLES if subset in table] + [
        subset for subset in table if subset not in SUBSET_TITLES
    ]


def row_name(key: str, metrics: Mapping[str, Any]) -> str:
    names = metrics.get("task_names") or ["y"]
    return f"y ({names[0]})" if key == "y" and names[0] != "y" else key


def _headline(metrics: Mapping[str, Any]) -> str:
    table = metrics.get("accuracy", {})
    y = {subset: table[subset].get("y") for subset in subsets_of(table)}
    numbers = [(f"y on {SUBSET_TITLES.get(s, s)} (%)", percent(value)) for s, value in y.items()]
    text = ""
    if (word := verdict_on(metrics)) is not None:
        numbers.append(("Val − Inv (points)", gap_points(y["val"] - y["inv"])))
        good = "good" if word == "balanced" else "bad"
        words = f"<strong>{escape(word.capitalize())}</strong><p>{escape(EXPLAINED[word])}</p>"
        text = f'<div class="verdict {good}">{words}</div>'
    elif y.get("val") is not None and y.get("bal") is not None:
        numbers.append(("Val − Bal (points)", gap_points(y["val"] - y["bal"])))
        words = f"<strong>No verdict</strong><p>{escape(NOT_INVERTED)}</p>"
        text = f'<div class="verdict">{words}</div>'
    return (
        text
        + "<div class=numbers>"
        + "".join(f"<div><b>{escape(v)}</b><span>{escape(n)}</span></div>" for n, v in numbers)
        + "</div>"
    )


def _score_tables(metrics: Mapping[str, Any]) -> str:
    notes = {
        "accuracy": "Share of images for which the head of a task predicts its label. "
        f"{describe_sets(metrics)} A network that does not use the spurious factors has the same "
        "accuracy for y on all of them; the factors' own heads should stay high, since they are meant to know them. The "
        "intervals are those of the choice of subjects, by bootstrap.",
        "balanced_accuracy": "The mean of the accuracies within each class, which a frequent class cannot dominate.",
        "auroc": "Area under the ROC curve: how well the head ranks images, whatever the threshold. 50 is chance, 100 "
        "perfect; a dash means that a class is absent.",
    }
    html = ""
    for name, title in (("accuracy", "Accuracy"), ("balanced_accuracy", "Balanced accuracy"), ("auroc", "AUROC")):
        table = metrics.get(name)
        if not table:
            continue
        subsets = subsets_of(table)
        head = ["task", *(SUBSET_TITLES.get(s, s) for s in subsets)]
        keys = list(table[subsets[0]])
        intervals = {**(metrics.get("interval") or {}), "gap": metrics.get("drop_val_inv_interval")}
        gaps = name == "accuracy" and "val" in table and "inv" in table
        rows = []
        for key in keys:
            row = [row_name(key, metrics), *(percent(table[s].get(key)) for s in subsets)]
            if gaps:
                pair = [table[s].get(key) for s in ("val", "inv")]
                row.append("–" if None in pair else gap_points(pair[0] - pair[1]))
            rows.append(row)
            if name == "accuracy" and key == "y" and any(intervals.values()):
                ends = [interval_ends(intervals.get(s), percent) for s in subsets]
                rows.append(["95 % interval", *ends, *([interval_ends(intervals["gap"], gap_points)] if gaps else [])])
        html += section(f"{title} (%)", notes[name])
        html += html_table(head + (["Val − Inv"] if gaps else []), rows)
    worst = {subset: group for subset, group in (metrics.get("worst_group") or {}).items() if group}
    if worst:
        html += section(
            "Worst group",
            "The cell (combination of y and all factors) with the lowest accuracy of y. A shortcut shows here even "
            "where the average is high. A cell of few images is uncertain.",
        )
        groups = (
            (
                SUBSET_TITLES.get(subset, subset),
                worst[subset]["cell"],
                percent(worst[subset]["accuracy"]),
                worst[subset]["n"],
            )
            for subset in subsets_of(worst)
        )
        html += html_table(["set", "cell", "accuracy (%)", "images"], groups, kind="words")
    return html


def _matrix(matrix: Mapping[str, Mapping[str, Any]], *, caption: str, chance: Mapping[str, Any] | None = None) -> str:
    columns = list(next(iter(matrix.values())))
    rows = [[block, *(percent(row.get(column)) for column in columns)] for block, row in matrix.items()]
    if chance:
        rows.append(["chance", *(percent(chance.get(column)) for column in columns)])
    return html_table(["block", *columns], rows, caption=caption, own=True)


def _probe_tables(metrics: Mapping[str, Any]) -> str:
    probes = metrics.get("probes") or ({"linear": metrics["probe"]} if metrics.get("probe") else {})
    html = ""
    matrices = [name for name in probes if name != "chance"]
    if matrices:
        html += section(
            "Probes (%)",
            "A classifier fitted on the frozen feature block of a row to read the label of a column, on balanced "
            "images that the network was not trained on, scored on other subjects. Off the shaded cells, chance means "
            "that the block holds nothing about that label.",
        )
        for name in matrices:
            html += _matrix(probes[name], caption=f"{name} probe", chance=probes.get("chance"))
    switched = metrics.get("switched_labels") or {}
    subset = "bal" if "bal" in switched else next(iter(switched), None)
    if subset is not None:
        html += section(
            f"Switched labels on {SUBSET_TITLES.get(subset, subset)} (%)",
            "The head of the row's block, scored against the column's labels. Off the shaded cells, far from chance "
            "either way means that the head follows another task. A dash: their numbers of classes differ.",
        )
        html += _matrix(switched[subset], caption="", chance=(metrics.get("chance") or {}).get(subset))
    return html


def plain_value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _details(metrics: Mapping[str, Any]) -> str:
    html = ""
    facts = {
        key: metrics[key]
        for key in (
            "method",
            "seed",
            "epochs",
            "selected_epoch",
            "encoder_epoch",
            "seconds",
            "mi",
            "n",
            "version",
            "commit",
        )
        if metrics.get(key) is not None
    }
    settings = {**facts, **(metrics.get("config") or {}), **facts}  # the epochs trained, not those of the first part
    if settings:
        note = (
            "mi is the last estimate of the mutual information, in nats: the mean over the factors, weighted by the attention. "
            "Lower means less shared."
            if "mi" in facts
            else ""
        )
        html += section("Settings", note)
        html += html_table(["name", "value"], [(k, plain_value(v)) for k, v in settings.items()], kind="settings")
    excluded = metrics.get("excluded")
    if excluded:
        html += section("Excluded rows", "Rows of the table that were left out, by reason.")
        html += html_table(["reason", "rows"], [(k, plain_value(v)) for k, v in excluded.items()], kind="settings")
    return html


def write_report(
    folder: str | os.PathLike,
    metrics: Mapping[str, Any],
    figures: Mapping[str, tuple[Figure | bytes, str]],
    *,
    title: str,
) -> Path:
    """
    Write `report.html`: one file with all tables and pictures inside, without scripts, that loads nothing.

    The file is replaced as a whole, so that a reader never sees half of it. All text is escaped.

    Args:
        folder: where to write; made where it is missing.
        metrics: the content of `metrics.json`. Read where present: "accuracy", "balanced_accuracy", "auroc",
            "chance", "worst_group", "switched_labels", "task_names" (see `score_table`), "interval" (of the accuracy of y,
            by subset), "drop_val_inv_interval", "probes" (see `probe_matrix`) or "probe" (its linear part), "config",
            "excluded" (`{reason: rows}`), "method", "seed", "epochs", "seconds", "mi", "version", "commit".
        figures: `{name: (Figure or PNG bytes, caption)}`, in order.
        title: title of the page.

    Returns:
        Path of the file.

    Example:
        >>> figures = {"accuracy": (figure, "Accuracy on the test sets.")}  # doctest: +SKIP
        >>> write_report("output", metrics, figures, title="Brain age")  # doctest: +SKIP
    """
    pictures = "".join(picture(name, figure, caption) for name, (figure, caption) in figures.items())
    subtitle = ", ".join(
        f"{key} {metrics[key]}" for key in ("method", "seed", "epochs") if metrics.get(key) is not None
    )
    body = (
        _headline(metrics)
        + _score_tables(metrics)
        + _probe_tables(metrics)
        + (f"<h2>Pictures</h2>\n{pictures}" if pictures else "")
        + _details(metrics)
    )
    return write_page(folder, body, title=title, subtitle=subtitle)
