# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""The embedded brain cohort: synthetic axial T1 slabs whose age, sex and scanner are known and can be combined at will.

Every subject is a slab of three axial slices through the lateral ventricles, drawn from closed-form shapes:

- **age** widens ventricles, sulci and fissures and thins the cortex. Each subject has its own size of each of these,
  its own folding, asymmetry and position, so that even balanced data cannot tell the age groups apart without error;
- **sex** acts on the size and the shape of the head;
- **dataset** (the scanner) acts on grey/white contrast, shading, noise and sharpness, never on the file header.
"""

from __future__ import annotations

import functools
import math
import os
import pathlib

import nibabel as nib
import numpy as np
import pandas as pd
from scipy.interpolate import BSpline
from scipy.ndimage import gaussian_filter1d

from monai_mimmx.data.cohort_folder import check_options, publish_folder, write_items

__all__ = ["COHORT_VERSION", "brain_volume", "write_brain_cohort"]

COHORT_VERSION = "1"
"""Changes whenever the same (scale, seed) would give other volumes or another table."""

SHAPE = (132, 132, 3)
SPACING = (1.6, 1.6, 6.0)  # mm
DATASETS = ("NAKO", "UKB")
SEXES = ("female", "male")

# Subjects of each split for each value of y, by whether (sex, dataset) agree with y: (both, sex only, dataset only, none).
_CELLS = {"train": (1460, 400, 400, 400), "val": (608, 125, 125, 125), "test": (810, 250, 250, 810)}
_AGREES = ((True, True), (True, False), (False, True), (False, False))
_BETWEEN = 0.03  # share of subjects whose age lies between the groups, which the task's rule must exclude
_AGES = {0: (400, 509), 1: (571, 700), None: (510, 570)}  # inclusive, in tenths of a year


# ---------------------------------------------------------------------------------------------------------------------
# One subject. Arrays are (slice, row, column) = (z, y, x), the memory order of a NIfTI file.
# ---------------------------------------------------------------------------------------------------------------------


@functools.cache
def _grid() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """World coordinates in mm of the voxel centres, shapes (1, X), (Y, 1), (Z,)."""
    x, y, z = (((np.arange(n) - (n - 1) / 2) * s).astype(np.float32) for n, s in zip(SHAPE, SPACING, strict=True))
    return x[None, :], y[:, None], z


@functools.cache
def _spline(size: int, knots: int) -> np.ndarray:
    """Cubic B-spline basis (size, knots): maps knot values to a smooth curve on `size` voxels."""
    at = np.linspace(3, knots, size, endpoint=False)
    return BSpline.design_matrix(at, np.arange(knots + 4), 3).toarray().astype(np.float32)


def _smooth_noise(rng: np.random.Generator, count: int, spacing: float) -> np.ndarray:
    """`count` smooth random fields (count, Z, Y, X) of about unit variance, knots `spacing` mm apart, alike in neighbouring slices."""
    nx, ny, nz = SHAPE
    kx, ky = (max(5, round(n * SPACING[0] / spacing) + 3) for n in (nx, ny))
    knots = rng.standard_normal((count, 1 + nz, ky, kx), dtype=np.float32)
    slices = np.float32(1.8) * knots[:, :1] + np.float32(1.1) * knots[:, 1:]
    return _spline(ny, ky) @ slices @ _spline(nx, kx).T


def _cover(distance: np.ndarray, width: float = SPACING[0]) -> np.ndarray:
    """Share of a voxel inside a shape, from the signed distance in mm (negative inside): a partial-volume edge."""
    return np.clip(0.5 - distance / np.float32(width), 0, 1)


def _length(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Length of (u, v); seven times as fast as np.hypot, which guards against overflow."""
    return np.sqrt(u * u + v * v)


def _capsule(x: np.ndarray, y: np.ndarray, start: tuple, end: tuple) -> np.ndarray:
    """Signed distance to a tapered stroke from (x, y, radius) to (x, y, radius)."""
    (x0, y0, r0), (x1, y1, r1) = start, end
    dx, dy = x1 - x0, y1 - y0
    along = np.clip(((x - x0) * dx + (y - y0) * dy) / (dx * dx + dy * dy), 0, 1)
    return _length(x - x0 - along * dx, y - y0 - along * dy) - (r0 + along * (r1 - r0))


