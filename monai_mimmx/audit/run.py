# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""The audit of a trained classifier from its config, checkpoint and a table of images, with its page."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from monai.bundle import ConfigParser
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import confusion_matrix
from torch import nn

from monai_mimmx.audit.attributes import audit_attributes
from monai_mimmx.audit.features import extract_features
from monai_mimmx.data import Task, parse_tasks, read_table
from monai_mimmx.data.tables import classify, read_columns, value_key
from monai_mimmx.errors import check_writable, raise_problems, root_cause
from monai_mimmx.files import write_json
from monai_mimmx.options import require_options
from monai_mimmx.preflight import training_differences
from monai_mimmx.report.figures import gap_figure, interval_figure, save_figures
from monai_mimmx.report.page import html_table, picture, section, write_page
from monai_mimmx.trained_model import load_model, require_checkpoint
from monai_mimmx.transforms.load_grayscale import quiet_readers

__all__ = ["attribute_tasks", "audit_classifier"]

NETWORKS = ("network_def", "network", "net", "model")
MAX_CLASSES, MIN_ROWS = 10, 20
AS_CONFIG = 'give a file with {{"{key}": {then}}} as a further --config'


def attribute_tasks(
    table: str | os.PathLike[str],
    label: str | Mapping[str, Any],
    *,
    columns: Sequence[str] | None = None,
    without: Sequence[str] = ("image", "subject", "split"),
    split: str | None = None,
) -> tuple[list[Task], dict[str, str], dict[str, list[str]]]:
    """
    Tasks for the label and for every column of a table that can be audited.

    Numbers with more than 10 different values are cut at their median. Of other columns each value is a class; values in
    fewer than 20 rows count as unknown. Only rows with a usable label count.

    Args:
        table: a CSV file.
        label: the label as a task (see `parse_tasks`), or its column: its sorted values are then the classes, in the
            order of the network's outputs.
        columns: to audit; by default all but the label's and `without`.
        without: columns that are no attributes.
        split: look at the rows with this value in the column split only.

    Returns:
        The label's task and one task per attribute; of columns that are left out, the reason; and the values of each column
        that are too rare to be a class.

    Raises:
        FileNotFoundError: if there is no table.
        ValueError: for a table that cannot be read, an unknown column, or a table without a column that can be audited.
    """
    path = Path(table)
    label_column = label if isinstance(label, str) else str(label.get("column"))
    frame = read_columns(path, [label_column, *(columns or [])], everything=True)
    if split is not None:
        frame = frame[_of_split(frame, split, path)]
    if columns is None:
        columns = [name for name in frame.columns if name not in (*without, label_column)]
    if isinstance(label, str):
        values = _spellings(frame[label].dropna())
        if not 2 <= len(values) <= MAX_CLASSES:
            raise ValueError(
                f"{path}: the label's column {label!r} has {len(values)} different values; give its classes as a task, such "
                f'as {{"name": "{label}", "column": "{label}", "negative": [0], "positive": [1]}}'
            )
        label = {"name": label, "column": label, "classes": [[value] for value in values]}
    own = parse_tasks([label, {"name": "no attribute", "column": "none", "classes": [[0], [1]]}])[0]
    if own.name in columns:
        raise ValueError(f"the label is named {own.name!r}, as a column to audit: give the label another name")
    labelled = frame[classify(frame[own.column], own, path)[0] >= 0]
    tasks: list[Any] = [own]
    left_out: dict[str, str] = {}
    rare: dict[str, list[str]] = {}
    for name in columns:
        rules, others = (
            _rules(labelled[name].dropna()) if name != "y" else ("its name stands for the label: rename it", [])
        )
        if isinstance(rules, str):
            left_out[name] = rules
            continue
        tasks.append({"name": name, "column": name, "classes": rules})
        if others:
            rare[name] = others
    if len(tasks) < 2:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in left_out.items()) or "it has no other column"
        raise ValueError(f"{path} has no column to audit ({reasons}): name some by --columns")
    return parse_tasks(tasks), left_out, rare


def _of_split(frame: pd.DataFrame, split: str, path: Path) -> pd.Series:
    """Which rows belong to the split."""
    if "split" not in frame.columns:
        raise ValueError(f"{path} has no column 'split' to find {split!r} in")
    chosen = frame["split"] == split
    if not chosen.any():
        raise ValueError(
            f"{path} has no row of the split {split!r}: it has {', '.join(map(repr, frame['split'].dropna().unique()))}"
        )
    return chosen


