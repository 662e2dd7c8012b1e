# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""Errors that reach the user early, and as one last line that says what was wrong."""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import torch.distributed as dist

__all__ = ["Problems", "check_writable", "first_line", "first_three", "raise_problems", "root_cause", "show_root_cause"]


class Problems(ValueError):
    """
    Everything that is wrong, told at once.

    Args:
        errors: one for each problem; those of a `Problems` among them count one by one, and equal messages once.
        usable: what could be read in spite of them, for further checks.

    Example:
        >>> print(Problems([ValueError("n_b must be 1 or more, got 0"), FileNotFoundError("no table at labels.csv")]))
        2 problems:
          1. n_b must be 1 or more, got 0
          2. no table at labels.csv
    """

    def __init__(self, errors: Iterable[BaseException], usable: Any = None) -> None:
        flat: list[BaseException] = []
        for error in errors:
            flat += error.errors if isinstance(error, Problems) else [error]
        self.errors: list[BaseException] = list({str(error): error for error in flat}.values())
        self.usable = usable
        if len(self.errors) == 1:
            super().__init__(str(self.errors[0]))
        else:
            lines = [f"  {number}. {error}" for number, error in enumerate(self.errors, start=1)]
            super().__init__("\n".join([f"{len(lines)} problems:", *lines]))


def first_line(error: BaseException) -> str:
    """
    The first line of what an error says, or its kind where it says nothing.

    Args:
        error: whose.

    Example:
        >>> first_line(ValueError("\\nno such file\\nand a trace")), first_line(KeyboardInterrupt())
        ('no such file', 'KeyboardInterrupt')
    """
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def first_three(items: Sequence[Any], separator: str = ", ") -> str:
    """
    The first three of a list, as an error names them, and dots where there are more.

    Args:
        items: what to name.
        separator: between them.

    Example:
        >>> first_three(["a.png", "b.png", "c.png", "d.png"])
        'a.png, b.png, c.png, ...'
    """
    return separator.join([*map(str, items[:3]), *(["..."] if len(items) > 3 else [])])


def raise_problems(errors: Iterable[BaseException], usable: Any = None) -> None:
    """
    Raise what is wrong: nothing for no error, a single one as it is, several as `Problems`.

    Args:
        errors: see `Problems`.
        usable: see `Problems`; becomes an attribute of a single error too.

    Example:
        >>> raise_problems([])
        >>> raise_problems([TypeError("expected a list of tasks, got 3")])
        Traceback (most recent call last):
            ...
        TypeError: expected a list of tasks, got 3
    """
    problems = Problems(errors, usable)
    if len(problems.errors) == 1:
        (error,) = problems.errors
        error.usable = usable  # type: ignore[attr-defined]
        raise error
    if problems.errors:
        raise problems


def root_cause(error: BaseException) -> BaseException:
    """
    The exception at the start of a chain of ``raise .. from ..``.

    A config parser wraps what a component raises, several times; the component's own message is the useful one. An
    exception that was itself raised from another on purpose, with a message of its own, hides that other.

    Args:
        error: the exception that arrived.

    Example:
        >>> try:
        ...     try:
        ...         raise ValueError("n_b must be 1 or more, got 0.")
        ...     except ValueError as error:
        ...         raise RuntimeError("Failed to evaluate ConfigExpression") from error
        ... except RuntimeError as error:
        ...     root_cause(error)
        ValueError('n_b must be 1 or more, got 0.')
    """
    while error.__cause__ is not None and _is_wrapper(error):
        error = error.__cause__
    return error


def _is_wrapper(error: BaseException) -> bool:
    message = str(error)
    return isinstance(error, RuntimeError) and (
        message.startswith(("Failed to evaluate", "Failed to instantiate")) or "applying transform" in message
    )


def _lost_process(error: BaseException) -> str:
    """What to say where a collective operation of several processes failed because one of them is gone; else nothing."""
    if not (dist.is_available() and dist.is_initialized() and isinstance(error, RuntimeError)):
        return ""
    if not any(sign in str(error) for sign in ("closed by peer", "reset by peer", "Broken pipe", "imed out", "imeout")):
        return ""
    return (
        f"process {dist.get_rank()} of {dist.get_world_size()} stops, because another one has ended or no longer answers: "
        "why stands in what that one printed. What was saved is intact; --resume true goes on from it."
    )


def show_root_cause() -> None:
    """
    From now on, end the traceback of an uncaught exception in this process with one line that tells its root cause.

    Where another process of a process group is gone, the line says so.
    `Problems` of the input are told alone: where in the code they were found helps nobody.
    """

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        cause = root_cause(error)
        if isinstance(cause, Problems):
            print(f"\n{cause}", file=sys.stderr)
            return
        traceback.print_exception(kind, error, trace)
        if lost := _lost_process(cause):
            print(f"\nRuntimeError: {lost}", file=sys.stderr)
        elif cause is not error:
            print(f"\n{type(cause).__name__}: {cause}", file=sys.stderr)

    sys.excepthook = hook


def check_writable(folder: str | os.PathLike[str], option: str = "output_dir", *, make: bool = True) -> None:
    """
    Make a folder and try to write into it, so that a run with nowhere to put its results stops before it begins.

    Args:
        folder: where results will go; made with its parents if absent.
        option: what the user calls it.
        make: leave the folder there; otherwise try in the nearest one that exists.

    Raises:
        OSError: if it cannot be made or written.

    Example:
        >>> check_writable("results")
        >>> check_writable("/proc/results")
        Traceback (most recent call last):
            ...
        OSError: cannot write to output_dir /proc/results: ...
    """
    path = Path(folder)
    try:
        if make:
            path.mkdir(parents=True, exist_ok=True)
        there = next(place for place in (path, *path.absolute().parents) if make or place.exists())
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise OSError(
            f"cannot write to {option} {path}: {error.strerror or error}; name another folder with --{option}"
        ) from error
