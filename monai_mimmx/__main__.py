# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""`python -m monai_mimmx`: copy a bundle, audit a classifier, compare methods and write the tables, serve MONAI Label."""

from __future__ import annotations

import argparse
import ast
import json
import shlex
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from monai_mimmx.audit import audit_classifier
from monai_mimmx.audit.run import audit_summary
from monai_mimmx.bundle_folders import bundle_folders, copy_bundle
from monai_mimmx.comparison import (
    check_runs,
    execute_runs,
    method_options,
    plan_runs,
    read_published,
    write_comparison,
    write_results,
)
from monai_mimmx.comparison.methods import VARIANTS
from monai_mimmx.comparison.runner import is_running, read_run
from monai_mimmx.comparison.tables import recorded_runs
from monai_mimmx.evaluation.scores import signed_points
from monai_mimmx.label import serve_label_app
from monai_mimmx.trained_model import stored_metrics


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m monai_mimmx", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    bundles = commands.add_parser("bundles", help="list the bundles that come with the package, or copy one")
    bundles.add_argument("--copy", nargs=2, metavar=("NAME", "DIR"), help="copy a bundle to a new folder")
    compare = commands.add_parser(
        "compare",
        help="train and evaluate a bundle for every method and seed",
        description="Train and evaluate a bundle for every method and seed. Run it again to go on where it stopped.",
        epilog="What follows -- is given to the bundle in every run, for example: -- --epochs 5 --cohort_scale 0.1",
    )
    compare.add_argument("--bundle", required=True, help="folder of the bundle")
    compare.add_argument(
        "--methods", nargs="+", default=["all"], metavar="NAME", help=f"all, or of {', '.join(VARIANTS)}"
    )
    compare.add_argument("--seeds", type=int, default=3, help="number of seeds, from 0 (default: 3)")
    compare.add_argument("--agreement", type=float, nargs="+", default=[], help="strength sweep: P(z = y) in training")
    compare.add_argument("--jobs", type=int, default=1, help="runs at once (default: 1)")
    compare.add_argument("--overlay", nargs="+", default=[], help="config files merged over the bundle's train.json")
    compare.add_argument("--output_dir", required=True)
    compare.add_argument("--list", action="store_true", help="print the commands of the runs still to do, run nothing")
    report = commands.add_parser("report", help="write the tables and the page of a comparison again")
    report.add_argument("output_dir", help="of the comparison, or a folder with its rows.json")
    report.add_argument(
        "--docs", help="also write the tables as results.md, with pictures and rows.json, to this folder"
    )
    audit = commands.add_parser(
        "audit",
        help="what a trained classifier makes of the columns of a table",
        description="Which columns of a table do the features and predictions of a trained classifier tell, beyond what the "
        "label explains? Any MONAI classifier; the images should be such that it was not trained on.",
        epilog="What follows -- replaces values of the config, for example: -- --spatial_dims 3",
    )
    audit.add_argument("--config", nargs="+", required=True, help="MONAI config with the network and the preprocessing")
    audit.add_argument("--ckpt", required=True, help="weights of the network")
    audit.add_argument("--table", required=True, help="CSV with a row per image")
    audit.add_argument(
        "--label",
        required=True,
        help="column of what the network predicts, its sorted values in the order of the outputs; or a task as JSON, such as "
        '{"name": "old", "column": "age", "negative": "< 51", "positive": "> 57"}',
    )
    audit.add_argument("--columns", nargs="+", help="to audit (default: all)")
    audit.add_argument("--image_column", default="image")
    audit.add_argument("--image_root", help="folder that holds all images (default: the table's)")
    audit.add_argument("--subject_column", help="default: subject; where there is none, each image is one of its own")
    audit.add_argument("--split", help="audit the rows with this value in the column split only")
    audit.add_argument(
        "--network", help="id of the network in the config (default: network_def, network, net or model)"
    )
    audit.add_argument("--preprocessing", default="preprocessing", help="id of the transform (default: preprocessing)")
    audit.add_argument("--layer", help="module whose output are the features (default: input of the last linear layer)")
    audit.add_argument("--device", help="default: a GPU, if there is one")
    audit.add_argument("--batch_size", type=int, default=32)
    audit.add_argument("--num_workers", type=int, default=0)
    audit.add_argument("--output_dir", required=True)
    label = commands.add_parser(
        "label",
        help="serve a bundle to MONAI Label's clients",
        description="Serve a bundle to MONAI Label's clients (pip install 'monai_mimmx[label]').",
        epilog="What follows -- replaces values of the bundle's configs, for example: -- --feature_dim 4",
    )
    label.add_argument("--bundle", required=True, help="folder of the bundle, or the name of one in bundles/")
    label.add_argument("--studies", required=True, help="folder of the images to label; the labels are kept there")
    label.add_argument("--ckpt", help="trained model (default: the bundle's own)")
    label.add_argument("--output_dir", help="of fine-tuned models (default: output/label in the bundle)")
    label.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this computer only)")
    label.add_argument("--port", type=int, default=8000, help="default: 8000")
    label.add_argument(
        "--app", default=argparse.SUPPRESS, help="folder of the app (default: apps/mimmx of the checkout)"
    )
    return parser


