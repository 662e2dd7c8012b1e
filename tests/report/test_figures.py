# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""Tests of the pictures: they show the numbers they were given, and no text lies on other text."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text

from monai_mimmx.report.figures import (
    COLOURS,
    accuracy_figure,
    cooccurrence_figure,
    courses_figure,
    gap_figure,
    probe_figure,
    sample_figure,
    save_figures,
    strength_figure,
    training_figure,
    tsne_figure,
    upright,
)

LONG = "acquisition_site_of_the_scanner"  # a name that fits nowhere without being wrapped
TABLE = {
    "accuracy": {
        "val": {"y": 0.97, "sex": 0.88, LONG: None},
        "inv": {"y": 0.31, "sex": 0.87, LONG: 0.66},
        "bal": {"y": 0.64, "sex": 0.86, LONG: 0.65},
    },
    "chance": {"bal": {"y": 0.5, "sex": 0.52, LONG: 0.33}},
}
PROBES: dict[str, dict] = {
    "linear": {b: {"y": 0.9, "sex": 0.52, LONG: None} for b in ("f_y", "f_sex", f"f_{LONG}")},
    "knn": {b: {"y": 0.7, "sex": 0.41, LONG: 0.3} for b in ("f_y", "f_sex", f"f_{LONG}")},
    "chance": {"y": 0.5, "sex": 0.51, LONG: 0.33},
}
HISTORY = [
    {
        "epoch": e,
        "loss": 3.0 - e / 10,
        "loss_y": 0.7,
        f"loss_{LONG}": 0.5,
        "gamma_y": 1.0,
        "mi": 0.4,
        f"mi_{LONG}": 0.2,
        "lambda": 0.5,
        f"attention_{LONG}": 1.0,
        "alpha_y": 0.3,
        "select_accuracy_y": 0.6 + e / 100,
        "select_cell_balanced": 0.5,
        "seconds": 1.0,
    }
    for e in range(1, 21)
]
LABELS = np.array([[0, 0, 0], [0, 0, 2], [0, 1, 1], [1, 1, -1], [1, -1, 2], [-1, 0, 0]])
METHODS = ["baseline", "rebalance", "mimmx_no_dls_no_caw", "mimmx_balanced", *(f"method_{i}" for i in range(14))]
POINTS = {name: {"val": [0.9, 0.92], "inv": [0.2 + i / 30, 0.3], "bal": [0.7, 0.71]} for i, name in enumerate(METHODS)}


def samples(shape=(1, 12, 10), k: int = 6) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(k, *shape))


FIGURES = {
    "accuracy": lambda: accuracy_figure(TABLE, "A title that is long enough to need two lines in a narrow picture"),
    "probe": lambda: probe_figure(PROBES),
    "training": lambda: training_figure(HISTORY),
    "tsne": lambda: tsne_figure(
        {b: np.random.default_rng(0).normal(size=(6, 2)) for b in ("f_y", "f_sex", f"f_{LONG}")},
        {"age": LABELS[:, 0], "sex": LABELS[:, 1], LONG: LABELS[:, 2]},
    ),
    "cooccurrence": lambda: cooccurrence_figure(
        {"train": LABELS, "val": LABELS, "inv": LABELS, "bal": LABELS},
        ["age group", "sex", LONG],
        [["young", "old"], ["female", "male"], ["NAKO", "UK Biobank", "third site"]],
    ),
    "gaps": lambda: gap_figure(POINTS, {"rebalance": {"val": [0.9], "inv": [0.8]}}),
    "strength": lambda: strength_figure(
        {title: {name: {0.5: 90.0, 0.9: 80.0} for name in METHODS} for title in ("y on Inv (%)", "y on Bal (%)")}
    ),
    "courses": lambda: courses_figure({name: HISTORY for name in METHODS}),
    "samples": lambda: sample_figure(samples(), [f"age {i}, sex female, site UK Biobank" for i in range(6)]),
}


