# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""Whether image files are whole and alike, from their headers and sizes: without decoding them."""

from __future__ import annotations

import contextlib
import gzip
import io
import logging
import os
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO

import nibabel
import numpy as np
from PIL import Image

__all__ = ["check_headers", "image_axes"]

_PIECE = 64  # files between two looks at the clock
_TAIL = 4096


def _ends_with(file: BinaryIO, marker: bytes) -> bool:
    """Whether a file has the marker among its last bytes: some writers pad what stands after it."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _TAIL))
    return marker in file.read(_TAIL)


def _axes_of_nifti(path: str) -> int | None:
    compressed = path.lower().endswith(".gz")
    with gzip.open(path) if compressed else open(path, "rb") as file:
        start = file.read(540)
    kind = nibabel.Nifti1Header if len(start) >= 348 and 348 in _sizes(start) else nibabel.Nifti2Header
    # Not nibabel.load, which takes ten times as long.
    header: Any = kind.from_fileobj(io.BytesIO(start), check=False)
    shape = header.get_data_shape()
    expected = int(header.get_data_offset()) + int(np.prod(shape)) * header.get_data_dtype().itemsize
    if compressed:
        with open(path, "rb") as file:
            file.seek(-4, os.SEEK_END)
            whole = int.from_bytes(file.read(4), "little") == expected % 2**32  # gzip ends with the size of its content
    else:
        whole = os.path.getsize(path) >= expected
    return sum(size > 1 for size in shape) if whole else None


def _sizes(start: bytes) -> tuple[int, int]:
    """The size of the header that a NIfTI file begins with, in both byte orders."""
    return int.from_bytes(start[:4], "little"), int.from_bytes(start[:4], "big")


def _axes_of_picture(path: str) -> int | None:
    marks = {"PNG": b"IEND", "JPEG": b"\xff\xd9"}
    with Image.open(path) as picture, open(path, "rb") as file:
        if picture.format in marks:
            return 2 if _ends_with(file, marks[picture.format]) else None
        picture.load()  # there is no mark at the end of the other formats
    return 2


def _axes_of_dicom(path: str) -> int | None:
    import pydicom

    with open(path, "rb") as file:
        header = pydicom.dcmread(file, stop_before_pixels=True)
        # Behind the tag and the length of the pixels, and their type, where it is told.
        start = file.tell() + (8 if header.file_meta.TransferSyntaxUID.is_implicit_VR else 12)
    values = header.get("Rows", 0) * header.get("Columns", 0) * header.get("SamplesPerPixel", 1)
    frames = int(header.get("NumberOfFrames", None) or 1)
    expected = values * frames * header.get("BitsAllocated", 0) // 8
    if header.file_meta.TransferSyntaxUID.is_compressed:
        whole = expected > 0 and _dicom_is_read(path)
    else:
        whole = 0 < expected <= os.path.getsize(path) - start
    return (3 if frames > 1 else 2) if whole else None


def _dicom_is_read(path: str) -> bool:
    import pydicom

    with open(path, "rb") as file:
        return pydicom.dcmread(file).get("PixelData") is not None and _ends_with(file, b"\xfe\xff\xdd\xe0")


_KINDS: dict[str, Callable[[str], int | None]] = {
    ".nii": _axes_of_nifti,
    ".nii.gz": _axes_of_nifti,
    ".dcm": _axes_of_dicom,
    **dict.fromkeys((".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"), _axes_of_picture),
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


def image_axes(path: str | os.PathLike[str]) -> int | None:
    """
    The axes longer than 1 that an image has by its header, where its file is as long as that says, or ends as its format does.

    NIfTI (plain or `.gz`), PNG, JPEG and DICOM are looked at so; other pictures are decoded. What is none of these is taken
    as whole. A file that does not look whole may still be readable: decode it to be sure.

    Args:
        path: of the file.

    Returns:
        None where the header cannot be read, or the file does not look whole; 0 where nothing is known.

    Example:
        >>> import tempfile
        >>> with tempfile.NamedTemporaryFile(suffix=".png") as file:
        ...     Image.new("L", (20, 10)).save(file.name)
        ...     axes = image_axes(file.name)
        ...     os.truncate(file.name, 40)
        ...     axes, image_axes(file.name)
        (2, None)
    """
    name = os.fspath(path)
    kind = next((end for end in sorted(_KINDS, key=len, reverse=True) if name.lower().endswith(end)), None)
    if kind is None:
        return 0 if os.path.isfile(name) and os.path.getsize(name) > 0 else None
    try:
        return _KINDS[kind](name)
    except Exception:  # of whatever kind: the reader's own words come when it is decoded
        return None


def check_headers(paths: Sequence[str], seconds: float) -> tuple[list[str], int]:
    """
    Look at as many images as fit in the time, in random order, so that it is a fair sample where time ends first.

    Args:
        paths: of the files.
        seconds: for all of them; the first few are looked at in any case.

    Returns:
        Those that do not look whole, or have more or fewer axes than most, in the order of `paths`, and how many were looked
        at.

    Example:
        >>> check_headers([], seconds=1.0)
        ([], 0)
    """
    order = np.random.default_rng(0).permutation(len(paths))
    axes: dict[int, int | None] = {}
    end = time.monotonic() + seconds
    with _quiet(), ThreadPoolExecutor(min(8, 2 * (os.cpu_count() or 1))) as pool:
        while len(axes) < len(paths) and (not axes or time.monotonic() < end):
            piece = order[len(axes) : len(axes) + _PIECE].tolist()
            axes.update(zip(piece, pool.map(image_axes, (paths[index] for index in piece)), strict=True))
    (usual, _), *_ = Counter(filter(None, axes.values())).most_common(1) or [(0, 0)]
    return [paths[index] for index, count in sorted(axes.items()) if count not in (usual, 0)], len(axes)
