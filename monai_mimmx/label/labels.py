# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""From the label of an image, as an annotator writes it, to class indices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from monai_mimmx.data.tables import BLANKS, Task, value_key

__all__ = ["parse_label"]

SUBJECT = "subject"


def parse_label(content: Any, tasks: Sequence[Task]) -> tuple[list[int], str | None]:
    """
    The class indices that a label states.

    Args:
        content: task name to the name of a class, as `Task.class_names` gives it, or to a value that a rule of the task
            covers, as a cell of the table would hold it; `None`, a blank or no entry: unknown. The entry "subject", if
            there is one, names the subject that the image belongs to.
        tasks: of `parse_tasks`, the primary task first, which must be known.

    Returns:
        one class index per task, -1 where unknown, and the subject, `None` where unnamed.

    Raises:
        ValueError: for anything but a mapping, an unknown task, a value that is no class, or no primary label.

    Example:
        >>> from monai_mimmx.data import parse_tasks
        >>> tasks = parse_tasks([
        ...     {"name": "age_group", "column": "age", "negative": "< 51", "positive": "> 57"},
        ...     {"name": "sex", "column": "sex", "negative": ["female"], "positive": ["male"]},
        ... ])
        >>> parse_label({"age_group": "> 57", "sex": "male", "subject": "s1"}, tasks)
        ([1, 1], 's1')
        >>> parse_label({"age_group": 43}, tasks)
        ([0, -1], None)
    """
    names = [task.name for task in tasks]
    if not isinstance(content, Mapping):
        raise ValueError(f"expected a label as an object with the keys {', '.join(names)}, got {content!r}")
    if unknown := sorted({*map(str, content)} - {*names, SUBJECT}):
        raise ValueError(f"expected a label with the keys {', '.join([*names, SUBJECT])}, got {unknown[0]!r}")
    classes = [_class_index(content.get(task.name), task) for task in tasks]
    if classes[0] < 0:
        raise ValueError(f"expected a label to state the primary task {names[0]!r}, got none")
    subject = content.get(SUBJECT)
    return classes, None if subject is None else str(subject)


def _class_index(value: Any, task: Task) -> int:
    if value is None or (isinstance(value, str) and value.strip() in BLANKS):
        return -1
    if value in task.class_names:
        return task.class_names.index(value)
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        key = value_key(value)
        for index, rule in enumerate(task.classes):
            if key in rule.values:
                return index
        for index, rule in enumerate(task.classes):
            if rule.is_interval and _is_number(key) and rule.contains(np.array([float(key)]))[0]:
                return index
    raise ValueError(
        f"expected {task.name!r} to be one of {', '.join(map(repr, task.class_names))} or null, got {value!r}"
    )


def _is_number(key: str) -> bool:
    try:
        return np.isfinite(float(key))
    except ValueError:
        return False
