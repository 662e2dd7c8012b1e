# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""The embedded brain cohort: its table, its files, what each label does to a subject, and how it is written."""

from __future__ import annotations

import json
import multiprocessing
import pathlib
import sys

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from scipy.ndimage import binary_closing, binary_fill_holes

from monai_mimmx.data import brain_cohort
from monai_mimmx.data.brain_cohort import COHORT_VERSION, brain_volume, write_brain_cohort

SCALE = 0.004
SEEDS = range(12)


@pytest.fixture(scope="module")
def labels(tmp_path_factory) -> pathlib.Path:
    return write_brain_cohort(tmp_path_factory.mktemp("cohort") / "brain", scale=SCALE, num_workers=1, progress=False)


def _files(labels: pathlib.Path) -> dict[str, bytes]:
    folder = labels.parent
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def _slice(seed: int, *, age: float = 54.0, sex: str = "female", dataset: str = "UKB") -> np.ndarray:
    return brain_volume(seed=seed, age=age, sex=sex, dataset=dataset)[:, :, 1].astype(float)


def _cells(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of the age groups with y, whether z1 and z2 agree with it."""
    kept = table[(table["age"] < 51) | (table["age"] > 57)]
    y = kept["age"] > 57
    return kept.assign(y=y, z1=(kept["sex"] == "male") == y, z2=(kept["dataset"] == "UKB") == y)


# ---- the table -------------------------------------------------------------------------------------------------------


def test_cells_at_full_scale():
    table = brain_cohort._table(1.0, 0)
    expected = {"train": (1460, 400, 400, 400), "val": (608, 125, 125, 125), "test": (810, 250, 250, 810)}
    counts = _cells(table).groupby(["split", "y", "z1", "z2"]).size()
    for split, (both, sex, dataset, none) in expected.items():
        for y in (False, True):
            assert counts[split, y, True, True] == both
            assert counts[split, y, True, False] == sex
            assert counts[split, y, False, True] == dataset
            assert counts[split, y, False, False] == none
        part = table[table["split"] == split]
        between = part["age"].between(51, 57).mean()
        assert between == pytest.approx(0.03 / 1.03, abs=0.001)
    assert table["age"].between(40, 70).all() and (table["age"] == table["age"].round(1)).all()


def test_full_scale_supports_correlated_and_inverted_subsets():
    """P(z_i = y) = 0.9 for each factor, independent given y, with 1800 training subjects a class and 1000 test ones."""
    counts = _cells(brain_cohort._table(1.0, 0)).groupby(["split", "y", "z1", "z2"]).size()
    for split, size, agreements in (("train", 1800, (0.9,)), ("val", 750, (0.9,)), ("test", 1000, (0.9, 0.5, 0.1))):
        for p in agreements:
            for (_, _, z1, z2), available in counts[counts.index.get_level_values(0) == split].items():
                assert available >= round(size * (p if z1 else 1 - p) * (p if z2 else 1 - p))


def test_small_scale_fills_every_cell():
    counts = _cells(brain_cohort._table(1e-6, 3)).groupby(["split", "y", "z1", "z2"]).size()
    assert len(counts) == 24 and (counts == 2).all()


def test_order_and_ids_tell_nothing():
    table = brain_cohort._table(1.0, 0)
    order = np.arange(len(table))
    for column in ("age", "sex", "dataset", "split"):
        codes = pd.factorize(table[column], sort=True)[0]
        assert abs(np.corrcoef(order, codes)[0, 1]) < 4 / np.sqrt(len(table))
    assert table["subject"].tolist() == [f"sub-{i + 1:05d}" for i in order]


# ---- the files -------------------------------------------------------------------------------------------------------


def test_table_and_volumes_on_disk(labels):
    table = pd.read_csv(labels)
    assert list(table.columns) == ["image", "subject", "age", "sex", "dataset", "split"]
    assert set(table["sex"]) == {"female", "male"} and set(table["dataset"]) == {"NAKO", "UKB"}
    assert table["subject"].is_unique and all((labels.parent / image).is_file() for image in table["image"])
    marker = json.loads((labels.parent / "cohort.json").read_text())
    assert marker == {
        "cohort": "brain",
        "version": COHORT_VERSION,
        "seed": 0,
        "scale": SCALE,
        "counts": table["split"].value_counts()[["train", "val", "test"]].to_dict(),
    }


def test_geometry(labels):
    image = nib.Nifti1Image.from_filename(labels.parent / "images/sub-00001.nii")
    assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
    assert image.header["qform_code"] == 1 and image.header["sform_code"] == 1
    np.testing.assert_allclose(image.get_qform(), image.get_sform(), atol=1e-5)
    np.testing.assert_allclose(image.header.get_zooms(), brain_cohort.SPACING)
    assert image.header.get_xyzt_units()[0] == "mm" and image.get_data_dtype() == np.uint8
    np.testing.assert_allclose(image.affine @ [*((n - 1) / 2 for n in image.shape), 1], [0, 0, 0, 1], atol=1e-5)
    voxels = np.asanyarray(image.dataobj)
    i, j, _ = (np.average(axis, weights=voxels > 60) for axis in np.indices(voxels.shape))
    assert abs((i - 65.5) * 1.6) < 12 and abs((j - 65.5) * 1.6) < 12  # the head is at the origin


def test_volume_on_disk_is_the_drawn_one(labels):
    row = pd.read_csv(labels).iloc[4]
    own = np.random.SeedSequence(0, spawn_key=(4,))
    drawn = brain_volume(age=row["age"], sex=row["sex"], dataset=row["dataset"], seed=own)
    np.testing.assert_array_equal(
        np.asanyarray(nib.Nifti1Image.from_filename(labels.parent / row["image"]).dataobj), drawn
    )


def test_header_and_size_carry_no_label(labels):
    files = [data for name, data in _files(labels).items() if name.endswith(".nii")]
    assert len({data[:352] for data in files}) == 1 and len({len(data) for data in files}) == 1
    assert len({data[352:] for data in files}) == len(files)


def test_same_bytes_for_any_number_of_workers(labels, tmp_path):
    two = write_brain_cohort(tmp_path / "brain", scale=SCALE, num_workers=2, progress=False)
    assert _files(two) == _files(labels)


def test_seed_changes_everything(labels, tmp_path):
    other = write_brain_cohort(tmp_path / "brain", scale=1e-6, seed=1, progress=False)
    assert (other.parent / "images/sub-00001.nii").read_bytes() != (labels.parent / "images/sub-00001.nii").read_bytes()
    assert not pd.read_csv(other).head(20).equals(pd.read_csv(labels).head(20))


# ---- what the labels do ----------------------------------------------------------------------------------------------


def _ventricle_area(image: np.ndarray) -> float:
    """Dark area in mm2 within 34 mm of the centre of the slice, deep to the sulci of the outer cortex."""
    i, j = np.indices(image.shape)
    near = np.hypot(i - 65.5, j - 65.5) * 1.6 < 34
    return float((near & (image < 0.55 * np.median(image[near]))).sum() * 1.6**2)


def _head(image: np.ndarray) -> np.ndarray:
    return binary_fill_holes(binary_closing(image > 40, iterations=4))


def test_older_means_larger_ventricles_and_more_dark_fluid():
    for seed in SEEDS:
        young, old = _slice(seed, age=42.0), _slice(seed, age=68.0)
        assert _ventricle_area(old) > 1.3 * _ventricle_area(young)
        assert old[_head(old)].mean() < young[_head(young)].mean()
        assert np.mean(_head(young) != _head(old)) < 0.002  # age leaves the skin where it was


def test_male_head_is_larger_and_longer():
    for seed in SEEDS:
        female, male = _head(_slice(seed, sex="female")), _head(_slice(seed, sex="male"))
        assert male.sum() == pytest.approx(1.065**2 * female.sum(), rel=0.02)
        assert np.ptp(np.nonzero(male)[1]) > np.ptp(np.nonzero(female)[1])


def test_dataset_changes_noise_and_contrast_but_not_the_outline():
    for seed in SEEDS:
        nako, ukb = _slice(seed, dataset="NAKO"), _slice(seed, dataset="UKB")
        corner = np.s_[:12, :12]
        assert nako[corner].std() > 1.4 * ukb[corner].std()
        assert np.mean(_head(nako) != _head(ukb)) < 0.03


def test_subjects_differ_more_than_age_explains():
    """Ventricles of the age groups overlap: the largest young ones exceed the smallest old ones, the medians do not."""
    young = [_ventricle_area(_slice(seed, age=46.0)) for seed in range(100, 140)]
    old = [_ventricle_area(_slice(seed, age=63.0)) for seed in range(200, 240)]
    assert max(young) > min(old) and np.median(old) > 1.3 * np.median(young)


def test_whole_head_is_in_view_and_not_clipped():
    for seed in range(60):
        image = _slice(seed, sex="male", dataset=("NAKO", "UKB")[seed % 2])
        edge = np.concatenate([image[:1].ravel(), image[-1:].ravel(), image[:, 0], image[:, -1]])
        assert edge.mean() < 25
        assert np.mean(image == 255) < 0.02


# ---- reuse and failure -----------------------------------------------------------------------------------------------


def test_complete_cohort_is_reused(labels, monkeypatch):
    monkeypatch.setattr(brain_cohort, "_write_subjects", lambda *_: pytest.fail("wrote a cohort that was there"))
    before = labels.stat().st_mtime_ns
    assert write_brain_cohort(labels.parent, scale=SCALE, progress=False) == labels
    assert labels.stat().st_mtime_ns == before


def test_other_cohort_is_refused_and_kept(labels):
    before = _files(labels)
    with pytest.raises(
        ValueError, match=r"brain holds a cohort made with other settings \(seed: expected 7, found 0\)"
    ):
        write_brain_cohort(labels.parent, scale=SCALE, seed=7, progress=False)
    with pytest.raises(ValueError, match=r"scale: expected 0\.5, found 0\.004"):
        write_brain_cohort(labels.parent, scale=0.5, progress=False)
    assert _files(labels) == before


def test_other_version_is_refused(labels, monkeypatch):
    monkeypatch.setattr(brain_cohort, "COHORT_VERSION", "another")
    with pytest.raises(ValueError, match=f"version: expected 'another', found '{COHORT_VERSION}'"):
        write_brain_cohort(labels.parent, scale=SCALE, progress=False)


def test_other_content_is_refused_and_kept(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match=r"holds other files and no cohort\.json"):
        write_brain_cohort(tmp_path, scale=SCALE, progress=False)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
    (tmp_path / "cohort.json").write_text("[1]")
    with pytest.raises(ValueError, match="is not a cohort marker"):
        write_brain_cohort(tmp_path, scale=SCALE, progress=False)


def test_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    def fails(*, age, sex, dataset, seed):
        if seed.spawn_key == (40,):
            raise RuntimeError("power cut")
        return np.zeros(brain_cohort.SHAPE, np.uint8)

    monkeypatch.setattr(brain_cohort, "brain_volume", fails)
    with pytest.raises(RuntimeError, match="power cut"):
        write_brain_cohort(tmp_path / "brain", scale=1e-6, num_workers=1, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_full_disk(tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with pytest.raises(OSError, match=r"cannot write the cohort to .* MB needed, 0 MB free\): name a writable folder"):
        write_brain_cohort(tmp_path / "brain", scale=SCALE, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_unwritable_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot write the cohort to .*: name a writable folder"):
        write_brain_cohort(tmp_path / "file" / "brain", scale=SCALE, progress=False)


def _write(folder: str, start) -> None:
    start.wait(30)
    write_brain_cohort(folder, scale=1e-6, num_workers=1, progress=False)


@pytest.mark.skipif(sys.platform != "linux", reason="forks, so that the processes start at the same moment")
def test_two_processes_at_once(tmp_path):
    context = multiprocessing.get_context("fork")
    start = context.Barrier(2)
    both = [context.Process(target=_write, args=(str(tmp_path / "brain"), start)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
    assert [process.exitcode for process in both] == [0, 0]
    assert [path.name for path in tmp_path.iterdir()] == ["brain"]
    assert len(pd.read_csv(tmp_path / "brain" / "labels.csv")) == 54


def test_second_writer_uses_what_the_first_wrote(tmp_path, monkeypatch):
    """The other process finishes while this one is writing."""
    write = brain_cohort._write_subjects

    def late(folder, rows, seed):
        if not (tmp_path / "brain").exists():
            with monkeypatch.context() as patch:
                patch.setattr(brain_cohort, "_write_subjects", write)
                write_brain_cohort(tmp_path / "brain", scale=1e-6, num_workers=1, progress=False)
        return write(folder, rows, seed)

    monkeypatch.setattr(brain_cohort, "_write_subjects", late)
    labels = write_brain_cohort(tmp_path / "brain", scale=1e-6, num_workers=1, progress=False)
    assert labels.is_file() and [path.name for path in tmp_path.iterdir()] == ["brain"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": 0.0}, "expected scale above 0, got 0.0"),
        ({"scale": float("nan")}, "expected scale above 0, got nan"),
        ({"seed": -1}, "expected seed as an integer of 0 or more, got -1"),
        ({"seed": 1.5}, "expected seed as an integer of 0 or more, got 1.5"),
        ({"num_workers": 0}, "expected num_workers of 1 or more, got 0"),
    ],
)
def test_options(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        write_brain_cohort(tmp_path / "brain", progress=False, **options)


def test_unknown_label():
    with pytest.raises(ValueError, match="expected sex in .*, got 'Male'"):
        brain_volume(age=45.0, sex="Male", dataset="UKB", seed=0)


def test_progress(tmp_path, capfd):
    write_brain_cohort(tmp_path / "quiet", scale=1e-6, num_workers=1, progress=False)
    assert capfd.readouterr().err == ""
    write_brain_cohort(tmp_path / "loud", scale=1e-6, num_workers=1)
    assert "54/54" in capfd.readouterr().err
