# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""
Run the benchmarks and write their rows as JSON and as tables, and what they come to in the README, which also gets what
the bundles have recorded.

python -m benchmarks                                  all of them
python -m benchmarks --only mine_update epoch         some; the others stay as they were measured, here or elsewhere
python -m benchmarks --quick --output_dir DIR         sizes that only show that they run
python -m benchmarks --only                           none: only write the tables again
python -m benchmarks --device cuda                    those of a GPU, in results_gpu.json and results_gpu.md
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import monai
import torch

from benchmarks.readme import format_evidence, with_section
from benchmarks.timing import FRESH
from monai_mimmx.engines import reuse_freed_memory
from monai_mimmx.files import write_json, write_text
from monai_mimmx.report.page import markdown_table

NAMES = (
    "mine_update",
    "epoch",
    "switches",
    "processes",
    "table_to_splits",
    "image_cache",
    "evaluation",
    "comparison_runner",
    "comparison_report",
)
ON_GPU = ("mine_update", "epoch", "switches")
HERE = Path(__file__).parent
README = HERE.parent / "README.md"
PARTS = ("machine", "load", "benchmarks")
"""For each benchmark: where it was measured, the load of that machine before, and its rows by group."""


def describe_machines(results: Mapping[str, Any]) -> str:
    """A sentence for each machine, and whether it was free; with what was measured on it, where there are several."""
    names: dict[str, list[str]] = {}
    for name, machine in results["machine"].items():
        where = f"{machine['gpu']} beside " if "gpu" in machine else ""
        where += (
            f"{machine['processor']}, {machine['threads']} thread(s) of {machine['cores']} cores, PyTorch "
            f"{machine['torch']}, MONAI {machine['monai']}, Python {machine['python']}"
        )
        names.setdefault(where, []).append(name)
    told = [
        f"Measured on {where}{': ' + ', '.join(of_it) if len(names) > 1 else ''}." for where, of_it in names.items()
    ]
    busiest = max(results["load"].values(), default=0.0)
    if busiest > min(machine["threads"] for machine in results["machine"].values()):
        told.append(
            f"Others were using the machine (load before a benchmark up to {busiest:.1f}): trust ratios, not seconds."
        )
    return " ".join(told)


def format_tables(results: Mapping[str, Any]) -> str:
    """Markdown: a line on the machine, then a paragraph and a table per group of rows."""
    parts = [describe_machines(results)]
    for name, groups in results["benchmarks"].items():
        parts.append(" ".join((importlib.import_module(f"benchmarks.{name}").__doc__ or "").split()))
        for rows in groups.values():
            keys = list(dict.fromkeys(key for row in rows for key in row))
            parts.append(markdown_table(keys, [[_cell(row.get(key, "")) for key in keys] for row in rows]))
    return "\n\n".join(parts).replace("_", " ") + "\n"


def format_summary(results: Mapping[str, Any]) -> str:
    """Markdown for the README: what the recorded rows come to, a line each; benchmarks without rows have none."""
    if not results["benchmarks"]:
        return "Nothing is recorded yet: `python -m benchmarks`.\n"
    lines: list[list[str]] = []
    for name, groups in results["benchmarks"].items():
        lines += _SUMMARIES[name](groups)
    lines += _overhead(results["benchmarks"])
    return markdown_table(["what", "measured"], lines) + f"\n\n{describe_machines(results)}\n"


def _mine_update(groups: Mapping[str, list[dict[str, Any]]]) -> list[list[str]]:
    lines = []
    for row in groups["cost"]:
        what = f"MINE update, B = {row['batch']}" + (f", {row['factors']} factors" if row["factors"] > 1 else "")
        ours = f"{_cell(row['bundles_milliseconds'])} ms, {_cell(row['bundles_megabytes'])} MB"
        if "literature_milliseconds" in row:
            ours += (
                f"; the literature's form {_cell(row['literature_milliseconds'])} ms, "
                f"{_cell(row['literature_megabytes'])} MB: {_cell(row['bundles_times_cheaper'])} times as dear "
                f"({_cell(row['default_times_cheaper'])} with 16 negatives, {_cell(row['many_times_cheaper'])} with 64)"
            )
        lines.append([what, ours])
    for row in groups.get("estimates", ()):
        values = ", ".join(
            f"{name} {row[f'{form}_bias']:+.3f} ± {row[f'{form}_spread']:.3f}"
            for form, name in (
                ("bundles", "4 negatives"),
                ("default", "16"),
                ("many", "64"),
                ("literature", "literature"),
            )
        )
        what = (
            f"Estimate of {row['true_nats']:.3f} nats, bias ± spread (B = {row['batch']}, {row['updates']} updates at "
            f"{row['learning_rate']:g}, {row['seeds']} seed(s))"
        )
        lines.append([what, values])
    return lines