def _ellipse(x: np.ndarray, y: np.ndarray, centre: tuple, radii: tuple, turn: float = 0.0) -> np.ndarray:
    """About the signed distance to a turned ellipse."""
    c, s = math.cos(turn), math.sin(turn)
    u, v = x - centre[0], y - centre[1]
    return (_length((c * u + s * v) / radii[0], (c * v - s * u) / radii[1]) - 1) * min(radii)


def brain_volume(*, age: float, sex: str, dataset: str, seed: int | np.random.SeedSequence) -> np.ndarray:
    """Draw one subject.

    The same seed is the same person: with another age, sex or dataset only what that label acts on changes.

    Args:
        age: in years, 40 to 70.
        sex: "female" or "male".
        dataset: "NAKO" or "UKB".
        seed: the subject's own seed.

    Returns:
        uint8 volume `SHAPE`, axes right, anterior, superior, `SPACING` mm.

    Example::

        >>> brain_volume(age=45.0, sex="female", dataset="UKB", seed=1).shape
        (132, 132, 3)
    """
    if sex not in SEXES or dataset not in DATASETS:
        raise ValueError(f"expected sex in {SEXES} and dataset in {DATASETS}, got {sex!r} and {dataset!r}")
    rng = np.random.default_rng(seed)
    image = _draw(rng, decades=(age - 54) / 10, male=float(sex == "male"), ukb=float(dataset == "UKB"))
    return _scan(rng, image, ukb=dataset == "UKB").transpose(2, 1, 0)


