# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""From a table of images and attributes to class indices: one rule per class, every excluded row counted."""

from __future__ import annotations

import codecs
import csv
import logging
import math
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from monai_mimmx.errors import first_three, raise_problems

logger = logging.getLogger(__name__)

PARTITIONS = ("train", "val", "test")
RESERVED_NAMES = ("image", "subject", "split")
BLANKS = ("", "nan", "NaN", "NA", "N/A", "n/a", "#N/A", "<NA>", "NaT", "NULL", "null")

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_COMPARISON = re.compile(rf"\s*(<=|>=|<|>)\s*({_NUMBER})\s*")
_RANGE = re.compile(rf"\s*({_NUMBER})\s*-\s*({_NUMBER})\s*")
_PLAIN_NUMBER = re.compile(_NUMBER)
_RULE_HELP = 'a list of values such as ["Female"], a comparison such as "< 51", or an inclusive range such as "51 - 57"'
_MAX_LISTED = 20


def value_key(value: Any) -> str:
    """The form in which values are compared: stripped text, and one spelling for equal numbers (1, 1.0, "1.0")."""
    text = str(value).strip()
    return repr(float(text) + 0.0) if _PLAIN_NUMBER.fullmatch(text) else text


def _shown(key: str) -> str:
    """A key of `value_key` as a person writes it: 1, not 1.0."""
    return key.removesuffix(".0") if _PLAIN_NUMBER.fullmatch(key) else key


@dataclass(frozen=True)
class Rule:
    """Which values of a column belong to a class: listed values, or an interval of numbers.

    Attributes:
        text: the rule as it was written, for messages.
        values: keys of the listed values; empty for an interval.
        low: lower end of the interval, itself included if `low_included`.
        high: upper end of the interval, itself included if `high_included`.
    """

    text: str
    values: frozenset[str] = frozenset()
    low: float = math.inf
    high: float = -math.inf
    low_included: bool = True
    high_included: bool = True

    @property
    def is_interval(self) -> bool:
        """True for a comparison or a range, False for a list of values."""
        return not self.values

    def contains(self, numbers: np.ndarray) -> np.ndarray:
        """Mask of the numbers inside the interval; NaN is outside, and a list of values contains none."""
        above = numbers >= self.low if self.low_included else numbers > self.low
        below = numbers <= self.high if self.high_included else numbers < self.high
        return above & below

    def overlaps(self, other: Rule) -> bool:
        """True where some value would satisfy both rules."""
        if not self.is_interval and not other.is_interval:
            return bool(self.values & other.values)
        if self.is_interval and other.is_interval:
            first, second = sorted((self, other), key=lambda rule: (rule.low, not rule.low_included))
            touching = first.high == second.low and first.high_included and second.low_included
            return first.high > second.low or touching
        interval, listed = (self, other) if self.is_interval else (other, self)
        numbers = [float(value) for value in listed.values if _PLAIN_NUMBER.fullmatch(value)]
        return bool(interval.contains(np.array(numbers, dtype=float)).any())


@dataclass(frozen=True)
class Task:
    """A label that a network predicts: which column it stands in, and which values make which class.

    Attributes:
        name: the task's name, also its column in the frame of `read_table`.
        column: the column of the table.
        classes: one `Rule` per class, in the order of the class indices.
    """

    name: str
    column: str
    classes: tuple[Rule, ...]

    @property
    def num_classes(self) -> int:
        """How many classes the task has."""
        return len(self.classes)

    @property
    def class_names(self) -> list[str]:
        """A name per class for pictures: the interval, or the listed values."""
        return [
            rule.text if rule.is_interval else " / ".join(sorted(map(_shown, rule.values))) for rule in self.classes
        ]


