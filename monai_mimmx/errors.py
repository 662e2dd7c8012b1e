# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""Errors that reach the user early, and as one last line that says what was wrong."""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from pathlib import Path
from types import TracebackType

import torch.distributed as dist

__all__ = ["check_writable", "root_cause", "show_root_cause"]


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
    """

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        traceback.print_exception(kind, error, trace)
        cause = root_cause(error)
        if lost := _lost_process(cause):
            print(f"\nRuntimeError: {lost}", file=sys.stderr)
        elif cause is not error:
            print(f"\n{type(cause).__name__}: {cause}", file=sys.stderr)

    sys.excepthook = hook


def check_writable(folder: str | os.PathLike[str], option: str = "output_dir") -> None:
    """
    Make a folder and try to write into it, so that a run with nowhere to put its results stops before it begins.

    Args:
        folder: where results will go; made with its parents if absent.
        option: what the user calls it.

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
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise OSError(
            f"cannot write to {option} {path}: {error.strerror or error}; name another folder with --{option}"
        ) from error