def _draw(rng: np.random.Generator, *, decades: float, male: float, ukb: float) -> np.ndarray:
    """Noise-free head, float32 (Z, Y, X), white matter about 1. Draws the same random numbers whatever the labels."""
    n = rng.standard_normal(40).tolist()
    count = 36 + int(rng.integers(0, 7))
    teeth = rng.uniform(0, 16, count).astype(np.float32)
    teeth[rng.integers(0, 2) :: 3] += 11
    walls = rng.uniform(-6, 15, 64).astype(np.float32)
    warps = _smooth_noise(rng, 2, 24.0)
    fines = _smooth_noise(rng, 2, 11.0)

    # Age: each sign has a spread of its own that no label explains.
    ventricle = math.exp(0.38 * decades + 0.25 * n[0])
    sulcus = math.exp(0.40 * decades + 0.25 * n[1])
    fissure = math.exp(0.34 * decades + 0.30 * n[2])
    gap = math.exp(0.36 * decades + 0.32 * n[3])
    third = math.exp(0.34 * decades + 0.32 * n[5])
    cortex = 3.3 * math.exp(-0.08 * decades + 0.06 * n[4])

    # Sex: size and elongation of the head. Position and rotation are the subject's own.
    size = 0.95 * (1 + 0.065 * male) * math.exp(0.016 * n[6])
    long = math.exp(0.020 * (2 * male - 1) + 0.016 * n[7])
    turn, tilt, pitch = 0.06 * n[8], 0.05 * n[9], 0.05 * n[10]
    c, s = math.cos(turn), math.sin(turn)

    # Scanner: contrast. Fluid is brighter where the images are sharper, or else one scanner's brains would look older.
    grey = 0.695 - 0.08 * ukb + 0.012 * n[27]
    csf = 0.155 + 0.12 * ukb + 0.02 * n[28]
    deep = grey + 0.07

    gx, gy, gz = _grid()
    cx, cy = gx - np.float32(2.0 * n[11]), gy - np.float32(2.5 * n[12])
    flat_x, flat_y = (c * cx + s * cy) * (long / size), (c * cy - s * cx) / (size * long)
    image = np.empty((SHAPE[2], SHAPE[1], SHAPE[0]), np.float32)
    for k, height in enumerate(gz):  # slice by slice: arrays this small stay in the cache and are quick to allocate
        warp, fine = warps[:, k], fines[:, k]
        x, y = flat_x, flat_y
        z = height + 2.0 * n[13] + tilt * cx + pitch * cy

        # Depth under the skin in mm of an average head, along the radius.
        r = _length(x, y) + np.float32(1e-3)
        ux, uy = x / r, y / r
        c2, s2 = ux * ux - uy * uy, 2 * ux * uy
        lumps = 1 + 0.008 * n[14] * s2 + c2 * (0.010 * n[15] * ux + 0.010 * n[16] * uy)
        lumps += 0.006 * (n[17] - 1) * (c2 * c2 - s2 * s2)
        rho = _length(x * (1 + 0.0010 * y) / 77, y / 93) / (lumps * (1 - 0.00002 * (z + 6) ** 2))
        depth = (1 / rho - 1) * r
        scalp = 4.4 + 0.5 * n[18] + 1.4 * uy * uy + 0.5 * warp[0]
        skull = 5.6 + 0.5 * n[19] + 1.8 * uy * uy + 0.6 * warp[1]
        inner = depth - scalp - skull  # under the inner table of the skull
        brain = inner - 1.0 - gap * (1 + 0.3 * fine[0])  # under the pia

        mid = x + 1.2 * warp[1] * np.clip(np.abs(y) / 40, 0, 1) + 0.03 * n[21] * y
        side = np.sign(mid)
        ax = np.abs(mid)

        # Sylvian fissure and insula.
        wx, wy = ax + 1.5 * warp[0], y + 1.5 * warp[1] + 2 * n[25] * side
        sylvian = np.minimum(
            _capsule(wx, wy, (64, -8, 1.5 * fissure), (43, 2, 0.9 * fissure)),
            _capsule(wx, wy, (40, 19, 0.5 * fissure), (42, -13, 0.6 * fissure)),
        )

        # Sulci: a comb around the head, bent by smooth noise, each tooth with a depth of its own.
        bx, by = x + 6.0 * warp[0] + 3.0 * fine[0], y + 6.0 * warp[1] + 3.0 * fine[1]
        phase = np.arctan2(by, bx) * np.float32(count / (2 * math.pi)) + np.float32(0.5 * n[20])
        tooth = np.rint(phase)
        across = (phase - tooth) * (r * np.float32(2 * math.pi / count))
        length = np.take(teeth, tooth.astype(np.intp), mode="wrap") * np.clip(sylvian / 12, 0.2, 1)
        surface = np.minimum(brain, _length(across, np.maximum(brain - length, 0)) - 0.6 * sulcus)

        # Between the hemispheres, in front of and behind the callosum, with sulci of the medial wall.
        beyond = np.where(y > 0, 39 + n[22] - y, y + 43 + n[22])
        between = _length(ax, np.maximum(beyond, 0)) - 0.7 * fissure
        level = (y + 3 * fine[0] + 3 * warp[0] + 0.35 * ax) * np.float32(1 / 11.0) + (2.5 + 0.4 * n[23]) * side
        wall = np.rint(level)
        length = np.take(walls, wall.astype(np.intp) + 20, mode="wrap")
        medial = _length((level - wall) * 11, np.maximum(ax - length, 0)) - 0.6 * sulcus
        medial = np.maximum(medial, beyond + 5)
        surface = np.minimum(np.minimum(surface, sylvian), np.minimum(between, medial))

        # Deep grey nuclei; the ventricle pushes caudate and thalamus outwards.
        sx, sy = ax + 0.7 * fine[0], y + 0.7 * fine[1] + 1.5 * n[31] * side
        push = 1.5 * (ventricle - 1)
        caudate = _ellipse(sx, sy, (15.5 + 1.6 * push, 17), (5.0, 10.5), 0.30)
        putamen = _ellipse(sx, sy, (28, 4), (5.2, 16.5), -0.22)
        pallidum = _ellipse(sx, sy, (21.5, 1), (3.6, 8.5), -0.40)
        thalamus = _ellipse(sx, sy, (11.0 + push, -9), (8.5, 13.5), -0.35)

        # Ventricles, each side with a size of its own: frontal horn, body, atrium; the slit of the third one.
        own = ventricle * (1 + 0.10 * n[26] * side)
        spread = 0.6 * (ventricle - 1)
        horn = _capsule(sx, sy, (12 + spread, 31 + 2 * spread, 0.4), (5 + spread, 10, -1.0)) - 3.2 * own
        horn = np.maximum(horn, 1.5 - caudate)
        trunk = _capsule(sx, sy, (6 + spread, 12, 0.0), (17 + spread, -22, 0.0)) - 2.6 * own * np.clip(z / 5, -0.5, 1)
        atrium = _capsule(sx, sy, (17 + spread, -24, -0.6), (26 + 2 * spread, -40, 0.5)) - 3.4 * own
        tail = _capsule(sx, sy, (26 + 2 * spread, -40, 0.0), (23 + n[32], -54, -2.0)) - 2.4 * own
        lateral = np.maximum(np.minimum(np.minimum(horn, trunk), np.minimum(atrium, tail)), 0.9 - ax)  # septum
        slit = _length(ax, np.maximum(np.abs(y + 3) - 10, 0)) - 1.2 * third

        # Painted from the skin inwards.
        image[k] = np.float32(0.62) * _cover(-depth)
        for shape, value in (
            (np.maximum(1.6 - depth, depth - scalp + 0.4), 1.22 + 0.08 * n[29]),  # fat
            (scalp - depth, 0.12),  # outer table
            (np.abs(depth - scalp - skull / 2) - 1.0 - 0.3 * n[30], 0.46),  # marrow between the tables
            (-inner, csf),
            (-surface, grey),
            (cortex + 0.4 * fine[1] - surface, 1.0),
            (caudate, deep),
            (putamen, deep - 0.01),
            (pallidum, 0.5 * (deep + 1.0)),
            (thalamus, 0.6 * deep + 0.4),
            (np.minimum(lateral, slit), csf),
        ):
            image[k] += _cover(shape) * (np.float32(value) - image[k])
        image[k] *= 1 + 0.015 * fine[1]
    return image