def _parse_rule(rule: Any, where: str) -> Rule:
    if isinstance(rule, str):
        if match := _COMPARISON.fullmatch(rule):
            bound, included = float(match[2]), "=" in match[1]
            if match[1].startswith("<"):
                return Rule(rule, low=-math.inf, high=bound, high_included=included)
            return Rule(rule, low=bound, high=math.inf, low_included=included)
        if match := _RANGE.fullmatch(rule):
            low, high = float(match[1]), float(match[2])
            if low > high:
                raise ValueError(f"{where}: expected a range from low to high, got {rule!r}")
            return Rule(rule, low=low, high=high)
    elif isinstance(rule, Iterable) and not isinstance(rule, Mapping):
        values = list(rule)
        if not values:
            raise ValueError(f"{where}: expected at least one value, got an empty list")
        if any(not isinstance(value, str | int | float | np.number) for value in values):
            raise ValueError(f"{where}: expected a list of texts and numbers, got {values!r}")
        keys = frozenset(value_key(value) for value in values)
        if blank := keys & {*BLANKS}:
            raise ValueError(f"{where}: a blank counts as missing and cannot be listed, got {min(blank)!r}")
        return Rule(repr(values), values=keys)
    raise ValueError(f"{where}: expected {_RULE_HELP}, got {rule!r}")


def _parse_rules(task: Mapping[str, Any], where: str) -> list[Any]:
    if "classes" in task:
        if "negative" in task or "positive" in task:
            raise ValueError(f"{where}: expected either 'classes' or 'negative' and 'positive', got both")
        if not isinstance(task["classes"], Sequence) or isinstance(task["classes"], str):
            raise ValueError(f"{where}: expected 'classes' to be a list of rules, got {task['classes']!r}")
        rules = list(task["classes"])
    else:
        if missing := [key for key in ("negative", "positive") if key not in task]:
            raise ValueError(f"{where}: expected 'negative' and 'positive' (or 'classes'), got no {missing[0]!r}")
        rules = [task["negative"], task["positive"]]
    if len(rules) < 2:
        raise ValueError(f"{where}: expected 2 or more classes, got {len(rules)}")
    return rules


def _parse_task(task: Any, position: int) -> Task:
    if not isinstance(task, Mapping):
        raise TypeError(f"tasks[{position}]: expected a mapping with name, column and classes, got {task!r}")
    where = f"tasks[{position}] ({task.get('name', 'no name')!r})"
    problems: list[Exception] = []
    if unknown := sorted({*map(str, task)} - {"name", "column", "negative", "positive", "classes"}):
        told = f"{where}: expected name, column and negative, positive or classes, got unknown key {unknown}"
        problems.append(ValueError(told))
    for key in ("name", "column"):
        if not isinstance(task.get(key), str) or not task[key].strip():
            problems.append(ValueError(f"{where}: expected {key!r} to be a text, got {task.get(key)!r}"))
    parsed: list[Rule] = []
    try:
        rules = _parse_rules(task, where)
    except ValueError as error:
        rules = []
        problems.append(error)
    for index, rule in enumerate(rules):
        try:
            parsed.append(_parse_rule(rule, f"{where}, class {index}"))
        except ValueError as error:
            problems.append(error)
    for index, first in enumerate(parsed):
        for other in parsed[:index]:
            if first.overlaps(other):
                told = f"{where}: the rules {other.text} and {first.text} overlap: a value may match one only"
                problems.append(ValueError(told))
    raise_problems(problems)
    return Task(name=task["name"].strip(), column=task["column"].strip(), classes=tuple(parsed))


