# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""Pictures of a run. Every function returns a matplotlib Figure of its own, and touches no global pyplot state."""

from __future__ import annotations

import os
import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from monai_mimmx.evaluation.scores import SUBSET_TITLES
from monai_mimmx.files import replacing

__all__ = [
    "accuracy_figure",
    "cooccurrence_figure",
    "courses_figure",
    "gap_figure",
    "interval_figure",
    "probe_figure",
    "sample_figure",
    "save_figures",
    "strength_figure",
    "training_figure",
    "tsne_figure",
    "upright",
]

# Okabe and Ito's palette, told apart with every common form of colour blindness.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#000000", "#F0E442")
DASHES: tuple[Any, ...] = ("-", (0, (4, 2)), (0, (1, 1.5)), (0, (6, 1.5, 1, 1.5)))
WIDTH = 5.0  # inches: narrow, so that text is still large enough where a phone shows the picture 390 pixels wide
SMALL = 9


def _figure(height: float, width: float = WIDTH) -> Figure:
    return Figure(figsize=(width, height), layout="constrained", dpi=150)


class _Wrapper(textwrap.TextWrapper):
    """Breaks lines after underscores too, as in the names of methods, and not at no-break spaces."""

    def _split(self, text: str) -> list[str]:
        return [part for part in re.split(r"( +)|(?<=[_-])", text) if part]


def _label(text: object, width: int = 14) -> str:
    """A label that fits its place: wrapped, `$` not read as mathematics."""
    lines = (_Wrapper(width).fill(line) for line in str(text).split("\n"))
    return "\n".join(lines).replace("$", r"\$")


def _plain(ax: Axes) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", alpha=0.3)
    ax.set_axisbelow(True)
    ax.tick_params(labelsize=SMALL)


def accuracy_figure(scores: Mapping[str, Any], title: str = "") -> Figure:
    """
    Grouped bars of the accuracy on Val, Inv and Bal for y and every spurious factor, with chance as a dashed line.

    Args:
        scores: what `score_table` returns; `accuracy` is needed, `chance` is drawn where given.
        title: title of the figure.
    """
    table = scores["accuracy"]
    subsets = [subset for subset in SUBSET_TITLES if subset in table] or list(table)
    keys = list(table[subsets[0]])
    figure = _figure(3.8, max(WIDTH, 1.2 * len(keys)))
    ax = figure.subplots()
    width = 0.8 / len(subsets)
    for i, subset in enumerate(subsets):
        values = [table[subset][key] for key in keys]
        heights = [100 * value if value is not None else 0 for value in values]
        at = np.arange(len(keys)) + (i - (len(subsets) - 1) / 2) * width
        colour = COLOURS[[*SUBSET_TITLES].index(subset) if subset in SUBSET_TITLES else i]  # Bal's without Inv too
        bars = ax.bar(at, heights, width * 0.92, color=colour, label=SUBSET_TITLES.get(subset, subset))
        texts = [f"{height:.0f}" if value is not None else "none" for height, value in zip(heights, values)]
        ax.bar_label(bars, texts, fontsize=SMALL, padding=1)
    chance = scores.get("chance", {}).get("bal", {})
    for position, key in enumerate(keys):
        if chance.get(key) is not None:
            label = "chance (Bal)" if key == keys[0] else ""
            ax.hlines(100 * chance[key], position - 0.48, position + 0.48, "#444444", "--", linewidth=1.2, label=label)
    ax.set_xticks(np.arange(len(keys)), [_label(key) for key in keys])
    ax.set_ylim(0, 108)
    ax.set_yticks(range(0, 101, 20))
    ax.set_ylabel("accuracy (%)")
    _plain(ax)
    figure.legend(loc="outside lower center", ncols=4, fontsize=SMALL, frameon=False)
    if title:
        figure.suptitle(_label(title, 45), fontsize=12)
    return figure