def _spellings(values: pd.Series) -> list[str]:
    """The different values in their order, numbers by size; of equal numbers, one."""
    by_key = {value_key(value): str(value) for value in values.unique()}
    numbers = pd.to_numeric(pd.Series(list(by_key)), errors="coerce").to_numpy(dtype=float)
    ordered = sorted(zip(np.isnan(numbers), np.nan_to_num(numbers), by_key.values(), strict=True))
    return [value for _, _, value in ordered]


def _rules(values: pd.Series) -> tuple[list[Any] | str, list[str]]:
    """Rules of the classes of a column, or why it has none; and the values that are too rare to be a class."""
    keys = values.map(value_key)
    counts = keys.value_counts()
    numbers = pd.to_numeric(keys, errors="coerce").replace([np.inf, -np.inf], np.nan)
    if len(counts) > MAX_CLASSES and numbers.notna().all():
        middle = float(numbers.median())
        middle = middle if (numbers > middle).any() else float(numbers[numbers < middle].max())
        cut = repr(middle).removesuffix(".0")
        return [f"<= {cut}", f"> {cut}"], []
    often = keys.map(counts) >= MIN_ROWS
    frequent = _spellings(values[often])
    if len(frequent) > MAX_CLASSES or (len(counts) > MAX_CLASSES and len(frequent) < 2):
        return f"{len(counts)} different values, not all of them numbers", []
    if len(frequent) < 2:
        return f"fewer than two values stand in {MIN_ROWS} labelled rows or more", []
    return [[value] for value in frequent], _spellings(values[~often])


def _built(parser: ConfigParser, name: str) -> Any:
    try:
        return parser.get_parsed_content(name)
    except Exception as error:  # whatever a component or an expression raises
        raise ValueError(f"{name!r} of the config cannot be made: {root_cause(error)}") from error


