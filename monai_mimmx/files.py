# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""Files that are there as a whole or not at all."""

from __future__ import annotations

import contextlib
import glob
import json
import logging
import os
import platform
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import pandas as pd
import torch

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows has no such locks
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "FolderLock",
    "locked",
    "replacing",
    "spreadsheet_text",
    "write_checkpoint",
    "write_csv",
    "write_json",
    "write_text",
]

_FORMULA = re.compile(r"[=@\t\r]|[+-](?!(\d+(\.\d+)?( ± \d+(\.\d+)?)?)?$)")


def is_alive(process: str) -> bool:
    """Whether a process of this number runs on this computer; yes where that cannot be known."""
    if os.name == "nt":  # where the question would be an interrupt
        return True
    with contextlib.suppress(ValueError, PermissionError):
        try:
            os.kill(int(process), 0)
        except (ProcessLookupError, OverflowError):
            return False
    return True


@contextlib.contextmanager
def locked(path: str | os.PathLike[str], *, wait: bool = False) -> Iterator[int | None]:
    """
    Hold a file's lock, which processes that inherit its descriptor hold too.

    Args:
        path: of a file to lock; it is made, and left where it is.
        wait: for another process that holds it.

    Yields:
        the file's descriptor; None where another process holds the lock, -1 where there are no locks, as on Windows and on
        some network file systems.

    Example:
        >>> with locked(".lock") as first, locked(".lock") as second:
        ...     first is None, second is None
        (False, True)
    """
    if fcntl is None:
        yield -1
        return
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        yield _lock(descriptor, path, wait)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, path: str | os.PathLike[str], wait: bool) -> int | None:
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not wait:
                return None
            logging.getLogger("monai_mimmx").info(f"waiting for another process, which holds {path}")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError:
        return -1
    return descriptor


class FolderLock:
    """
    Keep other processes from training in a folder: from `hold` to `release`, or to the end of this process.

    It may be held again; a second object for the same folder, in the same process, would let it go, however. Where a file
    system has no locks, nothing is held.

    Args:
        folder: of the training; `.training.lock` in it tells the process and its computer, and is left there.

    Example:
        >>> lock = FolderLock("output")
        >>> lock.hold()
        >>> Path("output/.training.lock").read_text().startswith(f"process {os.getpid()} on ")
        True
        >>> lock.release()
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.path = Path(folder) / ".training.lock"
        self._file: TextIO | None = None

    def hold(self) -> None:
        """
        Hold the folder, which is made if absent.

        Raises:
            ValueError: another process holds it.
        """
        if self._file is not None:  # to close any file of that path would let the lock go
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = self.path.open("a+", encoding="utf-8")
        try:
            if fcntl is not None:  # of the process, unlike flock: what it starts does not hold it
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            file.seek(0)
            holder = file.read()
            file.close()
            raise ValueError(
                f"another training writes to output_dir {self.path.parent} ({holder}): name another folder, or wait until "
                "that process has ended"
            ) from None
        except OSError:  # some network file systems have no locks
            pass
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}")
        file.flush()
        self._file = file

    def release(self) -> None:
        """Let others train there."""
        if self._file is not None:
            self._file.close()
            self._file = None


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """
    A path beside `path` to write to; what was written takes its place at the end, or is removed after an error.

    What a process of this computer that was killed had begun to write for `path` is removed.

    Args:
        path: the file to write, in a folder that exists.

    Example:
        >>> with replacing("rows.csv") as part:
        ...     _ = part.write_text("a,b\\n")
        >>> Path("rows.csv").read_text()
        'a,b\\n'
    """
    target = Path(path)
    own = f".{target.name}.{platform.node()}."  # another computer may write to the same folder
    part = target.with_name(f"{own}{os.getpid()}.part")
    for left_over in target.parent.glob(f"{glob.escape(own)}*.part"):
        if left_over.name[len(own) :].count(".") == 1 and not is_alive(left_over.name.split(".")[-2]):
            left_over.unlink(missing_ok=True)
    try:
        yield part
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file as a whole."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Write a JSON file as a whole."""
    write_text(path, json.dumps(content, indent=1) + "\n")


def write_checkpoint(path: str | os.PathLike[str], content: Any) -> None:
    """
    Write a PyTorch file as a whole: what stood there before is lost only to a finished one.

    Args:
        path: the file; its folder is made if absent.
        content: what ``torch.save`` takes.

    Raises:
        OSError: if it cannot be written, with the cause; an earlier file of that name is then untouched.

    Example:
        >>> write_checkpoint("weights.pt", {"layer": torch.zeros(2)})
        >>> torch.load("weights.pt", weights_only=True)
        {'layer': tensor([0., 0.])}
    """
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as part, part.open("wb") as file:
            torch.save(content, file)
    except (OSError, RuntimeError) as error:
        # PyTorch's own error, where a write falls short, is that its archive is incomplete: the first one says why.
        cause: BaseException = error
        while not isinstance(cause, OSError) and (cause.__cause__ or cause.__context__) is not None:
            cause = cause.__cause__ or cause.__context__  # type: ignore[assignment]
        reason = getattr(cause, "strerror", None) or cause
        raise OSError(f"cannot save {target}: {reason}; a file saved there before is unharmed") from error


def spreadsheet_text(value: Any) -> Any:
    """
    A text with an apostrophe in front where a spreadsheet would take it for a formula and run it; all else as it is.

    Example:
        >>> [spreadsheet_text(value) for value in ("=HYPERLINK(1)", "+3.2", "-x", 5)]
        ["'=HYPERLINK(1)", '+3.2', "'-x", 5]
    """
    return f"'{value}" if isinstance(value, str) and _FORMULA.match(value) else value


def write_csv(path: str | os.PathLike[str], frame: pd.DataFrame) -> None:
    """Write a table without its index, as a whole or not at all, with no text that a spreadsheet would run."""
    with replacing(path) as part:
        frame.rename(columns=spreadsheet_text).apply(lambda column: column.map(spreadsheet_text)).to_csv(
            part, index=False
        )