def drawn(figure: Figure) -> list[Text]:
    """The texts that are seen, after the figure was laid out: axes keep more tick labels than they show."""
    FigureCanvasAgg(figure).draw()
    unseen = set()
    for ax in figure.axes:
        for axis, limits in ((ax.xaxis, sorted(ax.get_xlim())), (ax.yaxis, sorted(ax.get_ylim()))):
            unseen.update([axis.offsetText, axis.label] if not ax.axison else [])
            for tick in axis.get_major_ticks():
                if not ax.axison or not limits[0] - 1e-9 <= tick.get_loc() <= limits[1] + 1e-9:
                    unseen.update([tick.label1, tick.label2])
    texts = figure.findobj(Text)
    return [text for text in texts if text.get_visible() and text.get_text().strip() and text not in unseen]


@pytest.mark.parametrize("name", FIGURES)
def test_text_is_inside_legible_and_apart(name):
    figure = FIGURES[name]()
    texts = drawn(figure)
    width, height = figure.canvas.get_width_height()
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts]
    assert len(boxes) > 5
    assert (
        min(float(text.get_fontsize()) for text in texts) * 390 / (72 * figure.get_figwidth()) > 9
    )  # pixels on a phone
    for text, box in boxes:
        assert box.x0 > -1 and box.y0 > -1 and box.x1 < width + 1 and box.y1 < height + 1, text
    for i, (one, a) in enumerate(boxes):
        for other, b in boxes[:i]:
            across, up = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
            assert across <= 1 or up <= 1, f"{one!r} lies on {other!r}"


def axes_of(figure: Figure) -> list[Any]:
    """The figure's axes. Untyped, since matplotlib declares an axes' artists as their base classes."""
    return list(figure.axes)


def texts_of(figure: Figure) -> list[str]:
    return [text.get_text() for text in drawn(figure)]


def test_accuracy_bars_have_the_heights_given():
    figure = accuracy_figure(TABLE)
    ax = axes_of(figure)[0]
    heights = [[round(bar.get_height(), 6) for bar in bars] for bars in ax.containers]
    assert heights == [[97, 88, 0], [31, 87, 66], [64, 86, 65]]
    assert "none" in texts_of(figure)
    assert [text.get_text() for text in figure.legends[0].get_texts()].count("chance (Bal)") == 1
    assert sorted(float(lines.get_segments()[0][0, 1]) for lines in ax.collections) == [33, 50, 52]
    assert not axes_of(accuracy_figure({"accuracy": TABLE["accuracy"]}))[0].collections
    natural = {name: row for name, row in TABLE["accuracy"].items() if name != "inv"}
    colours = [bars[0].get_facecolor() for bars in axes_of(accuracy_figure({"accuracy": natural}))[0].containers]
    assert colours == [ax.containers[place][0].get_facecolor() for place in (0, 2)]


def test_probe_numbers_stand_in_row_and_column():
    figure = probe_figure({"linear": {"f_y": {"y": 0.91, "sex": 0.62}, "f_sex": {"y": 0.53, "sex": 0.84}}})
    cells = {text.get_position(): text.get_text() for text in axes_of(figure)[0].texts}
    assert cells == {(0, 0): "91", (1, 0): "62", (0, 1): "53", (1, 1): "84"}
    assert [label.get_text() for label in axes_of(figure)[0].get_yticklabels()] == ["f_y", "f_sex"]
    assert "none" in texts_of(probe_figure(PROBES))


@pytest.mark.parametrize("values", [(0.94, 0.932, 0.937), (1.0, 1.0, 1.0), (1.0, 0.02, 0.5), (0.03, 0.0, 0.01)])
def test_marks_of_gaps_are_whole(values):
    figure = gap_figure({"a": {name: [value] for name, value in zip(("val", "inv", "bal"), values)}})
    FigureCanvasAgg(figure).draw()
    (ax,) = figure.axes
    low, high = ax.get_xlim()
    assert high - low >= 10  # small differences look small
    assert all(0 <= tick <= 100 for tick in ax.get_xticks()) and len(ax.get_xticks()) > 2
    start, end = ax.spines["bottom"].get_bounds()
    assert start >= 0 and end <= 100
    radius = 4.0 / 72 * figure.dpi  # of a mark of 55 square points
    for value in values:
        place = ax.transData.transform((100 * value, 0))[0]
        assert ax.bbox.x0 + radius < place < ax.bbox.x1 - radius