def parse_tasks(tasks: Sequence[Mapping[str, Any] | Task]) -> list[Task]:
    """Read task descriptions; the first is the primary task y, the others are the spurious factors z_1..z_N.

    Args:
        tasks: mappings `{"name", "column", "negative", "positive"}` or `{"name", "column", "classes": [rule, ...]}`.
            A rule is a list of values (compared as stripped text; equal numbers match however they are written), a
            comparison (`"< 51"`, `"<= 50"`, `"> 57"`, `">= 60"`) or an inclusive range (`"51 - 57"`).
            `Task` objects pass through.

    Returns:
        One `Task` each, in the same order.

    Raises:
        TypeError: an entry is no mapping.
        ValueError: unknown or missing keys, no spurious factor, a name used twice or reserved, a rule that cannot be
            read, fewer than 2 classes, or two rules of a task that share a value.

    Example:
        >>> tasks = parse_tasks([
        ...     {"name": "age_group", "column": "age", "negative": "< 51", "positive": "> 57"},
        ...     {"name": "sex", "column": "sex", "negative": ["F"], "positive": ["M"]},
        ... ])
        >>> [(task.name, task.num_classes) for task in tasks]
        [('age_group', 2), ('sex', 2)]
    """
    if isinstance(tasks, str | Mapping) or not isinstance(tasks, Iterable):
        raise TypeError(f"expected a list of tasks, got {tasks!r}")
    entries = list(tasks)
    parsed: dict[int, Task] = {}
    problems: list[Exception] = []
    for index, entry in enumerate(entries):
        try:
            parsed[index] = entry if isinstance(entry, Task) else _parse_task(entry, index)
        except (TypeError, ValueError) as error:
            problems.append(error)
    if len(entries) < 2:
        problems.append(
            ValueError(f"expected a primary task and one or more spurious factors, got {len(entries)} task(s)")
        )
    seen: set[str] = set()
    for index, task in parsed.items():
        if task.name in seen:
            problems.append(ValueError(f"expected every task to have its own name, got {task.name!r} twice"))
        if task.name in RESERVED_NAMES:
            told = f"the name {task.name!r} is reserved ({', '.join(RESERVED_NAMES)}): rename the task"
            problems.append(ValueError(told))
        if index and task.name == "y":
            problems.append(ValueError("the name 'y' stands for the primary task: rename the spurious factor"))
        seen.add(task.name)
    raise_problems(problems, usable=list(parsed.values()) if 0 in parsed and len(seen) == len(parsed) > 1 else None)
    return list(parsed.values())


def lacks_columns(path: str | os.PathLike[str], missing: Sequence[str], header: Sequence[str]) -> ValueError:
    """The error that tells which columns a table lacks, and which it has."""
    return ValueError(
        f"{path} has no column {', '.join(map(repr, missing))}: it has {', '.join(map(repr, header))}"
        + (
            " (is the separator a comma?)"
            if any(set(name) & set(";\t|") for name in header) or len(header) == 1
            else ""
        )
    )


def map_distinct(values: pd.Series, function: Callable[[pd.Series], pd.Series]) -> pd.Series:
    """A column put through a function that looks at each value by itself, once per distinct value; NA stays NA."""
    if values.iloc[:1000].nunique() > 500:  # to look for equal ones would cost more than it saves
        return function(values)
    codes, distinct = pd.factorize(values)
    return function(pd.Series(distinct, dtype=values.dtype)).reindex(codes).set_axis(values.index).rename(values.name)


def _stripped(texts: pd.Series) -> pd.Series:
    stripped = texts.str.strip()
    return stripped.mask(stripped.isin(BLANKS), None)


