# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""Whether image files are whole, from their headers and sizes: without decoding them."""

from __future__ import annotations

import contextlib
import gzip
import io
import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO

import nibabel
import numpy as np
from PIL import Image

__all__ = ["check_headers", "looks_whole"]

_PIECE = 64  # files between two looks at the clock
_TAIL = 4096


def _ends_with(file: BinaryIO, marker: bytes) -> bool:
    """Whether a file has the marker among its last bytes: some writers pad what stands after it."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _TAIL))
    return marker in file.read(_TAIL)


def _nifti_is_whole(path: str) -> bool:
    compressed = path.lower().endswith(".gz")
    with gzip.open(path) if compressed else open(path, "rb") as file:
        start = file.read(540)
    kind = nibabel.Nifti1Header if len(start) >= 348 and 348 in _sizes(start) else nibabel.Nifti2Header
    # Not nibabel.load, which takes ten times as long.
    header: Any = kind.from_fileobj(io.BytesIO(start), check=False)
    expected = int(header.get_data_offset()) + int(np.prod(header.get_data_shape())) * header.get_data_dtype().itemsize
    if not compressed:
        return os.path.getsize(path) >= expected
    with open(path, "rb") as file:
        file.seek(-4, os.SEEK_END)
        return int.from_bytes(file.read(4), "little") == expected % 2**32  # gzip ends with the size of its content


def _sizes(start: bytes) -> tuple[int, int]:
    """The size of the header that a NIfTI file begins with, in both byte orders."""
    return int.from_bytes(start[:4], "little"), int.from_bytes(start[:4], "big")


def _picture_is_whole(path: str) -> bool:
    with Image.open(path) as picture, open(path, "rb") as file:
        if picture.format == "PNG":
            return _ends_with(file, b"IEND")
        if picture.format == "JPEG":
            return _ends_with(file, b"\xff\xd9")
        picture.load()  # there is no mark at the end of the other formats
    return True


def _dicom_is_whole(path: str) -> bool:
    import pydicom

    with open(path, "rb") as file:
        header = pydicom.dcmread(file, stop_before_pixels=True)
        start = file.tell() + 8  # behind the tag and the length of the pixels
    values = header.get("Rows", 0) * header.get("Columns", 0) * header.get("SamplesPerPixel", 1)
    expected = values * int(header.get("NumberOfFrames", None) or 1) * header.get("BitsAllocated", 0) // 8
    if header.file_meta.TransferSyntaxUID.is_compressed:
        return expected > 0 and _dicom_is_read(path)
    return 0 < expected <= os.path.getsize(path) - start


def _dicom_is_read(path: str) -> bool:
    import pydicom

    with open(path, "rb") as file:
        return pydicom.dcmread(file).get("PixelData") is not None and _ends_with(file, b"\xfe\xff\xdd\xe0")


_KINDS: dict[str, Callable[[str], bool]] = {
    ".nii": _nifti_is_whole,
    ".nii.gz": _nifti_is_whole,
    ".dcm": _dicom_is_whole,
    **dict.fromkeys((".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"), _picture_is_whole),
}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    levels = {name: logging.getLogger(name).level for name in ("nibabel.global", "pydicom")}
    try:
        for name in levels:
            logging.getLogger(name).setLevel(logging.CRITICAL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def looks_whole(path: str | os.PathLike[str]) -> bool:
    """
    Whether an image's header can be read and its file is as long as the header says, or ends as its format does.

    NIfTI (plain or `.gz`), PNG, JPEG and DICOM are looked at so; other pictures are decoded. What is none of these is taken
    as whole. A file that does not look whole may still be readable: decode it to be sure.

    Args:
        path: of the file.

    Example:
        >>> import tempfile
        >>> with tempfile.NamedTemporaryFile(suffix=".png") as file:
        ...     Image.new("L", (20, 10)).save(file.name)
        ...     whole = looks_whole(file.name)
        ...     os.truncate(file.name, 40)
        ...     whole, looks_whole(file.name)
        (True, False)
    """
    name = os.fspath(path)
    kind = next((end for end in sorted(_KINDS, key=len, reverse=True) if name.lower().endswith(end)), None)
    if kind is None:
        return os.path.isfile(name) and os.path.getsize(name) > 0
    try:
        return _KINDS[kind](name)
    except Exception:  # of whatever kind: the reader's own words come when it is decoded
        return False


def check_headers(paths: Sequence[str], seconds: float) -> tuple[list[str], int]:
    """
    Look at as many images as fit in the time, in random order, so that it is a fair sample where time ends first.

    Args:
        paths: of the files.
        seconds: for all of them; the first few are looked at in any case.

    Returns:
        Those that do not look whole, in the order of `paths`, and how many were looked at.

    Example:
        >>> check_headers([], seconds=1.0)
        ([], 0)
    """
    order = np.random.default_rng(0).permutation(len(paths))
    end, doubtful, done = time.monotonic() + seconds, set(), 0
    with _quiet(), ThreadPoolExecutor(min(8, 2 * (os.cpu_count() or 1))) as pool:
        while done < len(paths) and (done == 0 or time.monotonic() < end):
            piece = order[done : done + _PIECE].tolist()
            doubtful |= {
                index for index, whole in zip(piece, pool.map(looks_whole, (paths[i] for i in piece))) if not whole
            }
            done += len(piece)
    return [paths[index] for index in sorted(doubtful)], done