def test_gap_lies_between_val_and_inv():
    figure = gap_figure(
        {"a": {"val": [0.9, 0.8], "inv": [0.3, 0.5], "bal": [0.6, 0.6]}}, {"a": {"val": [0.7], "inv": [0.1]}}
    )
    ax = axes_of(figure)[0]
    bars = [(line.get_xdata(), line.get_ydata()) for line in ax.lines]
    np.testing.assert_allclose(bars[0][0], [85, 40])
    np.testing.assert_allclose(bars[1][0], [70, 10])
    assert bars[1][1][0] < bars[0][1][0]  # above, on an axis that points down
    seeds = [
        np.asarray(marks.get_offsets())[:, 0].tolist() for marks in ax.collections if len(marks.get_offsets()) == 2
    ]
    np.testing.assert_allclose(seeds, [[90, 80], [30, 50], [60, 60]])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["Val", "Inv", "Bal"]


def test_courses_are_those_of_the_histories():
    figure = courses_figure({"a": [{"epoch": 1, "loss_y": 0.5}, {"epoch": 2, "loss_y": 0.4}], "b": HISTORY})
    titles = [ax.get_title(loc="left") for ax in axes_of(figure)]
    assert titles[0].startswith("task loss of y") and titles[1].startswith("mutual information")
    first, second = axes_of(figure)[0].lines
    assert (first.get_xdata().tolist(), first.get_ydata().tolist()) == ([1, 2], [0.5, 0.4])
    assert len(second.get_xdata()) == 20 and len(axes_of(figure)[1].lines) == 1  # a has no mutual information
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b"]


def test_strength_has_a_panel_per_score_and_a_line_per_method():
    figure = strength_figure({"Inv": {"a": {0.5: 90.0, 0.9: 60.0}}, "Bal": {"a": {0.5: 90.0}, "b": {0.9: 1.0}}})
    upper, lower = axes_of(figure)
    assert (upper.lines[0].get_xdata().tolist(), upper.lines[0].get_ydata().tolist()) == ([0.5, 0.9], [90, 60])
    assert len(lower.lines) == 2 and lower.lines[1].get_color() != upper.lines[0].get_color()


def test_training_leaves_out_panels_without_data():
    panels = {ax.get_title(loc="left") for ax in axes_of(training_figure(HISTORY))}
    assert len(panels - {""}) == 5
    few = training_figure([{"epoch": 1, "loss_y": 0.5, "mi": None}, {"epoch": 2, "loss_y": 0.25}])
    assert [ax.get_title(loc="left") for ax in axes_of(few)] == ["task loss (cross-entropy, nats)"]
    line = axes_of(few)[0].lines[0]
    assert (line.get_xdata().tolist(), line.get_ydata().tolist()) == ([1, 2], [0.5, 0.25])
    assert line.get_marker() == "o"
    assert texts_of(training_figure([])) == ["no training history"]


def test_the_mean_over_the_factors_is_called_one():
    figure = training_figure([{"epoch": n, "mi": 0.2, "mi_sex": 0.1, "mi_age": 0.3} for n in (1, 2)])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["weighted mean MI", "sex", "age"]


def test_training_joins_epochs_that_lack_a_value_with_a_gap():
    figure = training_figure([{"epoch": 1, "mi": 0.5}, {"epoch": 2}, {"epoch": 3, "mi": 0.1}])
    np.testing.assert_array_equal(axes_of(figure)[0].lines[0].get_ydata(), [0.5, np.nan, 0.1])


def test_accuracies_of_a_validation_every_few_epochs_are_joined():
    history = [{"epoch": n, "select_accuracy_y": 0.5 + n / 20 if n % 5 == 0 else None} for n in range(1, 11)]
    line = axes_of(training_figure(history))[0].lines[0]
    assert (line.get_xdata().tolist(), line.get_ydata().tolist()) == ([5, 10], [75.0, 100.0])


@pytest.mark.parametrize(("origin", "row"), [("upper", 4), ("lower", 0)])
def test_upright_puts_x_to_the_right(origin, row):
    image = np.zeros((1, 4, 5, 3))
    image[0, 3, 4, 2] = 1  # the last of x and y
    shown = upright(image, origin)
    assert shown.shape == (1, 5, 4, 3) and np.argwhere(shown).tolist() == [[0, row, 3, 2]]
    assert np.argwhere(upright(image[..., 2], origin)).tolist() == [[0, row, 3]]
    with pytest.raises(ValueError, match="origin must be 'upper' or 'lower', got 'left'"):
        upright(image, "left")