def probe_figure(
    probes: Mapping[str, Mapping[str, Any]],
    *,
    title: str = "{} probe: column's label read from row's block (%)",
) -> Figure:
    """
    Heat maps of what `probe_matrix` returns: rows are feature blocks, columns the tasks read from them, numbers in %.
    The colour is the distance above chance, so that a clean block is white off its own column.

    Args:
        probes: name to matrix `{block: {task: accuracy}}`, and "chance" `{task: accuracy}` where known.
        title: of each heat map; `{}` stands for its name.
    """
    names = [name for name in probes if name != "chance"]
    chance = probes.get("chance", {})
    blocks = list(probes[names[0]])
    keys = list(probes[names[0]][blocks[0]])
    height = (0.55 if len(blocks) < 8 else 0.33) * len(blocks)
    figure = _figure(len(names) * (height + 1.1), max(WIDTH, 1.1 * len(keys) + 2))
    for ax, name in zip(figure.subplots(len(names), squeeze=False)[:, 0], names):
        values = np.array([[probes[name][b].get(k) for k in keys] for b in blocks], dtype=float)
        # Without a stated chance the best constant guess is not known: colour from 1/2.
        floor = np.array([0.5 if chance.get(k) is None else chance[k] for k in keys])
        above = (values - floor) / np.maximum(1 - floor, 1e-6)
        ax.imshow(np.ma.masked_invalid(above), cmap="Blues", vmin=0, vmax=1, aspect="auto")
        for (row, column), value in np.ndenumerate(values):
            text = "none" if np.isnan(value) else f"{100 * value:.0f}"
            dark = above[row, column] > 0.6
            ax.text(column, row, text, ha="center", va="center", fontsize=11, color="white" if dark else "black")
        ticks = [
            _label(key) + (f"\n(chance {100 * chance[key]:.0f})" if chance.get(key) is not None else "") for key in keys
        ]
        ax.set_xticks(range(len(keys)), ticks, fontsize=SMALL)
        ax.set_yticks(range(len(blocks)), [_label(block, 24) for block in blocks], fontsize=SMALL)
        ax.set_title(title.format(name), fontsize=10)
        ax.tick_params(length=0)
    return figure


def _series(history: Sequence[Mapping[str, Any]], prefix: str) -> dict[str, list[float]]:
    """Values per epoch of all keys that start with the prefix, NaN where an epoch lacks one, empty series left out."""
    keys = dict.fromkeys(key for row in history for key in row if key.startswith(prefix))
    series = {
        key.removeprefix(prefix): [np.nan if row.get(key) is None else float(row[key]) for row in history]
        for key in keys
    }
    return {name: values for name, values in series.items() if np.isfinite(values).any()}


