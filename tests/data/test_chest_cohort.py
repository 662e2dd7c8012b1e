# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""The embedded chest cohort: its table, its files, what each label does to a picture, and how it is written."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from monai_mimmx.data import chest_cohort, make_subsets, parse_tasks, read_table
from monai_mimmx.data.chest_cohort import (
    COHORT_VERSION,
    DEVICES,
    EFFUSION,
    FINDINGS,
    chest_image,
    write_chest_cohort,
)
from monai_mimmx.data.chexpert import LABELS

SCALE = 0.004
SEEDS = range(20)
DISEASES = [name for name in LABELS if name not in ("No Finding", EFFUSION, DEVICES)]
TASKS = [
    {"name": "effusion", "column": EFFUSION, "negative": [0], "positive": [1]},
    {"name": "sex", "column": "Sex", "negative": ["Female"], "positive": ["Male"]},
    {"name": "age", "column": "Age", "negative": "1 - 49", "positive": "> 60"},
]


@pytest.fixture(scope="module")
def table_file(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("cohort") / "chest"
    return write_chest_cohort(folder, scale=SCALE, num_workers=1, progress=False)


@pytest.fixture(scope="module", params=["induced", "natural"])
def full(request) -> tuple[str, pd.DataFrame]:
    return request.param, chest_cohort._table(request.param, 1.0, 0)


def _files(folder: pathlib.Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def _definite(table: pd.DataFrame) -> pd.DataFrame:
    """Frontal images with a definite y, a known sex and an age of a group, with y, sex, age and CoD as 0 and 1."""
    kept = table[
        (table["Frontal/Lateral"] == "Frontal")
        & table[EFFUSION].isin([0.0, 1.0])
        & table["Sex"].isin(["Female", "Male"])
        & ((table["Age"] > 60) | ((table["Age"] > 0) & (table["Age"] < 50)))
    ]
    return pd.DataFrame(
        {
            "y": kept[EFFUSION].astype(int),
            "sex": (kept["Sex"] == "Male").astype(int),
            "age": (kept["Age"] > 60).astype(int),
            "cod": (kept[DISEASES] == 1.0).any(axis=1).astype(int),
        }
    )


def _picture(seed: int, **labels) -> np.ndarray:
    options = {"sex": "Female", "age": 35.0, "patient": seed, "shot": 1000 + seed, **labels}
    return chest_image(**options).astype(float)


# ---- the table -------------------------------------------------------------------------------------------------------


def test_induced_cells():
    definite = _definite(chest_cohort._table("induced", 1.0, 0))
    agree = definite.assign(sex=definite["sex"] == definite["y"], age=definite["age"] == definite["y"])
    counts = agree.groupby(["y", "sex", "age"]).size()
    for y in (0, 1):
        assert [counts[y, True, True], counts[y, True, False], counts[y, False, True]] == [8640, 1000, 1000]
        assert counts[y, False, False] == 2200
        assert definite.loc[definite["y"] == y, "cod"].mean() == pytest.approx((0.42, 0.72)[y], abs=0.001)


def test_natural_joint_is_the_published_one():
    """Rows No/Yes: age .19 .31 / .12 .38, CoD .29 .21 / .14 .36, independent given y; sex independent of all."""
    definite = _definite(chest_cohort._table("natural", 1.0, 0))
    assert len(definite) == 28_000
    assert (definite.groupby(["y", "age"]).size() / 28_000).round(3).tolist() == [0.19, 0.31, 0.12, 0.38]
    assert (definite.groupby(["y", "cod"]).size() / 28_000).round(3).tolist() == [0.29, 0.21, 0.14, 0.36]
    old, sick = (0.62, 0.76), (0.42, 0.72)
    for (y, sex, age, cod), count in definite.groupby(["y", "sex", "age", "cod"]).size().items():
        share = 0.25 * (old[y] if age else 1 - old[y]) * (sick[y] if cod else 1 - sick[y])
        assert abs(count - 28_000 * share) < 1, (y, sex, age, cod)


def test_the_rest_of_the_table(full):
    _, table = full
    assert set(table["Sex"]) == {"Female", "Male", "Unknown"} and 2 <= (table["Sex"] == "Unknown").sum() <= 12
    assert 2 <= (table["Age"] == 0).sum() <= 12 and table["Age"].max() <= 90
    assert table["Age"].between(50, 60).mean() == pytest.approx(0.035, abs=0.01)
    assert (table[EFFUSION] == -1).mean() == pytest.approx(0.043, abs=0.01)
    assert table[EFFUSION].isna().mean() == pytest.approx(0.043, abs=0.01)
    lateral = table["Frontal/Lateral"] == "Lateral"
    assert lateral.mean() == pytest.approx(0.05, abs=0.01)
    assert table.loc[lateral, "AP/PA"].isna().all() and table.loc[~lateral, "AP/PA"].isin(["AP", "PA"]).all()
    assert table["Path"].is_unique
    images = table[~lateral].groupby("patient").size()
    assert set(images) == {1, 2, 3} and (images > 1).mean() == pytest.approx(0.24, abs=0.03)


def test_no_finding_excludes_every_other(full):
    _, table = full
    none = table["No Finding"] == 1.0
    assert none.any() and not (table.loc[none, [n for n in LABELS if n != "No Finding"]].isin([1, -1])).any(axis=None)
    assert set(table["No Finding"].dropna()) == {1.0}
    assert table.loc[table[EFFUSION].isna(), "No Finding"].isna().all()
    for name in LABELS[1:]:
        assert set(table[name].dropna()) == {-1.0, 0.0, 1.0}


def test_patients(full):
    """Sex is a patient's own, age nearly so, and neither order nor number tells a label."""
    _, table = full
    by_patient = table.groupby(table["Path"].str.split("/").str[2])
    assert (by_patient["patient"].nunique() == 1).all() and (by_patient["drawn_sex"].nunique() == 1).all()
    assert (by_patient["Sex"].nunique() == 1).all()
    assert (by_patient["Age"].max() - by_patient["Age"].min() <= 1).all()
    assert by_patient[EFFUSION].nunique().max() > 1  # findings come and go
    definite = _definite(table)
    order = np.arange(len(definite))
    for column in definite:
        assert abs(np.corrcoef(order, definite[column])[0, 1]) < 5 / np.sqrt(len(definite))


@pytest.mark.parametrize("scale", [1e-6, 0.003])
def test_small_scale_fills_every_cell(scale):
    for composition, factors, cells in (
        ("induced", ["y", "sex", "age"], 8),
        ("natural", ["y", "sex", "age", "cod"], 16),
    ):
        counts = _definite(chest_cohort._table(composition, scale, 3)).groupby(factors).size()
        assert len(counts) == cells and counts.min() >= 2


def _frame(table: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    frame = _definite(table)[names]
    return frame.assign(image=table["Path"], subject=table["patient"]).reset_index(drop=True)


def _tasks(names: list[str]) -> list:
    return parse_tasks([{"name": name, "column": name, "negative": [0], "positive": [1]} for name in names])


SIZES = {"train": 3000, "select": 900, "probe": 600, "val": 2000, "inv": 2000, "bal": 2000}


@pytest.mark.parametrize("scale", [1.0, 0.05])
@pytest.mark.parametrize(
    ("composition", "names", "agreement", "fractions"),
    [
        ("induced", ["effusion", "sex", "age"], 0.9, (0.45, 0.15, 0.40)),
        ("natural", ["effusion", "sex", "age", "cod"], (0.9, "natural", "natural"), (0.40, 0.12, 0.48)),
    ],
)
def test_subsets_that_the_experiments_need(composition, names, agreement, fractions, scale):
    table = chest_cohort._table(composition, scale, 0)
    frame = _frame(table, ["y", *names[1:]]).rename(columns={"y": "effusion"})
    # What chance takes from a cell weighs more in a small cohort.
    sizes = {name: int((1.0 if scale == 1 else 0.3) * scale * size) for name, size in SIZES.items()}
    if composition == "natural":
        sizes["probe"] = 400 if scale == 1 else 2
    for seed in range(3):
        subsets = make_subsets(frame, _tasks(names), agreement=agreement, sizes=sizes, fractions=fractions, seed=seed)
        assert {name: len(rows) for name, rows in subsets.items()} == sizes
        assert (subsets["val"]["sex"] == subsets["val"]["effusion"]).mean() == pytest.approx(0.9, abs=0.02)


# ---- the files -------------------------------------------------------------------------------------------------------


def test_table_and_images_on_disk(table_file):
    folder = table_file.parents[1]
    assert table_file == folder / "CheXpert-v1.0-small" / "train.csv"
    table = pd.read_csv(table_file)
    assert table.columns.tolist() == ["Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *LABELS]
    pattern = r"CheXpert-v1\.0-small/train/patient\d{5}/study\d/view(1_frontal|2_lateral)\.jpg"
    assert table["Path"].str.fullmatch(pattern).all()
    assert (table["Path"].str.contains("lateral") == (table["Frontal/Lateral"] == "Lateral")).all()
    assert {name for name in _files(folder) if name.endswith(".jpg")} == set(table["Path"])
    for path in table["Path"]:
        with Image.open(folder / path) as image:
            image.load()
            assert (image.size, image.mode, image.format) == ((160, 160), "L", "JPEG")
    assert pd.api.types.is_integer_dtype(table["Age"])
    lines = table_file.read_text().splitlines()
    assert ",0.0," in lines[1] + lines[2] + lines[3] and ",-1.0," in "".join(lines)
    assert json.loads((folder / "cohort.json").read_text()) == {
        "cohort": "chest",
        "version": COHORT_VERSION,
        "composition": "induced",
        "seed": 0,
        "scale": SCALE,
        "images": len(table),
    }


def test_table_can_be_read(table_file):
    table = pd.read_csv(table_file)
    table["patient"] = table["Path"].str.split("/").str[2]
    copy = table_file.parents[2] / "copy.csv"
    table.to_csv(copy, index=False)
    frame = read_table(copy, TASKS, image_column="Path", subject_column="patient", image_root=table_file.parents[1])
    assert {"effusion is blank", "effusion='-1.0' matches no rule", "sex='Unknown' matches no rule"} <= set(
        frame.attrs["excluded"]
    )
    frontal = frame["image"].str.endswith("frontal.jpg")
    assert frontal.sum() == len(_definite(table))


def test_same_bytes_for_any_number_of_workers(table_file, tmp_path):
    write_chest_cohort(tmp_path / "chest", scale=SCALE, num_workers=2, progress=False)
    assert _files(tmp_path / "chest") == _files(table_file.parents[1])


def test_seed_and_composition_change_everything(table_file, tmp_path):
    before = set(_files(table_file.parents[1]).values())
    for name, options in (("seed", {"seed": 1}), ("composition", {"composition": "natural"})):
        write_chest_cohort(tmp_path / name, scale=1e-6, progress=False, **options)
        assert not before & set(_files(tmp_path / name).values())


# ---- what the labels do ----------------------------------------------------------------------------------------------


def test_effusion_whitens_the_base_of_the_lungs_only():
    for seed in SEEDS:
        clear, little, much = (_picture(seed, effusion=amount) for amount in (0.0, 0.15, 0.8))
        for fluid in (little, much):
            assert fluid.mean() > clear.mean() and (fluid - clear).min() > -3
        np.testing.assert_array_equal(little[:80], clear[:80])
        np.testing.assert_array_equal(much[:50], clear[:50])
        assert np.abs(much - clear).max() > 25 and (much - clear).sum() > 2 * (little - clear).sum()


def test_breasts_and_thorax_of_the_sexes():
    female = np.mean([_picture(seed, sex="Female") for seed in range(60)], axis=0)
    male = np.mean([_picture(seed, sex="Male") for seed in range(60)], axis=0)
    bases = np.s_[85:110, 35:60]
    assert female[bases].mean() > male[bases].mean() + 5
    flank = np.s_[100:120, 8:22]  # the cage of the wider thorax stands here
    assert np.abs(female[flank] - male[flank]).mean() > 1


def test_age_enlarges_the_aortic_knob_and_thins_bone():
    young = np.mean([_picture(seed, age=25) for seed in range(60)], axis=0)
    old = np.mean([_picture(seed, age=80) for seed in range(60)], axis=0)
    assert old[45:60, 92:102].mean() > young[45:60, 92:102].mean() + 5
    assert _contrast(old[40:100, 28:60]) < _contrast(young[40:100, 28:60])


def _contrast(image: np.ndarray) -> float:
    return float(np.abs(np.diff(image, axis=0)).mean())


@pytest.mark.parametrize("finding", FINDINGS)
def test_each_finding_is_drawn(finding):
    seen = 0
    for seed in SEEDS:
        change = np.abs(_picture(seed, findings=[finding]) - _picture(seed))
        seen += change.max() > 8 and np.mean(change > 3) < 0.35
    assert seen >= 0.8 * len(SEEDS)


def test_ap_has_the_larger_heart():
    pa, ap = (np.mean([_picture(seed, projection=p) for seed in range(40)], axis=0) for p in ("PA", "AP"))
    assert ap[90:110, 60:112].mean() > pa[90:110, 60:112].mean()


def test_patients_differ_and_images_use_the_range():
    images = np.stack([_picture(seed) for seed in SEEDS])
    assert np.abs(images - images.mean(axis=0)).mean() > 8
    for image in images:
        assert np.mean(image > 250) < 0.05 and np.percentile(image, 99) > 150 and np.percentile(image, 1) < 60
    again = _picture(3, patient=3, shot=77)
    assert np.abs(again - _picture(3)).mean() > 2  # another shot of the same patient


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"sex": "female"}, "expected sex in .*, got 'female'"),
        ({"projection": "LL"}, "projection in .*, got .* and 'LL'"),
        ({"findings": ["Cough"]}, "expected findings among .*, got 'Cough'"),
        ({"findings": ["No Finding"]}, "got 'No Finding'"),
        ({"effusion": 1.5}, "expected effusion from 0 to 1, got 1.5"),
    ],
)
def test_unknown_label(labels, message):
    with pytest.raises(ValueError, match=message):
        _picture(0, **labels)


