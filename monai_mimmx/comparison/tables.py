# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""The tables of a comparison, from the recorded rows: means and 95 % intervals over seeds, losses included."""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from monai_mimmx.comparison.methods import VARIANTS
from monai_mimmx.comparison.runner import failure, read_metrics, read_plan, read_run, run_title
from monai_mimmx.evaluation.scores import (
    FEW_POINTS,
    SUBSET_TITLES,
    followed_factors,
    has_learned,
    signed_points,
    subjects_of_bal,
    verdict,
)
from monai_mimmx.options import WITHOUT_DEPENDENCE, WITHOUT_ESTIMATOR
from monai_mimmx.report.html import NOT_INVERTED
from monai_mimmx.report.page import markdown_table, markdown_text

__all__ = [
    "ScoreTable",
    "collect_rows",
    "format_tables",
    "make_tables",
    "paired_differences",
    "read_published",
    "summarise",
]

KEPT = (
    "accuracy",
    "balanced_accuracy",
    "auroc",
    "worst_group",
    "cell_balanced_accuracy",
    "drop_val_inv",
    "drop_val_inv_interval",
    "interval",
    "switched_labels",
    "probe",
    "probes",
    "mi",
    "epochs",
)
VERDICTS = (
    "The verdict is on the mean gap: a shortcut above 5 points, over-corrected below -5; where it is within 5 points but its "
    "mean size is not, as one seed makes up for another, it differs between seeds; without a gap, a shortcut is hidden where "
    "the predictions of y on Bal follow a factor, or go against it, by more than 5 points (see the switched labels, where they "
    "were recorded); where the mean over seeds does not, but its mean size does, it differs between seeds, and so where some "
    "seeds are within 5 points of chance on Bal and others are not."
)
Values = Mapping[tuple[str, ...], tuple[float, float]]


@dataclass(frozen=True)
class ScoreTable:
    """
    One table of a comparison, every cell as the text that is shown.

    Args:
        name: short, for a file's name.
        heading: a few words.
        title: what it shows, a sentence or two.
        header: names of the columns.
        lines: the rows, each as long as the header.

    Example:
        >>> print(ScoreTable("gap", "Gap", "Val less Inv.", ("method", "gap"), (("mimmx", "+1.1"),)).markdown())
        ## Gap
        <BLANKLINE>
        Val less Inv.
        <BLANKLINE>
        | method | gap |
        | --- | ---: |
        | mimmx | +1.1 |
    """

    name: str
    heading: str
    title: str
    header: Sequence[str]
    lines: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """Heading, title and table as Markdown."""
        return f"## {self.heading}\n\n{self.title}\n\n{markdown_table(self.header, self.lines)}"


def swept_agreement(run: Mapping[str, Any]) -> float | None:
    """The agreement of a strength sweep that a run belongs to; one per factor, or "natural", is none of a sweep."""
    agreement = run["options"].get("agreement") if run.get("agreement") is None else run["agreement"]
    return agreement if isinstance(agreement, int | float) else None


def recorded_runs(folder: str | os.PathLike[str]) -> list[Path]:
    """
    The `run.json` of every run of a comparison, sorted; a comparison in a folder within it is another one.

    Args:
        folder: the comparison's `output_dir`.

    Example:
        >>> recorded_runs("no/such/folder")
        []
    """
    return sorted(
        path for where in ("*/seed_*", "*/agreement_*/seed_*") for path in Path(folder).glob(f"{where}/run.json")
    )


def is_finished(row: Mapping[str, Any]) -> bool:
    """Whether a row of `collect_rows` has scores: its run has neither failed nor is it missing."""
    return "error" not in row and "missing" not in row


