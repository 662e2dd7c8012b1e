# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""Subsets in which the spurious factors agree with the primary label as often as asked, subject-disjoint."""

from __future__ import annotations

import logging
import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from monai_mimmx.data.tables import PARTITIONS, Task, and_more
from monai_mimmx.errors import raise_problems
from monai_mimmx.options import NATURAL, require_options

logger = logging.getLogger(__name__)

KINDS = ("correlated", "inverted", "balanced")
SUBSETS = {
    "train": ("train", "correlated"),
    "select": ("val", "correlated"),
    "probe": ("val", "balanced"),
    "val": ("test", "correlated"),
    "inv": ("test", "inverted"),
    "bal": ("test", "balanced"),
}


def subject_partition(
    subjects: Sequence[object] | np.ndarray | pd.Series,
    *,
    fractions: Sequence[float] = (0.6, 0.15, 0.25),
    seed: int = 0,
) -> np.ndarray:
    """Give each row a partition such that all rows of a subject share it.

    Args:
        subjects: `(n,)` the subject of each row.
        fractions: shares of the subjects in train, val and test; they sum to 1.
        seed: of the assignment, which does not depend on the order of the rows.

    Returns:
        `(n,)` array of "train", "val" and "test".

    Raises:
        ValueError: fractions that are not three shares summing to 1, or too few subjects to fill each partition.

    Example:
        >>> subject_partition(["a", "a", "b", "c"], fractions=(0.4, 0.3, 0.3)).tolist()
        ['test', 'test', 'train', 'val']
    """
    require_options(fractions=fractions)
    shares = np.asarray(fractions, dtype=float)
    names, rows = np.unique(np.asarray(subjects, dtype=str), return_inverse=True)
    sizes = largest_remainder(len(names), shares)
    if ((sizes == 0) & (shares > 0)).any():
        raise ValueError(f"{len(names)} subjects are too few for fractions {tuple(fractions)}: every part needs one")
    per_subject = np.repeat(np.array(PARTITIONS), sizes)
    return np.random.default_rng(seed).permutation(per_subject)[rows]


def largest_remainder(total: int, shares: np.ndarray) -> np.ndarray:
    """Whole numbers that sum to `total`, each within 1 of its share (ties: the earlier first)."""
    exact = np.round(total * shares / shares.sum(), 9)  # rounded: 0.9 * 10 must not fall below 9
    counts = np.floor(exact).astype(np.int64)
    short = total - int(counts.sum())
    counts[np.argsort(counts - exact, kind="stable")[:short]] += 1
    return counts


