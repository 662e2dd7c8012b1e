# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import gzip
import hashlib
import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from monai_mimmx.data import fashion_mnist
from monai_mimmx.data.fashion_mnist import read_idx, render, write_fashion_cohort


def idx(array):
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, dtype=">u4").tobytes() + array.tobytes()


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A folder like Fashion-MNIST's: 40 garments of each of 3 classes per part, its checksums made known."""
    rng = np.random.default_rng(0)
    folder, known = tmp_path / "source", {}
    folder.mkdir()
    for part in ("train", "t10k"):
        classes = np.repeat(np.array([2, 4, 7], np.uint8), 40)
        images = rng.integers(0, 255, (120, 28, 28), dtype=np.uint8)
        for name, array in ((f"{part}-images-idx3-ubyte", images), (f"{part}-labels-idx1-ubyte", classes)):
            known[name] = hashlib.sha256(idx(array)).hexdigest()
            (folder / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
    monkeypatch.setattr(fashion_mnist, "SHA256", known)
    return folder


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_read_idx(tmp_path, pack):
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    (tmp_path / "a").write_bytes(pack(idx(array)))
    np.testing.assert_array_equal(read_idx(tmp_path / "a"), array)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"\x89PNG....", "is not an IDX file"),
        (b"", "is not an IDX file"),
        (bytes([0, 0, 13, 1, 0, 0, 0, 1, 0]), r"unsigned bytes \(IDX type 8\), got IDX type 13"),
        (bytes([0, 0, 8, 3, 0, 0]), "ends within its header of 16 bytes"),
        (idx(np.zeros((2, 3), np.uint8))[:-1], r"expected 6 bytes for the shape \(2, 3\), got 5"),
        (idx(np.zeros((2, 3), np.uint8)) + b"x", r"expected 6 bytes for the shape \(2, 3\), got 7"),
        (gzip.compress(idx(np.arange(200, dtype=np.uint8)))[:-20], "not a complete gzip file"),
    ],
)
def test_read_idx_errors(tmp_path, content, match):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(ValueError, match=match):
        read_idx(tmp_path / "a")
    with pytest.raises(FileNotFoundError, match="no IDX file"):
        read_idx(tmp_path / "b")


def test_cohort(source, tmp_path):
    path = write_fashion_cohort(source, tmp_path / "cohort", progress=False)
    table = pd.read_csv(path)
    assert table.columns.tolist() == ["image", "subject", "garment", "bar", "scanner", "split"]
    assert table["split"].value_counts().to_dict() == {"test": 80 * 4, "train": 68, "val": 12 * 4}
    assert (table.groupby("subject")["split"].nunique() == 1).all()
    assert table["subject"].nunique() == 160
    for part in ("val", "test"):
        every = table[table["split"] == part]
        assert (every.groupby("subject")[["bar", "scanner"]].apply(lambda g: len(g.drop_duplicates())) == 4).all()
        assert (every.groupby(["garment", "bar", "scanner"]).size() == len(every) / 8).all()
    assert table["image"].is_unique
    for name in table["image"]:
        with Image.open(path.parent / name) as picture:
            assert (picture.size, picture.mode) == ((28, 28), "L")


def test_training_cells(source, tmp_path):
    table = pd.read_csv(write_fashion_cohort(source, tmp_path / "cohort", progress=False))
    train = table[table["split"] == "train"]
    y = (train["garment"] == "coat").to_numpy()
    agree = np.stack([(train["bar"] == "right").to_numpy() == y, (train["scanner"] == "B").to_numpy() == y], axis=1)
    for label in (False, True):
        cells = pd.Series(map(tuple, agree[y == label].tolist())).value_counts().to_dict()
        expected = {(True, True): 22.1, (True, False): 5.1, (False, True): 5.1, (False, False): 1.7}  # of 34
        assert cells == pytest.approx(expected, abs=1)