def _audit(options: argparse.Namespace, config_options: Mapping[str, Any]) -> int:
    """Run the audit that the arguments describe and print what it found."""
    given = {key: value for key, value in vars(options).items() if key not in ("command", "config", "ckpt", "table")}
    if given["label"].lstrip().startswith("{"):
        try:
            given["label"] = json.loads(given["label"])
        except json.JSONDecodeError as error:
            raise ValueError(f"--label {given['label']} is not JSON: {error}") from error
    found = audit_classifier(options.config, options.ckpt, options.table, options=config_options, **given)
    print(audit_summary(found))
    for name, values in found["attributes"].items():
        told = values.get("skipped") or f"gap {signed_points(values['gap']['value'])} points"
        print(f"{name}: {values['verdict']} ({told})")
    for name, reason in found["left_out"].items():
        print(f"{name}: not audited ({reason})")
    print(f"report: {Path(options.output_dir) / 'report.html'}")
    return 0


def _bundles(copy: Sequence[str] | None) -> int:
    """List the bundles, or copy one and say how it is run."""
    if copy is None:
        for name, folder in bundle_folders().items():
            title = json.loads((folder / "configs" / "metadata.json").read_text(encoding="utf-8"))["name"]
            print(f"{name}: {title} ({folder})")
        return 0
    folder = copy_bundle(*copy)
    print(f"copied to {folder}; train it by\ncd {shlex.quote(str(folder))}")
    print("python -m monai.bundle run --config_file configs/train.json")
    return 0


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
        except (ValueError, SyntaxError, TypeError):
            options[key[2:]] = {"true": True, "false": False, "null": None}.get(value, value)
    return options


def _published(output_dir: str | Path, docs: str | Path | None) -> list[dict[str, Any]]:
    """The published figures of the bundle that was run, from its docs; none where it has none, or where tasks are others."""
    named = [Path(output_dir)] if docs is None else [Path(docs), Path(output_dir)]
    folders = [folder for path in named for folder in (path, path.resolve().parent)]
    folders += [Path(read_run(path).get("bundle", "")) / "docs" for path in recorded_runs(output_dir)[:1]]
    found = [folder / "published.json" for folder in folders if (folder / "published.json").is_file()]
    return read_published(found[0]) if found and _has_own_tasks(found[0].resolve().parents[1], output_dir) else []


def _has_own_tasks(bundle: Path, output_dir: str | Path) -> bool:
    """Whether the runs of a comparison, as far as they tell, are of the tasks of the bundle, by names and classes."""
    config = bundle / "configs" / "train.json"
    trained = [stored_metrics(path.parent / "models" / "model.pt").get("tasks") for path in recorded_runs(output_dir)]
    if not config.is_file() or not any(trained):
        return True
    parser = ConfigParser()
    parser.read_config(config)
    own = [(task.name, task.class_names) for task in parser.get_parsed_content("parsed_tasks")]
    return all(tasks in (None, own) for tasks in trained)


def _write(output_dir: str | Path, docs: str | Path | None = None) -> tuple[str, Path]:
    """Write the tables and the page of a comparison, what a bundle's docs show of it too; the tables and the page's path."""
    published = _published(output_dir, docs)
    page = write_comparison(output_dir, published)
    tables = page.with_name("tables.md").read_text(encoding="utf-8").rstrip("\n")
    if docs is not None:
        write_results(output_dir, docs, published)
    return tables, page


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; 0 when all went well, 1 when a run failed, 2 for wrong arguments."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    own, given = (words[: words.index("--")], words[words.index("--") + 1 :]) if "--" in words else (words, [])
    parser = _parser()
    options = parser.parse_args(own)
    try:
        if options.command == "report":
            tables, page = _write(options.output_dir, options.docs)
            print(f"{tables}\n\nreport: {page}")
            return 0
        if options.command == "bundles":
            return _bundles(options.copy)
        if options.command == "audit":
            return _audit(options, _bundle_options(given))
        if options.command == "label":
            asked = {key: value for key, value in vars(options).items() if key != "command"}
            serve_label_app(**asked, options=_bundle_options(given))
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
            check_runs(runs)
            for run in runs:
                if is_running(run):
                    print(f"{run.name} seed {run.seed}: another process is running it", file=sys.stderr)
                elif not run.is_finished:
                    print(shlex.join(run.command))
            return 0
        for told in dict.fromkeys(f"{' and '.join(run.aliases)}: as {run.name} here" for run in runs if run.aliases):
            print(f"{told}, trained once", flush=True)
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # ends the runs on the way out
        try:
            counts = execute_runs(runs, jobs=options.jobs)
        except KeyboardInterrupt:
            kept = f"{sum(run.is_finished for run in runs)} of {len(runs)} runs are finished and kept in {options.output_dir}"
            told = (
                f"{kept}; the same command goes on with the others, and report {options.output_dir} shows what there is"
            )
            parser.exit(128 + signal.SIGINT, f"\n{parser.prog}: interrupted: {told}\n")
        tables, page = _write(options.output_dir)
        print(f"\n{tables}\n\nreport: {page}")
    except (ValueError, OSError, ImportError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    print("\n" + ", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count))
    return 1 if counts["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
