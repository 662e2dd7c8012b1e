# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""Images that are read and transformed once, then served from one memory-mapped array as whole batches."""

from __future__ import annotations

import contextlib
import copy
import errno
import functools
import hashlib
import json
import logging
import mmap
import multiprocessing
import os
import shutil
import sys
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from stat import S_ISDIR
from typing import Any
from zipfile import BadZipFile

import numpy as np
import pandas as pd
import torch
from torch.utils.data import Dataset, get_worker_info
from tqdm import tqdm

from monai_mimmx.data.workers import end_with_parent
from monai_mimmx.errors import first_line
from monai_mimmx.files import locked, write_json

CACHE_VERSION = 1
DTYPES = ("uint8", "float16", "float32")
_MAX_FAILURES = 10
_CHUNK_BYTES = 2**20

Transform = Callable[[dict[str, Any]], Mapping[str, Any]]


class StoredImages:
    """The images of a batch, left where the dataset keeps them until they are asked for.

    What prepares a batch asks by `to`, as MONAI's own does; or it reads the rows itself, which saves writing and reading a
    copy of them: see :class:`~monai_mimmx.engines.PrepareAugmentedBatch`.

    Args:
        pixels: `(n, C, *spatial)`, all that the dataset keeps; not to be written to, since it may be a read-only file.
        rows: `(B,)` int64, which of them.

    Example:
        >>> StoredImages(torch.arange(3.0).view(3, 1, 1), torch.tensor([2, 0])).to(dtype=torch.int64).flatten()
        tensor([2, 0])
    """

    def __init__(self, pixels: torch.Tensor, rows: torch.Tensor) -> None:
        self.pixels, self.rows = pixels, rows

    def __len__(self) -> int:
        return len(self.rows)

    def to(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """A copy `(B, C, *spatial)`, moved and converted as :meth:`torch.Tensor.to` does."""
        return self.pixels.index_select(0, self.rows).to(*args, **kwargs)


class Batch(dict[str, Any]):
    """A whole batch, as a dataset's `__getitems__` returns it; tells a collate function that takes it for a list of items."""

    def __missing__(self, key: Any) -> Any:
        if isinstance(key, int):
            raise TypeError("this batch is whole already: give the DataLoader collate_fn=monai_mimmx.data.keep_batch")
        raise KeyError(key)


def keep_batch(batch: Any) -> Any:
    """Collate function for datasets whose `__getitems__` returns a finished batch: the identity."""
    return batch


def _cause(error: BaseException) -> str:
    """The error that a transform raised, on one line, out of MONAI's "applying transform ..." around it."""
    while str(error).startswith("applying transform") and (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    kind, told = type(error).__name__, first_line(error)
    return kind if told == kind else f"{kind}: {told}"


def load_image(path: str, transform: Transform, dtype: str, shape: tuple[int, ...] | None) -> np.ndarray:
    """One image as an array of `dtype`; ValueError with the cause where it cannot be used."""
    if not os.path.exists(path):
        raise ValueError("the file does not exist")
    try:
        image = transform({"image": path})["image"]
        pixels = np.asarray(image.detach().cpu() if isinstance(image, torch.Tensor) else image, dtype=np.float32)
    except Exception as error:
        cause = _cause(error) if os.path.getsize(path) else "the file is empty"
        raise ValueError(f"it cannot be read as an image ({cause})") from error
    if pixels.ndim < 2 or pixels.size == 0:
        raise ValueError(f"expected a channel-first image after the transform, got shape {pixels.shape}")
    if shape is not None and pixels.shape != shape:
        raise ValueError(f"its shape after the transform is {pixels.shape}, but that of the first file is {shape}")
    low, high = float(pixels.min()), float(pixels.max())
    if not np.isfinite(low) or not np.isfinite(high):
        raise ValueError("it holds NaN or infinite pixels")  # not how many: normalisation spreads one to all of them
    if low == high:
        raise ValueError(f"after the transforms all its pixels are {low:g}")
    if dtype == "uint8":
        if low < 0 or high > 255 or not np.array_equal(pixels, np.rint(pixels)):
            raise ValueError(
                "its pixels are not whole numbers from 0 to 255: normalise in batches, or use dtype 'float16'"
            )
        return pixels.astype(dtype)
    limit = float(np.finfo(dtype).max)
    if max(-low, high) > limit:
        raise ValueError(f"its pixels reach {max(-low, high):g}, beyond {dtype}: normalise, or use dtype 'float32'")
    return pixels.astype(dtype)


_worker: dict[str, Any] = {}  # what a forked worker inherits: the transform need not be picklable


def _start_worker(job: dict[str, Any]) -> None:
    end_with_parent()
    torch.set_num_threads(1)
    _worker.update(job)


def _fill(chunk: list[int]) -> tuple[int, list[tuple[int, str]]]:
    """Write the images of a chunk into the shared array; (how many were done, the failures)."""
    failures = []
    for index in chunk:
        try:
            _worker["pixels"][index] = load_image(_worker["paths"][index], _worker["transform"], *_worker["expected"])
            _worker["done"][index] = 1
        except ValueError as error:
            failures.append((index, str(error)))
    return len(chunk), failures


def _fill_all(job: dict[str, Any], num_workers: int, progress: bool) -> list[tuple[int, str]]:
    total, missing = len(job["paths"]), np.flatnonzero(job["done"] == 0).tolist()
    chunks = [missing[start : start + 16] for start in range(0, len(missing), 16)]
    failures: list[tuple[int, str]] = []
    with contextlib.ExitStack() as stack:
        bar = stack.enter_context(
            tqdm(total=total, initial=total - len(missing), desc="caching images", unit="img", disable=not progress)
        )
        results: Iterator[tuple[int, list[tuple[int, str]]]]
        pool = None
        if num_workers > 1 and len(chunks) > 1 and sys.platform == "linux":  # elsewhere fork is missing or unsafe
            context = multiprocessing.get_context("fork")
            pool = ProcessPoolExecutor(
                min(num_workers, len(chunks)), mp_context=context, initializer=_start_worker, initargs=(job,)
            )
            stack.callback(pool.shutdown, wait=True, cancel_futures=True)
            results = pool.map(_fill, chunks)
        else:
            _worker.update(job)
            stack.callback(_worker.clear)
            results = map(_fill, chunks)
        try:
            for done, failed in results:
                bar.update(done)
                failures += failed
                if len(failures) >= _MAX_FAILURES:
                    break
        except BrokenProcessPool:
            raise RuntimeError(
                "a worker was killed while caching images, most likely for want of memory, or of space in cache_dir: use "
                "fewer num_workers, or another cache_dir"
            ) from None
    return failures


def _identities(paths: Sequence[str], describe: Callable[[int], str]) -> list[str]:
    """Path, size and time of each file; of a folder, such as a DICOM series, also of the files in it."""
    identities = []
    for index, path in enumerate(paths):
        try:
            stat = os.stat(path)
            identity = f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}"
            if S_ISDIR(stat.st_mode):
                slices = sorted(
                    (entry.name, entry.stat().st_size, entry.stat().st_mtime_ns) for entry in os.scandir(path)
                )
                identity += f"\0{hashlib.sha256(repr(slices).encode()).hexdigest()}"
        except OSError as error:
            raise ValueError(f"{describe(index)}: {path}: the file cannot be opened ({_cause(error)})") from None
        identities.append(identity)
    return identities


def _cache_key(identities: Sequence[str], transform_key: str, dtype: str) -> str:
    digest = hashlib.sha256(json.dumps([CACHE_VERSION, dtype, transform_key]).encode())
    for identity in identities:
        digest.update(f"{identity}\n".encode())
    return digest.hexdigest()


def cached_file(
    images: Sequence[str],
    transform: Transform,
    *,
    cache_dir: str | os.PathLike[str] | None,
    transform_key: str,
    dtype: str = "float16",
) -> Path | None:
    """
    The file in which `cache_subsets` has cached just these images as they are now; None where there is none, an image is not
    there, or the transform has changed and its key has not.

    Args:
        images: paths of the images, each once.
        transform: see `CachedImages`, as for the other arguments.
        cache_dir: the folder.
        transform_key: text that names the transform and its settings.
        dtype: of the stored pixels.
    """
    if cache_dir is None:
        return None
    try:
        key = _cache_key(_identities(sorted(images), lambda index: f"image {index}"), transform_key, dtype)
        file = Path(cache_dir) / f"{key}.npy"
        stored = _stored(file)
        if stored is not None and _is_alike(stored[0], load_image(min(images), transform, dtype, None)):
            return file
    except ValueError:  # of a file that cannot be opened
        pass
    return None


def _is_alike(stored: np.ndarray, image: np.ndarray) -> bool:
    """Whether a stored image is this one, up to the rounding that differs between numbers of threads."""
    if stored.shape != image.shape:
        return False
    old, new = np.asarray(stored, dtype=np.float64), image.astype(np.float64)
    return bool(np.abs(old - new).max() <= 2e-3 * np.abs(new).max())


class _Unfinished:
    """
    A cache file that is being built: its pixels, which of them are done, and of which files they are.

    What a build that failed or was killed leaves is taken over by the next one of the same transform.
    """

    def __init__(self, folder: Path, key: str, build: str) -> None:
        self.key = key
        self.pixels, self.done, self.files = (folder / f".{key}.{build}.{end}" for end in ("part", "done", "json"))

    def remove(self) -> None:
        for path in (self.files, self.done, self.pixels):
            path.unlink(missing_ok=True)


def _unfinished(folder: Path) -> list[_Unfinished]:
    names = (path.name.split(".") for path in sorted(folder.glob(".*.*.json")))
    return [_Unfinished(folder, name[1], name[2]) for name in names if len(name) == 4]


def _reserve(path: Path) -> bool:
    """Take the space of a file, which to write through a map would end this process once the disk is full; False: it is."""
    if not hasattr(os, "posix_fallocate"):
        return True
    with path.open("r+b") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, os.path.getsize(path))
        except OSError as error:  # other file systems than a full one cannot do it
            return error.errno not in (errno.ENOSPC, errno.EDQUOT)
    return True


