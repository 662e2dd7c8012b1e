# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""One self-contained page that tells what a run found."""

from __future__ import annotations

import base64
import io
import json
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from monai_mimmx.evaluation.scores import verdict

__all__ = ["write_report"]

SUBSETS = {"val": "Val", "inv": "Inv", "bal": "Bal"}
EXPLAINED = {
    "shortcut": "The network leans on the spurious factors: it does worse where they point the other way.",
    "over-corrected (anti-shortcut)": "The network leans on the spurious factors in reverse: it does better where they "
    "point the other way. This is a failure too; a smaller lambda, or balanced sampling, helps.",
    "balanced": "The network does equally well where the spurious factors point the other way.",
    "at chance (not learned)": "There is no gap, but only because the network guesses: it did not learn the task.",
}
STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 60rem; padding: 1rem 1.25rem 3rem; color: #1b1f24; background: #fff;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: .5rem 0 .25rem; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .4rem; border-bottom: 1px solid #d5dae0; padding-bottom: .2rem; }
p { margin: .4rem 0 .8rem; max-width: 46rem; }
.sub, figcaption, .note { color: #4a535e; font-size: .92rem; }
.verdict { border-left: .4rem solid #4a535e; background: #f4f6f8; padding: .8rem 1rem; margin: 1rem 0; }
.verdict.good { border-color: #009e73; } .verdict.bad { border-color: #d55e00; }
.verdict strong { font-size: 1.15rem; } .verdict p { margin: .3rem 0 0; }
.numbers { display: grid; grid-template-columns: repeat(auto-fit, minmax(8rem, 1fr)); gap: .6rem; margin: .8rem 0; }
.numbers div { border: 1px solid #d5dae0; border-radius: .4rem; padding: .5rem .75rem; }
.numbers b { display: block; font-size: 1.5rem; line-height: 1.2; font-variant-numeric: tabular-nums; }
.numbers span { font-size: .85rem; color: #4a535e; }
.wide { overflow-x: auto; margin: .4rem 0 .8rem; }
table { border-collapse: collapse; font-size: .95rem; overflow-wrap: normal; }
caption { text-align: left; font-weight: 600; padding: .3rem 0; }
th, td { padding: .3rem .65rem; border-bottom: 1px solid #e3e7eb; text-align: right;
  font-variant-numeric: tabular-nums; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
thead th { border-bottom: 2px solid #9aa4af; white-space: nowrap; }
td.own { background: #eef3f8; }
table.words td:nth-child(2), table.words th:nth-child(2), table.settings th { text-align: left; }
table.settings td { text-align: left; overflow-wrap: anywhere; vertical-align: top; }
code { font: .88em ui-monospace, "SFMono-Regular", Menlo, Consolas, monospace; }
figure { margin: 1.2rem 0; break-inside: avoid; }
figure img { width: 100%; max-width: 42rem; height: auto; display: block; }
@media (max-width: 32rem) { body { padding: .75rem .8rem 2rem; }
  th, td { padding: .3rem .4rem; } table { font-size: .85rem; } }
@media print { body { max-width: none; font-size: 11pt; } .wide { overflow: visible; } h2 { break-after: avoid; }
  table, .verdict { break-inside: avoid; } }
"""


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def _points(gap: float) -> str:
    return f"{100 * gap:+.1f}".replace("-", "−")


def _section(title: str, note: str) -> str:
    return f"<h2>{escape(title)}</h2><p class=note>{escape(note)}</p>"


def _table(
    head: Sequence[object], rows: Iterable[Sequence[object]], *, caption: str = "", kind: str = "", own: bool = False
) -> str:
    """An HTML table, every cell escaped; `own` shades the diagonal, where a block is read for its own task."""
    body = ""
    for i, row in enumerate(rows):
        cells = (f"<td{' class=own' if own and j == i + 1 else ''}>{escape(str(c))}</td>" for j, c in enumerate(row))
        body += f"<tr>{''.join(cells)}</tr>\n"
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    header = "".join(f"<th scope=col>{escape(str(cell))}</th>" for cell in head)
    table = f'<table class="{kind}">{title}<thead><tr>{header}</tr></thead>\n<tbody>{body}</tbody></table>'
    return f"<div class=wide>{table}</div>\n"


def _subsets(table: Mapping[str, Any]) -> list[str]:
    return [subset for subset in SUBSETS if subset in table] + [subset for subset in table if subset not in SUBSETS]


def _row_name(key: str, metrics: Mapping[str, Any]) -> str:
    names = metrics.get("task_names") or ["y"]
    return f"y ({names[0]})" if key == "y" and names[0] != "y" else key


def _headline(metrics: Mapping[str, Any]) -> str:
    table = metrics.get("accuracy", {})
    y = {subset: table[subset].get("y") for subset in _subsets(table)}
    numbers = [(f"y on {SUBSETS.get(s, s)} (%)", _percent(value)) for s, value in y.items()]
    text = ""
    if y.get("val") is not None and y.get("inv") is not None:
        gap = y["val"] - y["inv"]
        word = verdict(gap, balanced=y.get("bal"), chance=(metrics.get("chance") or {}).get("bal", {}).get("y"))
        numbers.append(("Val − Inv (points)", _points(gap)))
        good = "good" if word == "balanced" else "bad"
        words = f"<strong>{escape(word.capitalize())}</strong><p>{escape(EXPLAINED[word])}</p>"
        text = f'<div class="verdict {good}">{words}</div>'
    return (
        text
        + "<div class=numbers>"
        + "".join(f"<div><b>{escape(v)}</b><span>{escape(n)}</span></div>" for n, v in numbers)
        + "</div>"
    )


def _score_tables(metrics: Mapping[str, Any]) -> str:
    notes = {
        "accuracy": "Share of images for which the head of a task predicts its label. Val has the correlation of the "
        "training data, Inv the opposite one, Bal none. A network that does not use the spurious factors has the same "
        "accuracy for y on all three; the factors' own heads should stay high, since they are meant to know them.",
        "balanced_accuracy": "The mean of the accuracies within each class, which a frequent class cannot dominate.",
        "auroc": "Area under the ROC curve: how well the head ranks images, whatever the threshold. 50 is chance, 100 "
        "perfect; a dash means that a class is absent.",
    }
    html = ""
    for name, title in (("accuracy", "Accuracy"), ("balanced_accuracy", "Balanced accuracy"), ("auroc", "AUROC")):
        table = metrics.get(name)
        if not table:
            continue
        subsets = _subsets(table)
        head = ["task", *(SUBSETS.get(s, s) for s in subsets)]
        keys = list(table[subsets[0]])
        gaps = name == "accuracy" and "val" in table and "inv" in table
        rows = []
        for key in keys:
            row = [_row_name(key, metrics), *(_percent(table[s].get(key)) for s in subsets)]
            if gaps:
                pair = [table[s].get(key) for s in ("val", "inv")]
                row.append("–" if None in pair else _points(pair[0] - pair[1]))
            rows.append(row)
        html += _section(f"{title} (%)", notes[name])
        html += _table(head + (["Val − Inv"] if gaps else []), rows)
    worst = {subset: group for subset, group in (metrics.get("worst_group") or {}).items() if group}
    if worst:
        html += _section(
            "Worst group",
            "The cell (combination of y and all factors) with the lowest accuracy of y. A shortcut shows here even "
            "where the average is high. A cell of few images is uncertain.",
        )
        groups = (
            (
                SUBSETS.get(subset, subset),
                worst[subset]["cell"],
                _percent(worst[subset]["accuracy"]),
                worst[subset]["n"],
            )
            for subset in _subsets(worst)
        )
        html += _table(["set", "cell", "accuracy (%)", "images"], groups, kind="words")
    return html


def _matrix(matrix: Mapping[str, Mapping[str, Any]], *, caption: str, chance: Mapping[str, Any] | None = None) -> str:
    columns = list(next(iter(matrix.values())))
    rows = [[block, *(_percent(row.get(column)) for column in columns)] for block, row in matrix.items()]
    if chance:
        rows.append(["chance", *(_percent(chance.get(column)) for column in columns)])
    return _table(["block", *columns], rows, caption=caption, own=True)


def _probe_tables(metrics: Mapping[str, Any]) -> str:
    probes = metrics.get("probes") or ({"linear": metrics["probe"]} if metrics.get("probe") else {})
    html = ""
    matrices = [name for name in probes if name != "chance"]
    if matrices:
        html += _section(
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
        html += _section(
            f"Switched labels on {SUBSETS.get(subset, subset)} (%)",
            "The head of the row's block, scored against the column's labels. Off the shaded cells, far from chance "
            "either way means that the head follows another task.",
        )
        html += _matrix(switched[subset], caption="", chance=(metrics.get("chance") or {}).get(subset))
    return html


def _plain_value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _details(metrics: Mapping[str, Any]) -> str:
    html = ""
    facts = {
        key: metrics[key] for key in ("method", "seed", "epochs", "seconds", "mi", "n") if metrics.get(key) is not None
    }
    settings = {**facts, **(metrics.get("config") or {})}
    if settings:
        note = (
            "mi is the last estimate of the mutual information, in nats; lower means less shared."
            if "mi" in facts
            else ""
        )
        html += _section("Settings", note)
        html += _table(["name", "value"], [(k, _plain_value(v)) for k, v in settings.items()], kind="settings")
    excluded = metrics.get("excluded")
    if excluded:
        html += _section("Excluded rows", "Rows of the table that were left out, by reason.")
        html += _table(["reason", "rows"], [(k, _plain_value(v)) for k, v in excluded.items()], kind="settings")
    return html


def _png(figure: Figure | bytes) -> bytes:
    if isinstance(figure, bytes):
        return figure
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


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
            "chance", "worst_group", "switched_labels", "task_names" (see `score_table`), "probes" (see
            `probe_matrix`) or "probe" (its linear part), "config", "excluded" (`{reason: rows}`), "method", "seed",
            "epochs", "seconds", "mi".
        figures: `{name: (Figure or PNG bytes, caption)}`, in order.
        title: title of the page.

    Returns:
        Path of the file.

    Example:
        >>> figures = {"accuracy": (figure, "Accuracy on the test sets.")}  # doctest: +SKIP
        >>> write_report("output", metrics, figures, title="Brain age")  # doctest: +SKIP
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    pictures = ""
    for name, (figure, caption) in figures.items():
        data = base64.b64encode(_png(figure)).decode("ascii")
        pictures += (
            f'<figure id="figure-{escape(name)}"><img alt="{escape(caption)}" src="data:image/png;base64,{data}">'
        )
        pictures += f"<figcaption>{escape(caption)}</figcaption></figure>\n"
    subtitle = ", ".join(
        f"{key} {metrics[key]}" for key in ("method", "seed", "epochs") if metrics.get(key) is not None
    )
    page = (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>\n"
        f"<h1>{escape(title)}</h1><p class=sub>{escape(subtitle)}</p>\n"
        + _headline(metrics)
        + _score_tables(metrics)
        + _probe_tables(metrics)
        + (f"<h2>Pictures</h2>\n{pictures}" if pictures else "")
        + _details(metrics)
        + "</body></html>\n"
    )
    path = folder / "report.html"
    handle, temporary = tempfile.mkstemp(dir=folder, prefix=".report-", suffix=".html")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(page)
        os.chmod(temporary, 0o644)  # mkstemp makes files that only their owner can read
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    return path
