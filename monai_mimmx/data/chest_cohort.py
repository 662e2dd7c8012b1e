# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""The embedded chest cohort: synthetic frontal radiographs in CheXpert's own layout, with labels that combine at will.

Every radiograph is a map of attenuation, drawn from closed-form shapes and passed through a tone curve:

- **pleural effusion** replaces air by fluid at the base of one or both lungs, with a meniscus, from a blunted angle to half a
  lung. Haze, thickened pleura, bands, patches, breasts and a high diaphragm lie in the same place, so that even balanced
  data cannot tell effusion without error;
- **sex** acts on breasts, muscle and the size and shape of the thorax;
- **age** acts on the aorta and its calcification, the density of bone, the inflation of the lungs and the size of the heart;
- **other findings**, devices and the projection (AP, PA) have signs of their own.

A patient keeps the anatomy from image to image; pose, exposure and findings are each image's own.
"""

from __future__ import annotations

import functools
import itertools
import math
import os
import pathlib
from collections.abc import Collection, Sequence

import numpy as np
import pandas as pd
from PIL import Image
from scipy.interpolate import BSpline

from monai_mimmx.data.chexpert import LABELS
from monai_mimmx.data.cohort_folder import check_options, publish_folder, write_items
from monai_mimmx.data.splits import largest_remainder

__all__ = ["COHORT_VERSION", "chest_image", "write_chest_cohort"]

COHORT_VERSION = "5"
"""Changes whenever the same (composition, scale, seed) would give other images or another table."""

SIZE = 160
PITCH = 2.05  # mm
SEXES = ("Female", "Male")
PROJECTIONS = ("PA", "AP")
EFFUSION = "Pleural Effusion"
DEVICES = "Support Devices"
FINDINGS = tuple(name for name in LABELS if name not in ("No Finding", EFFUSION))
"""What `chest_image` can draw besides effusion."""


# ---------------------------------------------------------------------------------------------------------------------
# One radiograph. Image frame: mm from the centre, x to the right of the picture (the patient's left), y downwards.
# Body frame: the same before the patient is turned, shifted and scaled. `ax` is the distance from the midline.
# ---------------------------------------------------------------------------------------------------------------------


@functools.cache
def _grid() -> tuple[np.ndarray, np.ndarray]:
    """Image coordinates in mm of the pixel centres, shapes (1, SIZE) and (SIZE, 1)."""
    at = ((np.arange(SIZE) - (SIZE - 1) / 2) * PITCH).astype(np.float32)
    return at[None, :], at[:, None]


@functools.cache
def _spline(knots: int) -> np.ndarray:
    at = np.linspace(3, knots, SIZE, endpoint=False)
    return BSpline.design_matrix(at, np.arange(knots + 4), 3).toarray().astype(np.float32)


def _smooth_noise(rng: np.random.Generator, count: int, spacing: float) -> np.ndarray:
    """`count` smooth random fields (count, SIZE, SIZE) of about unit variance, knots `spacing` mm apart."""
    k = round(SIZE * PITCH / spacing) + 3
    basis = _spline(k)
    return np.float32(2.1) * (basis @ rng.standard_normal((count, k, k), dtype=np.float32) @ basis.T)


def _ramp(x: np.ndarray) -> np.ndarray:
    return np.clip(x, 0, 1)


def _cover(distance: np.ndarray, width: float = PITCH) -> np.ndarray:
    """Share of a pixel inside a shape, from the signed distance in mm (negative inside)."""
    return np.clip(0.5 - distance / np.float32(width), 0, 1)


def _length(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.sqrt(u * u + v * v)


def _ellipse(x: np.ndarray, y: np.ndarray, centre: tuple, radii: tuple, turn: float = 0.0) -> np.ndarray:
    """Distance from the centre of a turned ellipse, in units of its radii."""
    c, s = math.cos(turn), math.sin(turn)
    u, v = x - centre[0], y - centre[1]
    return _length((c * u + s * v) / radii[0], (c * v - s * u) / radii[1])


class _Pose:
    """Where the body stands in the picture."""

    def __init__(self, turn: float, scale: float, dx: float, dy: float) -> None:
        self.c, self.s, self.dx, self.dy = math.cos(turn) * scale, math.sin(turn) * scale, dx, dy
        self.scale = scale

    def body(self) -> tuple[np.ndarray, np.ndarray]:
        gx, gy = _grid()
        u, v = gx - np.float32(self.dx), gy - np.float32(self.dy)
        k = self.scale**2
        return u * (self.c / k) + v * (self.s / k), v * (self.c / k) - u * (self.s / k)

    def image(self, x: float, y: float) -> tuple[float, float]:
        return self.c * x - self.s * y + self.dx, self.s * x + self.c * y + self.dy


def _stroke(
    image: np.ndarray, pose: _Pose, points: list[tuple[float, float, float]], value: float, edge: float = PITCH
) -> None:
    """Add `value` to a stroke through two or more (x, y, radius) of the body frame, looking at its surroundings only."""
    xs, ys = zip(*(pose.image(x, y) for x, y, _ in points))
    radii = [radius * pose.scale for *_, radius in points]
    margin, half = max(radii) + edge, (SIZE - 1) / 2
    left, right = max(int((min(xs) - margin) / PITCH + half), 0), int((max(xs) + margin) / PITCH + half) + 2
    top, bottom = max(int((min(ys) - margin) / PITCH + half), 0), int((max(ys) + margin) / PITCH + half) + 2
    if right <= left or bottom <= top or left >= SIZE or top >= SIZE:
        return
    gx, gy = _grid()
    gx, gy = gx[:, left:right], gy[top:bottom]
    distances = []
    for x0, y0, r0, x1, y1, r1 in zip(xs, ys, radii, xs[1:], ys[1:], radii[1:]):
        length = math.hypot(x1 - x0, y1 - y0) + 1e-3
        ux, uy = (x1 - x0) / length, (y1 - y0) / length
        x, y = gx - x0, gy - y0
        along = ux * x + uy * y
        beyond = np.minimum(np.maximum(along, 0), length)
        radius = beyond * ((r1 - r0) / length) + r0 if r0 != r1 else r0
        distances.append(_length(ux * y - uy * x, along - beyond) - radius)
    nearest = functools.reduce(np.minimum, distances)
    cover = np.float32(0.5) - nearest * np.float32(1 / edge)
    image[top:bottom, left:right] += np.float32(value) * np.minimum(np.maximum(cover, 0), 1)


def _path(image: np.ndarray, pose: _Pose, points: list[tuple[float, float]], radius: float, value: float) -> None:
    """A stroke of one radius."""
    _stroke(image, pose, [(x, y, radius) for x, y in points], value)


def chest_image(
    *,
    sex: str,
    age: float,
    effusion: float = 0.0,
    findings: Collection[str] = (),
    projection: str = "PA",
    patient: int | np.random.SeedSequence,
    shot: int | np.random.SeedSequence,
) -> np.ndarray:
    """Draw one frontal chest radiograph.

    The same `patient` is the same person and the same `shot` the same pose, exposure and noise: with another label only
    what that label acts on changes.

    Args:
        sex: "Female" or "Male".
        age: in years, 18 to 90.
        effusion: how much fluid, from 0 (none) over 0.05 (hardly to be seen) to 1 (half a lung); the shot says on which sides.
        findings: other signs to draw, of `FINDINGS`.
        projection: "PA" or "AP"; in AP the heart is larger and the diaphragm higher.
        patient: seed of the anatomy.
        shot: seed of everything else.

    Returns:
        uint8 image `(SIZE, SIZE)`, rows from top to bottom.

    Raises:
        ValueError: a label that is not known, or effusion outside 0 to 1.

    Example:
        >>> chest_image(sex="Female", age=70, effusion=0.4, patient=1, shot=2).shape
        (160, 160)
    """
    if sex not in SEXES or projection not in PROJECTIONS:
        raise ValueError(f"expected sex in {SEXES} and projection in {PROJECTIONS}, got {sex!r} and {projection!r}")
    if unknown := sorted(set(findings) - set(FINDINGS)):
        raise ValueError(f"expected findings among {', '.join(FINDINGS)}, got {', '.join(map(repr, unknown))}")
    if not 0 <= effusion <= 1:
        raise ValueError(f"expected effusion from 0 to 1, got {effusion}")
    anatomy, rng = np.random.default_rng(patient), np.random.default_rng(shot)
    return _expose(rng, *_draw(anatomy, rng, sex == "Male", age, effusion, frozenset(findings), projection == "AP"))


def _draw(
    anatomy: np.random.Generator,
    rng: np.random.Generator,
    is_male: bool,
    age: float,
    effusion: float,
    findings: frozenset[str],
    is_ap: bool,
) -> tuple[np.ndarray, float]:
    """Attenuation (SIZE, SIZE), and how thick the patient is. Draws the same random numbers whatever the labels."""
    a = anatomy.standard_normal(48).tolist()
    m = rng.standard_normal(64).tolist()
    u = rng.random(48).tolist()
    fine, rough = _smooth_noise(rng, 2, 9.0), _smooth_noise(rng, 2, 34.0)
    male, ap = float(is_male), float(is_ap)

    # Age: every sign has a spread of its own.
    old = 1 / (1 + math.exp(-(age - 55) / 7))
    knob = 9 + 8 * old + 1.8 * a[0]
    calcified = max(0.0, old - 0.15 + 0.35 * a[1])
    bone = math.exp(0.10 - 0.50 * old + 0.13 * a[2])
    inflation = 6 * old + 3.5 * a[3]
    tortuous = 9 * old + 3 * a[4]
    # Sex: the size and shape of the thorax, muscle and breasts.
    thick = math.exp(0.17 * a[5])  # habitus, which no label explains
    width = (119 + 8 * male + 5.5 * a[6]) * (1 + 0.02 * (thick - 1))
    height = 1 + 0.035 * male + 0.035 * a[7]
    breast = (1 - male) * math.exp(0.28 * a[8]) + male * max(0.0, 0.25 * (a[8] - 1))
    muscle = 0.3 + 0.7 * male + 0.2 * a[9]
    # Inspiration and projection.
    dome = 80 + inflation - 7 * ap + 6.0 * m[0] - 8 * (thick - 1)
    heart = math.exp(0.05 * old + 0.09 * ap + 0.065 * a[10]) * (1.22 if "Cardiomegaly" in findings else 1)

    pose = _Pose(0.035 * m[1], math.exp(0.04 * m[2]), 6.0 * m[3], 7.0 * m[4] + 6)
    yaw = 3.0 * m[5]
    x, y = pose.body()
    x, y = x + rough[0] * np.float32(1.2), y + rough[1] * np.float32(1.2)
    ax, left = np.abs(x), x > 0

    # Curves that depend on the height only, looked up in tables of quarter millimetres.
    h = np.arange(-280, 280, 0.25, dtype=np.float32)
    row = np.clip((y + 280) * 4, 0, len(h) - 1).astype(np.intp)
    apex, angle = -132.0 * height, 112 + 0.5 * inflation + 2 * a[11]
    t = _ramp((h - apex) / (angle - apex))
    cage_width = width * np.sqrt(1 - (1 - t) ** 2.5) * (1 - 0.03 * _ramp((h - 40) / 100)) + 0.5
    wide = 11.0 if "Enlarged Cardiomediastinum" in findings else 0.0
    upper = 1 / (1 + np.exp((h + 10) / 14))
    right_edge = 20 + 2 * a[12] + (wide + 2 * ap) * upper + 5 * _ramp(-(h + 85) / 60) - yaw
    left_edge = 20 + 2 * a[13] + (wide + 2 * ap) * upper + 5 * _ramp(-(h + 85) / 60) + yaw
    left_edge += knob * np.exp(-(((h + 62) / (11 + 0.3 * knob)) ** 2)) + 7 * np.exp(-(((h + 30) / 16) ** 2))
    cage = np.take(cage_width.astype(np.float32), row) - ax
    middle = ax - np.where(
        left, np.take(left_edge.astype(np.float32), row), np.take(right_edge.astype(np.float32), row)
    )

    # Diaphragm: a dome each side. The recess between it and the cage is sharp or blunt by nature.
    domes = np.where(left, np.float32(dome + 9 + 3 * a[15]), np.float32(dome + 3 * a[16]))
    if "Atelectasis" in findings:
        domes = domes - np.where(left == (u[0] < 0.5), np.float32(5), np.float32(0))
    flat = (angle - dome) / (0.52 * width) ** 2 * math.exp(0.15 * m[6])
    dia = domes + np.float32(flat) * (ax - np.float32(0.46 * width)) ** 2 - y
    tent = np.float32(2.0 + 4.0 * u[1] ** 3)
    recess = np.minimum(cage, dia) - tent * _ramp(1 - np.abs(cage - dia) / (4 * tent)) ** 2

    # Soft tissue: torso, shoulders, neck.
    outer = width + 16 + 13 * thick + 3 * muscle
    torso = ax - outer - np.float32(0.10) * np.abs(y - 10)
    slope = -(y + np.float32(116 - 3 * ap)) - np.float32(118000) / np.square(np.maximum(ax, 25))
    body = np.maximum(torso, slope)
    inside = _cover(body, 6.0)
    depth = np.sqrt(_ramp(-body / 110))
    image = inside * (0.32 + 0.26 * thick * depth)
    image += 0.16 * thick * _ramp(dia * np.float32(-1 / 25) + 0.6)  # abdomen
    image += 0.13 * _ramp(-(y + 96) / 45) * inside  # shoulders
    image += (0.08 * muscle) * _ramp(1 - _ellipse(ax, y, (92, -58), (46, 66), 0.5) ** 2)

    # Lungs: air, deeper towards the middle of each; none where heart, mediastinum or fluid is.
    air = np.sqrt(_ramp(cage * np.float32(1 / 42))) * _cover(-recess, 4.0) * _cover(-middle, 5.0)
    place = (17 + 5 * a[17] - 0.3 * inflation, 53 + 0.3 * (dome - 80))
    pump = _ellipse(x - 0.7 * yaw, y, place, (60 * heart, 45 * heart), 0.50)
    base = _ellipse(x - 0.9 * yaw, y, (3, 18), (38 * heart, 62), 0.08)
    apart = _ramp(0.5 + (pump - base) * 1.6)  # blended, as one silhouette
    pump = pump + (base - pump) * apart - np.float32(0.14) * apart * (1 - apart)
    muscle_of_heart = _ramp((1 - pump) * 7 + 0.5)
    air *= 1 - 0.86 * muscle_of_heart

    # Fluid: each side has its own level above the angle, lowest towards the middle.
    both = u[2] < 0.4
    amount_right = effusion * (1.0 if u[3] < 0.55 or both else 0.0)
    amount_left = effusion * (1.0 if u[3] >= 0.55 else 0.35 + 0.65 * u[4] if both else 0.0)
    if both and u[3] >= 0.55:
        amount_right *= 0.35 + 0.65 * u[4]
    across = _ramp((ax - 20) / np.float32(width - 20))
    for amount, here in ((amount_right, ~left), (amount_left, left)):
        if amount > 0:
            level = 8 + 122 * amount
            top = angle + 4 - level * (0.30 + 0.70 * across * across)
            soft = np.float32(7 + 0.16 * level * (1 + ap))
            fluid = _ramp((y - top) / soft + 0.5) * here
            air *= 1 - np.float32(0.90 - 0.12 * ap) * fluid
    # What else veils the bases: poor inspiration, scatter, thick patients.
    for k, here in ((7, left), (8, ~left)):
        veil = (
            0.12 * math.exp(0.75 * m[k] + 0.35 * ap + 0.5 * (thick - 1)) * (1 if "Atelectasis" not in findings else 1.3)
        )
        air *= 1 - min(veil, 0.75) * _ramp((y - np.float32(angle - 75 + 12 * m[k + 2])) / 75) * here
    image -= np.float32(0.46) * air
    clear = np.minimum(air * 1.6, 1)  # how much of a faint shadow is seen

    column = 0.85 * _cover(middle, 9.0) * _ramp((100 - y) / 40) * _ramp((y + 160) / 80)
    image += 0.13 * np.maximum(column, np.sqrt(_ramp((1 - pump) * 1.3))) * inside
    # Spine, trachea and main bronchi.
    spine = _cover(np.abs(x - 0.4 * yaw) - 16, 5.0)
    beat = np.cos(h * np.float32(2 * math.pi / 25) + np.float32(a[18]))
    image += bone * spine * (0.055 + np.float32(0.018) * np.take(beat, row)) * (inside - 0.45 * muscle_of_heart)
    tx = 0.6 * yaw + 2 * a[14] - 3 * old
    _stroke(image, pose, [(tx * 0.3, -185, 6.5), (tx, -95, 7), (tx + 1, -52, 7), (-24, -26, 4)], -0.10, 5)
    _stroke(image, pose, [(tx + 3, -52, 5), (28, -24, 3.5)], -0.05, 5)
    # Aorta: calcified arch, the edge of a tortuous descending part.
    if calcified > 0:
        turns = (-1.9, -1.3, -0.6, 0.1, 0.8, 1.2)
        arch = [(10 + 0.6 * knob + knob * math.cos(q), -62 + 1.1 * knob * math.sin(q), 0.8) for q in turns]
        _stroke(image, pose, arch[: 3 + int(2.5 * min(calcified, 1.2))], 0.15 * min(calcified, 1.2), 3.0)
    _path(
        image,
        pose,
        [(20 + knob, -52), (14 + tortuous, -10), (12 + 0.5 * tortuous, 50), (8, 90)],
        5 + 0.2 * tortuous,
        0.020 + 0.002 * tortuous,
    )

    # Vessels: trees from the hila, each patient's own.
    trees = anatomy.random((2, 9, 6)).tolist()
    for s, tree in zip((-1.0, 1.0), trees):
        hx, hy = s * (35 + 2 * a[19]) + 0.5 * yaw, -14 - 4 * s
        _stroke(image, pose, [(hx, hy - 7, 8), (hx + 3 * s, hy + 12, 6)], 0.085 + 0.012 * a[20], 14)
        for k, v in enumerate(tree):
            turn, reach = -1.25 + 2.75 * (k + v[0]) / len(tree), 34 + 26 * v[1]
            dx, dy = s * reach * math.cos(turn), 1.25 * reach * math.sin(turn)
            fork = (hx + dx, hy + 4 + dy, 1.3)
            ends = []
            for bend, more in ((0.5 + 0.4 * v[3], v[4]), (-0.5 - 0.4 * v[4], v[5])):
                far = 24 + 24 * more
                ends.append((fork[0] + s * far * math.cos(turn + bend), fork[1] + far * math.sin(turn + bend), 0.4))
            _stroke(image, pose, [(hx + 0.2 * dx, hy + 4 + 0.2 * dy, 2.8 + v[2]), fork, ends[0]], 0.045, 3.5)
            _stroke(image, pose, [fork, ends[1]], 0.040, 3.0)
    image += clear * (0.016 * fine[0] + 0.012 * rough[0])

    # Ribs: behind, running outwards and down; in front, running inwards and down.
    spacing = 21.5 * height
    bent = np.float32(0.0022) * (ax - 40) ** 2 * (1 + y * np.float32(1 / 500))
    phase = (y - bent) / np.float32(spacing) + np.float32(0.35 * a[21])
    if "Fracture" in findings:
        broken = np.float32(round(-2 + 4 * u[5]))
        phase = phase + np.float32(0.26) * (
            (np.abs(phase - broken) < 0.75) & (ax > 78 + 18 * u[6]) & (left == (u[7] < 0.5))
        )
    off = np.abs(phase - np.rint(phase)) * np.float32(spacing)
    ribs = 0.55 * _cover(off - 5.0, 3.0) + 0.45 * _cover(np.abs(off - 4.6) - 0.6, 2.6)
    reach = _cover(-(cage + 7), 5.0) * _ramp((ax - 14) / 12) * _cover(y - (dome + 30), 30)
    image += bone * (0.085 + 0.008 * a[22]) * ribs * reach * (1 - 0.6 * muscle_of_heart)
    front = (y - np.float32(24) + np.float32(0.52) * (ax - 60)) / np.float32(spacing * 1.18) + np.float32(0.35 * a[23])
    off = np.abs(front - np.rint(front)) * np.float32(spacing * 1.18)
    image += bone * 0.052 * _cover(off - 5.5, 4.0) * reach * _ramp((ax - 48) / 20) * _ramp((y + 85) / 30)

    # Clavicles, scapulae, humeral heads.
    for s in (-1.0, 1.0):
        high = 4 * a[24] + 5 * ap + 2 * m[12] * s
        _path(
            image,
            pose,
            [(s * 14 + yaw, -94 - high * 0.3), (s * 66, -110 - high), (s * 118, -124 - high), (s * 146, -122)],
            5.2,
            0.095 * bone,
        )
        lateral = 118 + 13 * (1 - ap) + 5 * a[25]
        _path(
            image,
            pose,
            [(s * (lateral + 14), -108), (s * (lateral - 8), -60), (s * (lateral + 2), -14)],
            3.2,
            0.05 * bone,
        )
        _stroke(image, pose, [(s * (width + 41), -108, 19), (s * (width + 58), -60, 13)], 0.13 * bone, 7)
    # Breasts hang over the bases of the lungs.
    if breast > 0:
        for s, k in ((-1.0, 26), (1.0, 27)):
            size = 38 * breast**0.5 + 14
            shape = _ellipse(
                x,
                y,
                (s * (66 + 5 * a[28]), 34 + 8 * a[29] + 10 * (thick - 1) + 2 * a[k]),
                (size * 1.02, size * 1.12),
                -0.25 * s,
            )
            image += (
                (0.125 * min(breast, 1.4) * (0.85 + 0.1 * m[13]))
                * np.sqrt(_ramp((1 - shape) * 1.7))
                * (0.45 + 0.55 * clear)
            )
    if u[8] < 0.6:  # air in the stomach
        _stroke(
            image,
            pose,
            [(36 + 10 * m[14], dome + 30 + 4 * m[15], 9), (66 + 8 * m[16], dome + 28, 11)],
            -0.13 * u[9],
            14,
        )

    _draw_findings(
        image, pose, findings, (u, m), x, y, cage=cage, clear=clear, texture=(fine[1], rough[1]), dome=dome, angle=angle
    )
    return image, thick


def _draw_findings(
    image: np.ndarray,
    pose: _Pose,
    findings: frozenset[str],
    numbers: tuple[list[float], list[float]],
    x: np.ndarray,
    y: np.ndarray,
    *,
    cage: np.ndarray,
    clear: np.ndarray,
    texture: tuple[np.ndarray, np.ndarray],
    dome: float,
    angle: float,
) -> None:
    """Add the signs that leave the anatomy as it is. `cage` is the distance in mm from the inner chest wall."""
    (u, m), (fine, rough) = numbers, texture
    ax, left = np.abs(x), x > 0
    if "Edema" in findings:
        r = _length((ax - 42) / 46, (y + 2) / 62)
        image += (0.15 + 0.04 * u[10]) * clear / (1 + (r * r) * (r * r)) * (1 + 0.25 * fine)
    for k, (name, value, size) in enumerate(
        (("Lung Opacity", 0.15, 27), ("Consolidation", 0.22, 24), ("Pneumonia", 0.19, 24))
    ):
        if name in findings:
            s = -1.0 if u[11 + k] < 0.5 else 1.0
            r = _ellipse(
                x, y, (s * (58 + 28 * u[14 + k]), -62 + 120 * u[17 + k]), (size * 0.9, size * (1 + 0.4 * m[20 + k] / 2))
            )
            image += value * clear * _ramp((1.15 - r) * 1.8 + 0.18 * fine + 0.25 * rough)
    if "Lung Lesion" in findings:
        s, radius = (-1.0 if u[20] < 0.5 else 1.0), 6 + 8 * u[21]
        spot = (s * (52 + 44 * u[22]), -70 + 115 * u[23])
        _stroke(image, pose, [(*spot, radius), (spot[0] + 2, spot[1] + 2, radius)], 0.16, 4)
    if "Atelectasis" in findings:
        s = 1.0 if u[0] < 0.5 else -1.0
        for k in range(1 + int(3 * u[24])):
            px, py = s * (48 + 8 * m[24 + k]), dome - 14 - 11 * k + 4 * m[27 + k]
            _stroke(image, pose, [(px, py, 1.8), (px + s * (34 + 8 * m[30 + k]), py + 5 * m[33 + k], 2.6)], 0.11, 4)
    if "Pneumothorax" in findings:
        here = left == (u[25] < 0.5)
        rim = (13 + 12 * u[26]) * _ramp((60 + 40 * u[27] - y) / 150) - cage
        out = _cover(-rim, 3.0) * _cover(-cage, 3.0) * here
        image -= 0.09 * out
        image += 0.085 * _cover(np.abs(rim) - 0.7, 2.6) * _cover(-cage - 1, 3.0) * _ramp((40 - y) / 40) * here
    if "Pleural Other" in findings:
        here = left == (u[28] < 0.5)
        band = (
            _cover(cage - (6 + 7 * u[29]) - 2 * rough, 6.0)
            * _cover(-cage, 5.0)
            * _ramp((y + 50) / 60)
            * _ramp((angle + 8 - y) / 10)
        )
        image += 0.15 * band * here
    if DEVICES in findings:
        _draw_devices(image, pose, u[30:], m[40:])


def _draw_devices(image: np.ndarray, pose: _Pose, u: list[float], m: list[float]) -> None:
    """One to five of: leads, central line, tracheal tube, gastric tube, pacemaker, sternal wires, chest drain."""
    drawn = [u[0] < 0.6, u[1] < 0.45, u[2] < 0.3, u[3] < 0.3, u[4] < 0.16, u[5] < 0.2, u[6] < 0.12]
    if not any(drawn):
        drawn[1] = True
    leads, line, tracheal, gastric, pacemaker, wires, drain = drawn
    if leads:
        for lead, px, py in ((-1, 84, -70), (1, 86, -62), (1, 92 + 6 * m[0], 70)):
            spot = (lead * px + 9 * m[1], py + 8 * m[2])
            _stroke(image, pose, [(*spot, 4.0), (spot[0] + 0.1, spot[1], 4.0)], 0.20, 2.6)
            _path(
                image, pose, [spot, (0.55 * spot[0] + 14 * m[3], 0.4 * spot[1] + 25), (10 + 20 * m[4], 175)], 0.8, 0.12
            )
    if line:
        s = -1.0 if u[7] < 0.7 else 1.0
        _path(
            image, pose, [(s * 108, -150), (s * 78, -104), (s * 22, -88), (-21, -62), (-20, -18 + 12 * m[5])], 1.1, 0.15
        )
    if tracheal:
        _path(image, pose, [(3, -178), (1, -100), (1 + m[6], -72)], 3.2, 0.07)
        _path(image, pose, [(5, -178), (3.5, -100), (3 + m[6], -72)], 0.7, 0.16)
    if gastric:
        _path(image, pose, [(4, -178), (3, -60), (8, 40), (14, 92), (50, 132)], 1.2, 0.14)
    if pacemaker:
        _stroke(image, pose, [(82, -82, 13), (94, -78, 12)], 0.38, 2.6)
        _path(image, pose, [(74, -90), (44, -98), (-14, -60), (-18, 30), (28, 76)], 1.2, 0.19)
    if wires:
        for k in range(5):
            _stroke(image, pose, [(-4 + m[7], -62 + 22 * k, 1.0), (4 + m[7], -60 + 22 * k + 2 * m[8], 1.0)], 0.22)
    if drain:
        s = -1.0 if u[8] < 0.5 else 1.0
        _path(image, pose, [(s * 160, 84), (s * 112, 52), (s * 76, -20), (s * 58, -84)], 1.9, 0.12)


def _expose(rng: np.random.Generator, image: np.ndarray, thick: float) -> np.ndarray:
    """Exposure, scatter, noise, collimation and the side marker. Returns uint8."""
    m, u = rng.standard_normal(8).tolist(), rng.random(16).tolist()
    gx, gy = _grid()
    image = image * (1 + np.float32(0.0003 * m[0]) * gx + np.float32(0.00025 * m[1]) * gy)
    level, gain = 0.02 + 0.02 * m[2], 1.12 * math.exp(0.08 * m[3] - 0.25 * (thick - 1))
    image = _ramp((image - np.float32(level)) * np.float32(gain))
    image = image * (np.float32(1.25) - np.float32(0.25) * image)  # the shoulder of the film
    noise = rng.standard_normal((SIZE, SIZE), dtype=np.float32)
    image += np.float32(0.013 * math.exp(0.30 * m[4] + 0.3 * (thick - 1))) * noise
    mark_x, mark_y = (-134 + 6 * m[5], -138 + 7 * m[6])
    still = _Pose(0.0, 1.0, mark_x, mark_y)
    for start, end in (((0, -6), (0, 6)), ((0, -6), (5, -4)), ((5, -4), (0, 0)), ((0, 0), (6, 6))):  # an R
        _stroke(image, still, [(*start, 0.9), (*end, 0.9)], 0.5)
    # Collimation: dark borders, rarely reaching into the lungs.
    for k, edge in enumerate((slice(None), slice(None)) * 2):
        if u[k] < 0.3:
            cut = int(2 + 9 * u[4 + k] ** 2)
            where = (
                (slice(0, cut), edge),
                (slice(SIZE - cut, SIZE), edge),
                (edge, slice(0, cut)),
                (edge, slice(SIZE - cut, SIZE)),
            )[k]
            image[where] *= np.float32(0.04)
    return np.clip(image * 250 + 3.5, 0, 255).astype(np.uint8)


def _lateral(shot: np.random.SeedSequence) -> np.ndarray:
    """A crude side view: no label acts on it."""
    rng = np.random.default_rng(shot)
    m = rng.standard_normal(8).tolist()
    pose = _Pose(0.04 * m[0], math.exp(0.05 * m[1]), 6 * m[2], 6 * m[3])
    x, y = pose.body()
    image = 0.62 * np.sqrt(_ramp(1.2 - _ellipse(x, y, (0, 30), (128, 210)) ** 2))
    lung = _ramp((1 - _ellipse(x, y, (4, -8), (92, 125), 0.12)) * 4)
    image -= 0.42 * lung * _cover(y - (72 + 0.003 * (x + 20) ** 2), 5.0)
    image += 0.20 * _ramp((1 - _ellipse(x, y, (-42, 42), (46, 44))) * 5)
    image += 0.09 * _cover(np.abs(x - 66 - 0.0012 * (y - 10) ** 2) - 15, 6.0) * (1 + 0.2 * np.cos(y / 4))
    return _expose(rng, image, 1.0)


# ---------------------------------------------------------------------------------------------------------------------
# The cohort.
# ---------------------------------------------------------------------------------------------------------------------

COMPOSITIONS = ("induced", "natural")
LABEL_COLUMNS = ("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *LABELS)
FOLDER_NAME = "CheXpert-v1.0-small"

# "induced": images for each value of y, by whether (sex, age group) agree with it. The parts 0.45, 0.15, 0.40 of the
# patients then hold a correlated (0.9) subset of 9,000 for training, and 2,000 correlated, inverted and balanced ones to test.
_CELLS = {(1, 1): 8640, (1, 0): 1000, (0, 1): 1000, (0, 0): 2200}
# "natural": what age group and co-occurring disease have in common with y; sex is independent of all.
_TOTAL = 28_000
_OLD = (0.62, 0.76)  # P(old | y)
_DISEASE = (0.42, 0.72)  # P(co-occurring disease | y)
_AGES = ((18, 49), (61, 90), (50, 60))  # young, old, between, inclusive
_BETWEEN, _UNCERTAIN, _BLANK, _LATERAL = 0.04, 0.05, 0.05, 0.05  # shares of the images above that come on top
_ODD = 8  # patients of unknown sex, and as many of age 0
_IMAGES_PER_PATIENT = (0.76, 0.17, 0.07)  # one, two, three
_AMOUNT = (0.08, 1.0)  # of fluid where effusion is positive, log-uniform
_DOUBT = (0.02, 0.08)  # the same where it is uncertain or not mentioned, and there at all
_AP = 0.55
_DEVICES = (0.15, 0.5)  # in PA, in AP
_COMMON = {
    "Lung Opacity": 0.30, "Atelectasis": 0.24, "Edema": 0.20, "Cardiomegaly": 0.18, "Consolidation": 0.10, "Pneumothorax": 0.10,
    "Enlarged Cardiomediastinum": 0.08, "Pneumonia": 0.07, "Lung Lesion": 0.07, "Fracture": 0.06, "Pleural Other": 0.06,
}  # fmt: skip
"""How often each of the co-occurring diseases is there where there is any."""


def _base_rows(composition: str, scale: float, rng: np.random.Generator) -> np.ndarray:
    """(n, 4) rows of y, sex (1: male), age group (1: old), co-occurring disease, of exact composition."""
    rows: list[np.ndarray] = []
    if composition == "induced":
        for (sex, old), size in _CELLS.items():
            for y in (0, 1):
                count = max(2, round(scale * size))
                sick = rng.permutation(count) < round(_DISEASE[y] * count)
                cell = np.tile([y, y if sex else 1 - y, y if old else 1 - y, 0], (count, 1))
                cell[:, 3] = sick
                rows.append(cell)
    else:
        cells = list(itertools.product((0, 1), repeat=4))
        shares = np.array([0.25 * abs(1 - old - _OLD[y]) * abs(1 - sick - _DISEASE[y]) for y, _, old, sick in cells])
        counts = largest_remainder(round(scale * _TOTAL), shares)
        rows = [np.tile(cell, (max(2, count), 1)) for cell, count in zip(cells, counts.tolist())]
    return np.concatenate(rows)


def _group_patients(pool: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A patient for each row, numbered from 0: rows of one pool only share a patient; most have one image."""
    patient = np.empty(len(pool), np.int64)
    first = 0
    for value in np.unique(pool):
        rows = rng.permutation(np.flatnonzero(pool == value))
        sizes = np.ones(len(rows), np.int64) if value < 0 else rng.choice(3, len(rows), p=_IMAGES_PER_PATIENT) + 1
        own = np.repeat(np.arange(len(rows)), sizes)[: len(rows)]
        patient[rows] = first + own
        first += int(own[-1]) + 1
    return rng.permutation(first)[patient]


