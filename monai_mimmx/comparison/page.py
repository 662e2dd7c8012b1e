# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""One page about a whole comparison: its tables, pictures over all methods, and pictures of single runs."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from monai_mimmx.comparison.runner import read_run
from monai_mimmx.comparison.tables import (
    collect_rows,
    format_tables,
    has_inv,
    is_finished,
    make_tables,
    notes,
    recorded_runs,
    row_title,
    summarise,
    swept_agreement,
)
from monai_mimmx.evaluation.scores import SUBSET_TITLES
from monai_mimmx.files import write_csv, write_json, write_text
from monai_mimmx.handlers import read_history
from monai_mimmx.report.figures import courses_figure, gap_figure, probe_figure, save_figures, strength_figure
from monai_mimmx.report.page import html_table, picture, section, write_page

__all__ = ["write_comparison", "write_results"]

CAPTIONS = {
    "gaps": "Accuracy of y on the test sets{inv}. Small marks: single seeds.{published}",
    "leaks": "What fresh probes read from f_y, mean over seeds: y should be read, the factors not. White is chance.",
    "courses": "The courses of the trainings, lowest seed of each method. The mutual information is the mean over the factors, "
    "weighted by attention where there is any.",
    "strength": "Scores over the strength of the spurious correlation in training, mean over seeds.",
}
OF_INV = ": the bar from Val to Inv is what the spurious factors do to a method"
OF_PUBLISHED = " Hollow: published figures, on other data."
OF_RUN = {
    "tsne": "t-SNE of each feature block on Bal, coloured by each label: a block should separate its own label only.",
    "training": "The course of the training.",
}
OF_DATA = {
    "samples": "One image of every cell of the Bal set.",
    "cooccurrence": "How often the primary label and each factor occur together in every subset.",
}


def write_comparison(
    folder: str | os.PathLike[str], published: Sequence[Mapping[str, Any]] = (), *, title: str | None = None
) -> Path:
    """
    Write what a comparison found, beside its runs: `report.html` (self-contained), `tables.md`, `rows.json`, `rows.csv`,
    `table_<name>.csv`, and the pictures as PNG.

    Args:
        folder: the comparison's `output_dir`; or one that only holds the `rows.json` of a comparison, for a page without
            pictures of single runs.
        published: of `read_published`.
        title: of the page; by default the folder's name.

    Returns:
        Path of `report.html`.

    Raises:
        FileNotFoundError: if there is no run.

    Example:
        `write_comparison("compare", read_published("bundles/brain_age/docs/published.json"))`
    """
    folder = Path(folder)
    rows = collect_rows(folder)
    done = [row for row in rows if is_finished(row)]
    tables = make_tables(rows, published) if done else []
    write_json(folder / "rows.json", rows)
    write_text(folder / "tables.md", format_tables(rows, published, tables) + "\n")
    write_csv(folder / "rows.csv", pd.json_normalize(rows))
    title = title or f"Comparison of methods: {folder.resolve().name}"
    own = [row for row in rows if "same_as" not in row]
    failed = [(row_title(row), row["seed"], row["error"]) for row in own if "error" in row]
    body = "".join(f"<p>{escape(note)}</p>" for note in notes(rows, published))
    before = (*(folder / f"{name}.png" for name in CAPTIONS), *folder.glob("table_*.csv"))
    for stale in before:  # what is not written again would look like this page's
        stale.unlink(missing_ok=True)
    if done:
        for table in tables:
            write_csv(folder / f"table_{table.name}.csv", pd.DataFrame(table.lines, columns=table.header))
        runs = _first_runs(folder, done)
        figures = _figures([row for row in done if "same_as" not in row], published, runs)
        paths = save_figures(figures, folder)
        pictures = {
            path.stem: picture(path.stem, path.read_bytes(), _caption(path.stem, rows, published)) for path in paths
        }
        after = {"summary": "gaps", "accuracy": "strength", "probes_linear": "leaks"}
        for table in tables:
            kind = "words" if table.header[1] == "verdict" else ""
            body += section(table.heading, table.title) + html_table(table.header, table.lines, kind=kind)
            body += pictures.get(after.get(table.name, ""), "")
        if "courses" in pictures:
            body += section("Training", "") + pictures["courses"]
        body += _single_runs(runs)
    if failed:
        body += section(
            "Failed runs",
            "Their last line, or all problems that they told; log.txt in the run's folder holds all that it printed.",
        )
        body += html_table(["method", "seed", "error"], failed, kind="settings")
    outcomes = Counter(row.get("missing", "failed" if "error" in row else "finished") for row in own)
    finished = outcomes.pop("finished", 0)
    counts = [f"{finished} run{'' if finished == 1 else 's'} finished", f"{outcomes.pop('failed', 0)} failed"]
    counts += [f"{number} {name}" for name, number in outcomes.items()]
    return write_page(folder, body, title=title, subtitle=", ".join(counts))


