# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""`python -m monai_mimmx`: compare methods over seeds, and write the tables of what was run."""

from __future__ import annotations

import argparse
import ast
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from monai_mimmx.comparison import collect_rows, execute_runs, format_tables, method_options, plan_runs
from monai_mimmx.comparison.methods import METHODS
from monai_mimmx.evaluation.protocol import write_json


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m monai_mimmx", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    compare = commands.add_parser(
        "compare",
        help="train and evaluate a bundle for every method and seed",
        description="Train and evaluate a bundle for every method and seed. Run it again to go on where it stopped.",
        epilog="What follows -- is given to the bundle in every run, for example: -- --epochs 5 --cohort_scale 0.1",
    )
    compare.add_argument("--bundle", required=True, help="folder of the bundle")
    compare.add_argument(
        "--methods", nargs="+", default=["all"], metavar="NAME", help=f"all, or of {', '.join(METHODS)}"
    )
    compare.add_argument("--seeds", type=int, default=3, help="number of seeds, from 0 (default: 3)")
    compare.add_argument("--agreement", type=float, nargs="+", default=[], help="strength sweep: P(z = y) in training")
    compare.add_argument("--jobs", type=int, default=1, help="runs at once (default: 1)")
    compare.add_argument("--overlay", nargs="+", default=[], help="config files merged over the bundle's train.json")
    compare.add_argument("--output_dir", required=True)
    compare.add_argument("--list", action="store_true", help="print the commands of the runs still to do, run nothing")
    report = commands.add_parser("report", help="write the tables of a comparison again")
    report.add_argument("output_dir", help="of the comparison, or a folder with its rows.json")
    report.add_argument("--docs", help="also write the tables as results.md, and rows.json, to this folder")
    return parser


def _bundle_options(words: Sequence[str]) -> dict[str, Any]:
    """`--key value` pairs to a dictionary; values as Python literals where they are one, else text."""
    options: dict[str, Any] = {}
    if len(words) % 2:
        raise ValueError(f"expected pairs of --key value after --, got {shlex.join(words)}")
    for key, value in zip(words[::2], words[1::2], strict=True):
        if not key.startswith("--"):
            raise ValueError(f"expected --key after --, got {key!r}")
        try:
            options[key[2:]] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            options[key[2:]] = {"true": True, "false": False, "null": None}.get(value, value)
    return options


def write_tables(output_dir: str | Path, docs: str | Path | None = None) -> str:
    """Write `rows.json` and `tables.md` of a comparison, for a bundle's docs too, and return the tables."""
    rows = collect_rows(output_dir)
    tables = format_tables(rows)
    write_json(Path(output_dir) / "rows.json", rows)
    (Path(output_dir) / "tables.md").write_text(tables + "\n", encoding="utf-8")
    if docs is not None:
        Path(docs).mkdir(parents=True, exist_ok=True)
        write_json(Path(docs) / "rows.json", rows)
        note = "Written by `python -m monai_mimmx report` from [rows.json](rows.json)."
        (Path(docs) / "results.md").write_text(f"# Results\n\n{note}\n\n{tables}\n", encoding="utf-8")
    return tables


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; 0 when all went well, 1 when a run failed, 2 for wrong arguments."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    own, given = (words[: words.index("--")], words[words.index("--") + 1 :]) if "--" in words else (words, [])
    parser = _parser()
    options = parser.parse_args(own)
    try:
        if options.command == "report":
            print(write_tables(options.output_dir, options.docs))
            return 0
        runs = plan_runs(
            options.bundle,
            method_options(options.methods),
            seeds=range(options.seeds),
            output_dir=options.output_dir,
            agreements=options.agreement,
            overlays=options.overlay,
            options=_bundle_options(given),
        )
        if options.list:
            for run in runs:
                if not run.is_finished:
                    print(shlex.join(run.command))
            return 0
        counts = execute_runs(runs, jobs=options.jobs)
        print("\n" + write_tables(options.output_dir))
    except (ValueError, FileNotFoundError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    print("\n" + ", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count))
    return 1 if counts["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