def training_figure(history: Sequence[Mapping[str, Any]]) -> Figure:
    """
    The course of training, one panel each for the task losses, the loss scales gamma, the mutual information with
    its weight lambda, the attention weights, and the accuracy on the select set. Panels without data are left out.

    Args:
        history: a row per epoch with "epoch" and any of "loss_<task>", "gamma_<task>", "mi" (the mean of the factors'
            terms, weighted by attention), "mi_<factor>", "lambda", "attention_<factor>", "select_accuracy_<task>",
            "select_robust" (what the model is selected by).
    """
    select = _series(history, "select_accuracy_")
    if robust := _series(history, "select_robust").get(""):
        select = {**select, "y, robust": robust}
    mi = _series(history, "mi_")
    if mean := _series(history, "mi").get(""):
        mi = {"weighted mean MI": mean, **mi}
    weight = _series(history, "lambda").get("")
    panels = [
        ("task loss (cross-entropy, nats)", _series(history, "loss_")),
        ("loss scale gamma", _series(history, "gamma_")),
        ("mutual information (nats), or other dependence term", mi),
        ("attention weight", _series(history, "attention_")),
        ("accuracy on the select set (%)", {k: list(100 * np.array(v)) for k, v in select.items()}),
    ]
    panels = [panel for panel in panels if panel[1]]
    figure = _figure(max(1, len(panels)) * 1.75 + 0.5)
    axes = figure.subplots(max(1, len(panels)), sharex=True, squeeze=False)[:, 0]
    if not panels:
        axes[0].set_axis_off()
        axes[0].text(0.5, 0.5, "no training history", ha="center")
        return figure
    epochs = [row.get("epoch", i) for i, row in enumerate(history)]
    mark = "o" if len(history) < 3 else ""  # a line needs two points to be seen
    # One colour and dash per name in all panels, y first. Dashes show equal lines that would hide one another.
    names = sorted(dict.fromkeys(name for _, series in panels for name in series), key=lambda name: name != "y")
    lines = {}
    for ax, (title, series) in zip(axes, panels):
        for name, values in series.items():
            i, seen = names.index(name), np.full(len(epochs), True)
            if title.startswith("accuracy"):  # seen at validations only, which a gap between them would hide
                seen = np.isfinite(values)
            style = {"color": COLOURS[i % len(COLOURS)], "linestyle": DASHES[i % len(DASHES)], "marker": mark}
            style["marker"] = "o" if seen.sum() < 3 else mark
            shown = np.array(epochs)[seen], np.array(values)[seen]
            lines[name] = ax.plot(*shown, linewidth=1.6, label=_label(name, 18), **style)[0]
        ax.set_title(title, fontsize=10, loc="left")
        _plain(ax)
        if title.startswith("mutual") and weight:
            other = ax.twinx()
            lines["lambda"] = other.plot(epochs, weight, color="#888888", linewidth=1, marker=mark, label="lambda")[0]
            other.set_ylabel("lambda", fontsize=SMALL)
            other.tick_params(labelsize=SMALL)
            other.spines["top"].set_visible(False)
            other.set_ylim(bottom=0)
    axes[-1].set_xlabel("epoch", fontsize=SMALL)
    axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(
        handles=list(lines.values()), loc="outside lower center", ncols=3, fontsize=SMALL, frameon=False, handlelength=3
    )
    return figure


def tsne_figure(
    points_by_block: Mapping[str, np.ndarray],
    labels_by_task: Mapping[str, np.ndarray],
    class_names: Mapping[str, Sequence[str]] | None = None,
) -> Figure:
    """
    Scatter plots of embedded feature blocks. A disentangled block separates its own label (the diagonal) and no other.

    Args:
        points_by_block: points `(m, 2)` per feature block: the rows.
        labels_by_task: class indices `(m,)` of the same rows, -1 where missing, per task: the columns.
        class_names: names of a task's classes, to stand with their colours below its column.
    """
    blocks, tasks = list(points_by_block), list(labels_by_task)
    figure = _figure(1.9 * len(blocks) + 0.5, max(WIDTH, 1.9 * len(tasks)))
    axes = figure.subplots(len(blocks), len(tasks), squeeze=False)
    for row, block in enumerate(blocks):
        points = np.asarray(points_by_block[block])
        for column, task in enumerate(tasks):
            ax, labels = axes[row, column], np.asarray(labels_by_task[task])
            if len(labels) != len(points):
                raise ValueError(
                    f"block '{block}' has {len(points)} points, but task '{task}' has {len(labels)} labels."
                )
            # All classes in one call, in a shuffled order: a class drawn last would hide the others.
            order = np.random.default_rng(0).permutation(np.flatnonzero(labels >= 0))
            colours = [COLOURS[label % len(COLOURS)] for label in labels[order]]
            ax.scatter(points[order, 0], points[order, 1], s=7, c=colours, alpha=0.7, linewidths=0)
            ax.set_xticks([])
            ax.set_yticks([])
            if row == 0:
                ax.set_title(f"coloured by\n{_label(task)}", fontsize=10)
            if column == 0:
                ax.set_ylabel(_label(block), fontsize=10)
            if row == len(blocks) - 1 and (names := (class_names or {}).get(task)):
                for i, name in enumerate(names):
                    ax.scatter([], [], s=20, c=COLOURS[i % len(COLOURS)], label=_label(name))
                below = {"loc": "upper center", "bbox_to_anchor": (0.5, 0.0), "ncols": 2 if len(names) > 2 else 1}
                ax.legend(**below, fontsize=SMALL, frameon=False, handletextpad=0.2, columnspacing=0.8)
    return figure