def _remove_unfinished(folder: Path, key: str) -> None:
    """Remove what no process builds any more; the caller holds the lock of `key`."""
    for left_over in _unfinished(folder):
        if left_over.key == key:
            left_over.remove()
            continue
        with locked(folder / f".{left_over.key}.lock") as lock:
            if lock not in (None, -1):
                left_over.remove()


def _take_over(
    pixels: np.ndarray,
    done: np.ndarray,
    identities: Sequence[str],
    about: list[str],
    load: Callable[[str], np.ndarray],
    folder: Path,
) -> None:
    """
    Copy the images that an earlier build in the folder, finished or not, has decoded, and mark them as done.

    Args:
        pixels: `(n, C, *spatial)`, to be filled.
        done: `(n,)`, 1 where they are.
        identities: of the n files.
        about: transform key and dtype.
        load: one image by its path, to see that the transform is still the same.
        folder: of the caches.
    """
    missing = {identity: row for row, identity in enumerate(identities)}
    whole = [(path, path.with_suffix(".npy"), None) for path in folder.glob("[!.]*.json")]
    parts = [(part.files, part.pixels, part.done) for part in _unfinished(folder)]
    for index, array, flags in [*whole, *parts]:
        try:
            known = json.loads(index.read_text(encoding="utf-8"))
            if known["about"] != about:
                continue
            if (stored := _stored(array)) is None:
                continue
            ready = np.ones(len(stored), np.uint8) if flags is None else np.fromfile(flags, np.uint8)
            rows = [
                (row, missing[identity])
                for row, identity in enumerate(known["files"])
                if identity in missing and ready[row]
            ]
            if not rows or not _is_alike(stored[rows[0][0]], load(identities[rows[0][1]].split("\0")[0])):
                continue
        except (OSError, ValueError, KeyError, IndexError, TypeError):  # not whole, or of an image that cannot be read
            continue
        for start in range(0, len(rows), 256):
            theirs, ours = np.array(rows[start : start + 256]).T
            block = stored[theirs]
            flat = block.reshape(len(block), -1)
            sound = flat.min(axis=1) < flat.max(axis=1)  # what a machine lost that stopped before it wrote
            pixels[ours[sound]] = block[sound]
            done[ours[sound]] = 1
        missing = {identity: row for identity, row in missing.items() if not done[row]}
        if not missing:
            break