def collect_rows(folder: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """
    One row for every run below a comparison's folder, or that it was to run.

    Args:
        folder: the comparison's `output_dir`; or one that only holds the `rows.json` of a comparison.

    Returns:
        Rows with "name", "seed", "agreement" (None: the bundle's own), "config", "seconds", "version", "commit" and the
        scores as in `metrics.json`; of a failed run "name", "seed", "agreement" and "error" (see `failure`); of one
        that goes on, or was killed with its comparison, "missing": "not finished", and of a planned one without a folder "not
        begun". A run whose `metrics.json` cannot be read is a failed one. A method that was not run because it is the same
        setting as another has that one's rows, with its name in "same_as".

    Raises:
        FileNotFoundError: if there is no run.

    Example:
        `rows = collect_rows("out/brain_age")`
    """
    begun = recorded_runs(folder)
    recorded = Path(folder) / "rows.json"
    if not begun and recorded.is_file():
        try:
            return json.loads(recorded.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{recorded} is not whole: {error}") from error
    own: dict[tuple, dict[str, Any]] = {}
    same: dict[tuple, dict[str, Any]] = {}
    runs = [(run, {"missing": "not begun"}) for run in read_plan(folder)]
    for run, scores in [*runs, *((read_run(path), _scores(path.parent)) for path in begun)]:
        seed, agreement = run["seed"], swept_agreement(run)
        row = {"name": run["name"], "seed": seed, "agreement": agreement, **scores}
        own[run["name"], agreement, seed] = row
        for name in run.get("aliases", ()):
            same[name, agreement, seed] = {**row, "name": name, "same_as": run["name"]}
    # What a method's own run has comes first, unless only the one it is the same as is finished.
    rows = [row for key, row in own.items() if is_finished(row) or not is_finished(same.get(key, row))]
    rows += [row for key, row in same.items() if key not in own or (is_finished(row) and not is_finished(own[key]))]
    if not rows:
        alone = any(True for _ in Path(folder).rglob("metrics.json"))
        told = (
            ": compare, called as with --list but without it, takes in what single commands finished" if alone else ""
        )
        raise FileNotFoundError(f"there is no finished run of a comparison below {folder}{told}")
    return sorted(rows, key=lambda row: (_place(row["name"]), row["agreement"] or 0, row["seed"]))


def _scores(folder: Path) -> dict[str, Any]:
    """What a run has for its row: its scores, its error, or that it is not finished."""
    metrics: dict[str, Any] = {"unfinished": True}
    try:
        metrics = read_metrics(folder / "metrics.json")
    except ValueError as error:
        return {"error": str(error)}
    except FileNotFoundError:
        pass
    if metrics.get("unfinished"):  # or evaluated before its training was over
        if not (folder / "error.json").is_file():
            return {"missing": "not finished"}
        stored = json.loads((folder / "error.json").read_text(encoding="utf-8"))
        return {"error": failure(stored["status"], stored["lines"])}
    config = {key: value for key, value in metrics["config"].items() if key not in ("output_dir", "device")}
    about = {
        key: metrics.get(key)
        for key in ("task_names", "classes", "n", "subjects", "version", "commit", "selected_lambda", "fingerprint")
    }
    return {**about, "config": config, "seconds": metrics["seconds"], **{key: metrics.get(key) for key in KEPT}}


def _place(name: str) -> int:
    """Where a method stands in the tables; those of the user's own come last."""
    return list(VARIANTS).index(name) if name in VARIANTS else len(VARIANTS)


def read_published(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """
    Published figures, as rows to stand beside one's own.

    Args:
        path: a JSON file with "source", a sentence, and "rows": "name" (of `VARIANTS`), "accuracy"
            `{subset: {task: fraction}}` and, where published, "probes" `{"linear": {block: {task: fraction}}}`.

    Returns:
        The rows, each with "source" and, where both are known, "drop_val_inv".

    Raises:
        FileNotFoundError: if there is no such file.

    Example:
        `rows = read_published("bundles/brain_age/docs/published.json")`
    """
    stored = json.loads(Path(path).read_text(encoding="utf-8"))
    rows = []
    for row in stored["rows"]:
        val, inv = (row["accuracy"].get(subset, {}).get("y") for subset in ("val", "inv"))
        gap = {} if val is None or inv is None else {"drop_val_inv": val - inv}
        rows.append({"seed": 0, "agreement": None, **row, **gap, "source": stored["source"]})
    return rows


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
        rows: of `collect_rows`; failed ones are counted, missing ones left out.

    Returns:
        Per method: "name", "agreement", "seeds", "failed", and "values": a path of keys such as
        `("accuracy", "inv", "y")` or `("probes", "linear", "f_y", "sex")` to `(mean, half width)`, fractions.
        `("gap_size",)` is that of the gap between Val and Inv without its sign, `("followed", factor)` that of what
        `followed_factors` tells of a factor, `("followed_size", factor)` the same without its sign, `("learned",)` 1 for a
        run that has learned y, else 0, and `("drop_val_bal",)` the loss from Val to Bal
        where there is no Inv.

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
        done = [row for row in members if is_finished(row)]
        leaves = [dict(_leaves({key: row.get(key) for key in (*KEPT, "seconds")})) for row in done]
        val, bal = ("accuracy", "val", "y"), ("accuracy", "bal", "y")
        for leaf, row in zip(leaves, done, strict=True):
            if ("drop_val_inv",) in leaf:
                leaf["gap_size",] = abs(leaf["drop_val_inv",])
            elif {val, bal} <= {*leaf}:
                leaf["drop_val_bal",] = leaf[val] - leaf[bal]
            chance = (row.get("probes") or {}).get("chance") or {}
            switched = (row.get("switched_labels") or {}).get("bal", {}).get("f_y", {})
            followed = followed_factors(switched, chance, classes=row.get("classes"), subjects=subjects_of_bal(row))
            for factor, share in followed.items():
                leaf |= {("followed", factor): share, ("followed_size", factor): abs(share)}
            if bal in leaf and "y" in chance:
                leaf["learned",] = float(has_learned(leaf[bal], chance["y"]))
        paths = dict.fromkeys(path for leaf in leaves for path in leaf)
        summaries.append(
            {
                "name": name,
                "agreement": agreement,
                "seeds": len(done),
                "failed": sum("error" in row for row in members),
                "values": {path: _interval([leaf[path] for leaf in leaves if path in leaf]) for path in paths},
            }
        )
    return summaries


def paired_differences(
    rows: Sequence[Mapping[str, Any]], reference: str, path: Sequence[str], *, size: bool = False
) -> dict[tuple[str, float | None], tuple[float, float, int]]:
    """
    What each method scores above a reference method with the same seed and agreement.

    Runs of one seed share the subjects, the initial weights of what both have, and the order of the batches, so that
    the difference varies less than either score.

    Args:
        rows: of `collect_rows`; those without scores are left out.
        reference: name of the method that is subtracted.
        path: keys of the score, such as `("accuracy", "inv", "y")`.
        size: compare absolute values, for a signed score such as the gap.

    Returns:
        (name, agreement) to mean, half the 95 % interval over seeds (NaN for one) and the number of pairs, for methods
        that share a seed and the score with the reference.

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

    scores = [(row, score(row)) for row in rows if is_finished(row)]
    references = {(row.get("agreement"), row["seed"]): value for row, value in scores if row["name"] == reference}
    found: dict[tuple[str, float | None], list[float]] = {}
    for row, value in scores:
        other = references.get((row.get("agreement"), row["seed"]))
        if row["name"] != reference and value is not None and other is not None:
            found.setdefault((row["name"], row.get("agreement")), []).append(value - other)
    return {key: (*_interval(values), len(values)) for key, values in found.items()}


def _leaves(tree: Mapping[str, Any], path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], float]]:
    found = []
    for key, value in tree.items():
        if isinstance(value, Mapping):
            found += _leaves(value, (*path, key))
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found.append(((*path, key), float(value)))
    return found


def _number(values: Values, *path: str, sign: bool = False) -> str:
    if path not in values:
        return "-"
    mean, half = values[path]
    text = signed_points(mean) if sign else f"{100 * mean:.1f}"
    return text if math.isnan(half) else f"{text} ± {100 * half:.1f}"


def make_tables(rows: Sequence[Mapping[str, Any]], published: Sequence[Mapping[str, Any]] = ()) -> list[ScoreTable]:
    """
    The tables of a comparison, in per cent, mean ± half the 95 % interval over seeds.

    Args:
        rows: of `collect_rows`, at least one of them of a run that finished.
        published: of `read_published`; each stands below the row of the same name.

    Returns:
        "summary", "accuracy", "probes_linear", and, where there is something to show, "ranking" (AUROC, balanced accuracy,
        worst group), "probes_knn", "switched" (labels), "ablation" (Dynamic Loss Scaling and Confounder Attention
        Weighter), "differences" (to rebalancing, or else the baseline, with the same seed).

    Raises:
        ValueError: if no run finished.

    Example:
        `for table in make_tables(collect_rows("out/brain_age")): print(table.markdown())`
    """
    done = [row for row in rows if is_finished(row)]
    if not done:
        raise ValueError("there is no finished run to make a table of")
    tasks = ["y", *done[0]["task_names"][1:]]
    summaries = [{**summary, "title": row_title(summary)} for summary in summarise(rows) if summary["seeds"]]
    seen = {row["name"] for row in done}
    beside = [
        {**summary, "title": f"{summary['name']}, published", "seeds": None}
        for summary in summarise([row for row in published if row["name"] in seen])
    ]
    both = sorted(summaries + beside, key=lambda summary: (_place(summary["name"]), summary["seeds"] is None))
    chance = {task: value for summary in summaries[::-1] for task, value in _chance(summary["values"]).items()}
    tables = [
        _summary(summaries, tasks, {row["name"]: row.get("config") or {} for row in done}, inv=has_inv(done)),
        _accuracies(both, tasks, inv=has_inv(done)),
        _ranking(summaries),
        _matrix(
            both, tasks, chance, ("probes", "linear"), "Disentanglement", "fresh linear probes read from each block"
        ),
        _matrix(
            both, tasks, chance, ("probes", "knn"), "Disentanglement, kNN", "fresh kNN probes read from each block"
        ),
        _matrix(
            summaries, tasks, chance, ("switched_labels", "bal"), "Switched labels", "each block's own head scores"
        ),
        _ablation(summaries, beside),
        _differences(done),
    ]
    return [_shown(table) for table in tables if table is not None]


def _shown(table: ScoreTable) -> ScoreTable:
    """The table without columns on Inv, and of verdicts, that have no value."""
    kept = [
        n
        for n, name in enumerate(table.header)
        if not ("Inv" in name or name == "verdict") or any(line[n] != "-" for line in table.lines)
    ]
    return replace(
        table, header=[table.header[n] for n in kept], lines=[[line[n] for n in kept] for line in table.lines]
    )


def has_inv(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether any run was tested where a factor is turned round, which needs one with an agreement."""
    return any("inv" in row.get("accuracy", ()) for row in rows)


def format_tables(
    rows: Sequence[Mapping[str, Any]],
    published: Sequence[Mapping[str, Any]] = (),
    tables: Sequence[ScoreTable] | None = None,
) -> str:
    """
    The comparison as Markdown: its tables, what it was measured on, and the failed runs by name.

    Args:
        rows: of `collect_rows`.
        published: of `read_published`.
        tables: of `make_tables`, where they are made already.

    Example:
        `print(format_tables(collect_rows("out/brain_age")))`
    """
    errors = (row for row in rows if "error" in row and "same_as" not in row)
    failed = markdown_text("; ".join(f"{row_title(row)} seed {row['seed']}: {row['error']}" for row in errors))
    parts = [markdown_text(note) for note in notes(rows, published)]
    if not any(is_finished(row) for row in rows):
        return "\n\n".join([f"No run finished{': ' if failed else '.'}{failed}", *parts])
    tables = make_tables(rows, published) if tables is None else tables
    parts += [table.markdown() for table in tables]
    if failed:
        parts.append(f"Failed runs: {failed}")
    return "\n\n".join(parts)


def notes(rows: Sequence[Mapping[str, Any]], published: Sequence[Mapping[str, Any]] = ()) -> list[str]:
    """
    What a reader of the tables must know: missing runs, sizes, missing intervals, methods that are one setting, runs of another precision
    or that may not be comparable, the source of published rows.
    """
    done = [row for row in rows if is_finished(row)]
    sizes: dict[str, list[str]] = {}
    for row in done:
        sizes.setdefault(_size(row), []).append(row_title(row))
    told = [_missing(rows)] if any("missing" in row for row in rows) else []
    for size, names in sizes.items():
        which = "" if len(sizes) == 1 else f" ({', '.join(dict.fromkeys(names))})"
        told.append(f"Measured{which}: {size}.")
    if 1 in Counter((row["name"], row.get("agreement")) for row in done).values():
        told.append("A method with one seed has no interval.")
    told += [f"{' and '.join(names)} are the same setting here, so their rows are the same." for names in _same(done)]
    if len(tasks := sorted({", ".join(row["task_names"]) for row in done})) > 1:
        told.append(f"The runs are of different tasks, {'; '.join(tasks)}: give each bundle an output_dir of its own.")
    tables: dict[Any, dict[str, dict[str, None]]] = {}
    for row in done:
        if row.get("fingerprint"):
            tables.setdefault(row.get("agreement"), {}).setdefault(row["fingerprint"], {})[
                f"{row_title(row)} {row['seed']}"
            ] = None
    told += [
        f"The runs (method and seed) are of different rows or labels, {'; '.join(map(', '.join, made.values()))}: the table "
        "changed in between, and they are not comparable."
        for made in tables.values()
        if len(made) > 1
    ]
    if early := dict.fromkeys(row_title(row) for row in done if row.get("selected_lambda") == 0):
        told.append(f"Selected before the dependence term had any weight, in one seed or more: {', '.join(early)}.")
    precise: dict[bool, dict[str, None]] = {}
    for row in done:
        config = row.get("config") or {}
        if (amp := config.get("amp")) is not None:
            fresh = config.get("feature_batches") == 0 and config.get("method") not in WITHOUT_ESTIMATOR
            of_fresh = fresh and config.get("amp_fresh")
            precise.setdefault(bool(amp or of_fresh), {})[row["name"]] = None
    if len(precise) > 1:
        told.append(f"With mixed precision: {', '.join(precise[True])}; without: {', '.join(precise[False])}.")
    for what in ("version", "commit"):
        if len(made := sorted({str(row.get(what) or "unknown") for row in done})) > 1:
            shown = ", ".join(re.sub(r"(?<=[0-9a-f]{12})[0-9a-f]+", "", name) for name in made)
            told.append(f"The runs are of different {what}s, {shown}: they may not be comparable.")
    seen = {row["name"] for row in done}
    told += [
        f"Rows marked as published: {source}."
        for source in dict.fromkeys(row["source"] for row in published if row["name"] in seen)
    ]
    return told


def _missing(rows: Sequence[Mapping[str, Any]]) -> str:
    """How many runs are missing of those that were planned, and which, in words."""
    own = [row for row in rows if "same_as" not in row]
    missing: dict[str, dict[str, list[str]]] = {}
    for row in own:
        if "missing" in row:
            missing.setdefault(row["missing"], {}).setdefault(row_title(row), []).append(str(row["seed"]))
    which = "; ".join(
        f"{outcome}: " + ", ".join(f"{name} {' '.join(seeds)}" for name, seeds in names.items())
        for outcome, names in missing.items()
    )
    return f"Of {len(own)} planned runs, {sum('missing' in row for row in own)} missing (method and seeds): {which}."


def _same(done: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Methods with equal settings and scores in all runs, each group as the list of its names."""
    runs: dict[str, list[Any]] = {}
    for row in done:
        if row.get("config"):
            runs.setdefault(row["name"], []).append([row[key] for key in ("seed", "agreement", "config", "accuracy")])
    groups: dict[str, list[str]] = {}
    for name, content in runs.items():
        groups.setdefault(json.dumps(content, sort_keys=True), []).append(name)
    return [names for names in groups.values() if len(names) > 1]


def _size(row: Mapping[str, Any]) -> str:
    """How large a run was, in words."""
    config, n = row.get("config") or {}, row.get("n") or {}
    parts = [f"images of {config['image_size']} pixels"] if "image_size" in config else []
    parts += [f"{n['train']:,} of them to train"] if "train" in n else []
    parts += [f"{row['epochs']} epochs"] if row.get("epochs") else []
    parts += ["tested on " + ", ".join(f"{n[key]:,} ({SUBSET_TITLES[key]})" for key in SUBSET_TITLES if key in n)]
    return ", ".join(parts)


def row_title(row: Mapping[str, Any]) -> str:
    """What a row, or the summary of several, is called: its method and, in a sweep, the agreement."""
    return run_title(row["name"], row.get("agreement"))


def _mean(values: Values, *path: str) -> float | None:
    return values[path][0] if path in values else None


def _chance(values: Values) -> dict[str, float]:
    """Per task, the accuracy of a constant guess on Bal."""
    return {path[2]: mean for path, (mean, _) in values.items() if path[:2] == ("probes", "chance")}


def _verdict(values: Values) -> str:
    """The verdict over seeds, whose opposite gaps, and opposite shortcuts, do not make up for each other."""
    gap, size = _mean(values, "drop_val_inv"), _mean(values, "gap_size")
    if gap is None or size is None:
        return "-"
    gap, size = round(gap, 9), round(size, 9)  # as `verdict` does
    followed = {path[1]: mean for path, (mean, _) in values.items() if path[0] == "followed"}
    chance = _chance(values).get("y")
    word = verdict(gap, balanced=_mean(values, "accuracy", "bal", "y"), chance=chance, followed=followed)
    sizes = [mean for path, (mean, _) in values.items() if path[0] == "followed_size"]
    apart = size > FEW_POINTS
    if word != "hidden shortcut":
        apart |= max(sizes, default=0) > FEW_POINTS or _mean(values, "learned") not in (None, 0.0, 1.0)
    return "differs between seeds" if abs(gap) <= FEW_POINTS and apart else word


def _lambda(config: Mapping[str, Any]) -> str:
    """The weight of the dependence term, and that of a second part which has its own."""
    weight, then = config["lambda_mi"], config.get("refine_lambda_mi")
    return f"{weight:g}" if then in (None, weight) or not config.get("refine_epochs") else f"{weight:g}, then {then:g}"


def _summary(
    summaries: Sequence[Mapping[str, Any]],
    tasks: Sequence[str],
    configs: Mapping[str, Mapping[str, Any]],
    *,
    inv: bool,
) -> ScoreTable:
    lines = []
    for summary in summaries:
        values = summary["values"]
        leaks = {task: _mean(values, "probes", "linear", "f_y", task) for task in tasks[1:]}
        chance = _chance(values)
        above = {task: value - chance[task] for task, value in leaks.items() if value is not None and task in chance}
        most = max(above, key=lambda task: above[task], default=None)
        config = configs[summary["name"]]
        weighs = config.get("method") not in (None, *WITHOUT_DEPENDENCE)
        lines.append(
            [
                summary["title"],
                _verdict(values),
                str(summary["seeds"]),
                _number(values, "drop_val_inv" if inv else "drop_val_bal", sign=True),
                _number(values, "gap_size"),
                _number(values, "accuracy", "bal", "y"),
                _number(values, "worst_group", "bal", "accuracy"),
                "-" if most is None else f"{most} {signed_points(above[most])}",
                _lambda(config) if weighs and "lambda_mi" in config else "-",
            ]
        )
    return ScoreTable(
        "summary",
        "At a glance",
        f"{VERDICTS if inv else NOT_INVERTED} The leak "
        "is the factor that a linear probe reads best from f_y, in points above chance. lambda: the weight of the "
        "dependence term, which a bundle may set for each method, and then for its second part.",
        [
            "method",
            "verdict",
            "seeds",
            f"y Val - {'Inv' if inv else 'Bal'}",
            "size of y Val - Inv",
            "y Bal",
            "worst group Bal",
            "leak into f_y",
            "lambda",
        ],
        lines,
    )


def _accuracies(summaries: Sequence[Mapping[str, Any]], tasks: Sequence[str], *, inv: bool) -> ScoreTable:
    header = ["method", "seeds", *(f"{task} {title}" for task in tasks for title in SUBSET_TITLES.values())]
    lines = [
        [
            summary["title"],
            str(summary["seeds"] or "-"),
            *(_number(summary["values"], "accuracy", subset, task) for task in tasks for subset in SUBSET_TITLES),
            _number(summary["values"], "drop_val_inv" if inv else "drop_val_bal", sign=True),
            _number(summary["values"], "worst_group", "bal", "accuracy"),
        ]
        for summary in summaries
    ]
    return ScoreTable(
        "accuracy",
        "Accuracy",
        f"Accuracy in %, mean ± half the 95 % interval over seeds. Val: correlated as in training; {'Inv: inverted; ' if inv else ''}"
        "Bal: none.",
        [*header, f"y Val - {'Inv' if inv else 'Bal'}", "worst group Bal"],
        lines,
    )


def _ranking(summaries: Sequence[Mapping[str, Any]]) -> ScoreTable | None:
    scores = {
        "AUROC": lambda subset: ("auroc", subset, "y"),
        "balanced accuracy": lambda subset: ("balanced_accuracy", subset, "y"),
        "worst group": lambda subset: ("worst_group", subset, "accuracy"),
    }
    found = {path for summary in summaries for path in summary["values"]}
    columns = {
        f"{name} {title}": path(subset)
        for name, path in scores.items()
        for subset, title in SUBSET_TITLES.items()
        if path(subset) in found
    }
    if not columns:
        return None
    lines = [
        [summary["title"], *(_number(summary["values"], *path) for path in columns.values())] for summary in summaries
    ]
    return ScoreTable(
        "ranking",
        "Other scores",
        "Other scores of y, in %. A worst group in few images is uncertain.",
        ["method", *columns],
        lines,
    )


def _matrix(
    summaries: Sequence[Mapping[str, Any]],
    tasks: Sequence[str],
    chance: Mapping[str, float],
    path: tuple[str, str],
    heading: str,
    what: str,
) -> ScoreTable | None:
    """The table of a score of every feature block for every task; nothing where no run has it."""
    pairs = [(a, b) for a in tasks for b in tasks]
    lines = [
        [summary["title"], *(_number(summary["values"], *path, f"f_{a}", b) for a, b in pairs)]
        for summary in summaries
        if any((*path, f"f_{a}", b) in summary["values"] for a, b in pairs)
    ]
    if not lines:
        return None
    lines.append(["chance", *(f"{100 * chance[b]:.1f}" if b in chance else "-" for _, b in pairs)])
    return ScoreTable(
        "switched" if path[0] == "switched_labels" else "_".join(path),
        heading,
        f"What {what} for every label on Bal, in %. Apart from a block's own label, chance is what is wanted.",
        ["method", *(f"f_{a} -> {b}" for a, b in pairs)],
        lines,
    )


def _ablation(ours: Sequence[Mapping[str, Any]], published: Sequence[Mapping[str, Any]]) -> ScoreTable | None:
    switches = {
        f"{name}{given}": f"DLS {dls}, CAW {caw}{', given y' if given else ''}"
        for name, dls, caw in (
            ("mimmx_no_dls_no_caw", "no", "no"),
            ("mimmx_caw", "no", "yes"),
            ("mimmx_dls", "yes", "no"),
            ("mimmx", "yes", "yes"),
            ("mimmx_caw_terms", "yes", "terms"),
        )
        for given in ("", "_conditional")
    }
    lines = []
    for summary in (summary for summary in ours if summary["name"] in switches):
        beside = published if summary["agreement"] is None else []  # the paper swept no agreement
        paper: Values = next((other["values"] for other in beside if other["name"] == summary["name"]), {})
        sweep = "" if summary["agreement"] is None else f" @ {summary['agreement']:g}"
        row = [switches[summary["name"]] + sweep]
        for values in (summary["values"], paper):
            row += [_number(values, "accuracy", subset, "y") for subset in SUBSET_TITLES]
            row.append(_number(values, "drop_val_inv", sign=True))
        lines.append(row)
    if len(lines) < 2:
        return None
    columns = [f"y {title}" for title in SUBSET_TITLES.values()] + ["y Val - Inv"]
    return ScoreTable(
        "ablation",
        "Ablation",
        "MIMM-X as published, on correlated batches, with and without Dynamic Loss Scaling (DLS) and the Confounder "
        "Attention Weighter (CAW); terms: its weights on the factors' terms instead of their features; given y: with the "
        "mutual information within each class of y.",
        ["MIMM-X", *columns, *(f"{column}, published" for column in columns)],
        lines,
    )


def _differences(done: Sequence[Mapping[str, Any]]) -> ScoreTable | None:
    """The table of paired differences; nothing where there is no pair."""
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
        given = {path: found[name, agreement] for path, found in differences.items() if (name, agreement) in found}
        values = {path: (mean, half) for path, (mean, half, _) in given.items()}
        title = row_title({"name": name, "agreement": agreement})
        counts = [count for _, _, count in given.values()]
        pairs = " to ".join(map(str, dict.fromkeys((min(counts), max(counts)))))
        lines.append([title, pairs, *(_number(values, *path, sign=True) for path in scores.values())])
    if not lines:
        return None
    return ScoreTable(
        "differences",
        "Paired differences",
        f"Difference to {reference} with the same seed, in points, mean ± half the 95 % interval over seeds. Pairs: seeds "
        "of which both have the score.",
        ["method", "pairs", *scores],
        lines,
    )