def _evenly(total: int, num_classes: Sequence[int]) -> np.ndarray:
    """`total` rows over all cells, each within 1 of its share, and each class of every column as near to its own."""
    counts = np.full(tuple(num_classes), total // math.prod(num_classes))
    left, met = total % counts.size, np.zeros(counts.shape, dtype=bool)
    # Along a diagonal the classes of all columns take turns.
    for cell in np.ndindex(counts.shape):
        while left and not met[cell]:
            counts[cell] += 1
            met[cell] = True
            left -= 1
            cell = tuple((index + 1) % classes for index, classes in zip(cell, num_classes, strict=True))
    return counts.ravel()


def cell_index(labels: np.ndarray, num_classes: Sequence[int]) -> np.ndarray:
    """Number the cells, i.e. the combinations of (y, z_1..z_N), in row-major order.

    Args:
        labels: `(n, 1+N)` class indices; a negative one means that the value is missing.
        num_classes: classes per column.

    Returns:
        `(n,)` cell of each row in [0, prod(num_classes)), -1 where a value is missing.

    Raises:
        ValueError: shapes that do not match, or a class index out of range.

    Example:
        >>> cell_index(np.array([[0, 0], [1, 0], [1, -1]]), (2, 2)).tolist()
        [0, 2, -1]
    """
    labels = np.asarray(labels)
    if labels.ndim != 2 or labels.shape[1] != len(num_classes):
        raise ValueError(f"expected labels of shape (n, {len(num_classes)}), got {labels.shape}")
    if (labels >= np.asarray(num_classes)).any():
        raise ValueError(f"expected class indices below {tuple(num_classes)}, got {tuple(labels.max(axis=0))}")
    cells = np.ravel_multi_index(tuple(np.maximum(labels, 0).T), tuple(num_classes))
    return np.where((labels < 0).any(axis=1), -1, cells)


def _cell_name(cell: int, num_classes: Sequence[int], names: Sequence[str]) -> str:
    classes = np.unravel_index(cell, tuple(num_classes))
    return "(" + ", ".join(f"{name}={int(index)}" for name, index in zip(names, classes, strict=True)) + ")"


def balanced_weights(
    labels: np.ndarray, num_classes: Sequence[int], *, task_names: Sequence[str] | None = None
) -> np.ndarray:
    """Sampling weights under which every cell is equally likely, for `torch.utils.data.WeightedRandomSampler`.

    Args:
        labels: `(n, 1+N)` class indices, column 0 is y; rows with a missing value (-1) get weight 0.
        num_classes: classes per column.
        task_names: names of the columns, for messages.

    Returns:
        `(n,)` float64 weights that sum to 1.

    Raises:
        ValueError: a cell without rows, which no weight can make as likely as the others.

    Example:
        >>> balanced_weights(np.array([[0, 0], [0, 0], [0, 1], [1, 0], [1, 1]]), (2, 2)).tolist()
        [0.125, 0.125, 0.25, 0.25, 0.25]
    """
    cells = cell_index(labels, num_classes)
    counts = np.bincount(cells[cells >= 0], minlength=math.prod(num_classes))
    if not counts.all():
        names = _column_names(task_names, len(num_classes))
        empty = [_cell_name(int(cell), num_classes, names) for cell in np.flatnonzero(counts == 0)]
        raise ValueError(
            f"balanced sampling needs rows in every cell, but {len(empty)} of {len(counts)} have none: "
            f"{', '.join(empty[:4])}{', ...' if len(empty) > 4 else ''}: use sampling 'correlated', group "
            "classes, or add such rows"
        )
    return np.where(cells >= 0, 1.0 / (counts[cells] * len(counts)), 0.0)


def _article(kind: str) -> str:
    return f"an {kind}" if kind == "inverted" else f"a {kind}"


def _column_names(task_names: Sequence[str] | None, columns: int) -> list[str]:
    return list(task_names) if task_names is not None else ["y", *(f"z{index}" for index in range(1, columns))]


class CorrelatedSplit:
    """Draw subsets of a table in which each spurious factor agrees with y as often as asked.

    y is uniform over its classes; given y the induced factors are independent, with P(z_i = y) = `agreement` and the
    other classes sharing the rest. `inverted` has it the other way round: y's own class is as frequent as each other
    class is in `correlated`, and those share the rest. Each combination of classes is within a row of its share: rounded
    by largest remainder within each class of y, or, in `balanced`, so that the classes of each factor take turns. The
    agreement of one of many factors can so be off by several rows.
    A factor with agreement "natural" is not looked at in `correlated` and `inverted`: it keeps the distribution that it
    has in the table given y and the induced factors. `balanced` makes all factors, natural ones too, uniform and
    independent of y. Rows that miss a factor (-1) which is being induced are never drawn.

    Args:
        agreement: P(z_i = y) in [0, 1] or "natural", one for all factors or one each.
        seed: of the draws; the three kinds are drawn independently of each other.
        num_classes: classes per column of the labels; None: as many as the labels show.
        task_names: names of the columns, for messages.

    Raises:
        ValueError: an agreement that is neither in [0, 1] nor "natural".

    Example:
        >>> labels = np.array([[y, z] for y in (0, 1) for z in (0, 1)] * 50)
        >>> rows = CorrelatedSplit(0.9, seed=1).correlated(labels, 100)
        >>> len(rows), float((labels[rows, 0] == labels[rows, 1]).mean())
        (100, 0.9)
    """

    def __init__(
        self,
        agreement: float | str | Sequence[float | str] = 0.9,
        *,
        seed: int = 0,
        num_classes: Sequence[int] | None = None,
        task_names: Sequence[str] | None = None,
    ) -> None:
        require_options(agreement=agreement)
        single = isinstance(agreement, str | numbers.Real)
        values: list[float | str] = [agreement] if single else list(agreement)  # type: ignore[arg-type,list-item]
        self._single = single
        self._agreement = values
        self.seed = seed
        self.num_classes = None if num_classes is None else tuple(num_classes)
        self.task_names = task_names

    @property
    def induces(self) -> bool:
        """Whether any factor is made to agree with y, rather than taken as it is."""
        return any(value != NATURAL for value in self._agreement)

    def induced(self, factors: int) -> list[int]:
        """Which of so many factors are made to agree with y; 0 is the first."""
        return [index for index, value in enumerate(self._of_each(factors)[:factors]) if value != NATURAL]

    def correlated(self, labels: np.ndarray, size: int | None = None) -> np.ndarray:
        """Rows with P(z_i = y) = agreement_i.

        Args:
            labels: `(n, 1+N)` class indices, column 0 is y, -1 where a factor is missing.
            size: how many rows; None: as many as the table allows.

        Returns:
            `(size,)` distinct row indices in random order.

        Raises:
            ValueError: a cell with too few rows, or a factor whose classes do not correspond to those of y.
        """
        return self._draw(labels, "correlated", size)

    def inverted(self, labels: np.ndarray, size: int | None = None) -> np.ndarray:
        """Rows with P(z_i = y) = (1 - agreement_i) / (K - 1) for induced factors of K classes.

        Arguments as in `correlated`.
        """
        return self._draw(labels, "inverted", size)

    def balanced(self, labels: np.ndarray, size: int | None = None) -> np.ndarray:
        """Rows in which all factors are uniform and independent of y; arguments as in `correlated`."""
        return self._draw(labels, "balanced", size)

    def max_size(self, labels: np.ndarray, kind: str, *, overlook_empty: bool = False, cap: int | None = None) -> int:
        """The largest subset of a kind ("correlated", "inverted" or "balanced") that the table allows.

        Some smaller ones it may not: rounding can give a rare cell a row more in a smaller subset.

        Args:
            labels: see `correlated`.
            kind: of the subset.
            overlook_empty: as if combinations of classes that the table lacks were not needed.
            cap: the largest of those up to this size; None: of all.
        """
        return self._plan(labels, kind, overlook_empty, cap)[2]

    def empty_cell(self, labels: np.ndarray, kind: str) -> str | None:
        """The first combination of classes that a subset of this kind needs and the table lacks; None where it has all."""
        cells, compose, _, describe = self._plan(labels, kind)
        needed = compose(1_000_000) > 0
        empty = np.flatnonzero(needed & (np.bincount(cells[cells >= 0], minlength=len(needed)) == 0))
        return describe(int(empty[0])) if len(empty) else None

    def _draw(self, labels: np.ndarray, kind: str, size: int | None, name: str | None = None) -> np.ndarray:
        cells, compose, largest, describe = self._plan(labels, kind)
        if size is not None and size < 1:
            raise ValueError(f"expected size to be 1 or more, got {size}")
        size = size or max(largest, 1)
        needed = compose(size)
        there = np.bincount(cells[cells >= 0], minlength=len(needed))
        if (needed > there).any():
            most, below = int(np.argmax(needed - there)), self.max_size(labels, kind, cap=size)
            most_possible = f"{largest}" + (f", and up to {size} it is {below}" if below < largest else "")
            raise ValueError(
                f"{_article(kind)} subset of {size} rows needs {needed[most]} rows with {describe(most)}, but the table has "
                f"{there[most]}; the largest size possible is {most_possible}"
                + (": add such rows, group classes or leave a task out" if not largest else "")
            )
        if (cell := self.empty_cell(labels, kind)) is not None:
            subset = f"the {kind} subset {name!r}" if name else f"{_article(kind)} subset"
            logger.warning("no rows with %s: %s has %d rows at most", cell, subset, largest)
        rng = np.random.default_rng([self.seed, KINDS.index(kind)])
        order = rng.permutation(len(cells))
        order = order[np.argsort(cells[order], kind="stable")]  # grouped by cell, shuffled within
        starts = np.searchsorted(cells[order], np.arange(len(needed)))
        rows = np.concatenate([order[start : start + count] for start, count in zip(starts, needed, strict=True)])
        return rng.permutation(rows)

    def _of_each(self, factors: int) -> list[float | str]:
        """The agreement of each factor."""
        return self._agreement * factors if self._single else self._agreement

    def _plan(
        self, labels: np.ndarray, kind: str, overlook_empty: bool = False, cap: int | None = None
    ) -> tuple[np.ndarray, Callable[[int], np.ndarray], int, Callable[[int], str]]:
        """Cell of each row (-1: never drawn), rows per cell as a function of the size, the largest size, cell names."""
        labels = np.asarray(labels)
        if kind not in KINDS:
            raise ValueError(f"expected kind to be one of {', '.join(KINDS)}, got {kind!r}")
        if labels.ndim != 2 or labels.shape[1] < 2 or not np.issubdtype(labels.dtype, np.integer):
            raise ValueError(f"expected integer labels (n, 1+N) with N >= 1, got {labels.dtype} {labels.shape}")
        if not len(labels):
            raise ValueError("expected at least one row of labels, got none")
        factors = labels.shape[1] - 1
        agreement = self._of_each(factors)
        if len(agreement) != factors:
            raise ValueError(f"expected one agreement per spurious factor ({factors}), got {len(agreement)}")
        names = _column_names(self.task_names, 1 + factors)
        num_classes = self.num_classes or tuple(int(count) for count in labels.max(axis=0) + 1)
        if kind == "balanced":
            used = list(range(1 + factors))
        else:
            used = [0, *(index for index in range(1, 1 + factors) if agreement[index - 1] != NATURAL)]
        used_classes = [num_classes[index] for index in used]
        conditional = np.ones((num_classes[0], 1))  # P(induced factors | y), one row per class of y
        for index in used[1:]:
            if kind == "balanced":
                table = np.full((num_classes[0], num_classes[index]), 1.0 / num_classes[index])
            else:
                if num_classes[index] != num_classes[0]:
                    raise ValueError(
                        f"an agreement between {names[index]!r} and {names[0]!r} needs equal numbers of classes, got "
                        f"{num_classes[index]} and {num_classes[0]}: use 'natural', or group its classes"
                    )
                if num_classes[0] < 2:
                    raise ValueError(f"expected 2 or more classes of {names[0]!r}, got {num_classes[0]}")
                agree, others = float(agreement[index - 1]), num_classes[0] - 1
                agree = (1.0 - agree) / others if kind == "inverted" else agree
                table = np.full((num_classes[0],) * 2, (1.0 - agree) / others)
                np.fill_diagonal(table, agree)
            conditional = (conditional[:, :, None] * table[:, None, :]).reshape(num_classes[0], -1)

        def compose(size: int) -> np.ndarray:
            per_class = largest_remainder(size, np.ones(num_classes[0]))
            if kind == "balanced":  # in all classes of y alike, so that the rest does not depend on y
                return np.concatenate([_evenly(int(n), used_classes[1:]) for n in per_class])
            parts = [largest_remainder(int(n), row) for n, row in zip(per_class, conditional, strict=True)]
            return np.concatenate(parts)

        def describe(cell: int) -> str:
            return _cell_name(cell, used_classes, [names[index] for index in used])

        cells = cell_index(labels[:, used], used_classes)
        there = np.bincount(cells[cells >= 0], minlength=math.prod(used_classes)).reshape(conditional.shape)
        # Rounding gives a cell at least floor(floor(size / K) * p), hence this bound; the answer lies just below it.
        populated = (conditional > 0) & ((there > 0) | (not overlook_empty))
        with np.errstate(over="ignore"):  # of a share next to nothing
            bound = np.floor((there[populated] + 1) / conditional[populated]).min(initial=np.inf) + 1
        size = int(min(num_classes[0] * bound, (cells >= 0).sum(), *([] if cap is None else [cap])))
        while size > 0 and ((compose(size) > there.ravel()) & populated.ravel()).any():
            size -= 1
        return cells, compose, size, describe


def _labels_of(frame: pd.DataFrame, tasks: Sequence[Task]) -> np.ndarray:
    return frame[[task.name for task in tasks]].to_numpy(dtype=np.int64)


def _too_small(
    split: CorrelatedSplit, labels: np.ndarray, kind: str, name: str, cap: int | None, size: int
) -> str | None:
    """What is wrong with the size of a subset: fewer rows than classes, or most of them lost to an empty cell."""
    primary, classes = split.task_names[0], split.num_classes[0]  # type: ignore[index]
    cell = split.empty_cell(labels, kind)
    if size < classes:
        few = f"it has {size} row(s), fewer than {primary!r} has classes"
        if size == cap or cell is None:
            return f"{few}: raise its number in subset_sizes to {classes} or more"
        return f"{few}, since there are none with {cell}: add such rows, group classes or leave a task out"
    # Rounding lets a subset do without a cell, as long as it is so small that the cell's share is below half a row.
    if (
        cell is None
        or size == cap
        or 2 * size >= min(cap or len(labels), split.max_size(labels, kind, overlook_empty=True))
    ):
        return None
    return (
        f"there are no rows with {cell}, without which {_article(kind)} subset has {size} rows at most: add such rows, group "
        f"classes or leave a task out, or accept it with {name!r}: {size} in subset_sizes"
    )


def make_subsets(
    frame: pd.DataFrame,
    tasks: Sequence[Task],
    *,
    agreement: float | str | Sequence[float | str] = 0.9,
    sizes: Mapping[str, int | None] | None = None,
    fractions: Sequence[float] = (0.6, 0.15, 0.25),
    seed: int = 0,
) -> dict[str, pd.DataFrame]:
    """Draw the six subsets of an experiment from one table.

    | subset | partition | composition |
    |---|---|---|
    | `train` | train | correlated |
    | `select` (model selection) | val | correlated |
    | `probe` (fits the probes) | val | balanced |
    | `val`, `inv`, `bal` (tests) | test | correlated, inverted, balanced |

    The partitions share no subject. Subsets of one partition are drawn independently and may share images. Where every
    factor is "natural" there is no `inv`: nothing is induced that could be inverted.

    Args:
        frame: of `read_table`, or alike: a subject in every row; its `split` column, where it has one, is the partition.
        tasks: of `parse_tasks`.
        agreement: see `CorrelatedSplit`; y is uniform over its classes in every subset, whatever it is in the table.
        sizes: largest number of rows per subset; absent or None: as many as the table allows.
        fractions: of the subjects in train, val and test, for a frame without `split`.
        seed: of the partition and the draws.

    Returns:
        Subset name to frame, each with a fresh index.

    Raises:
        ValueError: rows without a subject, or a subject in two splits; or an unknown subset name, partitions without rows, and
            subsets that lose more than half of their rows, or all, to a cell that is empty, all of them.

    Example:
        >>> from monai_mimmx.data.tables import parse_tasks
        >>> tasks = parse_tasks([{"name": n, "column": n, "negative": [0], "positive": [1]} for n in ("sick", "sex")])
        >>> rows = [(y, z) for y in (0, 1) for z in (0, 1)] * 100
        >>> frame = pd.DataFrame(rows, columns=["sick", "sex"]).assign(image="a.png", subject=range(400))
        >>> subsets = make_subsets(frame, tasks, sizes={"train": 40})
        >>> list(subsets), len(subsets["train"]), float((subsets["train"].sick == subsets["train"].sex).mean())
        (['train', 'select', 'probe', 'val', 'inv', 'bal'], 40, 0.9)
    """
    require_options(sizes=sizes)
    sizes = dict(sizes or {})
    if (nameless := frame["subject"].isna()).any():
        raise ValueError(
            f"every row needs a subject, which may not be in two partitions: row {frame.index[nameless].tolist()[0]!r} has none"
            f"{and_more(int(nameless.sum()))}"
        )
    if "split" in frame.columns:
        pairs = frame[["subject", "split"]].drop_duplicates()["subject"]
        if len(twice := pairs[pairs.duplicated()].unique()):
            others = f", and {len(twice) - 1} others" if len(twice) > 1 else ""
            raise ValueError(f"the subject {str(twice[0])!r} is in more than one split{others}")
        partition, dealt = frame["split"].to_numpy(), "by the table's column split"
    else:
        partition = subject_partition(frame["subject"], fractions=fractions, seed=seed)
        dealt = f"dealt at random by subject, {', '.join(f'{share:g}' for share in fractions)} (no column split)"
    logger.info("train, val and test: %s", dealt)
    split = CorrelatedSplit(
        agreement,
        seed=seed,
        num_classes=[task.num_classes for task in tasks],
        task_names=[task.name for task in tasks],
    )
    induced = [tasks[1 + index].name for index in split.induced(len(tasks) - 1)]
    blank = frame[induced] < 0
    if (never := int(blank.any(axis=1).sum())) and never < len(frame):
        each = ", ".join(f"{name} {count}" for name, count in blank.sum().items() if count)
        logger.warning(
            "%d of %d rows miss a factor whose agreement is a number (%s): no subset can take them",
            never,
            len(frame),
            each,
        )
    subsets = {}
    problems: list[Exception] = []
    for name, (part, kind) in SUBSETS.items():
        if kind == "inverted" and not split.induces:
            logger.info("every factor is natural, so that nothing is inverted: there is no subset %r", name)
            continue
        rows = frame[partition == part]
        if rows.empty:
            problems.append(ValueError(f"the subset {name!r} comes from the partition {part!r}, which has no rows"))
            continue
        labels = _labels_of(rows, tasks)
        cap = sizes.get(name)
        largest = split.max_size(labels, kind, cap=cap)
        try:
            picked = split._draw(labels, kind, None if cap is None or not largest else largest, name)
        except ValueError as error:
            problems.append(ValueError(f"subset {name!r} (partition {part!r}, {len(rows)} rows): {error}"))
            continue
        if told := _too_small(split, labels, kind, name, cap, len(picked)):
            problems.append(ValueError(f"subset {name!r} (partition {part!r}, {len(rows)} rows): {told}"))
        subsets[name] = rows.iloc[picked].reset_index(drop=True)
        subsets[name].attrs["partition"] = dealt
    raise_problems(problems, usable=frame)
    return subsets


def describe_subsets(subsets: Mapping[str, pd.DataFrame], tasks: Sequence[Task]) -> str:
    """A text table of what the subsets hold: rows, subjects, and per factor its co-occurrence with y and P(z = y).

    Counts are written with one group per class of y, separated by `/`, and one number per class of the factor, so that
    `45 5 / 5 45` reads: of the rows with y=0, 45 have z=0.

    Args:
        subsets: of `make_subsets`.
        tasks: of `parse_tasks`.

    Returns:
        The table, one line per subset.

    Example:
        >>> from monai_mimmx.data.tables import parse_tasks
        >>> tasks = parse_tasks([{"name": n, "column": n, "negative": [0], "positive": [1]} for n in ("sick", "sex")])
        >>> frame = pd.DataFrame({"subject": list("abc"), "sick": [0, 0, 1], "sex": [0, 1, 1]})
        >>> print(describe_subsets({"train": frame}, tasks))
        subset  rows  subjects  sick x sex  P(sex=sick)
        train      3         3  1 1 / 0 1         0.667
    """
    primary, *factors = tasks
    records = []
    for name, frame in subsets.items():
        labels = _labels_of(frame, tasks)
        record = {"subset": name, "rows": str(len(frame)), "subjects": str(frame["subject"].nunique())}
        for index, factor in enumerate(factors, start=1):
            pairs = labels[:, [0, index]]
            pairs = pairs[(pairs >= 0).all(axis=1)]
            shape = (primary.num_classes, factor.num_classes)
            counts = np.bincount(cell_index(pairs, shape), minlength=math.prod(shape)).reshape(shape)
            record[f"{primary.name} x {factor.name}"] = " / ".join(" ".join(map(str, row)) for row in counts)
            agree = f"{(pairs[:, 0] == pairs[:, 1]).mean():.3f}" if len(pairs) and shape[0] == shape[1] else "-"
            record[f"P({factor.name}={primary.name})"] = agree
        records.append(record)
    if not records:
        raise ValueError("expected at least one subset, got none")
    widths = {key: max(len(key), *(len(record[key]) for record in records)) for key in records[0]}
    text = {key for key in widths if key == "subset" or " x " in key}
    lines = [
        "  ".join(value.ljust(widths[key]) if key in text else value.rjust(widths[key]) for key, value in line.items())
        for line in [{key: key for key in widths}, *records]
    ]
    return "\n".join(line.rstrip() for line in lines)


def describe_joint(
    frame: pd.DataFrame, tasks: Sequence[Task], published: Mapping[str, Mapping[str, Any]] | None = None
) -> str:
    """A text table of the joint distribution of y and each factor, with a published one beside it where there is one.

    Args:
        frame: a subset of `make_subsets`.
        tasks: of `parse_tasks`.
        published: factor's name to "classes", the names of the classes of y and of the factor by task name, and "joint",
            one row per class of y, one column per class of the factor, summing to 1. One of other tasks, or other classes,
            than here is not shown.

    Returns:
        One line per factor; rows of the joint are separated by `/`. Rows that miss the factor are left out.

    Raises:
        ValueError: a published distribution that does not sum to 1.

    Example:
        >>> from monai_mimmx.data.tables import parse_tasks
        >>> tasks = parse_tasks([{"name": n, "column": n, "negative": [0], "positive": [1]} for n in ("sick", "sex")])
        >>> frame = pd.DataFrame({"sick": [0, 0, 1, 1], "sex": [0, 1, 1, 1]})
        >>> joint = {"classes": {"sick": ["0", "1"], "sex": ["0", "1"]}, "joint": [[0.2, 0.3], [0.1, 0.4]]}
        >>> print(describe_joint(frame, tasks, {"sex": joint}))
        joint with sick  here                   published
        sex              0.25 0.25 / 0.00 0.50  0.20 0.30 / 0.10 0.40
    """
    primary, *factors = tasks
    own = {factor.name: {task.name: task.class_names for task in (primary, factor)} for factor in factors}
    theirs = {}
    for name, entry in (published or {}).items():
        if not isinstance(entry, Mapping) or not {"classes", "joint"} <= {*entry}:
            raise ValueError(
                f"expected the published distribution of {name!r} with its classes and joint, got {entry!r}"
            )
        joint = np.asarray(entry["joint"], dtype=float)
        if not math.isclose(joint.sum(), 1.0, abs_tol=0.011):
            raise ValueError(
                f"expected the published distribution of {name!r} as numbers that sum to 1, got {joint.tolist()}"
            )
        if entry["classes"] == own.get(name):
            theirs[name] = joint
    labels = _labels_of(frame, tasks)
    lines = [[f"joint with {primary.name}", "here", "published" if theirs else ""]]
    for index, factor in enumerate(factors, start=1):
        pairs = labels[:, [0, index]]
        pairs = pairs[(pairs >= 0).all(axis=1)]
        shape = (primary.num_classes, factor.num_classes)
        joint = np.bincount(cell_index(pairs, shape), minlength=math.prod(shape)).reshape(shape) / max(1, len(pairs))
        lines.append([factor.name, _joint_text(joint), _joint_text(theirs.get(factor.name, np.empty((0, 0))))])
    widths = [max(len(line[column]) for line in lines) for column in range(3)]
    return "\n".join("  ".join(text.ljust(width) for text, width in zip(line, widths)).rstrip() for line in lines)


def _joint_text(joint: np.ndarray) -> str:
    return " / ".join(" ".join(f"{value:.2f}" for value in row) for row in joint)