def audit_classifier(
    config: str | Sequence[str],
    ckpt: str | os.PathLike[str],
    table: str | os.PathLike[str],
    *,
    label: str | Mapping[str, Any],
    output_dir: str | os.PathLike[str],
    columns: Sequence[str] | None = None,
    image_column: str = "image",
    image_root: str | os.PathLike[str] | None = None,
    subject_column: str | None = None,
    split: str | None = None,
    network: str | None = None,
    preprocessing: str = "preprocessing",
    layer: str | None = None,
    options: Mapping[str, Any] | None = None,
    device: str | None = None,
    batch_size: int = 32,
    num_workers: int = 0,
) -> dict[str, Any]:
    """
    Audit a trained classifier on a table of images: what its features and predictions tell of every column.

    The images should be such that the network was not trained on.

    Args:
        config: MONAI config file, or several, with the network and the preprocessing; of a bundle: `inference.json`.
        ckpt: its weights: a state dict, or a mapping that holds one as "model", "state_dict", "network" or "net".
        table: CSV with a row per image.
        label: what the network predicts, see `attribute_tasks`.
        output_dir: gets `audit.json`, `report.html` and its pictures.
        columns: to audit, see `attribute_tasks`.
        image_column: column of the image files, absolute or relative to `image_root`, which none may lead out of.
        image_root: folder that holds the images; None: the table's.
        subject_column: column of the subject; by default "subject", and where the table has none, each image is a subject
            of its own.
        split: audit the rows with this value in the column "split" only.
        network: id of the network in the config; by default the first of "network_def", "network", "net", "model".
        preprocessing: id of the transform of `{"image": file}`.
        layer: module whose output is taken as features, see `extract_features`.
        options: values that replace those of the config.
        device: where to run; by default a GPU, if there is one.
        batch_size: images per forward pass.
        num_workers: of the data loader.

    Returns:
        What `audit_attributes` found, with "verdict" for each attribute, "left_out" (column to reason) and "excluded"
        (rows by reason).

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: an id or column that is not there, a config that cannot be read or that prepares images otherwise than
            the checkpoint's training did, weights that do not fit, or a network that does not run on the images.

    Example:
        `audit_classifier("my/inference.json", "my/model.pt", "test.csv", label="sick", output_dir="audit")`
    """
    check_writable(output_dir)
    if device is not None:
        require_options(device=device)
    for file in [config] if isinstance(config, str) else config:
        if not Path(file).is_file():
            raise FileNotFoundError(f"there is no config {file}")
    require_checkpoint(Path(ckpt), advice="name the weights of the classifier to audit with --ckpt")
    header = read_columns(Path(table), [subject_column or image_column], ["subject"]).columns
    subjects = subject_column or ("subject" if "subject" in header else image_column)
    without = (image_column, subjects, "image", "subject", "split")
    tasks, left_out, rare = attribute_tasks(table, label, columns=columns, without=without, split=split)

    def prepare(whole: pd.DataFrame, path: Path) -> tuple[pd.DataFrame, dict[str, int]]:
        if split is None:
            return whole.drop(columns="split", errors="ignore"), {}
        chosen = _of_split(whole, split, path)
        return whole[chosen].drop(columns="split"), {f"split is not {split}": int((~chosen).sum())}

    frame = read_table(
        table,
        tasks,
        image_column=image_column,
        subject_column=subjects,
        image_root=image_root,
        prepare=prepare,
        unmatched="unknown",
    )
    parser = ConfigParser()
    try:
        parser.read_config(config)
    except ValueError as error:
        raise ValueError(f"the config {config} cannot be read: {error}") from error
    except AttributeError as error:
        raise ValueError(f"the config {config} is no mapping of ids to what they are") from error
    if unknown := [key for key in options or {} if key.split("#")[0] not in parser]:
        raise ValueError(f"the config has no {', '.join(map(repr, unknown))} whose value could be replaced")
    parser.update(dict(options or {}))
    names = [network] if network is not None else [name for name in NETWORKS if name in parser]
    for name in [*names[:1], preprocessing]:
        if name not in parser:
            raise ValueError(f"the config has no {name!r}: name the ids of the network and the preprocessing it has")
    if not names:
        raise ValueError(f"the config has none of {', '.join(NETWORKS)}: name the id of the network")
    module = _built(parser, names[0])
    if not isinstance(module, nn.Module):
        raise ValueError(
            f"{names[0]!r} of the config is a {type(module).__name__}, no torch.nn.Module: name the network's id"
        )
    raise_problems(
        training_differences(
            ckpt, lambda name: _built(parser, name) if name in parser else None, tasks=False, advice=AS_CONFIG
        )
    )
    load_model(module, Path(ckpt), advice="is the config that of its training?")
    with quiet_readers():
        transform = _built(parser, preprocessing)
    try:
        logits, features = extract_features(
            module,
            frame["image"].tolist(),
            transform,
            num_classes=tasks[0].num_classes,
            device=device or ("cuda" if torch.cuda.is_available() else "cpu"),
            layer=layer,
            batch_size=batch_size,
            num_workers=num_workers,
        )
    except RuntimeError as error:
        cause = str(root_cause(error)).strip()
        told = f"the network of the config does not run on its preprocessing of the images: {cause}"
        if any(file in cause for file in frame["image"]):
            last = cause.splitlines()[-1].removeprefix("RuntimeError: ")  # before it stands the trace of a worker
            told = f"the preprocessing of the config cannot use an image: {last}"
        raise ValueError(
            f"{told.rstrip('.')}. The preprocessing is a dictionary transform of the key 'image' that ends with one image, "
            "channels first"
        ) from error
    found = audit_attributes(
        logits,
        features,
        frame[tasks[0].name].to_numpy(),
        {task.name: frame[task.name].to_numpy() for task in tasks[1:]},
        frame["subject"],
        class_names={"y": tasks[0].class_names, **{task.name: task.class_names for task in tasks[1:]}},
        progress=True,
    )
    for name, values in rare.items():
        if "rare" in found["attributes"][name]:
            found["attributes"][name]["rare"] = values + found["attributes"][name]["rare"]
    found |= _likelier_order(logits, frame[tasks[0].name].to_numpy(), tasks[0].class_names)
    found |= {"left_out": left_out, "excluded": frame.attrs["excluded"], "label": tasks[0].name}
    found["by_subject"] = subjects != image_column
    write_json(Path(output_dir) / "audit.json", found)
    _write_page(output_dir, found, title=f"Audit of {Path(ckpt).name}")
    return found