def test_reused_unless_settings_differ(source, tmp_path):
    path = write_fashion_cohort(source, tmp_path / "cohort", scale=0.5, progress=False)
    marker = json.loads((path.parent / "cohort.json").read_text())
    assert marker == {
        "cohort": "fashion_mnist",
        "version": fashion_mnist.COHORT_VERSION,
        "seed": 0,
        "scale": 0.5,
        "source": fashion_mnist.SHA256,
    }
    before = path.stat().st_mtime_ns
    # A complete cohort is reused without its source.
    assert write_fashion_cohort(tmp_path / "gone", tmp_path / "cohort", scale=0.5, progress=False) == path
    assert path.stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="other settings .*seed: expected 1, found 0"):
        write_fashion_cohort(source, tmp_path / "cohort", scale=0.5, seed=1, progress=False)
    assert len(pd.read_csv(path)) == 2 * 17 + 4 * 6 + 4 * 40


def test_repeats_with_the_seed(source, tmp_path):
    def content(name, seed):
        path = write_fashion_cohort(source, tmp_path / name, seed=seed, progress=False)
        return path.read_bytes(), [(path.parent / image).read_bytes() for image in pd.read_csv(path)["image"][:20]]

    assert content("a", 0) == content("b", 0)
    assert content("a", 0)[0] != content("c", 1)[0]


def test_foreign_folders_are_left_alone(source, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "thesis.txt").write_text("precious")
    with pytest.raises(ValueError, match=r"mine holds other files and no cohort\.json"):
        write_fashion_cohort(source, folder, progress=False)
    (folder / "cohort.json").write_text("[]")
    with pytest.raises(ValueError, match="not a cohort marker"):
        write_fashion_cohort(source, folder, progress=False)
    with pytest.raises(ValueError, match="it is a file"):
        write_fashion_cohort(source, folder / "thesis.txt", progress=False)
    assert (folder / "thesis.txt").read_text() == "precious"


def test_source_errors_leave_nothing(source, tmp_path):
    labels = source / "train-labels-idx1-ubyte.gz"
    labels.write_bytes(gzip.compress(idx(np.zeros(120, np.uint8))))
    with pytest.raises(ValueError, match=r"train-labels-idx1-ubyte\.gz is not Fashion-MNIST's .* sha256"):
        write_fashion_cohort(source, tmp_path / "cohort", progress=False)
    labels.unlink()
    with pytest.raises(FileNotFoundError, match=r"no train-labels-idx1-ubyte .*apt-get install dataset-fashion-mnist"):
        write_fashion_cohort(source, tmp_path / "cohort", progress=False)
    with pytest.raises(ValueError, match=r"scale to be above 0 and at most 1, got 0"):
        write_fashion_cohort(source, tmp_path / "cohort", scale=0, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_factors_can_be_read_off_the_pictures():
    rng = np.random.default_rng(0)
    garments = np.zeros((400, 28, 28), np.uint8)
    garments[:, 6:24, 8:20] = rng.integers(80, 255, (400, 1, 1), dtype=np.uint8)
    bar, scanner = rng.integers(0, 2, (2, 400))
    pictures = render(garments, bar, scanner, rng).astype(float)
    brighter = pictures[:, :, 22:].max(axis=1).mean(axis=1) > pictures[:, :, :6].max(axis=1).mean(axis=1)
    np.testing.assert_array_equal(brighter, bar == 1)
    noise = pictures[:, :4, 8:20].std(axis=(1, 2))  # above the garment, between the bars
    np.testing.assert_array_equal(noise > 8, scanner == 1)
    assert len(np.unique(noise.round(3))) > 300  # not one value per scanner


@pytest.mark.skipif(not fashion_mnist.DEFAULT_SOURCE.is_dir(), reason="Fashion-MNIST is not installed")
def test_installed_files_are_the_known_ones(tmp_path):
    table = pd.read_csv(write_fashion_cohort(None, tmp_path / "cohort", scale=0.02, progress=False))
    assert table["split"].value_counts().to_dict() == {"train": 204, "test": 160, "val": 144}