def _epoch(groups: Mapping[str, list[dict[str, Any]]]) -> list[list[str]]:
    names = {
        "baseline": "`baseline`",
        "mimmx": "`mimmx`, N_B = 6, buffered features",
        "mimmx_fresh_batches": "`mimmx`, N_B = 6, fresh batches in float32",
        "mimmx_fresh_batches_mixed_precision": "`mimmx`, N_B = 6, fresh batches in mixed precision",
        "mimmx_without_graph": "`mimmx`, N_B = 6, buffered features, without CUDA graph",
        "baseline_compiled": "`baseline`, compiled",
        "mimmx_compiled": "`mimmx`, N_B = 6, buffered features, compiled",
    }
    return [
        [
            f"Epoch of `brain_age`, {names[row['training']]}",
            f"{_cell(row['times_baseline'])} x baseline"
            + (f" ({_cell(row['passes_alone'])} by the passes of the network alone)" if "passes_alone" in row else "")
            + f", {_cell(row['images_per_second'])} images/s, "
            f"{100 * row['share_outside_encoder_and_estimator']:.0f} % outside encoder and estimator"
            + (f", {_cell(row['peak_megabytes'])} MB" if "peak_megabytes" in row else ""),
        ]
        for row in groups["epoch"]
    ]


def _switches(groups: Mapping[str, list[dict[str, Any]]]) -> list[list[str]]:
    bundles: dict[str, list[str]] = {}
    for row in groups["switches"]:
        if row["switch"] != "none":
            bundles.setdefault(row["bundle"], []).append(
                f"{row['switch'].replace(', ', ' + ')} {_cell(row['times_none'])} x"
            )
    return [[f"Epoch of `{bundle}` with switches, against none", "; ".join(each)] for bundle, each in bundles.items()]


def _processes(groups: Mapping[str, list[dict[str, Any]]]) -> list[list[str]]:
    bundles: dict[str, dict[str, str]] = {}
    for row in groups["processes"]:
        bundles.setdefault(row["bundle"], {})[row["processes"]] = _cell(row["times_faster"])
    return [
        [
            f"Two processes, {what}, `{bundle}`",
            f"{faster['two' + which]} times as many images a second as one ({faster['two apart' + which]} times for two "
            "that know nothing of each other: what the machine gives)",
        ]
        for bundle, faster in bundles.items()
        for which, what in (("", "as large a joint batch"), (", a batch each", "a batch each"))
    ]


def _table_to_splits(groups: Mapping[str, list[dict[str, Any]]]) -> list[list[str]]:
    return [
        [
            f"Table of {row['table_rows']:,} rows to subsets",
            f"{_cell(row['read_seconds'])} s to read, {_cell(row['split_seconds'])} s to split",
        ]
        for row in groups["table"]
    ]


def _image_cache(groups: Mapping[str, list[dict[str, Any]]]) -> list[list[str]]:
    return [
        [
            "Image cache, 96x96",
            f"{_cell(row['build_milliseconds_per_image'])} ms an image to build, "
            f"{_cell(row['read_milliseconds_per_image'])} ms to read (decoding: "
            f"{_cell(row['decode_milliseconds_per_image'])} ms), {_cell(row['kilobytes_per_image'])} kB an image",
        ]
        for row in groups["cache"]
    ]


def _evaluation(groups: Mapping[str, list[dict[str, Any]]]) -> list[list[str]]:
    return [
        [
            f"Probes of {row['samples']:,} samples, and t-SNE of {row['embedded']:,} of them",
            f"{_cell(row['probes_seconds'])} s and {_cell(row['tsne_seconds'])} s",
        ]
        for row in groups["evaluation"]
    ]


def _comparison_report(groups: Mapping[str, list[dict[str, Any]]]) -> list[list[str]]:
    return [
        [f"Page of {row['runs']} runs", f"{_cell(row['seconds'])} s, {_cell(row['page_megabytes'])} MB"]
        for row in groups["report"]
    ]


