# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""The tables of a comparison, from the recorded rows: means and 95 % intervals over seeds, losses included."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from monai_mimmx.comparison.methods import METHODS

__all__ = ["collect_rows", "format_tables", "paired_differences", "summarise"]

KEPT = ("accuracy", "auroc", "worst_group", "cell_balanced_accuracy", "drop_val_inv", "probe", "probes", "mi", "epochs")


def collect_rows(folder: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """
    One row for every finished or failed run below a comparison's folder.

    Args:
        folder: the comparison's `output_dir`; or one that only holds the `rows.json` of a comparison.

    Returns:
        Rows with "name", "seed", "agreement" (None: the bundle's own), "config", "seconds", "version" and the scores
        as in `metrics.json`; of a failed run "name", "seed", "agreement" and "error", its last line.

    Raises:
        FileNotFoundError: if there is no run.

    Example:
        `rows = collect_rows("out/brain_age")`
    """
    planned = sorted(Path(folder).rglob("run.json"))
    if not planned and (Path(folder) / "rows.json").is_file():
        return json.loads((Path(folder) / "rows.json").read_text(encoding="utf-8"))
    rows = []
    for path in planned:
        run = json.loads(path.read_text(encoding="utf-8"))
        row = {"name": run["name"], "seed": run["seed"], "agreement": run["options"].get("agreement")}
        metrics_file, error_file = path.with_name("metrics.json"), path.with_name("error.json")
        if metrics_file.is_file():
            metrics = json.loads(metrics_file.read_text(encoding="utf-8"))
            config = {key: value for key, value in metrics["config"].items() if key not in ("output_dir", "device")}
            row |= {"task_names": metrics["task_names"], "n": metrics["n"], "version": metrics["version"]}
            row |= {"config": config, "seconds": metrics["seconds"], **{key: metrics.get(key) for key in KEPT}}
        elif error_file.is_file():
            lines = json.loads(error_file.read_text(encoding="utf-8"))["lines"]
            row["error"] = lines[-1] if lines else "no output"
        else:
            continue
        rows.append(row)
    if not rows:
        raise FileNotFoundError(f"there is no finished run below {folder}")
    order = {name: place for place, name in enumerate(METHODS)}
    return sorted(rows, key=lambda row: (order.get(row["name"], len(order)), row["agreement"] or 0, row["seed"]))


def _interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half the width of its 95 % interval by Student's t; NaN for a single value."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, math.nan
    return mean, float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))


def summarise(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """
    Mean and 95 % interval over seeds, for every method (and agreement) in the order of the rows.

    Args:
        rows: of `collect_rows`; failed ones are counted.

    Returns:
        Per method: "name", "agreement", "seeds", "failed", and "values": a path of keys such as
        `("accuracy", "inv", "y")` or `("probes", "linear", "f_y", "sex")` to `(mean, half width)`, fractions.

    Example:
        >>> rows = [{"name": "a", "seed": s, "agreement": None, "accuracy": {"inv": {"y": v}}} for s, v in enumerate((0.5, 0.7))]
        >>> summary = summarise(rows)[0]
        >>> summary["seeds"], round(summary["values"]["accuracy", "inv", "y"][0], 3)
        (2, 0.6)
    """
    groups: dict[tuple, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["name"], row.get("agreement")), []).append(row)
    summaries = []
    for (name, agreement), members in groups.items():
        done = [row for row in members if "error" not in row]
        leaves = [
            dict(_leaves({key: row[key] for key in KEPT if row.get(key) is not None} | {"seconds": row.get("seconds")}))
            for row in done
        ]
        paths = dict.fromkeys(path for leaf in leaves for path in leaf)
        summaries.append(
            {
                "name": name,
                "agreement": agreement,
                "seeds": len(done),
                "failed": len(members) - len(done),
                "values": {path: _interval([leaf[path] for leaf in leaves if path in leaf]) for path in paths},
            }
        )
    return summaries


def paired_differences(
    rows: Sequence[Mapping[str, Any]], reference: str, path: Sequence[str], *, size: bool = False
) -> dict[tuple[str, float | None], tuple[float, float]]:
    """
    What each method scores above a reference method with the same seed and agreement.

    Runs of one seed share the subjects, the initial weights of what both have, and the order of the batches, so that
    the difference varies less than either score.

    Args:
        rows: of `collect_rows`; failed ones are left out.
        reference: name of the method that is subtracted.
        path: keys of the score, such as `("accuracy", "inv", "y")`.
        size: compare absolute values, for a signed score such as the gap.

    Returns:
        (name, agreement) to mean and half the 95 % interval over seeds (NaN for one), for methods that share a seed
        and the score with the reference.

    Example:
        >>> rows = [{"name": n, "seed": s, "agreement": None, "mi": v} for n, s, v in [("a", 0, 0.5), ("b", 0, 0.2), ("b", 1, 9.0)]]
        >>> round(paired_differences(rows, "b", ("mi",))["a", None][0], 3)
        0.3
    """

    def score(row: Mapping[str, Any]) -> float | None:
        value: Any = row
        for key in path:
            value = value.get(key) if isinstance(value, Mapping) else None
        return abs(value) if size and value is not None else value

    scores = [(row, score(row)) for row in rows if "error" not in row]
    references = {(row.get("agreement"), row["seed"]): value for row, value in scores if row["name"] == reference}
    found: dict[tuple[str, float | None], list[float]] = {}
    for row, value in scores:
        other = references.get((row.get("agreement"), row["seed"]))
        if row["name"] != reference and value is not None and other is not None:
            found.setdefault((row["name"], row.get("agreement")), []).append(value - other)
    return {key: _interval(values) for key, values in found.items()}


