# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import hashlib

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from monai_mimmx.data import CheXpertColumns, make_subsets, parse_tasks, read_table, write_chest_cohort
from monai_mimmx.data.chest_cohort import FINDINGS, SIZE, chest_image
from monai_mimmx.data.chexpert import LABELS

HEADER = ["Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *LABELS]
TASKS = parse_tasks(
    [
        {"name": "effusion", "column": "Pleural Effusion", "negative": [0], "positive": [1]},
        {"name": "sex", "column": "Sex", "negative": ["Female"], "positive": ["Male"]},
        {"name": "age", "column": "Age", "negative": "< 50", "positive": "> 60"},
        {"name": "cod", "column": "CoD", "negative": [0], "positive": [1]},
    ]
)


@pytest.fixture(scope="module", params=["induced", "natural"])
def cohort(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param) / "chest"
    path = write_chest_cohort(folder, composition=request.param, scale=0.02, num_workers=2, progress=False)
    return request.param, path


def labelled(path, tasks=TASKS):
    options = {"image_column": "Path", "prepare": CheXpertColumns()}
    return read_table(path, tasks, **options)


def test_layout_is_that_of_the_download(cohort):
    _, path = cohort
    table = pd.read_csv(path)
    assert path.parent.name == "CheXpert-v1.0-small" and list(table.columns) == HEADER
    assert table["Path"].is_unique
    assert (
        table["Path"]
        .str.fullmatch(r"CheXpert-v1\.0-small/train/patient\d{5}/study\d/view\d_(frontal|lateral)\.jpg")
        .all()
    )
    for name in table["Path"].sample(20, random_state=0):
        with Image.open(path.parent.parent / name) as picture:
            assert picture.mode == "L" and picture.size == (SIZE, SIZE)
            assert np.asarray(picture).std() > 20
    assert all((path.parent.parent / name).is_file() for name in table["Path"])
    for label in LABELS:
        assert set(table[label].dropna()) <= {1.0, 0.0, -1.0}
    assert set(table["Frontal/Lateral"]) == {"Frontal", "Lateral"} and {"AP", "PA"} <= set(table["AP/PA"])
    assert (table["Sex"] == "Unknown").sum() >= 1 and (table["Age"] == 0).sum() >= 1
    assert (table["Pleural Effusion"] == -1).any() and table["Pleural Effusion"].isna().any()


def test_labels_of_a_row_go_together(cohort):
    table = pd.read_csv(cohort[1])
    others = [name for name in LABELS if name not in ("No Finding", "Support Devices")]
    unremarkable = table[table["No Finding"] == 1]
    assert len(unremarkable) and not (unremarkable[others] == 1).any(axis=None)
    assert not (unremarkable[others] == -1).any(axis=None)


def test_patients_keep_their_sex_and_have_up_to_three_images(cohort):
    table = pd.read_csv(cohort[1])
    patient = table["Path"].str.extract(r"(patient\d+)", expand=False)
    frontal = table[table["Frontal/Lateral"] == "Frontal"]
    sizes = frontal.groupby(patient[frontal.index]).size()
    assert sizes.max() <= 3 and (sizes > 1).mean() > 0.1
    known = table[table["Sex"] != "Unknown"]
    assert (known.groupby(patient[known.index])["Sex"].nunique() == 1).all()
    assert (known[known["Age"] > 0].groupby(patient[known.index])["Age"].agg(np.ptp) <= 2).all()


def test_natural_has_the_published_joint(tmp_path, cohort):
    composition, path = cohort
    if composition == "induced":
        pytest.skip("the other composition")
    frame = labelled(path)
    for factor, published in (("age", [[0.19, 0.31], [0.12, 0.38]]), ("cod", [[0.29, 0.21], [0.14, 0.36]])):
        joint = pd.crosstab(frame["effusion"], frame[factor], normalize=True).to_numpy()
        np.testing.assert_allclose(joint, published, atol=0.006)  # 364 rows: each of 16 cells is rounded
    assert frame["sex"].mean() == pytest.approx(0.5, abs=0.05)


def test_subsets_can_be_drawn(cohort):
    composition, path = cohort
    natural = composition == "natural"
    tasks = TASKS if natural else TASKS[:3]
    subsets = make_subsets(
        labelled(path, tasks),
        tasks,
        agreement=[0.9, "natural", "natural"] if natural else 0.9,
        fractions=(0.4, 0.12, 0.48) if natural else (0.45, 0.15, 0.4),
    )
    # A fiftieth of the cohort: about a fiftieth of 3,000 for training and of 2,000 for each test; a small table is rougher.
    assert len(subsets["train"]) > 40 and len(subsets["val"]) > 25 and len(subsets["inv"]) > 25
    train = set(subsets["train"]["subject"])
    assert not train & set(subsets["val"]["subject"]) and not train & set(subsets["select"]["subject"])


def digest(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_files_depend_on_the_seed_and_not_on_the_workers(tmp_path):
    for name, seed, workers in (("a", 0, 1), ("b", 0, 3), ("c", 1, 1)):
        write_chest_cohort(tmp_path / name, scale=0.001, seed=seed, num_workers=workers, progress=False)
    assert digest(tmp_path / "a") == digest(tmp_path / "b") != digest(tmp_path / "c")
    before = digest(tmp_path / "a")
    write_chest_cohort(tmp_path / "a", scale=0.001, progress=False)
    assert digest(tmp_path / "a") == before
    with pytest.raises(ValueError, match="composition: expected 'natural', found 'induced'"):
        write_chest_cohort(tmp_path / "a", composition="natural", scale=0.001, progress=False)


@pytest.mark.parametrize("patient", range(4))
def test_fluid_lies_at_the_base_and_is_bright(patient):
    options = {"sex": "Male", "age": 65, "patient": patient, "shot": patient + 100}
    dry, wet = (chest_image(**options, effusion=amount).astype(float) for amount in (0.0, 0.8))
    change = np.abs(wet - dry)
    rows = change.sum(1)
    assert rows[: SIZE // 4].sum() < 0.1 * rows.sum()
    base = wet[SIZE // 2 :][change[SIZE // 2 :] > 25]
    assert len(base) > 100 and (base > dry[SIZE // 2 :][change[SIZE // 2 :] > 25]).mean() > 0.9


@pytest.mark.parametrize("finding", FINDINGS)
def test_every_finding_has_a_sign(finding):
    options = {"sex": "Female", "age": 40, "projection": "AP"}
    differences = [
        np.abs(
            chest_image(**options, patient=n, shot=n, findings=[finding]).astype(float)
            - chest_image(**options, patient=n, shot=n)
        ).max()
        for n in range(3)
    ]
    assert max(differences) > 5


def test_the_same_person_at_another_shot():
    options = {"sex": "Female", "age": 40, "patient": 3}
    first, again, other = (chest_image(**options, shot=shot) for shot in (1, 1, 2))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sex": "male"}, "expected sex in .*, got 'male'"),
        ({"projection": "LL"}, "got 'Female' and 'LL'"),
        ({"effusion": 1.5}, "effusion from 0 to 1, got 1.5"),
        ({"findings": ["Flu"]}, "findings among .*, got 'Flu'"),
    ],
)
def test_labels_that_cannot_be_drawn(options, message):
    with pytest.raises(ValueError, match=message):
        chest_image(**{"sex": "Female", "age": 50, "patient": 1, "shot": 1} | options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"composition": "random"}, "composition in .*, got 'random'"),
        ({"scale": 0}, "scale"),
        ({"seed": -1}, "seed"),
        ({"num_workers": 0}, "num_workers"),
    ],
)
def test_options(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        write_chest_cohort(tmp_path / "chest", progress=False, **options)
    assert not (tmp_path / "chest").exists()