def write_results(
    folder: str | os.PathLike[str], docs: str | os.PathLike[str], published: Sequence[Mapping[str, Any]] = ()
) -> Path:
    """
    Write what a bundle's docs show of a comparison: `results.md`, the tables below the pictures of the gaps and, of a strength
    sweep, its curves; and `rows.json`, from which all of it can be written again.

    Args:
        folder: of the comparison, after `write_comparison`.
        docs: where to write; it is made.
        published: what `write_comparison` was given.

    Returns:
        Path of `results.md`.

    Example:
        `write_results("compare", "bundles/brain_age/docs")`
    """
    folder, docs = Path(folder), Path(docs)
    docs.mkdir(parents=True, exist_ok=True)
    recorded = (folder / "rows.json").read_text(encoding="utf-8")
    write_text(docs / "rows.json", recorded)
    text = "# Results\n\nWritten by `python -m monai_mimmx report` from [rows.json](rows.json).\n\n"
    for name in ("gaps", "strength"):
        if (file := folder / f"{name}.png").is_file():
            (docs / file.name).write_bytes(file.read_bytes())
            text += f"![{name}]({file.name})\n\n{_caption(name, json.loads(recorded), published)}\n\n"
        else:
            (docs / file.name).unlink(missing_ok=True)
    write_text(docs / "results.md", text + (folder / "tables.md").read_text(encoding="utf-8"))
    return docs / "results.md"


def _caption(name: str, rows: Sequence[Mapping[str, Any]], published: Sequence[Mapping[str, Any]]) -> str:
    """What stands below a picture, without words of what is not in it."""
    drawn = {row_title(row) for row in rows if is_finished(row)} & {row_title(row) for row in published}
    return CAPTIONS[name].format(inv=OF_INV if has_inv(rows) else "", published=OF_PUBLISHED if drawn else "")


def _points(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, list[float]]]:
    """Method to test set to the accuracy of y of each seed."""
    points: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        for subset in SUBSET_TITLES:
            value = row["accuracy"].get(subset, {}).get("y")
            if value is not None:
                points.setdefault(row_title(row), {}).setdefault(subset, []).append(value)
    return points


def _figures(
    done: Sequence[Mapping[str, Any]], published: Sequence[Mapping[str, Any]], runs: Mapping[str, tuple[int, Path]]
) -> dict[str, Any]:
    figures = {"gaps": gap_figure(_points(done), _points(published))}
    tasks = ["y", *done[0]["task_names"][1:]]
    summaries = [summary for summary in summarise(done) if summary["seeds"]]
    leaks = {
        kind: {
            row_title(summary): {
                task: summary["values"].get(("probes", kind, "f_y", task), (None,))[0] for task in tasks
            }
            for summary in summaries
        }
        for kind in ("linear", "knn")
    }
    figures["leaks"] = probe_figure(
        {**leaks, "chance": done[0]["probes"]["chance"]}, title="{} probe: column's label read from f_y (%)"
    )
    histories = {name: read_history(path / "history.jsonl") for name, (_, path) in runs.items()}
    if any(histories.values()):
        figures["courses"] = courses_figure(histories)
    panels = {
        "y on Inv (%)": ("accuracy", "inv", "y"),
        "y on Bal (%)": ("accuracy", "bal", "y"),
        "y Val - Inv (points)": ("drop_val_inv",),
        **{f"{task} read from f_y (%)": ("probes", "linear", "f_y", task) for task in tasks[1:]},
    }
    curves: dict[str, dict[str, dict[float, float]]] = {}
    for title, path in panels.items():
        for summary in summaries:
            if isinstance(summary["agreement"], int | float) and path in summary["values"]:
                curve = curves.setdefault(title, {}).setdefault(summary["name"], {})
                curve[summary["agreement"]] = 100 * summary["values"][path][0]
    if any(len(curve) > 1 for lines in curves.values() for curve in lines.values()):
        figures["strength"] = strength_figure(curves)
    return figures


def _first_runs(folder: Path, done: Sequence[Mapping[str, Any]]) -> dict[str, tuple[int, Path]]:
    """Each method (and agreement) to its lowest seed and that run's folder, where the folder is there."""
    folders = {}
    for path in recorded_runs(folder):
        run = read_run(path)
        folders[run["name"], swept_agreement(run), run["seed"]] = path.parent
    first: dict[str, tuple[int, Path]] = {}
    for row in sorted(done, key=lambda row: row["seed"]):
        key = (row["name"], row.get("agreement"), row["seed"])
        if key in folders:
            first.setdefault(row_title(row), (row["seed"], folders[key]))
    return first


def _single_runs(runs: Mapping[str, tuple[int, Path]]) -> str:
    """The pictures that the runs have written, a fold-out per method, and those of the data once for every agreement."""
    html = ""
    for name, (seed, path) in runs.items():
        pictures = _run_pictures(path, OF_RUN)
        if pictures:
            html += f"<details><summary>{escape(name)}, seed {seed}</summary>{pictures}</details>\n"
    if html:
        html = section("Features of each method", "Fold out a method to see its features and its training.") + html
    data: dict[float | None, str] = {}
    for _, path in runs.values():
        if (agreement := swept_agreement(read_run(path / "run.json"))) not in data:
            data[agreement] = _run_pictures(path, OF_DATA)
    for agreement, pictures in data.items():
        if pictures:
            note = "" if agreement is None else f"With an agreement of {agreement:g} in training."
            html += section("Data", note) + pictures
    return html


def _run_pictures(path: Path, captions: Mapping[str, str]) -> str:
    files = {name: path / f"{name}.png" for name in captions}
    return "".join(picture(name, file.read_bytes(), captions[name]) for name, file in files.items() if file.is_file())
