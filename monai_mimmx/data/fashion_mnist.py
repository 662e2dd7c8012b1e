# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""A small cohort of real pictures with two drawn-in spurious factors: pullovers against coats of Fashion-MNIST."""

from __future__ import annotations

import gzip
import hashlib
import itertools
import math
import os
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from tqdm import tqdm

from monai_mimmx.data.cohort_folder import publish_folder

COHORT_VERSION = 1
DEFAULT_SOURCE = Path("/usr/share/datasets/fashion-mnist")  # Debian's package dataset-fashion-mnist
SHA256 = {  # of the decompressed files: packages compress them anew
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
GARMENTS = {2: "pullover", 4: "coat"}  # class in Fashion-MNIST to name; class index of y: 0, 1
BARS = ("left", "right")
SCANNERS = ("A", "B")
VAL_SHARE = 0.15  # of the training garments
TRAIN_CELLS = {(True, True): 0.65, (True, False): 0.15, (False, True): 0.15, (False, False): 0.05}  # z agrees with y


def _read_content(path: Path) -> bytes:
    content = path.read_bytes()
    if content[:2] != b"\x1f\x8b":
        return content
    try:
        return gzip.decompress(content)
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path} is not a complete gzip file ({error}): fetch it again") from error


def _parse_idx(content: bytes, path: Path) -> np.ndarray:
    if len(content) < 4 or content[:2] != b"\0\0" or content[3] == 0:
        raise ValueError(f"{path} is not an IDX file: expected it to begin with 0 0 8, got {content[:4].hex(' ')!r}")
    if content[2] != 8:
        raise ValueError(f"{path}: expected unsigned bytes (IDX type 8), got IDX type {content[2]}")
    start = 4 + 4 * content[3]
    if len(content) < start:
        raise ValueError(f"{path}: the file ends within its header of {start} bytes: fetch it again")
    shape = tuple(int(size) for size in np.frombuffer(content[4:start], dtype=">u4"))
    if len(content) - start != math.prod(shape):
        raise ValueError(
            f"{path}: expected {math.prod(shape)} bytes for the shape {shape}, got {len(content) - start}: "
            "the file is cut off or damaged, fetch it again"
        )
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape)