def _scan(rng: np.random.Generator, image: np.ndarray, *, ukb: bool) -> np.ndarray:
    """What the scanner adds: sharpness, shading, Rician noise, gain. Returns uint8 (Z, Y, X)."""
    n = rng.standard_normal(8).tolist()
    gx, gy, _ = _grid()
    u, v = gx / 90, gy / 108
    if ukb:
        blur, noise = 0.40 + 0.05 * n[0], 0.022 * math.exp(0.15 * n[1])
        shading = 1 + (0.10 + 0.04 * n[2]) * v + 0.05 * n[3] * u - 0.02 * (u * u + v * v)
    else:
        blur, noise = 0.78 + 0.07 * n[0], 0.045 * math.exp(0.15 * n[1])
        shading = 0.92 + 0.05 * n[2] * v + 0.05 * n[3] * u + (0.28 + 0.05 * n[4]) * (u * u + v * v)
    image = gaussian_filter1d(gaussian_filter1d(image, blur, axis=1, truncate=3), blur, axis=2, truncate=3)
    image = image * shading.astype(np.float32)
    real = rng.standard_normal(image.shape, dtype=np.float32) * np.float32(noise)
    imaginary = real[:, ::-1, ::-1]  # as good as independent, at no cost
    image = _length(image + real, imaginary)
    return np.clip(image * (150 * math.exp(0.06 * n[5])) + 0.5, 0, 255).astype(np.uint8)


# ---------------------------------------------------------------------------------------------------------------------
# The cohort.
# ---------------------------------------------------------------------------------------------------------------------