def _build(
    paths: Sequence[str],
    describe: Callable[[int], str],
    transform: Transform,
    *,
    cache_dir: str | os.PathLike[str] | None,
    transform_key: str,
    dtype: str,
    num_workers: int,
    progress: bool,
) -> np.ndarray:
    """`(n, C, *spatial)` pixels of all paths: a read-only memmap of a finished file, or shared memory."""
    if dtype not in DTYPES:
        raise ValueError(f"expected dtype to be one of {', '.join(DTYPES)}, got {dtype!r}")
    if not len(paths):
        raise ValueError("expected at least one image to cache, got none")
    identities = _identities(paths, describe)
    key = _cache_key(identities, transform_key, dtype)

    def fill(allocate: Callable[[tuple[int, ...]], tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
        try:
            first = load_image(paths[0], transform, dtype, None)
            if not np.array_equal(first, load_image(paths[0], transform, dtype, None)):
                raise ValueError("the transform gave two different results for it: only a deterministic one is cached")
        except ValueError as error:
            raise ValueError(f"{describe(0)}: {paths[0]}: {error}") from error.__cause__
        pixels, done = allocate((len(paths), *first.shape))
        expected = (dtype, first.shape)
        job = {"pixels": pixels, "done": done, "paths": paths, "transform": transform, "expected": expected}
        failures = _fill_all(job, num_workers, progress)
        if failures:
            (index, cause), *others = sorted(failures)
            named = "".join(f"; {paths[other]}: {why}" for other, why in others[:2])
            more = f" (and {len(others)} more files{named}{'; ..' if others[2:] else ''})" if others else ""
            raise ValueError(
                f"{describe(index)}: {paths[index]}: {cause}{more}. Replace the files, or leave their rows out of the table"
            )
        return pixels

    if cache_dir is None:
        size = np.dtype(dtype).itemsize
        return fill(
            lambda shape: (
                np.frombuffer(mmap.mmap(-1, int(np.prod(shape)) * size), dtype=dtype).reshape(shape),
                np.zeros(len(paths), np.uint8),
            )
        )
    folder = Path(cache_dir)
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{key}.npy"
    if (stored := _stored(target)) is not None:
        try:
            first = load_image(paths[0], transform, dtype, None)
        except ValueError as error:
            raise ValueError(f"{describe(0)}: {paths[0]}: {error}") from error.__cause__
        if not _is_alike(stored[0], first):  # the transform changed and transform_key did not
            target = folder / f"{key[:32]}{hashlib.sha256(first.tobytes()).hexdigest()[:32]}.npy"
            key, stored = target.stem, _stored(target)
    if stored is None:
        with locked(folder / f".{key}.lock", wait=True) as lock:  # without locks each process builds its own
            if (stored := _stored(target)) is None:  # not built while this process waited for the lock
                if target.exists():
                    logging.getLogger("monai_mimmx").warning(f"the image cache {target} is damaged: it is made again")
                part, about = _Unfinished(folder, key, uuid.uuid4().hex), [transform_key, dtype]

                def allocate(shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
                    needed, free = int(np.prod(shape)) * np.dtype(dtype).itemsize, shutil.disk_usage(folder).free
                    if needed > free and lock != -1:
                        _remove_unfinished(folder, key)
                        free = shutil.disk_usage(folder).free
                    full = OSError(
                        f"the image cache needs {needed / 1e9:.3g} GB in {folder}, where {free / 1e9:.3g} GB are "
                        "free: choose another cache_dir, or a smaller image size"
                    )
                    if needed > free:
                        raise full
                    pixels = np.lib.format.open_memmap(part.pixels, mode="w+", dtype=np.dtype(dtype), shape=shape)
                    # Some network file systems take the space by writing all of it: only where others may take it first.
                    if 10 * needed > free and not _reserve(part.pixels):
                        raise full
                    done = np.memmap(part.done, np.uint8, mode="w+", shape=(len(paths),))
                    write_json(part.files, {"about": about, "files": identities})
                    load = functools.partial(load_image, transform=transform, dtype=dtype, shape=None)
                    _take_over(pixels, done, identities, about, load, folder)
                    return pixels, done

                try:
                    fill(allocate).flush()  # type: ignore[attr-defined]
                except BaseException:
                    if not part.done.is_file() or not np.fromfile(part.done, np.uint8).any():
                        part.remove()
                    raise
                os.replace(part.pixels, target)
                os.replace(part.files, target.with_suffix(".json"))
                part.done.unlink()
                if lock != -1:
                    _remove_unfinished(folder, key)
                stored = np.load(target, mmap_mode="r")
    return stored


def _stored(target: Path) -> np.ndarray | None:
    """The images of a cache file; None where it is not there, or is damaged, as by a copy that ended early."""
    try:
        return np.load(target, mmap_mode="r") if target.is_file() else None  # type: ignore[no-any-return]
    except (FileNotFoundError, ValueError, EOFError, BadZipFile):
        return None


def available_memory() -> int | None:
    """Bytes that this machine, or the container, can give without swapping; None where it does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    with contextlib.suppress(OSError, ValueError):  # no control group, or one without a limit
        limit, used = (int(Path(f"/sys/fs/cgroup/memory.{name}").read_text()) for name in ("max", "current"))
        found.append(max(0, limit - used))
    return min(found, default=None)


def _whereabouts(pixels: np.ndarray) -> str:
    """One line: how many images there are, and whether they are served from memory or from the disk."""
    what = (
        f"{len(pixels)} images of {'x'.join(map(str, pixels.shape[1:]))} {pixels.dtype}, {pixels.nbytes / 1e9:.2f} GB"
    )
    if not isinstance(pixels, np.memmap):
        return f"{what}, in memory"
    free = available_memory()
    if free is None:
        return f"{what}, mapped from {pixels.filename}"
    if pixels.nbytes < free:
        return f"{what}, served from memory: the system keeps {pixels.filename} in the {free / 1e9:.1f} GB available"
    return f"{what}, served from the disk: {pixels.filename} is larger than the {free / 1e9:.1f} GB of memory available"


class CachedImages(Dataset):
    """A dataset whose images went once through a deterministic transform and are then served from memory.

    The pixels of all distinct images stand in one array: a memory-mapped file under `cache_dir`, which processes and
    later runs share, or anonymous shared memory. The system keeps of the file what fits in memory, so that there may be
    more images than memory; the log says whether they fit. The process itself holds one image at a time (one per worker)
    while the file is built, and a batch while it is served. With a batch sampler the whole batch is fetched in one
    operation, so pass `collate_fn=keep_batch` to the `DataLoader`.

    "float16" keeps a pixel to 1 part in 2048 of its value (whole numbers up to 2048 exactly), far below the noise of
    normalised images, in half the memory of "float32". "uint8" halves it again, for transforms that leave 8-bit pixels as they
    are (normalise them in batches then); pixels it cannot hold exactly are an error.

    A cache file is named after the image paths, their sizes and times, `transform_key` and `dtype`: anything that
    changes builds another file, which takes over the images that earlier ones have of the same transform, and those of a
    build that failed or was killed. Files of earlier keys are left where they are. A file is reused only if an image of it
    is what the transform still gives, since a changed transform is easily left without another `transform_key`.

    Args:
        frame: with a column `image` of paths and one integer column per task.
        task_names: the columns of the labels, the primary task first.
        transform: takes `{"image": path}`, returns a mapping whose "image" is `(C, *spatial)`.
        cache_dir: folder of the cache file; None: kept in memory.
        transform_key: text that names the transform and its settings; change it when they do.
        dtype: of the stored pixels, "uint8", "float16" or "float32"; they are served as float32, unless ``as_stored``.
        num_workers: processes that build the cache; 0 or 1: none but this one.
        progress: show a progress bar while the cache is built.

    Attributes:
        as_stored: serve the pixels in the type they are stored in, for a `prepare_batch` that converts them on its device.
        gather: serve a batch as a tensor; else leave its pixels where they are, see `select_subset`.
        frame: the rows, with a fresh index.
        labels: `(len, 1+N)` int64.
        image_shape: `(C, *spatial)`.
        nbytes: size of the pixels of all distinct images in bytes.
        rows: `(len,)` position of each item in `images`.

    Raises:
        ValueError: a missing column, or an image that is missing, unreadable, not finite, constant or of another shape
            than the first; names the row and the file.
        OSError: too little space in `cache_dir`.

    Example:
        >>> import tempfile
        >>> from torch.utils.data import DataLoader
        >>> with tempfile.NamedTemporaryFile() as file:
        ...     frame = pd.DataFrame({"image": [file.name] * 3, "sick": [0, 1, 1], "sex": [0, 0, 1]})
        ...     data = CachedImages(frame, ["sick", "sex"], lambda item: {"image": torch.arange(16.0).view(1, 4, 4)},
        ...                         cache_dir=None, transform_key="ramp")
        >>> batch = next(iter(DataLoader(data, batch_size=2, collate_fn=keep_batch)))
        >>> tuple(batch["image"].shape), batch["label"].tolist()
        ((2, 1, 4, 4), [[0, 0], [1, 0]])
    """

    as_stored = False
    gather = True

    def __init__(
        self,
        frame: pd.DataFrame,
        task_names: Sequence[str],
        transform: Transform,
        *,
        cache_dir: str | os.PathLike[str] | None,
        transform_key: str,
        dtype: str = "float16",
        num_workers: int = 2,
        progress: bool = True,
    ) -> None:
        _check_columns(frame, task_names, "frame")
        rows, paths = pd.factorize(frame["image"])
        first_row = pd.Series(rows).drop_duplicates().index
        self._pixels = _build(
            list(paths),
            lambda index: f"row {frame.index[first_row[index]]}",
            transform,
            cache_dir=cache_dir,
            transform_key=transform_key,
            dtype=dtype,
            num_workers=num_workers,
            progress=progress,
        )
        logging.getLogger("monai_mimmx").info(_whereabouts(self._pixels))
        self._set_rows(frame, task_names, rows)

    def _set_rows(self, frame: pd.DataFrame, task_names: Sequence[str], rows: np.ndarray) -> None:
        self.frame = frame.reset_index(drop=True)
        self.task_names = list(task_names)
        self.labels = frame[self.task_names].to_numpy(dtype=np.int64)
        self.rows = np.asarray(rows, dtype=np.int64)

    @property
    def images(self) -> np.ndarray:
        """`(distinct images, C, *spatial)` stored pixels, shared by all subsets; item i stands at `rows[i]`."""
        return self._pixels

    @functools.cached_property
    def _stored(self) -> torch.Tensor:
        with warnings.catch_warnings():  # a file is mapped to be read only, and nobody writes to it
            warnings.filterwarnings("ignore", message=".*not writable")
            return torch.from_numpy(np.asarray(self._pixels))

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape `(C, *spatial)` of one image."""
        return tuple(self._pixels.shape[1:])

    @property
    def nbytes(self) -> int:
        """Size of `images` in bytes."""
        return int(self._pixels.nbytes)

    def subset(self, rows: pd.DataFrame | Sequence[int] | np.ndarray) -> CachedImages:
        """A dataset of other rows on the same pixels.

        Args:
            rows: indices of items of this dataset, or a frame of images that are all in it (its labels are used).

        Returns:
            A dataset that shares `images`.

        Raises:
            ValueError: a frame that lists an image which is not cached here, or lacks a task's column.

        Example:
            `half = data.subset(range(0, len(data), 2))`
        """
        view = CachedImages.__new__(CachedImages)
        view._pixels = self._pixels
        if isinstance(rows, pd.DataFrame):
            _check_columns(rows, self.task_names, "frame")
            known = pd.Series(self.rows, index=self.frame["image"].to_numpy())
            known = known[~known.index.duplicated()]
            missing = ~rows["image"].isin(known.index)
            if missing.any():
                raise ValueError(
                    f"{int(missing.sum())} images are not cached, the first is {rows['image'][missing].iloc[0]}"
                )
            view._set_rows(rows, self.task_names, known.loc[rows["image"]].to_numpy())
        else:
            picked = np.asarray(rows, dtype=np.int64)
            view._set_rows(self.frame.iloc[picked], self.task_names, self.rows[picked])
        return view

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Batch:
        dtype = self._pixels.dtype if self.as_stored else np.float32
        image = torch.from_numpy(np.array(self._pixels[self.rows[index]], dtype=dtype))
        return Batch(image=image, label=torch.from_numpy(self.labels[index].copy()), row=torch.tensor(int(index)))

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """The batch of these items: "image" `(B, C, *spatial)` float32, "label" `(B, 1+N)` and "row" `(B,)` int64.

        With `as_stored` the images are of the stored type; without `gather` they are :class:`StoredImages` in this process.
        """
        picked = np.array(indices, dtype=np.int64)
        rows = self.rows[picked]
        images: torch.Tensor | StoredImages
        if not self.gather and get_worker_info() is None:
            images = StoredImages(self._stored, torch.from_numpy(rows))
        elif self.as_stored:
            images = torch.from_numpy(np.asarray(self._pixels[rows]))
        else:
            images = torch.empty((len(rows), *self.image_shape))
            step = max(1, _CHUNK_BYTES * len(self._pixels) // self._pixels.nbytes)
            for start in range(0, len(rows), step):
                # What is gathered is still in the processor's cache when it is converted.
                images[start : start + step] = torch.from_numpy(np.asarray(self._pixels[rows[start : start + step]]))
        return Batch(image=images, label=torch.from_numpy(self.labels[picked]), row=torch.from_numpy(picked))

    def files(self, rows: Sequence[int]) -> list[str]:
        """The image files of these items, such as the "row" of a batch."""
        return [str(path) for path in self.frame["image"].iloc[list(rows)]]

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        state.pop("_stored", None)  # which would be pickled with all its pixels
        if isinstance(self._pixels, np.memmap):
            state["_pixels"] = str(self._pixels.filename)  # a memmap pickles as a copy of the whole file
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if isinstance(self._pixels, str):
            self._pixels = np.load(self._pixels, mmap_mode="r")


def _check_columns(frame: pd.DataFrame, task_names: Sequence[str], what: str) -> None:
    if missing := [name for name in ("image", *task_names) if name not in frame.columns]:
        raise ValueError(
            f"expected {what} to have the columns image and {', '.join(task_names)}, got no {missing[0]!r}"
        )
    if not len(frame):
        raise ValueError(f"expected {what} to have at least one row, got none")


def cache_subsets(
    subsets: Mapping[str, pd.DataFrame],
    task_names: Sequence[str],
    transform: Transform,
    *,
    cache_dir: str | os.PathLike[str] | None,
    transform_key: str,
    dtype: str = "float16",
    num_workers: int = 2,
    progress: bool = True,
) -> dict[str, CachedImages]:
    """Cache the union of several subsets' images, each decoded once, and give one dataset per subset.

    Args:
        subsets: name to frame, as `make_subsets` returns them.
        task_names: see `CachedImages`, as are the other arguments.
        transform: takes `{"image": path}`, returns a mapping whose "image" is `(C, *spatial)`.
        cache_dir: folder of the cache file; None: kept in memory.
        transform_key: text that names the transform and its settings.
        dtype: of the stored pixels.
        num_workers: processes that build the cache.
        progress: show a progress bar while the cache is built.

    Returns:
        Subset name to dataset; all share one array of pixels.

    Raises:
        ValueError: as `CachedImages`; names the subset and row of the first occurrence.

    Example:
        `data = cache_subsets(subsets, ["sick", "sex"], transform, cache_dir=".cache", transform_key="v1")`
    """
    if not subsets:
        raise ValueError("expected at least one subset, got none")
    for name, frame in subsets.items():
        _check_columns(frame, task_names, f"subset {name!r}")
    union = pd.concat([frame[["image", *task_names]] for frame in subsets.values()], ignore_index=True)
    origin = pd.Series([f"{row} of subset {name!r}" for name, frame in subsets.items() for row in frame.index])
    first = ~union["image"].duplicated()
    whole = CachedImages(
        # The key must not depend on which subset lists an image first, so the images are sorted.
        union[first].set_index(origin[first].to_numpy()).sort_values("image"),
        task_names,
        transform,
        cache_dir=cache_dir,
        transform_key=transform_key,
        dtype=dtype,
        num_workers=num_workers,
        progress=progress,
    )
    return {name: whole.subset(frame) for name, frame in subsets.items()}


def blank_subsets(
    subsets: Mapping[str, pd.DataFrame], task_names: Sequence[str], shape: Sequence[int]
) -> dict[str, CachedImages]:
    """
    Datasets with the labels of the subsets, in which every image is the same blank one: to try a training's parts on.

    Args:
        subsets: name to frame, as `make_subsets` returns them.
        task_names: see `CachedImages`.
        shape: `(C, *spatial)` of an image.
    """
    blank = {}
    for name, frame in subsets.items():
        _check_columns(frame, task_names, f"subset {name!r}")
        blank[name] = CachedImages.__new__(CachedImages)
        blank[name]._pixels = np.zeros((1, *shape), dtype="float16")
        blank[name]._set_rows(frame, task_names, np.zeros(len(frame)))
    return blank


def select_subset(
    data: Mapping[str, CachedImages], name: str, *, as_stored: bool = False, gather: bool = True
) -> CachedImages:
    """One dataset of those that `cache_subsets` returns, by name; for bundle configs.

    Args:
        data: name to dataset.
        name: of the dataset.
        as_stored: serve the pixels in the type they are stored in: half the bytes of float32, or a quarter, to gather and
            to move to a GPU. What prepares the batch there must convert them, as
            :class:`~monai_mimmx.engines.PrepareAugmentedBatch` does where it is told a ``dtype``.
        gather: False, with `as_stored`: a batch holds :class:`~monai_mimmx.data.StoredImages`, for what reads pixels where
            they are stored, as :class:`~monai_mimmx.engines.PrepareAugmentedBatch` does on a processor. Workers gather all
            the same.

    Raises:
        ValueError: an unknown name; ``gather=False`` without `as_stored`.
    """
    if not gather and not as_stored:
        raise ValueError("gather=False needs as_stored=True: pixels that are left where they are keep their type")
    if name not in data:
        raise ValueError(f"expected the name of a subset, one of {', '.join(data)}, got {name!r}")
    if not as_stored:
        return data[name]
    view = copy.copy(data[name])
    view.as_stored, view.gather = True, gather
    return view