def _table(composition: str, scale: float, seed: int) -> pd.DataFrame:
    """train.csv as a frame in the order of patients, with what else a drawing needs: patient, amount of fluid, drawn sex."""
    rng = np.random.default_rng([seed, COMPOSITIONS.index(composition)])
    base = _base_rows(composition, scale, rng)

    def more(share: float) -> int:
        return max(2, round(share * len(base)))

    # What comes on top: between the age groups; uncertain, blank; of unknown sex, of unknown age.
    odd = max(2, round(_ODD * scale))
    extra = np.repeat([0, 1, 2, 3, 4], [more(_BETWEEN), more(_UNCERTAIN), more(_BLANK), odd, odd])
    y = np.concatenate([base[:, 0], rng.integers(0, 2, len(extra))])
    sex = np.concatenate([base[:, 1], rng.integers(0, 2, len(extra))])
    group = np.concatenate([base[:, 2], (rng.random(len(extra)) < np.take(_OLD, y[len(base) :])).astype(int)])
    sick = np.concatenate([base[:, 3], (rng.random(len(extra)) < np.take(_DISEASE, y[len(base) :])).astype(int)])
    kind = np.concatenate([np.full(len(base), -1), extra])
    group[kind == 0] = 2
    n = len(y)
    patient = _group_patients(np.where(kind < 3, 2 * group + sex, -kind), rng)

    # Order: by patient, and by chance within. One study holds one frontal image.
    order = np.lexsort((rng.random(n), patient))
    y, sex, group, sick, kind, patient = (values[order] for values in (y, sex, group, sick, kind, patient))
    study = np.arange(n) - np.searchsorted(patient, patient) + 1
    low, high = np.array(_AGES)[group].T
    age = np.minimum(rng.integers(low, high + 1)[np.searchsorted(patient, patient)] + (study - 1) // 2, high)
    is_ap = rng.random(n) < _AP
    is_there = {name: np.zeros(n, bool) for name in FINDINGS}
    chance = np.array(list(_COMMON.values()))
    found = rng.random((n, len(_COMMON))) < chance
    found[np.arange(n), rng.choice(len(chance), n, p=chance / chance.sum())] = True  # one at least
    for name, column in zip(_COMMON, (found & (sick == 1)[:, None]).T):
        is_there[name] = column
    is_there[DEVICES] = rng.random(n) < np.take(_DEVICES, is_ap.astype(int))

    amount = np.where(y == 1, np.exp(rng.uniform(math.log(_AMOUNT[0]), math.log(_AMOUNT[1]), n)), 0.0)
    doubt = np.exp(rng.uniform(math.log(_DOUBT[0]), math.log(_DOUBT[1]), n)) * (rng.random(n) < 0.6)
    amount = np.where(kind == 1, doubt, np.where(kind == 2, doubt * (rng.random(n) < 0.3), amount))

    labels = pd.DataFrame(np.nan, index=range(n), columns=list(LABELS))
    for name, there in is_there.items():
        said = rng.random(n)
        labels[name] = np.where(there, 1.0, np.where(said < 0.06, 0.0, np.where(said < 0.08, -1.0, np.nan)))
    labels[EFFUSION] = np.where(kind == 1, -1.0, np.where(kind == 2, np.nan, y.astype(float)))
    nothing = ~labels.isin([1.0, -1.0]).any(axis=1) & (kind != 2)
    labels["No Finding"] = np.where(nothing, 1.0, np.nan)

    ids = [f"patient{number:05d}/study{index}" for number, index in zip((patient + 1).tolist(), study.tolist())]
    frame = pd.DataFrame(
        {
            "Path": [f"{FOLDER_NAME}/train/{name}/view1_frontal.jpg" for name in ids],
            "Sex": np.where(kind == 3, "Unknown", np.take(SEXES, sex)),
            "Age": np.where(kind == 4, 0, age),
            "Frontal/Lateral": "Frontal",
            "AP/PA": np.where(is_ap, "AP", "PA"),
        }
    )
    hidden = pd.DataFrame({"patient": patient, "drawn_sex": np.take(SEXES, sex), "drawn_age": age, "amount": amount})
    frame = pd.concat([frame, labels, hidden], axis=1)
    side = frame.iloc[np.sort(rng.choice(n, max(2, round(_LATERAL * n)), replace=False))].copy()
    side["Path"] = side["Path"].str.replace("view1_frontal", "view2_lateral")
    side["Frontal/Lateral"], side["AP/PA"] = "Lateral", np.nan
    return pd.concat([frame, side]).sort_index(kind="stable").reset_index(drop=True)


_Row = tuple[int, str, str, int, float, tuple[str, ...], str | None, int]
"""Index, path, sex, age, amount of fluid, findings, projection (None: lateral), patient."""


def _rows(table: pd.DataFrame) -> list[_Row]:
    there = table[list(FINDINGS)].to_numpy() == 1.0
    findings = [tuple(name for name, is_there in zip(FINDINGS, row) if is_there) for row in there.tolist()]
    projections = [value if isinstance(value, str) else None for value in table["AP/PA"]]
    columns = (table[name].tolist() for name in ("Path", "drawn_sex", "drawn_age", "amount"))
    return list(zip(range(len(table)), *columns, findings, projections, table["patient"].tolist()))


def _write_images(folder: pathlib.Path, rows: Sequence[_Row], seed: int, composition: str) -> None:
    key = COMPOSITIONS.index(composition)
    for index, path, sex, age, amount, findings, projection, patient in rows:
        shot = np.random.SeedSequence(seed, spawn_key=(key, 1, index))
        if projection is None:
            image = _lateral(shot)
        else:
            anatomy = np.random.SeedSequence(seed, spawn_key=(key, 0, patient))
            image = chest_image(
                sex=sex, age=age, effusion=amount, findings=findings, projection=projection, patient=anatomy, shot=shot
            )
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(file, quality=90)


def write_chest_cohort(
    folder: str | os.PathLike,
    *,
    composition: str = "induced",
    scale: float = 1.0,
    seed: int = 0,
    num_workers: int | None = None,
    progress: bool = True,
) -> pathlib.Path:
    """Write the embedded chest cohort once and return its `train.csv`; a complete one is reused.

    Files and columns are those of the CheXpert download: `CheXpert-v1.0-small/train.csv`, whose `Path`s start from
    `folder`, and grayscale JPEGs. A label is 1 (positive), 0 (negative), -1 (uncertain) or blank (not mentioned; `No Finding`
    is then blank too, so that no rule for blanks brings such a row back as a negative). About a quarter of
    the patients have two or three images. With y = pleural effusion, over the frontal images with a definite y, a known
    sex and an age below 50 or above 60:

    - "induced" fills the cells of (y, sex, age group) so that subsets in which both agree with y, contradict it, or neither
      can be drawn; 25,680 such images;
    - "natural" has sex independent of all, and age group and co-occurring disease (a positive label other than effusion, `No
      Finding` and `Support Devices`) in the joint distribution with y of the published experiment, independent
      of each other given y; 28,000 such images.

    About a fifth as many rows come on top: ages from 50 to 60, uncertain and blank effusion, lateral views, a few of unknown
    sex or age. The files depend on (composition, scale, seed) only, not on the number of workers.
    `folder` is either whole or absent, see `publish_folder`.

    Args:
        folder: where to write; it must be absent, empty, or hold the very same cohort.
        composition: "induced" or "natural".
        scale: multiplies the number of images in each cell, above 0; a cell never has fewer than 2.
        seed: of the whole cohort, 0 or more.
        num_workers: processes, 1 or more; all available CPUs by default.
        progress: show a progress bar.

    Raises:
        ValueError: an option out of range, or `folder` holds something else.
        OSError: `folder` cannot be written, or the disk is too small.

    Example::

        >>> table = write_chest_cohort("/tmp/chest", scale=0.01, progress=False)  # doctest: +SKIP
    """
    if composition not in COMPOSITIONS:
        raise ValueError(f"expected composition in {COMPOSITIONS}, got {composition!r}")
    check_options(scale, seed, num_workers)
    table = _table(composition, scale, seed)

    def write(new: pathlib.Path) -> None:
        write_items(
            functools.partial(_write_images, new, seed=seed, composition=composition),
            _rows(table),
            new,
            bytes_each=3 * 4096,  # a file and its two folders
            what="the chest cohort",
            unit="image",
            num_workers=num_workers,
            progress=progress,
        )
        table[list(LABEL_COLUMNS)].to_csv(new / FOLDER_NAME / "train.csv", index=False)

    marker = {
        "cohort": "chest",
        "version": COHORT_VERSION,
        "composition": composition,
        "seed": seed,
        "scale": float(scale),
        "images": len(table),
    }
    return publish_folder(folder, marker, write) / FOLDER_NAME / "train.csv"