def read_idx(path: str | os.PathLike[str]) -> np.ndarray:
    """Read an array of bytes in the IDX format of MNIST, plain or compressed with gzip.

    Args:
        path: the file.

    Returns:
        uint8 array, read-only.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not an IDX file of unsigned bytes, or one that is cut off.

    Example:
        >>> import tempfile
        >>> with tempfile.NamedTemporaryFile() as file:
        ...     _ = file.write(bytes([0, 0, 8, 1, 0, 0, 0, 3, 7, 8, 9])); file.flush()
        ...     read_idx(file.name).tolist()
        [7, 8, 9]
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no IDX file at {path}")
    return _parse_idx(_read_content(path), path)


def _read_source(source: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Garments `(n, 28, 28)` uint8 and their class of y `(n,)`, checked against the known content."""
    arrays = []
    for name in (f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte"):
        path = next((p for p in (source / name, source / f"{name}.gz") if p.is_file()), None)
        if path is None:
            raise FileNotFoundError(
                f"no {name} or {name}.gz in {source}: install it by `apt-get install dataset-fashion-mnist`, "
                "or pass the folder that holds its four files"
            )
        content = _read_content(path)
        array = _parse_idx(content, path)
        if (found := hashlib.sha256(content).hexdigest()) != SHA256[name]:
            raise ValueError(
                f"{path} is not Fashion-MNIST's {name}: expected the sha256 {SHA256[name][:16]}... of its decompressed "
                f"content, got {found[:16]}...: fetch it again, or pass another folder"
            )
        arrays.append(array)
    images, classes = arrays
    wanted = np.isin(classes, list(GARMENTS))
    return images[wanted], (classes[wanted] == list(GARMENTS)[1]).astype(np.int64)


def render(images: np.ndarray, bar: np.ndarray, scanner: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw both factors into garments.

    The bar is a vertical line of 2 pixels near the left (0) or right (1) border, at a random place, height and
    brightness. The scanner sets contrast and noise: A (0) is bright with little noise, B (1) dark with more, both
    varying from picture to picture.

    Args:
        images: `(n, 28, 28)` uint8.
        bar: `(n,)` 0 or 1.
        scanner: `(n,)` 0 or 1.
        rng: of the variation.

    Returns:
        `(n, 28, 28)` uint8.

    Example:
        >>> render(np.zeros((2, 28, 28), np.uint8), np.array([0, 1]), np.array([0, 0]), np.random.default_rng(0)).shape
        (2, 28, 28)
    """
    count, height, width = images.shape
    pixels = images / 255
    each = (count, 1, 1)
    bar, scanner = bar.reshape(each), scanner.reshape(each)
    inset = rng.integers(0, 3, each)
    left = np.where(bar == 0, inset, width - 2 - inset)
    length = rng.integers(10, 19, each)
    top = np.floor(rng.random(each) * (height - length + 1))
    rows, columns = np.arange(height)[None, :, None], np.arange(width)[None, None, :]
    in_bar = (columns >= left) & (columns < left + 2) & (rows >= top) & (rows < top + length)
    pixels = np.where(in_bar, rng.uniform(0.7, 1.0, each), pixels)
    gamma = np.where(scanner == 0, rng.uniform(0.65, 0.95, each), rng.uniform(1.2, 1.7, each))
    noise = np.where(scanner == 0, rng.uniform(0.005, 0.02, each), rng.uniform(0.05, 0.08, each))
    gain = np.where(scanner == 0, rng.uniform(0.72, 0.86, each), rng.uniform(0.55, 0.70, each))
    pixels = 0.12 + gain * pixels**gamma + noise * rng.standard_normal(pixels.shape)
    return (np.clip(pixels, 0, 1) * 255 + 0.5).astype(np.uint8)


def _shifted(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Each garment moved by up to 1 pixel along each axis; the background is black."""
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, images.shape[1:], axis=(1, 2))
    return windows[np.arange(len(images)), rng.integers(0, 3, len(images)), rng.integers(0, 3, len(images))]


def _training_factors(y: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Bar and scanner per training garment such that each class of y has the shares of `TRAIN_CELLS`."""
    agrees = np.empty((len(y), 2), dtype=bool)
    for label in (0, 1):
        rows = rng.permutation(np.flatnonzero(y == label))
        ends = np.round(np.cumsum(list(TRAIN_CELLS.values())) * len(rows)).astype(int)
        for cell, part in zip(TRAIN_CELLS, np.split(rows, ends[:-1]), strict=True):
            agrees[part] = cell
    factors = np.where(agrees, y[:, None], 1 - y[:, None])
    return factors[:, 0], factors[:, 1]


def write_fashion_cohort(
    source: str | os.PathLike[str] | None,
    folder: str | os.PathLike[str],
    *,
    scale: float = 1.0,
    seed: int = 0,
    progress: bool = True,
) -> Path:
    """Write the cohort: PNG pictures of pullovers and coats with a bar and a scanner effect, and their table.

    The primary task is `garment`; the spurious factors are `bar` ("left", "right") and `scanner` ("A", "B"). Each of
    the 12,000 training garments is one subject of the partition train (85 %, one picture each, all cells populated and
    agreement prevailing) or val (15 %); the 2,000 test garments are the partition test. Garments of val and test are
    rendered in all four combinations, so that correlated, inverted and balanced subsets of 2,000 can be drawn.

    Args:
        source: folder of Fashion-MNIST's four IDX files, plain or `.gz`; None: where Debian's package puts them.
        folder: where `images/` and `labels.csv` go; a complete cohort of the same settings is reused.
        scale: share of the garments that is used, in (0, 1].
        seed: of the choice of garments and of everything drawn.
        progress: show a progress bar.

    Returns:
        Path of `labels.csv`, with the columns image, subject, garment, bar, scanner, split.

    Raises:
        FileNotFoundError: a file of the source is missing.
        ValueError: a file of the source is damaged or not Fashion-MNIST's, `scale` is out of range, or `folder` holds
            something else.

    Example:
        `table = write_fashion_cohort(None, "cohorts/fashion")`
    """
    if not 0 < scale <= 1:
        raise ValueError(f"expected scale to be above 0 and at most 1, got {scale!r}")
    origin = DEFAULT_SOURCE if source is None else Path(source)

    def write(new: Path) -> None:
        rng = np.random.default_rng(seed)
        (new / "images").mkdir()
        tables, pictures = [], []
        for part in ("train", "t10k"):
            images, y = _read_source(origin, part)
            rows = np.concatenate(
                [
                    rng.permutation(np.flatnonzero(y == label))[: math.ceil(scale * (y == label).sum())]
                    for label in (0, 1)
                ]
            )
            images, y = _shifted(images[rows], rng), y[rows]
            subjects = np.array([f"{part}-{row:05d}" for row in rows])
            if part == "train":
                rank = np.concatenate([np.arange((y == label).sum()) / (y == label).sum() for label in (0, 1)])
                groups = {"train": np.flatnonzero(rank >= VAL_SHARE), "val": np.flatnonzero(rank < VAL_SHARE)}
            else:
                groups = {"test": np.arange(len(y))}
            for split, members in groups.items():
                if split == "train":
                    combinations = [_training_factors(y[members], rng)]
                else:
                    combinations = [
                        (np.full(len(members), bar), np.full(len(members), scanner))
                        for bar, scanner in itertools.product((0, 1), (0, 1))
                    ]
                for bar, scanner in combinations:
                    names = [
                        f"images/{split}-{subject}-{BARS[b]}-{SCANNERS[s]}.png"
                        for subject, b, s in zip(subjects[members], bar, scanner, strict=True)
                    ]
                    tables.append(
                        pd.DataFrame(
                            {
                                "image": names,
                                "subject": subjects[members],
                                "garment": np.array(list(GARMENTS.values()))[y[members]],
                                "bar": np.array(BARS)[bar],
                                "scanner": np.array(SCANNERS)[scanner],
                                "split": split,
                            }
                        )
                    )
                    pictures.append(render(images[members], bar, scanner, rng))
        table = pd.concat(tables, ignore_index=True)
        bar_of_files = tqdm(
            zip(table["image"], np.concatenate(pictures), strict=True),
            total=len(table),
            desc="writing pictures",
            unit="img",
            disable=not progress,
        )
        for name, picture in bar_of_files:
            Image.fromarray(picture).save(new / name, compress_level=1)
        table.to_csv(new / "labels.csv", index=False)

    marker = {"cohort": "fashion_mnist", "version": COHORT_VERSION, "seed": seed, "scale": scale, "source": SHA256}
    return publish_folder(folder, marker, write) / "labels.csv"