def _comparison_runner(groups: Mapping[str, list[dict[str, Any]]]) -> list[list[str]]:
    return [
        [
            "Comparison beyond its runs",
            f"{_cell(row['start_seconds'])} s to begin with, {_cell(row['seconds_around_a_run'])} s around a run",
        ]
        for row in groups["runner"]
    ]


def _overhead(benchmarks: Mapping[str, Mapping[str, list[dict[str, Any]]]]) -> list[list[str]]:
    """What a comparison of as many runs as the measured page has would cost beyond them, if each took a minute."""
    if not {"comparison_runner", "comparison_report"} <= {*benchmarks}:
        return []
    around, page = benchmarks["comparison_runner"]["runner"][0], benchmarks["comparison_report"]["report"][0]
    seconds = around["start_seconds"] + page["runs"] * around["seconds_around_a_run"] + page["seconds"]
    percent = 100 * seconds / (60 * page["runs"])
    return [[f"All of it, at {page['runs']} runs of a minute", f"{_cell(percent)} % of the runs' time"]]


_SUMMARIES = {
    "mine_update": _mine_update,
    "epoch": _epoch,
    "switches": _switches,
    "processes": _processes,
    "table_to_splits": _table_to_splits,
    "image_cache": _image_cache,
    "evaluation": _evaluation,
    "comparison_runner": _comparison_runner,
    "comparison_report": _comparison_report,
}


def load_results(path: Path) -> dict[str, Any]:
    """The recorded results; no benchmarks where there is no file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {part: {} for part in PARTS}  # type: ignore[no-any-return]


def _cell(value: Any) -> str:
    return (
        f"{value:.3g}"
        if isinstance(value, float) and abs(value) < 1000
        else f"{value:,}"
        if isinstance(value, int)
        else (f"{value:,.0f}" if isinstance(value, float) else str(value))
    )


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    # Virtual machines of one name differ in the instructions that PyTorch finds.
    return f"{name} with {torch.backends.cpu.get_cpu_capability()}"


def main() -> None:
    """Write `results.json` and `results.md`, and the README's table where they are written beside this file."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="*", choices=NAMES)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output_dir", type=Path, default=HERE)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that its processes end with it
    FRESH.set_forkserver_preload(["monai_mimmx"])
    on_gpu, known_names = options.device == "cuda", ON_GPU if options.device == "cuda" else NAMES
    names = known_names if options.only is None else options.only
    if wrong := [name for name in names if name not in known_names]:
        parser.error(f"{', '.join(wrong)} is not measured on a GPU: choose among {', '.join(ON_GPU)}")
    if on_gpu and not torch.cuda.is_available():
        parser.error("PyTorch sees no GPU here")
    if options.quick and options.output_dir == HERE:
        parser.error("--quick measures nothing worth recording: give --output_dir, another folder")
    reuse_freed_memory()  # as the bundles do, for all that is compared
    torch.set_num_threads(options.threads)
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    machine = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": options.threads,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "monai": monai.__version__,
        **({"gpu": torch.cuda.get_device_name()} if on_gpu else {}),
    }
    options.output_dir.mkdir(parents=True, exist_ok=True)
    stem = "results_gpu" if on_gpu else "results"
    known = load_results(options.output_dir / f"{stem}.json")
    for name in (*names, None):
        if name is not None:
            print(f"{name} ...", flush=True)
            known["machine"][name] = machine
            known["load"][name] = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
            known["benchmarks"][name] = importlib.import_module(f"benchmarks.{name}").measure(
                options.quick, **({"device": "cuda"} if on_gpu else {})
            )
        if not known["benchmarks"]:
            continue
        # After each, so that what was measured is not lost; always in the same order.
        for part in PARTS:
            known[part] = {key: known[part][key] for key in NAMES if key in known[part]}
        write_json(options.output_dir / f"{stem}.json", known)
        write_text(options.output_dir / f"{stem}.md", format_tables(known))
        if options.output_dir == HERE and not on_gpu:
            text = with_section(
                README.read_text(encoding="utf-8"), "evidence", format_evidence(HERE.parent / "bundles")
            )
            write_text(README, with_section(text, "benchmarks", format_summary(known)))
    print(format_summary(known))


if __name__ == "__main__":
    main()