def _table(scale: float, seed: int) -> pd.DataFrame:
    """labels.csv as a frame, in random order, so that neither the order nor a subject's id tells a label."""
    rng = np.random.default_rng(np.random.SeedSequence(seed))
    rows: list[tuple[float, str, str, str]] = []
    for split, cells in _CELLS.items():
        sizes = [max(2, round(scale * size)) for size in cells]
        for y in (0, 1):
            for size, agrees in zip(sizes, _AGREES, strict=True):
                sex, dataset = (y if agree else 1 - y for agree in agrees)
                ages = rng.integers(*_AGES[y], size=size, endpoint=True) / 10
                rows += [(age, SEXES[sex], DATASETS[dataset], split) for age in ages.tolist()]
        size = max(2, round(_BETWEEN * 2 * sum(sizes)))
        ages = rng.integers(*_AGES[None], size=size, endpoint=True) / 10
        for age, sex, dataset in zip(ages.tolist(), rng.integers(0, 2, size), rng.integers(0, 2, size), strict=True):
            rows.append((age, SEXES[sex], DATASETS[dataset], split))
    frame = pd.DataFrame(rows, columns=["age", "sex", "dataset", "split"])
    frame = frame.iloc[rng.permutation(len(frame))].reset_index(drop=True)
    subject = [f"sub-{i:05d}" for i in range(1, len(frame) + 1)]
    frame.insert(0, "image", [f"images/{name}.nii" for name in subject])
    frame.insert(1, "subject", subject)
    return frame


@functools.cache
def _header() -> bytes:
    """The bytes before the voxels, the same in every file: nothing in them can tell a label."""
    affine = np.diag([*SPACING, 1.0])
    affine[:3, 3] = [-(n - 1) / 2 * s for n, s in zip(SHAPE, SPACING, strict=True)]
    image = nib.Nifti1Image(np.zeros(SHAPE, np.uint8), affine)
    image.set_qform(affine, code="scanner")
    image.set_sform(affine, code="scanner")
    image.header.set_xyzt_units("mm", "sec")
    return image.to_bytes()[: -math.prod(SHAPE)]


def _write_subjects(folder: pathlib.Path, rows: list[tuple[int, str, float, str, str]], seed: int) -> None:
    for index, image, age, sex, dataset in rows:
        own = np.random.SeedSequence(seed, spawn_key=(index,))
        volume = brain_volume(age=age, sex=sex, dataset=dataset, seed=own)
        (folder / image).write_bytes(_header() + volume.tobytes(order="F"))


def write_brain_cohort(
    folder: str | os.PathLike,
    *,
    scale: float = 1.0,
    seed: int = 0,
    num_workers: int | None = None,
    progress: bool = True,
) -> pathlib.Path:
    """Write the embedded brain cohort once and return its `labels.csv`; a complete one is reused.

    `labels.csv` has the columns image (relative to itself), subject, age (years), sex (female, male), dataset (NAKO,
    UKB) and split (train, val, test); there is one volume for each subject. With y = age group (young < 51, old > 57),
    z1 = male and z2 = UKB, every cell of (y, z1, z2) is filled in each split, so that correlated, inverted and balanced
    subsets can be drawn; about 3 % of the subjects are between the age groups. At scale 1 there are about 11,900
    volumes, 620 MB.

    The files depend on (scale, seed) only, not on the number of workers. `folder` is either whole or absent, see
    `publish_folder`.

    Args:
        folder: where to write; it must be absent, empty, or hold the very same cohort.
        scale: multiplies the number of subjects in each cell, above 0; a cell never has fewer than 2.
        seed: of the whole cohort, 0 or more.
        num_workers: processes, 1 or more; all available CPUs by default.
        progress: show a progress bar.

    Raises:
        ValueError: an option out of range, or `folder` holds something else.
        OSError: `folder` cannot be written, or the disk is too small.

    Example::

        >>> labels = write_brain_cohort("/tmp/brain", scale=0.01, progress=False)  # doctest: +SKIP
    """
    check_options(scale, seed, num_workers)
    table = _table(scale, seed)
    counts = {split: int((table["split"] == split).sum()) for split in _CELLS}

    def write(new: pathlib.Path) -> None:
        (new / "images").mkdir()
        rows = list(zip(range(len(table)), table["image"], table["age"], table["sex"], table["dataset"], strict=True))
        write_items(
            functools.partial(_write_subjects, new, seed=seed),
            rows,
            new,
            bytes_each=math.prod(SHAPE) + 4096,
            what="the brain cohort",
            unit="volume",
            num_workers=num_workers,
            progress=progress,
        )
        table.to_csv(new / "labels.csv", index=False, float_format="%.1f")

    marker = {"cohort": "brain", "version": COHORT_VERSION, "seed": seed, "scale": float(scale), "counts": counts}
    return publish_folder(folder, marker, write) / "labels.csv"