def cooccurrence_figure(
    subset_labels: Mapping[str, np.ndarray], task_names: Sequence[str], class_names: Sequence[Sequence[str]]
) -> Figure:
    """
    How often each class of y occurs with each class of every factor, as raw counts.

    Args:
        subset_labels: labels `(n, 1 + N)`, primary first, -1 where missing, per subset: the rows.
        task_names: name per task, primary first; the factors are the columns.
        class_names: names of the classes, per task.
    """
    subsets, factors = list(subset_labels), range(1, len(task_names))
    figure = _figure(1.45 * len(subsets) + 0.4, max(WIDTH, 2.4 * len(factors)))
    axes = figure.subplots(len(subsets), max(1, len(factors)), squeeze=False)
    for row, subset in enumerate(subsets):
        labels = np.asarray(subset_labels[subset])
        if labels.ndim != 2 or labels.shape[1] != len(task_names):
            raise ValueError(f"labels of subset '{subset}' must have shape (n, {len(task_names)}); got {labels.shape}.")
        for column, factor in enumerate(factors):
            ax = axes[row, column]
            counts = np.zeros((len(class_names[0]), len(class_names[factor])), dtype=int)
            both = labels[(labels[:, 0] >= 0) & (labels[:, factor] >= 0)]
            np.add.at(counts, (both[:, 0], both[:, factor]), 1)
            share = counts / max(1, counts.sum())
            # Equal counts are half dark in every picture, so that subsets compare.
            top = 2 / counts.size
            ax.imshow(share, cmap="Blues", vmin=0, vmax=top, aspect="auto")
            for (i, j), count in np.ndenumerate(counts):
                colour = "white" if share[i, j] > 0.6 * top else "black"
                ax.text(j, i, f"{count}", ha="center", va="center", fontsize=10, color=colour)
            ax.set_xticks(range(counts.shape[1]), [_label(name, 10) for name in class_names[factor]], fontsize=SMALL)
            first = [_label(name, 10) for name in class_names[0]] if column == 0 else []
            ax.set_yticks(range(len(first)), first, fontsize=SMALL)
            ax.tick_params(length=0)
            if column == 0:
                ax.set_ylabel(f"{_label(subset)}\n{_label(task_names[0])}", fontsize=SMALL)
            if row == 0:
                ax.set_title(_label(task_names[factor], 20), fontsize=10)
    return figure


def gap_figure(
    scores: Mapping[str, Mapping[str, Sequence[float]]],
    published: Mapping[str, Mapping[str, Sequence[float]]] | None = None,
) -> Figure:
    """
    The accuracy of y on Val, Inv and Bal, a line per method: the shorter the bar from Val to Inv, the smaller the shortcut.

    Args:
        scores: method to `{"val": values, "inv": .., "bal": ..}`, fractions, a value per seed; the mean is a large mark,
            each seed a small one.
        published: the same for published figures, drawn hollow above the method's own.
    """
    methods = list(scores)
    figure = _figure(0.45 * len(methods) + 1.3)
    ax = figure.subplots()
    named: set[str] = set()
    for row, method in enumerate(methods):
        for values, lift, filled in ((scores[method], 0.0, True), ((published or {}).get(method, {}), -0.28, False)):
            means = {key: 100 * float(np.mean(values[key])) for key in SUBSET_TITLES if len(values.get(key, ()))}
            if "val" in means and "inv" in means:
                ax.plot([means["val"], means["inv"]], [row + lift] * 2, color="#999999", linewidth=3 if filled else 1)
            for (key, title), colour, marker in zip(SUBSET_TITLES.items(), COLOURS, "osD"):
                if key not in means:
                    continue
                label = "" if title in named else title
                named.add(title)
                face = colour if filled else "white"
                size = 55 if filled else 22
                ax.scatter(means[key], row + lift, size, face, marker=marker, edgecolors=colour, label=label, zorder=3)
                if filled and len(values[key]) > 1:
                    seeds = 100 * np.asarray(values[key], dtype=float)
                    ax.scatter(seeds, [row + 0.22] * len(seeds), 8, colour, marker=marker, alpha=0.7, linewidths=0)
    ax.set_yticks(range(len(methods)), [_label(method, 24) for method in methods])
    ax.set_ylim(len(methods) - 0.5, -0.6)
    low, high = ax.get_xlim()
    half = max(high - low, 10) / 2  # small differences are to look small
    middle = min((low + high) / 2, 102 - half)
    ax.set_xlim(middle - half, middle + half)
    # The space beyond 0 and 100, for whole marks, is no part of the axis.
    ends = max(middle - half, 0.0), min(middle + half, 100.0)
    ax.set_xticks([tick for tick in ax.get_xticks() if ends[0] <= tick <= ends[1]])
    ax.spines["bottom"].set_bounds(*ends)
    ax.set_xlabel("accuracy of y (%)", fontsize=SMALL)
    _plain(ax)
    ax.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside lower center", ncols=3, fontsize=SMALL, frameon=False)
    return figure


