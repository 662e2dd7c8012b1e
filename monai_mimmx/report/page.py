# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""What all report pages are made of: one HTML file, tables and pictures inside, without scripts, that loads nothing."""

from __future__ import annotations

import base64
import io
import os
import re
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from matplotlib.figure import Figure

from monai_mimmx.files import write_text

__all__ = ["html_table", "markdown_table", "markdown_text", "picture", "section", "write_page"]

STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 78rem; padding: 1rem 1.25rem 3rem; color: #1b1f24; background: #fff;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: .5rem 0 .25rem; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .4rem; border-bottom: 1px solid #d5dae0; padding-bottom: .2rem; }
p { margin: .4rem 0 .8rem; max-width: 46rem; }
.sub, figcaption, .note { color: #4a535e; font-size: .92rem; }
.verdict, .numbers { max-width: 46rem; }
.verdict { border-left: .4rem solid #4a535e; background: #f4f6f8; padding: .8rem 1rem; margin: 1rem 0; }
.verdict.good { border-color: #009e73; } .verdict.bad { border-color: #d55e00; }
.verdict strong { font-size: 1.15rem; } .verdict p { margin: .3rem 0 0; }
.numbers { display: grid; grid-template-columns: repeat(auto-fit, minmax(8rem, 1fr)); gap: .6rem; margin: .8rem 0; }
.numbers div { border: 1px solid #d5dae0; border-radius: .4rem; padding: .5rem .75rem; }
.numbers b { display: block; font-size: 1.5rem; line-height: 1.2; font-variant-numeric: tabular-nums; }
.numbers span { font-size: .85rem; color: #4a535e; }
/* A shadow at the right edge tells that a table goes on there. */
.wide { overflow-x: auto; margin: .4rem 0 .8rem; background:
  linear-gradient(to left, #fff 60%, #fff0) right / 2.5rem 100% no-repeat local,
  linear-gradient(to left, #0003, #0000) right / .8rem 100% no-repeat scroll; }
table { border-collapse: collapse; font-size: .95rem; overflow-wrap: normal; }
caption { text-align: left; font-weight: 600; padding: .3rem 0; }
th, td { padding: .3rem .65rem; border-bottom: 1px solid #e3e7eb; text-align: right;
  font-variant-numeric: tabular-nums; }
td { white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; position: sticky; left: 0; background: #fff; }
thead th { border-bottom: 2px solid #9aa4af; vertical-align: bottom; }
td.own { background: #eef3f8; }
table.words td:nth-child(2), table.words th:nth-child(2), table.settings th { text-align: left; }
table.settings td { text-align: left; white-space: normal; overflow-wrap: anywhere; vertical-align: top; }
wbr { display: none; }
code { font: .88em ui-monospace, "SFMono-Regular", Menlo, Consolas, monospace; }
figure { margin: 1.2rem 0; max-width: 46rem; break-inside: avoid; }
figure img { width: 100%; max-width: 42rem; height: auto; display: block; }
@media (max-width: 32rem) { body { padding: .75rem .8rem 2rem; }
  th, td { padding: .3rem .4rem; } table { font-size: .85rem; }
  wbr { display: inline; } td:first-child { white-space: normal; min-width: 6.5rem; }
  table.words td:nth-child(2) { white-space: normal; } }
@media print { body { max-width: none; font-size: 11pt; } .wide { overflow: visible; } h2 { break-after: avoid; }
  table, .verdict { break-inside: avoid; } }
"""


def section(title: str, note: str) -> str:
    """A heading and what a reader should know of it; both escaped."""
    return f"<h2>{escape(title)}</h2><p class=note>{escape(note)}</p>"


def html_table(
    head: Sequence[object], rows: Iterable[Sequence[object]], *, caption: str = "", kind: str = "", own: bool = False
) -> str:
    """An HTML table, every cell escaped; `own` shades the diagonal, where a block is read for its own task."""
    body = ""
    for i, row in enumerate(rows):
        cells = (f"<td{' class=own' if own and j == i + 1 else ''}>{_breakable(c)}</td>" for j, c in enumerate(row))
        body += f"<tr>{''.join(cells)}</tr>\n"
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    header = "".join(f"<th scope=col>{_breakable(cell)}</th>" for cell in head)
    table = f'<table class="{kind}">{title}<thead><tr>{header}</tr></thead>\n<tbody>{body}</tbody></table>'
    return f"<div class=wide>{table}</div>\n"


def _breakable(cell: object) -> str:
    """A cell's text, escaped, that may break after each underscore of a name in it where it is narrow."""
    return escape(str(cell)).replace("_", "_<wbr>")


def markdown_text(text: object) -> str:
    """
    Text for Markdown, which would pass on what looks like an HTML tag.

    Example:
        >>> markdown_text("<b>age</b> < 51")
        '&lt;b>age&lt;/b> < 51'
    """
    return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", str(text))


def markdown_table(head: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    r"""
    A Markdown table: the first column left, numbers right; bars, line breaks and tags inside a cell are made harmless.

    Example:
        >>> print(markdown_table(["cell", "images"], [["a|b", 3]]))
        | cell | images |
        | --- | ---: |
        | a\|b | 3 |
    """
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    cells = ([" ".join(markdown_text(cell).replace("|", "\\|").split()) for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def _png(figure: Figure | bytes) -> bytes:
    if isinstance(figure, bytes):
        return figure
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


def picture(name: str, figure: Figure | bytes, caption: str) -> str:
    """A picture inside the page, with its caption below."""
    data = base64.b64encode(_png(figure)).decode("ascii")
    return (
        f'<figure id="figure-{escape(name)}"><img alt="{escape(caption)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>\n"
    )


def write_page(folder: str | os.PathLike, body: str, *, title: str, subtitle: str) -> Path:
    """Write `report.html` with that body as a whole, and return its path; title and subtitle are escaped."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    page = (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>\n"
        f"<h1>{escape(title)}</h1><p class=sub>{escape(subtitle)}</p>\n{body}</body></html>\n"
    )
    path = folder / "report.html"
    write_text(path, page)
    return path
