# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""Write a generated cohort into a folder once, all or nothing, by several processes."""

from __future__ import annotations

import functools
import glob
import json
import math
import multiprocessing
import os
import platform
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from monai_mimmx.data.workers import end_with_parent
from monai_mimmx.files import is_alive

MARKER_NAME = "cohort.json"

Item = TypeVar("Item")

_PIECE = 32  # items that a worker gets at a time


def _is_published(folder: Path, marker: Mapping[str, Any]) -> bool:
    """True where `folder` holds the cohort of `marker`, False where it is free to write; raises for anything else."""
    if not os.path.lexists(folder):
        return False
    if not folder.is_dir():
        raise ValueError(f"expected {folder} to be a folder or not to exist, but it is a file: choose another folder")
    marker_file = folder / MARKER_NAME
    if not marker_file.exists():
        if any(folder.iterdir()):
            raise ValueError(
                f"{folder} holds other files and no {MARKER_NAME}, so no cohort is written there: "
                "choose another folder, or empty this one"
            )
        return False
    try:
        found = json.loads(marker_file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError):
        found = None
    if not isinstance(found, dict):
        raise ValueError(f"{marker_file} is not a cohort marker (a JSON object): choose another folder")
    differing = sorted(key for key in {*found, *marker} if found.get(key) != marker.get(key))
    if differing:
        listed = ", ".join(f"{key}: expected {marker.get(key)!r}, found {found.get(key)!r}" for key in differing)
        raise ValueError(
            f"{folder} holds a cohort made with other settings ({listed}): choose another folder, or remove this one"
        )
    return True


def publish_folder(folder: str | os.PathLike[str], marker: Mapping[str, Any], write: Callable[[Path], None]) -> Path:
    """Fill `folder` by `write`, unless it already holds the complete cohort that `marker` describes.

    `write` gets an empty temporary folder beside `folder`; when it returns, the marker is added as `cohort.json` and
    the whole is renamed in one step. A folder with a marker is therefore always complete, an interrupted run leaves
    nothing at `folder`, and of two processes that write at once one wins and both go on with the same files.

    Args:
        folder: where the cohort stands in the end; must be absent, empty, or hold the same cohort.
        marker: what makes this cohort this one (version, seed, scale, ...); JSON values only.
        write: fills the folder it is given.

    Returns:
        `folder` as a resolved absolute path.

    Raises:
        ValueError: `folder` is a file, holds other files, or a cohort with another marker. Nothing is ever removed.
        OSError: `folder` cannot be written, or the disk is full.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as root:
        ...     made = publish_folder(root + "/a", {"seed": 0}, lambda new: (new / "x.txt").touch())
        ...     sorted(path.name for path in made.iterdir())
        ['cohort.json', 'x.txt']
    """
    target = Path(folder).expanduser().resolve()
    marker = json.loads(json.dumps(marker))  # as it reads back: tuples become lists
    if _is_published(target, marker):
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        prefix = f".{target.name}.{platform.node()}."
        for left_over in target.parent.glob(f"{glob.escape(prefix)}*.part"):
            if not is_alive(left_over.name.split(".")[-3]):  # killed on this computer
                shutil.rmtree(left_over, ignore_errors=True)
        temporary = Path(tempfile.mkdtemp(prefix=f"{prefix}{os.getpid()}.", suffix=".part", dir=target.parent))
        try:
            new = temporary / "cohort"  # a fresh folder: mkdtemp's own is closed to other users
            new.mkdir()
            write(new)
            (new / MARKER_NAME).write_text(json.dumps(marker, indent=2) + "\n", encoding="utf-8")
            try:
                os.rename(new, target)
            except OSError:
                if not _is_published(target, marker):  # another process may have finished first
                    raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except FileNotFoundError:
        raise  # of something that `write` reads
    except OSError as error:
        raise OSError(
            f"cannot write the cohort to {target} ({error}): name a writable folder with enough space"
        ) from error
    return target


def check_options(scale: float, seed: int, num_workers: int | None) -> None:
    """Raise ValueError for a scale, seed or number of workers that no cohort can be written with."""
    if not (math.isfinite(scale) and scale > 0):
        raise ValueError(f"expected scale above 0, got {scale}")
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(f"expected seed as an integer of 0 or more, got {seed!r}")
    if num_workers is not None and num_workers < 1:
        raise ValueError(f"expected num_workers of 1 or more, got {num_workers}")


def _start_worker() -> None:
    end_with_parent()
    # One thread each: otherwise the matrix products of all workers fight for the cores, which costs several times.
    threadpool_limits(1)


def _work(write: Callable[[Sequence[Item]], None], piece: Sequence[Item]) -> int:
    # Freed at once: from then on glibc keeps blocks below this size, which saves page faults.
    np.empty(1 << 23, np.uint8)
    write(piece)
    return len(piece)


def available_cpus() -> int:
    """How many CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def write_items(
    write: Callable[[Sequence[Item]], None],
    items: Sequence[Item],
    folder: str | os.PathLike[str],
    *,
    bytes_each: int,
    what: str,
    unit: str,
    num_workers: int | None = None,
    progress: bool = True,
) -> None:
    """Call `write` on pieces of `items` in worker processes, if the disk has room for all of them.

    Args:
        write: writes the items it is given, whatever the others; picklable.
        items: picklable.
        folder: where they go, which exists.
        bytes_each: room that an item takes on disk.
        what: is written, for the progress bar.
        unit: one of them.
        num_workers: processes, 1 (this one) or more; None: all available CPUs.
        progress: show a progress bar.

    Raises:
        OSError: too little space in `folder`.

    Example:
        >>> write_items(print, [1, 2, 3], ".", bytes_each=1, what="numbers", unit="number", num_workers=1, progress=False)
        [1, 2, 3]
    """
    need, free = len(items) * bytes_each, shutil.disk_usage(folder).free
    if free < need:
        raise OSError(f"{need / 1e6:.0f} MB needed, {free / 1e6:.0f} MB free")
    with tqdm(total=len(items), desc=f"writing {what}", unit=unit, mininterval=0.5, disable=not progress) as bar:
        for done in _work_through(write, items, num_workers or available_cpus()):
            bar.update(done)


def _work_through(write: Callable[[Sequence[Item]], None], items: Sequence[Item], num_workers: int) -> Iterator[int]:
    """Yield how many items each finished piece held."""
    pieces = [items[i : i + _PIECE] for i in range(0, len(items), _PIECE)]
    num_workers = min(num_workers, len(pieces))
    if num_workers <= 1:
        yield from map(functools.partial(_work, write), pieces)
        return
    # Forked workers start at once and use neither torch nor OpenMP; elsewhere fork is missing or unsafe.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*fork.*", category=DeprecationWarning)
        pool = ProcessPoolExecutor(num_workers, mp_context=context, initializer=_start_worker)
        with pool:
            try:
                for done in as_completed([pool.submit(_work, write, piece) for piece in pieces]):
                    yield done.result()
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