def _not_utf8(path: Path) -> str:
    """Where a file ceases to be UTF-8."""
    content = path.read_bytes()
    if content[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        return ", but in UTF-16"
    for number, line in enumerate(content.split(b"\n"), start=1):
        try:
            line.decode("utf-8")
        except UnicodeDecodeError as error:
            before = line[: error.start][-20:].decode("utf-8", errors="ignore")
            return f" in line {number}" + (f", after {before!r}" if before else "")
    return ""


def _too_many_cells(path: Path, width: int) -> ValueError:
    """The error that tells the first row with more cells than the header."""
    place = ""
    with path.open(newline="", encoding="utf-8-sig") as file:
        for cells in (rows := csv.reader(file)):
            if len(cells) > width:
                place = f", line {rows.line_num - sum(cell.count(chr(10)) for cell in cells)}"
                break
    return ValueError(
        f"{path}{place}: more cells than the header, which has {width}: is there a comma at the end, or one in a cell "
        "without double quotes around it?"
    )


def _lines(path: Path, frame: pd.DataFrame) -> pd.Index:
    """The line in the file where each row begins: the header is line 1, and a cell in quotes may hold several lines."""
    if path.read_bytes().count(b"\n") <= len(frame) + 1:
        return pd.RangeIndex(2, len(frame) + 2)
    breaks = sum(frame[name].str.count("\n").fillna(0).to_numpy(dtype=np.int64) for name in frame.columns)
    first = 2 + sum(name.count("\n") for name in frame.columns)
    return pd.Index(first + np.arange(len(frame)) + np.cumsum(breaks) - breaks)


def read_columns(
    path: Path, required: Sequence[str], optional: Sequence[str] = (), everything: bool = False
) -> pd.DataFrame:
    """The wanted columns, or all with a name, as stripped text, blanks as NA; the index is the line where a row begins."""
    if not path.is_file():
        raise FileNotFoundError(f"no table at {path}: expected a CSV file (check dataset_dir or the path)")
    try:
        # As a row of cells: as a header, pandas would rename a column that stands there twice.
        options: dict[str, Any] = {"keep_default_na": False, "skip_blank_lines": False, "encoding": "utf-8-sig"}
        first = pd.read_csv(path, header=None, nrows=1, dtype=str, **options)
        header = [name.strip() for name in first.iloc[0]]
        problems = (
            [lacks_columns(path, missing, header)] if (missing := [n for n in required if n not in header]) else []
        )
        wanted = {*required, *optional}
        taken = [bool(name) if everything else name in wanted for name in header]
        if twice := [name for name, use in zip(header, taken, strict=True) if use and header.count(name) > 1]:
            problems.append(ValueError(f"{path} has the column {twice[0]!r} twice: rename one"))
        if twice or (missing and wanted.isdisjoint(header)):
            raise_problems(problems)
        # All columns: with `usecols`, pandas would cut off what a row has too much, and its cells would be shifted.
        frame = pd.read_csv(path, dtype=object, na_values=list(BLANKS), **options)
    except pd.errors.EmptyDataError:
        told = "begins with a blank line" if path.stat().st_size else "is empty"
        raise ValueError(f"{path} {told}: expected a header and one row per image") from None
    except (pd.errors.ParserError, UnicodeDecodeError) as error:
        if "fields in line" in str(error):
            raise_problems([*problems, _too_many_cells(path, len(header))])
        if isinstance(error, UnicodeDecodeError):
            raise ValueError(f"{path} is not in UTF-8{_not_utf8(path)}: save it as CSV in UTF-8") from error
        raise ValueError(f"{path} cannot be read as CSV in UTF-8: {error}") from error
    if not isinstance(frame.index, pd.RangeIndex):  # pandas takes the first column for one of names then
        raise_problems([*problems, _too_many_cells(path, len(header))])
    frame.columns = header
    for name in {*optional} - {*header}:
        if alike := [other for other in header if other.lower() == name.lower() and other not in required]:
            logger.warning("%s: the column %r is not taken for %r: rename it if it is meant", path, alike[0], name)
    frame.index = _lines(path, frame)
    frame = frame.loc[:, taken]
    for name in frame.columns:
        frame[name] = map_distinct(frame[name], _stripped)
    if (blank := frame.iloc[:, 0].isna()).any():  # only these can be blank in every column
        blank.loc[blank] = frame[blank].isna().all(axis=1)
        frame = frame[~blank]
    if frame.empty:
        problems.append(ValueError(f"{path} is empty: it has a header and no rows"))
    raise_problems(problems, usable=None if frame.empty else frame)
    return frame


def leave_out(reasons: Mapping[str, np.ndarray], keep: np.ndarray, excluded: dict[str, int]) -> None:
    """Take the rows of each reason out of `keep`, in place; those that were still in it are counted in `excluded`."""
    for reason, rows in reasons.items():
        if count := int((rows & keep).sum()):
            excluded[reason] = count
            keep &= ~rows


def and_more(count: int) -> str:
    """What follows the first of several rows with the same problem."""
    return f" (and in {count - 1} more rows)" if count > 1 else ""


def classify(values: pd.Series, task: Task, path: Path) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Class index per row (-1: blank, -2: no rule), and masks of the rows that no rule covers, by reason."""
    codes, uniques = pd.factorize(values)  # blanks get the code -1
    texts = np.asarray(uniques, dtype=object)
    keys = [value_key(text) for text in texts]
    class_of_key = {key: index for index, rule in enumerate(task.classes) for key in rule.values}
    class_of = np.array([class_of_key.get(key, -2) for key in keys] + [-1], dtype=np.int64)
    has_interval = any(rule.is_interval for rule in task.classes)
    numbers = np.array([float(key) if _PLAIN_NUMBER.fullmatch(key) else np.nan for key in keys] + [np.nan])
    problems: list[Exception] = []
    if has_interval:
        is_text = np.isnan(numbers) & (class_of == -2)
        if is_text.any():
            rows = np.flatnonzero(is_text[codes])
            comparison = next(rule.text for rule in task.classes if rule.is_interval)
            problems.append(
                ValueError(
                    f"{path}, line {values.index[rows[0]]}, column {task.column!r}: the rule {comparison!r} of task "
                    f"{task.name!r} compares numbers, but the value is {values.iloc[rows[0]]!r}{and_more(len(rows))}: write a "
                    "number, leave it blank, or use a list of values as the rule"
                )
            )
        for index, rule in enumerate(task.classes):
            if rule.is_interval:
                class_of[rule.contains(numbers)] = index
    classes = class_of[codes]
    counts = np.bincount(classes[classes >= 0], minlength=task.num_classes)
    common = values.value_counts()
    listed = ", ".join(f"{value!r} ({count})" for value, count in common.head(8).items())
    empty = [
        rule.text
        for rule, count in zip(task.classes, counts, strict=True)
        if not count and not (problems and rule.is_interval)  # as long as there is text among its numbers
    ]
    if empty:
        told = f"rule {empty[0]}" if len(empty) == 1 else f"rules {', '.join(empty[:-1])} and {empty[-1]}"
        problems.append(
            ValueError(
                f"{path}, column {task.column!r}: the {told} of task {task.name!r} {'matches' if len(empty) == 1 else 'match'} "
                f"no row; the column holds {listed or 'only blanks'}{', ...' if len(common) > 8 else ''}"
            )
        )
    raise_problems(problems)
    uncovered = classes == -2
    if not uncovered.any():
        return classes, {}
    if has_interval:
        outside = numbers[np.unique(codes[uncovered])]
        return classes, {
            f"{task.name} matches no rule ({_shown(str(outside.min()))} to {_shown(str(outside.max()))})": uncovered
        }
    row_counts = np.bincount(codes[uncovered], minlength=len(texts))
    listed_codes = [int(code) for code in np.argsort(-row_counts, kind="stable")[:_MAX_LISTED] if row_counts[code]]
    by_lower = {key.lower(): key for key in class_of_key}

    def reason(code: int) -> str:
        alike = by_lower.get(keys[code].lower())
        told = "" if alike is None else f" ({alike!r} does, with other capitals)"
        return f"{task.name}={texts[code]!r} matches no rule{told}"

    reasons = {reason(code): codes == code for code in listed_codes}
    others = uncovered & ~np.isin(codes, listed_codes)
    if others.any():
        reasons[f"{task.name} matches no rule (other values)"] = others
    return classes, reasons


def _missing(images: Sequence[str]) -> list[str]:
    """Those of the files that do not exist."""
    by_folder: dict[str, list[str]] = defaultdict(list)
    for image in dict.fromkeys(images):
        by_folder[os.path.dirname(image)].append(image)
    missing: list[str] = []
    for folder, files in by_folder.items():
        if len(files) < 8:
            missing += [file for file in files if not os.path.exists(file)]
            continue
        try:
            with os.scandir(folder) as entries:  # one call for a whole folder, where one stat per file takes seconds
                # Of links alone it has to be asked whether what they lead to is there.
                present = {entry.name for entry in entries if not entry.is_symlink() or os.path.exists(entry.path)}
        except OSError:
            present = set()
        missing += [file for file in files if os.path.basename(file) not in present]
    return missing


def _why_missing(image: str, written: str) -> str:
    """The likeliest reason why there is no such image file; empty without one."""
    if re.match(r"[A-Za-z]:[\\/]", written) and os.sep == "/":
        return ": the names are of a Windows drive: write them relative to the table or to image_root"
    if "\\" in written and os.sep == "/":
        return ": the names hold backslashes: write / between folders"
    for ending, other in ((".nii", ".nii.gz"), (".nii.gz", ".nii")):
        if image.endswith(ending) and os.path.exists(image.removesuffix(ending) + other):
            return f": there is {os.path.basename(image).removesuffix(ending)}{other}, though: write that ending"
    return ""


def _find_images(table: pd.DataFrame, column: str, root: str, path: Path, check: bool) -> tuple[pd.Series, list]:
    """Absolute path of each row's image, NA where it cannot be used, and what is wrong."""
    problems: list[Exception] = []
    names = [
        None if blank else os.path.normpath(os.path.join(root, name))
        for name, blank in zip(table[column].tolist(), table[column].isna().tolist(), strict=True)
    ]
    images = pd.Series(names, table.index, dtype=object)
    below = root if root.endswith(os.sep) else root + os.sep
    if (outside := np.array([name is not None and not name.startswith(below) for name in names])).any():
        line = table.index[outside][0]
        told = (
            f"{path}, line {line}, column {column!r}: {table[column][line]!r} leads out of {root}"
            f"{and_more(int(outside.sum()))}: move the images below it, or name a folder that holds them all as image_root"
        )
        problems.append(ValueError(told))
        images = images.mask(outside)
    if check and (missing := _missing(images.dropna().tolist())):
        shown = first_three(missing)
        problems.append(
            FileNotFoundError(
                f"{path}: {len(missing)} of {len(images)} image files do not exist: {shown} "
                f"(relative names start from {root}; image_root changes that)"
                f"{_why_missing(missing[0], str(table[column][images.index[images == missing[0]][0]]))}"
            )
        )
        images = images.mask(images.isin(missing))
    return images, problems


def _split_problems(split: pd.Series, subjects: pd.Series | None, path: Path) -> list[Exception]:
    """Rows of no known split, and subjects in more than one."""
    problems: list[Exception] = []
    if (wrong := ~split.isin(PARTITIONS)).any():
        line = split.index[wrong][0]
        problems.append(
            ValueError(
                f"{path}, line {line}, column {split.name!r}: expected train, val or test, got "
                f"{'a blank' if pd.isna(split[line]) else repr(split[line])}"
                f"{and_more(int(wrong.sum()))}"
            )
        )
    if subjects is None:
        return problems
    pairs = pd.DataFrame({"subject": subjects, "split": split})[~wrong].dropna().drop_duplicates()
    if (twice := pairs["subject"].duplicated()).any():
        subject = pairs["subject"][twice].iloc[0]
        splits = pairs.loc[pairs["subject"] == subject, "split"].tolist()
        problems.append(
            ValueError(
                f"{path}: subject {subject!r} stands in the splits {' and '.join(map(repr, splits))} "
                f"({int(twice.sum())} such): give each subject one split, or drop the column {split.name!r}"
            )
        )
    return problems


def _spelling_problems(subjects: pd.Series, path: Path) -> list[Exception]:
    """One number spelled in two ways: two subjects, where tables that were joined mean one."""
    names = pd.Series(sorted(set(subjects.dropna().astype(str))), dtype=object)
    names = names[names.str.fullmatch(r"[-+]?\d+(\.\d*([eE][-+]?\d+)?)?")]  # 12e4 alone is a code
    numbers = names.map(Decimal)  # exact, however long
    twice = numbers[numbers.duplicated(keep=False)]
    if twice.empty:
        return []
    first, second = sorted(names[numbers == twice.iloc[0]][:2], key=len)
    return [
        ValueError(
            f"{path}, column {subjects.name!r}: {first!r} and {second!r} would be two subjects ({twice.nunique()} such): spell each "
            "in one way, or their images could be trained and tested on"
        )
    ]


def _image_problems(rows: pd.DataFrame, task_names: Sequence[str], path: Path) -> list[Exception]:
    """Images of which several rows, which are these, tell different subjects or different known classes of a task."""
    problems: list[Exception] = []
    for name in ("subject", *task_names):
        if name not in rows:
            continue
        pairs = rows[rows[name].notna() if name == "subject" else rows[name] >= 0]
        pairs = pairs.drop_duplicates(["image", name])
        if not (twice := pairs["image"].duplicated()).any():
            continue
        image = pairs["image"][twice].iloc[0]
        (line, first), (other, second) = list(pairs.loc[pairs["image"] == image, name].items())[:2]
        count = f"({int(twice.sum())} such)"
        problems.append(
            ValueError(
                f"{path}: {image} belongs to two subjects, {first!r} and {second!r} {count}: give each image one subject"
                if name == "subject"
                else f"{path}, lines {line} and {other}: {image} belongs to the classes {first} and {second} of {name!r} "
                f"{count}: one row per image, or the same labels in each"
            )
        )
    return problems


def read_table(
    path: str | os.PathLike[str],
    tasks: Sequence[Task | Mapping[str, Any]],
    *,
    image_column: str = "image",
    subject_column: str = "subject",
    image_root: str | os.PathLike[str] | None = None,
    prepare: Callable[[pd.DataFrame, Path], tuple[pd.DataFrame, dict[str, int]]] | None = None,
    unmatched: str = "exclude",
    check_images: bool = True,
) -> pd.DataFrame:
    """Read a CSV table and turn its attribute columns into class indices.

    Rows whose primary label is blank, and rows where a value matches none of its task's rules, are excluded; a row
    counts under the first reason, in the order of the tasks. A blank spurious factor becomes -1 and stays.

    Args:
        path: the CSV file, UTF-8, comma separated, with a header.
        tasks: what `parse_tasks` takes or returns; the first is the primary task.
        image_column: column of the image files, absolute or relative to `image_root`, which none may lead out of.
        subject_column: column of the subject (patient) each image belongs to.
        image_root: folder that holds the images and that relative paths start from; None: the table's folder. The names
            are taken as they are written: a link inside the folder may lead anywhere.
        prepare: turns the whole table (text, blanks as NA) into one with the columns above, and counts the rows that it
            leaves out by reason, such as `CheXpertColumns`.
        unmatched: of a spurious factor's value that matches none of its rules: "exclude" the row, or count the value as
            "unknown", like a blank.
        check_images: raise for image files that do not exist.

    Returns:
        A frame with the columns `image` (absolute path), `subject`, `split` (where the table has it) and one integer
        column per task. `frame.attrs["excluded"]` maps each reason for an exclusion to its number of rows, and
        `frame.attrs["table"]` is the path.

    Raises:
        FileNotFoundError: no table, or missing image files.
        ValueError: an empty or unreadable table, a missing column, text where a rule compares numbers, a rule that
            matches nobody, fewer than 2 classes left, a blank image or subject, an image outside `image_root`, an unknown
            split, a subject in two splits, or an image that belongs to two subjects or to two classes of a task. Several
            of these are told as one error, which has as `usable` the rows whose images exist.

    Example:
        >>> import pathlib, tempfile
        >>> with tempfile.TemporaryDirectory() as root:
        ...     table = pathlib.Path(root) / "labels.csv"
        ...     _ = table.write_text("image,subject,age,sex\\na.png,1,40,F\\nb.png,2,60,M\\nc.png,3,55,M\\n")
        ...     frame = read_table(table, [
        ...         {"name": "age", "column": "age", "negative": "< 51", "positive": "> 57"},
        ...         {"name": "sex", "column": "sex", "negative": ["F"], "positive": ["M"]},
        ...     ], check_images=False)
        >>> frame[["age", "sex"]].to_numpy().tolist(), frame.attrs["excluded"]
        ([[0, 0], [1, 1]], {'age matches no rule (55 to 55)': 1})
    """
    path = Path(path).expanduser().absolute()
    if unmatched not in ("exclude", "unknown"):
        raise ValueError(f"expected unmatched to be 'exclude' or 'unknown', got {unmatched!r}")
    parsed = parse_tasks(tasks)
    problems: list[Exception] = []
    required = list(dict.fromkeys([image_column, subject_column, *(task.column for task in parsed)]))
    try:
        table = read_columns(path, [] if prepare else required, ["split"], everything=prepare is not None)
    except ValueError as error:
        if getattr(error, "usable", None) is None:
            raise
        table = error.usable  # type: ignore[attr-defined]
        problems.append(error)
    total = len(table)
    excluded: dict[str, int] = {}
    if prepare is not None:
        try:
            table, excluded = prepare(table, path)
        except ValueError as error:
            problems.append(error)
            if getattr(error, "usable", None) is None:
                raise_problems(problems)
            table, excluded = error.usable  # type: ignore[attr-defined]
        if missing := [name for name in required if name not in table.columns]:
            problems.append(lacks_columns(path, missing, list(table.columns)))
        if table.empty:
            left_out = ", ".join(f"{count} {reason}" for reason, count in excluded.items())
            raise_problems([*problems, ValueError(f"{path}: no row of {total} is left; excluded: {left_out}")])
    for column in dict.fromkeys((image_column, subject_column)):
        if column in table.columns and (blank := table[column].isna()).any():
            told = f"{path}, line {table.index[blank][0]}: column {column!r} is blank{and_more(int(blank.sum()))}"
            problems.append(ValueError(f"{told}: every row needs one"))

    keep = np.ones(len(table), dtype=bool)
    labels: dict[str, np.ndarray] = {}
    for index, task in enumerate(parsed):
        if task.column not in table.columns:
            continue
        try:
            labels[task.name], reasons = classify(table[task.column], task, path)
        except ValueError as error:
            problems.append(error)
            continue
        if index == 0:
            reasons = {f"{task.name} is blank": labels[task.name] == -1, **reasons}
        elif unmatched == "unknown":
            labels[task.name], reasons = np.maximum(labels[task.name], -1), {}
        leave_out(reasons, keep, excluded)
    summary = f"{path}: {int(keep.sum())} of {total} rows kept" + (f", excluded: {excluded}" if excluded else "")
    if not keep.any():
        problems.append(ValueError(f"{summary}; every row is excluded: check the rules of the tasks"))
        raise_problems(problems)
    for task in parsed:
        if task.name not in labels:
            continue
        left = np.unique(labels[task.name][keep & (labels[task.name] >= 0)])
        if len(left) < 2:
            classes = ", ".join(task.classes[index].text for index in left) or "none"
            told = f"{summary}; expected 2 or more classes of {task.name!r} among them, found {classes}"
            problems.append(ValueError(told))
    table = table[keep]

    frame = pd.DataFrame(index=table.index)
    subjects = table[subject_column] if subject_column in table.columns else None
    if image_column in table.columns:
        root = os.path.normpath(path.parent if image_root is None else Path(image_root).expanduser().absolute())
        frame["image"], more = _find_images(table, image_column, root, path, check_images)
        problems += more
    if subjects is not None:
        frame["subject"] = subjects
        problems += _spelling_problems(subjects, path)
    if "split" in table.columns:
        frame["split"] = table["split"]
        problems += _split_problems(table["split"], subjects, path)
    for name, classes_of_rows in labels.items():
        frame[name] = classes_of_rows[keep]
    if "image" in frame:
        again = frame[frame["image"].duplicated(keep=False) & frame["image"].notna()]
        problems += _image_problems(again, list(labels), path)
        if more_rows := len(again) - again["image"].nunique():
            summary += f"; {more_rows} of them list an image that another row lists"
    raise_problems(problems, usable=frame.dropna(subset=["image"]) if "image" in frame else None)
    frame = frame.reset_index(drop=True)
    frame.attrs |= {"excluded": excluded, "table": str(path)}
    logger.info(summary)
    return frame