def test_tsne_shows_labelled_points_only_in_class_colours():
    figure = FIGURES["tsne"]()
    assert len(axes_of(figure)) == 9
    shown = [len(ax.collections[0].get_offsets()) for ax in axes_of(figure)]
    assert shown == [5, 5, 5] * 3
    assert len(np.unique(axes_of(figure)[2].collections[0].get_facecolors(), axis=0)) == 3
    with pytest.raises(ValueError, match="block 'f_y' has 2 points, but task 'sex' has 3 labels"):
        tsne_figure({"f_y": np.zeros((2, 2))}, {"sex": np.zeros(3, dtype=int)})


def test_tsne_tells_which_colour_is_which_class():
    points, labels = {"f_y": np.eye(2), "f_sex": np.eye(2)}, {"y": np.array([0, 1]), "sex": np.array([1, 0])}
    figure = tsne_figure(points, labels, {"y": ["young", "old"]})
    legends = [ax.get_legend() for ax in axes_of(figure)]
    assert [legend is not None for legend in legends] == [False, False, True, False]
    shown = {
        text.get_text(): to_hex(handle.get_facecolors()[0])
        for text, handle in zip(legends[2].get_texts(), legends[2].legend_handles, strict=True)
    }
    assert shown == {"young": COLOURS[0].lower(), "old": COLOURS[1].lower()}


def test_cooccurrence_counts():
    figure = cooccurrence_figure({"train": LABELS}, ["age", "sex", "site"], [["a", "b"], ["f", "m"], ["x", "y", "z"]])
    counts = [{text.get_position(): int(text.get_text()) for text in ax.texts} for ax in axes_of(figure)]
    assert counts[0] == {(0, 0): 2, (1, 0): 1, (0, 1): 0, (1, 1): 1}  # (factor, y)
    assert counts[1] == {(0, 0): 1, (1, 0): 1, (2, 0): 1, (0, 1): 0, (1, 1): 0, (2, 1): 1}
    with pytest.raises(ValueError, match=r"labels of subset 'train' must have shape \(n, 2\); got \(6, 3\)"):
        cooccurrence_figure({"train": LABELS}, ["age", "sex"], [["a", "b"], ["f", "m"]])


def test_samples_show_the_middle_slice_colours_and_constant_images():
    volume = np.zeros((1, 1, 4, 4, 5))
    volume[..., 2] = np.arange(16).reshape(4, 4)
    shown = axes_of(sample_figure(volume, ["one"]))[0].images[0].get_array()
    np.testing.assert_allclose(shown, np.arange(16).reshape(4, 4) / 15)
    assert axes_of(sample_figure(samples((3, 4, 4), 1), ["rgb"]))[0].images[0].get_array().shape == (4, 4, 3)
    assert np.isfinite(axes_of(sample_figure(np.ones((1, 1, 4, 4)), ["flat"]))[0].images[0].get_array()).all()
    with pytest.raises(ValueError, match="equally many, one or more; got 2 and 1"):
        sample_figure(samples(k=2), ["a"])
    with pytest.raises(ValueError, match=r"must have shape \(k, C, H, W\)"):
        sample_figure(np.zeros((1, 4, 4)), ["a"])


def test_names_are_no_mathematics():
    figure = accuracy_figure({"accuracy": {"val": {"y": 0.5, r"$\bad{$": 0.5}}})
    assert any("bad" in text for text in texts_of(figure))  # drawing would raise


def test_save_writes_a_png_per_figure(tmp_path):
    paths = save_figures({"a": probe_figure(PROBES), "b": accuracy_figure(TABLE)}, tmp_path / "new" / "folder")
    assert [path.name for path in paths] == ["a.png", "b.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)


def test_pyplot_stays_untouched():
    before = plt.get_fignums(), plt.get_backend()
    for make in FIGURES.values():
        make()
    assert (plt.get_fignums(), plt.get_backend()) == before