def interval_figure(values: Mapping[str, tuple[float, float, float, float]]) -> Figure:
    """
    Estimates with their intervals, a line each, and the value of chance as a dashed mark.

    Args:
        values: name to (estimate, lower end, upper end, chance), fractions.
    """
    figure = _figure(0.36 * len(values) + 0.9)
    ax = figure.subplots()
    for row, (value, low, high, chance) in enumerate(values.values()):
        colour = COLOURS[4] if low > chance else COLOURS[0]
        ax.plot([100 * low, 100 * high], [row, row], color=colour, linewidth=2)
        ax.plot(100 * value, row, "o", color=colour)
        ax.plot([100 * chance] * 2, [row - 0.45, row + 0.45], "--", color="#444444", linewidth=1.2)
    ax.set_yticks(range(len(values)), [_label(name, 30) for name in values])
    ax.set_ylim(len(values) - 0.5, -0.5)
    ax.set_xlabel("accuracy (%)", fontsize=SMALL)
    _plain(ax)
    ax.grid(axis="x", alpha=0.3)
    return figure


def _lines(ax: Axes, name: str, place: int, x: Sequence[float], y: Sequence[float]) -> Any:
    """One method's line; where values are missing its neighbours are joined."""
    seen = np.isfinite(np.asarray(y, dtype=float))
    style: dict[str, Any] = {
        "color": COLOURS[place % len(COLOURS)],
        "linestyle": DASHES[place // len(COLOURS) % len(DASHES)],
    }
    style["marker"] = "o" if seen.sum() < 8 else ""
    return ax.plot(
        np.asarray(x)[seen], np.asarray(y)[seen], linewidth=1.6, markersize=4, label=_label(name, 26), **style
    )[0]


def strength_figure(curves: Mapping[str, Mapping[str, Mapping[float, float]]]) -> Figure:
    """
    How the scores move with the strength of the spurious correlation: a panel per score, a line per method.

    Args:
        curves: title of the panel to method to `{agreement: score in %}`.
    """
    return _panels(
        {
            title: {name: (list(points), list(points.values())) for name, points in lines.items()}
            for title, lines in curves.items()
        },
        "agreement P(z = y) in training",
    )


def courses_figure(histories: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """
    The course of several trainings in common panels: loss of y, mutual information, gamma of y, what the model is selected
    by. Panels without data are left out.

    Args:
        histories: method to its rows per epoch, see `training_figure`.
    """
    panels = {
        "task loss of y (cross-entropy, nats)": ("loss_y", 1.0),
        "mutual information (nats), or other dependence term": ("mi", 1.0),
        "loss scale gamma of y": ("gamma_y", 1.0),
        "accuracy of y on the select set (%)": ("select_accuracy_y", 100.0),
        "robust accuracy of y on the select set (%)": ("select_robust", 100.0),
    }
    drawn: dict[str, dict[str, tuple[list[float], list[float]]]] = {}
    for title, (key, scale) in panels.items():
        for name, history in histories.items():
            values = _series(history, key).get("")
            if values is not None:
                drawn.setdefault(title, {})[name] = (
                    [row["epoch"] for row in history],
                    [scale * value for value in values],
                )
    figure = _panels(drawn, "epoch")
    figure.axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def _panels(panels: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]], xlabel: str) -> Figure:
    """Panels below one another, with one legend for the names in all of them."""
    names = list(dict.fromkeys(name for lines in panels.values() for name in lines))
    figure = _figure(1.9 * max(1, len(panels)) + 0.25 * -(-len(names) // 2) + 0.4)
    axes = figure.subplots(max(1, len(panels)), sharex=True, squeeze=False)[:, 0]
    handles: dict[str, Any] = {}
    for ax, (title, lines) in zip(axes, panels.items()):
        for name, (x, y) in lines.items():
            handles[name] = _lines(ax, name, names.index(name), x, y)
        ax.set_title(title, fontsize=10, loc="left")
        _plain(ax)
    axes[-1].set_xlabel(xlabel, fontsize=SMALL)
    figure.legend(
        handles=list(handles.values()),
        loc="outside lower center",
        ncols=2,
        fontsize=SMALL,
        frameon=False,
        handlelength=3,
    )
    return figure


def upright(image: np.ndarray, origin: str = "upper") -> np.ndarray:
    """
    An image as the field's readers give it, x first, turned to rows and columns.

    Args:
        image: `(C, X, Y)` or `(C, X, Y, Z)`.
        origin: where y begins: "upper" for pictures and radiographs, "lower" for slices whose y runs to anterior.

    Returns:
        `(C, H, W)` or `(C, H, W, Z)`, with x to the right.

    Raises:
        ValueError: another origin.

    Example:
        >>> upright(np.array([[[1, 2], [3, 4]]]), "lower").tolist()
        [[[2, 4], [1, 3]]]
    """
    if origin not in ("upper", "lower"):
        raise ValueError(f"origin must be 'upper' or 'lower', got {origin!r}.")
    rows = np.asarray(image).swapaxes(1, 2)
    return rows if origin == "upper" else rows[:, ::-1]


def sample_figure(images: np.ndarray, titles: Sequence[str]) -> Figure:
    """
    Sample images in a grid of up to four columns, each in its own grey scale.

    Args:
        images: `(k, C, H, W)`, or `(k, C, H, W, depth)` of which the middle slice is shown. Three channels are read as
            red, green and blue; else the first channel is shown.
        titles: k titles, e.g. the cells.
    """
    images = np.asarray(images, dtype=float)
    if not len(images) or len(images) != len(titles):
        raise ValueError(f"images and titles must be equally many, one or more; got {len(images)} and {len(titles)}.")
    if images.ndim not in (4, 5):
        raise ValueError(f"images must have shape (k, C, H, W) or (k, C, H, W, depth); got {images.shape}.")
    if images.ndim == 5:
        images = images[..., images.shape[-1] // 2]
    columns = min(4, len(images))
    rows = -(-len(images) // columns)
    longest = max(_label(title, 15).count("\n") + 1 for title in titles)
    figure = _figure(rows * (WIDTH / 4 + 0.17 * longest + 0.1), WIDTH * max(2, columns) / 4)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for ax in axes:
        ax.set_axis_off()
    for ax, image, title in zip(axes, images, titles):
        picture = np.moveaxis(image, 0, -1) if len(image) == 3 else image[0]
        low, high = np.nanmin(picture), np.nanmax(picture)
        ax.imshow((picture - low) / (high - low if high > low else 1.0), cmap="gray", vmin=0, vmax=1)
        ax.set_title(_label(title, 15), fontsize=SMALL)
    return figure


def save_figures(figures: Mapping[str, Figure], folder: str | os.PathLike) -> list[Path]:
    """
    Write every figure as `<name>.png` into the folder, which is made where it is missing.

    Returns:
        The files' paths.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, figure in figures.items():
        paths.append(folder / f"{name}.png")
        with replacing(paths[-1]) as part:
            figure.savefig(part, format="png", dpi=150)
    return paths