# ---- reuse and failure -----------------------------------------------------------------------------------------------


def test_complete_cohort_is_reused_and_another_is_refused(table_file, monkeypatch):
    monkeypatch.setattr(chest_cohort, "_write_images", lambda *_, **__: pytest.fail("wrote a cohort that was there"))
    folder = table_file.parents[1]
    before = _files(folder)
    assert write_chest_cohort(folder, scale=SCALE, progress=False) == table_file
    with pytest.raises(ValueError, match=r"other settings \(composition: expected 'natural', found 'induced'"):
        write_chest_cohort(folder, composition="natural", scale=SCALE, progress=False)
    with pytest.raises(ValueError, match="seed: expected 7, found 0"):
        write_chest_cohort(folder, scale=SCALE, seed=7, progress=False)
    assert _files(folder) == before


def test_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    def fails(**_):
        raise RuntimeError("power cut")

    monkeypatch.setattr(chest_cohort, "chest_image", fails)
    with pytest.raises(RuntimeError, match="power cut"):
        write_chest_cohort(tmp_path / "chest", scale=1e-6, num_workers=1, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_full_disk(tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with pytest.raises(OSError, match=r"cannot write the cohort to .* MB needed, 0 MB free\): name a writable folder"):
        write_chest_cohort(tmp_path / "chest", scale=SCALE, progress=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"composition": "other"}, r"expected composition in \('induced', 'natural'\), got 'other'"),
        ({"scale": 0.0}, "expected scale above 0, got 0.0"),
        ({"seed": -1}, "expected seed as an integer of 0 or more, got -1"),
        ({"num_workers": 0}, "expected num_workers of 1 or more, got 0"),
    ],
)
def test_options(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        write_chest_cohort(tmp_path / "chest", progress=False, **options)


def test_progress(tmp_path, capfd):
    write_chest_cohort(tmp_path / "quiet", scale=1e-6, num_workers=1, progress=False)
    assert capfd.readouterr().err == ""
    write_chest_cohort(tmp_path / "loud", scale=1e-6, num_workers=1)
    assert "writing the chest cohort: 100%" in capfd.readouterr().err