def _write_page(folder: str | os.PathLike[str], found: Mapping[str, Any], *, title: str) -> Path:
    """Write `report.html` and the pictures of an audit; the path of the page."""
    done = {name: values for name, values in found["attributes"].items() if "skipped" not in values}
    for name in ("gaps", "readings"):  # those of an earlier audit
        (Path(folder) / f"{name}.png").unlink(missing_ok=True)
    by = "by subject" if found["by_subject"] else "by image, as the table tells no subjects"
    body = section(
        "At a glance",
        "Gap: what accuracy is lost, in points, where the association of the attribute with the label is turned round, "
        "as far as the rarest cell of the images allows (so many per cent of the association: where they are few, the "
        "gap is only a part of what there may be); above 5 a shortcut, below -5 an over-correction, if the network was "
        "trained on data with the association of "
        "these images. Read from predictions and features: what a probe makes of them in images of equal label; chance "
        f"in brackets. Intervals of 95 %, {by}: of the probes as they were fitted: of many attributes that are not there, "
        "one in six or so will seem to be.",
    )
    body += html_table(
        [
            "attribute",
            "verdict",
            "gap",
            "from predictions (%)",
            "from features (%)",
            "association with the label",
            "turned round (%)",
            "images",
        ],
        [
            [
                name,
                values["verdict"],
                _with_interval(values["gap"], sign=True),
                f"{_with_interval(values['predictions'])} ({100 * values['chance']:.0f})",
                f"{_with_interval(values['features'])} ({100 * values['chance']:.0f})",
                f"{values['association']:.2f}",
                f"{100 * values['turned']:.0f}",
                values["n"],
            ]
            for name, values in done.items()
        ],
        kind="words",
    )
    if done:
        figures = {
            "gaps": gap_figure(
                {name: {key: [value] for key, value in v["accuracy"].items()} for name, v in done.items()}
            ),
            "readings": interval_figure(
                {
                    f"{name}, from {source}": (values[source]["value"], *values[source]["interval"], values["chance"])
                    for name, values in done.items()
                    for source in ("predictions", "features")
                }
            ),
        }
        captions = {
            "gaps": "Accuracy of the label, reweighted: Val as the attribute and the label occur together, Bal as if "
            "they were independent, Inv with the association turned round as far as the rarest cell allows.",
            "readings": "What probes read, among images of equal label; the dashed line is chance.",
        }
        for path in save_figures(figures, folder):
            body += picture(path.stem, path.read_bytes(), captions[path.stem])
        body += section("Worst groups", "For each attribute, the accuracy of the label in every cell; the worst first.")
        body += html_table(
            ["attribute", "cell", "accuracy (%)", "images"],
            [
                [name, group["cell"], f"{100 * group['accuracy']:.1f}", group["n"]]
                for name, values in done.items()
                for group in values["groups"]
            ],
            kind="words",
        )
    skipped = {name: values["skipped"] for name, values in found["attributes"].items() if "skipped" in values}
    rare = {name: ", ".join(values["rare"]) for name, values in done.items() if values["rare"]}
    told = {
        "Not audited": {**skipped, **found["left_out"]},
        "Values that count as unknown, being too rare": rare,
        "Excluded rows": found["excluded"],
    }
    for heading, rows in told.items():
        if rows:
            body += section(heading, "") + html_table(["what", "why, or how many"], rows.items(), kind="settings")
    return write_page(folder, body, title=title, subtitle=audit_summary(found))


def audit_summary(found: Mapping[str, Any]) -> str:
    """What `audit_classifier` found of the label itself, in one line."""
    shares = {"accuracy": found["accuracy"], "balanced accuracy": found["balanced_accuracy"], "AUROC": found["auroc"]}
    told = ", ".join(f"{name} {100 * share:.1f} %" for name, share in shares.items() if share is not None)
    line = f"{found['label']} ({', '.join(found['classes'])}): {told}, {found['n']} images"
    if "likelier" in found:
        likelier = found["likelier"]
        line += (
            f". If the outputs are in the order {', '.join(likelier['order'])}, the accuracy is "
            f"{100 * likelier['accuracy']:.1f} %: then give the label as a rule, with its classes in that order"
        )
    return line


def _likelier_order(logits: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """The classes in the order of the outputs; and another order, where by that the network is right far more often."""
    counts = confusion_matrix(labels, logits.argmax(1), labels=range(len(names)))
    classes, outputs = linear_sum_assignment(-counts)
    right, best = np.trace(counts) / counts.sum(), counts[classes, outputs].sum() / counts.sum()
    found: dict[str, Any] = {"classes": list(names)}
    if best - right > 0.2:
        order = [names[i] for i in classes[np.argsort(outputs)]]
        found["likelier"] = {"order": order, "accuracy": float(best)}
    return found


def _with_interval(estimate: Mapping[str, Any], *, sign: bool = False) -> str:
    form = "+.1f" if sign else ".1f"
    value, low, high = (
        f"{round(100 * number, 1) + 0.0:{form}}" for number in (estimate["value"], *estimate["interval"])
    )
    return f"{value} [{low}, {high}]"
