# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""The sections of the README that are written from recorded rows."""

from __future__ import annotations

from pathlib import Path

from monai_mimmx.comparison import collect_rows, make_tables
from monai_mimmx.report.page import markdown_table

__all__ = ["format_evidence", "with_section"]


def with_section(text: str, name: str, content: str) -> str:
    """
    A text with the content between the two markers of a section.

    Args:
        text: holds `<!-- NAME: written by python -m benchmarks -->` and, below, `<!-- NAME: end -->`, a line each.
        name: of the section.
        content: Markdown.

    Raises:
        ValueError: it does not hold each marker once, in order.

    Example:
        >>> print(with_section("<!-- a: written by python -m benchmarks -->\\n<!-- a: end -->", "a", "new"))
        <!-- a: written by python -m benchmarks -->
        <BLANKLINE>
        new
        <BLANKLINE>
        <!-- a: end -->
    """
    begin, end = f"<!-- {name}: written by python -m benchmarks -->\n", f"<!-- {name}: end -->"
    before, found, rest = text.partition(begin)
    _, ended, after = rest.partition(end)
    if not found or not ended or begin in after or end in after:
        raise ValueError(f"expected the lines {begin.strip()!r} and {end!r} once each, in this order")
    return f"{before}{begin}\n{content.strip()}\n\n{end}{after}"


def format_evidence(bundles: Path) -> str:
    """
    The methods at a glance, as one Markdown table over all bundles: the rows that each has recorded at full size.

    Args:
        bundles: folder of the bundles; those without `docs/rows.json` are left out.

    Example:
        `print(format_evidence(Path("bundles")))`
    """
    lines: list[list[str]] = []
    header: list[str] = []
    for folder in sorted(bundles.iterdir()):
        if (folder / "docs" / "rows.json").is_file():
            tables = make_tables(collect_rows(folder / "docs"))
            glance = next(table for table in tables if table.name == "summary")
            header = ["bundle", *glance.header]
            lines += [[f"[{folder.name}](bundles/{folder.name}/docs/results.md)", *line] for line in glance.lines]
    return markdown_table(header, lines)