def _leaves(tree: Mapping[str, Any], path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], float]]:
    found = []
    for key, value in tree.items():
        if isinstance(value, Mapping):
            found += _leaves(value, (*path, key))
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found.append(((*path, key), float(value)))
    return found


def _number(values: Mapping[tuple[str, ...], tuple[float, float]], *path: str, sign: bool = False) -> str:
    if path not in values:
        return "-"
    mean, half = values[path]
    text = f"{100 * mean:+.1f}" if sign else f"{100 * mean:.1f}"
    return text if math.isnan(half) else f"{text} ± {100 * half:.1f}"


def _title(name: str, agreement: float | None) -> str:
    return name if agreement is None else f"{name} @ {agreement:g}"


def _markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(line) + " |" for line in [header, rule, *lines])


def format_tables(rows: Sequence[Mapping[str, Any]]) -> str:
    """
    The comparison as Markdown: (a) accuracies, gap and worst group; (b) what probes read from each feature block.

    Args:
        rows: of `collect_rows`.

    Returns:
        Tables in per cent, mean ± half the 95 % interval over seeds, a line per method; a third one, of differences to
        rebalancing (or else the baseline) with the same seed, where there is more than one method. Failed runs are
        named.

    Example:
        `print(format_tables(collect_rows("out/brain_age")))`
    """
    done = [row for row in rows if "error" not in row]
    if not done:
        return "No run finished: " + "; ".join(f"{row['name']} seed {row['seed']}: {row['error']}" for row in rows)
    factors = done[0]["task_names"][1:]
    tasks, sets = ["y", *factors], ("val", "inv", "bal")
    summaries = [summary for summary in summarise(rows) if summary["seeds"]]
    titles = [_title(summary["name"], summary["agreement"]) for summary in summaries]
    header = ["method", "seeds"]
    header += [f"{task} {name}" for task in tasks for name in ("Val", "Inv", "Bal")] + [
        "y Val - Inv",
        "worst group Bal",
    ]
    lines = []
    for title, summary in zip(titles, summaries, strict=True):
        values = summary["values"]
        lines.append(
            [
                title,
                str(summary["seeds"]),
                *(_number(values, "accuracy", subset, task) for task in tasks for subset in sets),
                _number(values, "drop_val_inv", sign=True),
                _number(values, "worst_group", "bal", "accuracy"),
            ]
        )
    accuracy = _markdown(header, lines)
    pairs = [(a, b) for a in tasks for b in tasks if a != b]
    header = ["method", *(f"f_{a} -> {b}" for a, b in pairs), *(f"f_y -> {b}, kNN" for b in factors)]
    lines = [
        [
            title,
            *(_number(summary["values"], "probes", "linear", f"f_{a}", b) for a, b in pairs),
            *(_number(summary["values"], "probes", "knn", "f_y", b) for b in factors),
        ]
        for title, summary in zip(titles, summaries, strict=True)
    ]
    chance = dict(_leaves(done[0]["probes"]["chance"]))
    lines.append(
        ["chance", *(f"{100 * chance[(b,)]:.1f}" for _, b in pairs), *(f"{100 * chance[(b,)]:.1f}" for b in factors)]
    )
    parts = [
        "Accuracy in %, mean ± half the 95 % interval over seeds. Val: correlated as in training; Inv: inverted; Bal: "
        "none.",
        accuracy,
        "What fresh linear probes (and kNN) read from each feature block on Bal, in %.",
        _markdown(header, lines),
    ]
    parts += _differences(done)
    failed = [f"{row['name']} seed {row['seed']}: {row['error']}" for row in rows if "error" in row]
    if failed:
        parts.append("Failed runs: " + "; ".join(failed))
    return "\n\n".join(parts)


def _differences(done: Sequence[Mapping[str, Any]]) -> list[str]:
    """The table of paired differences with its title; nothing where there is no pair."""
    names = {row["name"] for row in done}
    reference = "rebalance" if "rebalance" in names else "baseline"
    scores = {
        "y Val": ("accuracy", "val", "y"),
        "y Inv": ("accuracy", "inv", "y"),
        "y Bal": ("accuracy", "bal", "y"),
        "size of y Val - Inv": ("drop_val_inv",),
        "worst group Bal": ("worst_group", "bal", "accuracy"),
    }
    differences = {
        path: paired_differences(done, reference, path, size=path == ("drop_val_inv",)) for path in scores.values()
    }
    lines = []
    for name, agreement in dict.fromkeys(key for found in differences.values() for key in found):
        values = {path: found[name, agreement] for path, found in differences.items() if (name, agreement) in found}
        lines.append([_title(name, agreement), *(_number(values, *path, sign=True) for path in scores.values())])
    if not lines:
        return []
    return [
        f"Difference to `{reference}` with the same seed, in points, mean ± half the 95 % interval over seeds.",
        _markdown(["method", *scores], lines),
    ]
