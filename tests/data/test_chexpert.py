# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monai_mimmx.data import (
    CheXpertColumns,
    chest_cohort,
    find_table,
    is_chexpert,
    make_subsets,
    parse_tasks,
    read_table,
)
from monai_mimmx.data.chexpert import LABELS, PATHOLOGIES, _below_download, _patient

HEADER = ["Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *LABELS]
TASKS = [
    {"name": "effusion", "column": "Pleural Effusion", "negative": [0], "positive": [1]},
    {"name": "sex", "column": "Sex", "negative": ["Female"], "positive": ["Male"]},
    {"name": "age", "column": "Age", "negative": "< 50", "positive": "> 60"},
    {"name": "cod", "column": "CoD", "negative": [0], "positive": [1]},
]


def record(patient=1, view="frontal", study=1, **labels):
    sex, age = labels.pop("Sex", "Male"), labels.pop("Age", 70)
    path = f"CheXpert-v1.0-small/train/patient{patient:05d}/study{study}/view1_{view}.jpg"
    row = {"Path": path, "Sex": sex, "Age": age, "Frontal/Lateral": view.title()}
    return row | {"AP/PA": "AP" if view == "frontal" else None} | {k.replace("_", " "): v for k, v in labels.items()}


def write(tmp_path, records, folder="CheXpert-v1.0-small"):
    (tmp_path / folder).mkdir(exist_ok=True)
    table = pd.DataFrame(records, columns=HEADER)
    table.to_csv(tmp_path / folder / "train.csv", index=False)
    return tmp_path / folder / "train.csv"


PLAIN = [
    record(1, Sex="Female", Age=40, No_Finding=1.0),
    record(2, Pleural_Effusion=1.0, Edema=1.0),
    record(3, Pleural_Effusion=0.0, Cardiomegaly=1.0),
    record(4, Sex="Female", Age=30, Pleural_Effusion=1.0),
]


def read(path, tasks=TASKS, **options):
    columns = CheXpertColumns(**options)
    return read_table(path, tasks, image_column="Path", subject_column="subject", prepare=columns, check_images=False)


def test_labels_patients_and_paths(tmp_path):
    frame = read(write(tmp_path, PLAIN))
    assert frame["effusion"].tolist() == [0, 1, 0, 1]
    assert frame["sex"].tolist() == [0, 1, 1, 0] and frame["age"].tolist() == [0, 1, 1, 0]
    assert frame["cod"].tolist() == [0, 1, 1, 0]
    assert frame["subject"].tolist() == [f"patient0000{i}" for i in (1, 2, 3, 4)]
    assert frame["image"][0] == str(tmp_path / "CheXpert-v1.0-small/train/patient00001/study1/view1_frontal.jpg")


@pytest.mark.parametrize("folder", ["CheXpert-v1.0", "my download"])
def test_the_folder_may_have_any_name(tmp_path, folder):
    table = write(tmp_path, PLAIN, folder)
    image = tmp_path / folder / "train/patient00001/study1/view1_frontal.jpg"
    image.parent.mkdir(parents=True)
    image.touch()
    frame = read(table)
    assert frame["image"][0] == str(image)
    with pytest.raises(FileNotFoundError, match="3 of 4 image files do not exist"):
        read_table(table, TASKS, image_column="Path", prepare=CheXpertColumns())


@pytest.mark.parametrize("start", ["", "./"])
@pytest.mark.parametrize("root", [False, True])
def test_images_may_be_just_where_the_table_says(tmp_path, root, start):
    records = [{**row, "Path": start + row["Path"]} for row in PLAIN]
    table = write(tmp_path, records, "CheXpert-v1.0-small")
    for row in PLAIN:
        (tmp_path / row["Path"]).parent.mkdir(parents=True)
        (tmp_path / row["Path"]).touch()
    if not root:
        table = table.rename(tmp_path / "labels.csv")
    folder = tmp_path if root else None
    frame = read_table(table, TASKS, image_column="Path", prepare=CheXpertColumns(image_root=folder), image_root=folder)
    assert frame["image"].tolist() == [str(tmp_path / row["Path"]) for row in PLAIN]
    beside = write(tmp_path, records, "CheXpert-v1.0-small")  # the names begin with the table's own folder
    assert len(read_table(beside, TASKS, image_column="Path", prepare=CheXpertColumns())) == len(PLAIN)


def test_a_rule_that_lists_uncertain_labels_decides_of_them(tmp_path):
    records = [
        *PLAIN,
        record(5, Pleural_Effusion=0.0, Cardiomegaly=-1.0),
        record(6, Pleural_Effusion=-1.0, Cardiomegaly=0.0),
    ]
    heart = {"name": "heart", "column": "Cardiomegaly", "negative": [0], "positive": [1, -1]}
    tasks = parse_tasks([TASKS[0], heart])
    path, options = write(tmp_path, records), {"image_column": "Path", "check_images": False}
    frame = read_table(path, tasks, prepare=CheXpertColumns(tasks=tasks), **options).set_index("subject")
    assert frame.loc["patient00005", "heart"] == 1 and "patient00006" not in frame.index
    tasks = parse_tasks([{**TASKS[0], "positive": [1, "-1.0"]}, heart])
    frame = read_table(path, tasks, prepare=CheXpertColumns(tasks=tasks), **options)
    assert frame.set_index("subject").loc["patient00006", "effusion"] == 1
    assert frame.attrs["excluded"] == {}


@pytest.mark.parametrize(
    ("header", "subject", "expected"),
    [
        (",".join(HEADER), "subject", True),
        ("Path,subject,sick", "subject", False),
        ("\ufeffPath, patient,sick", "patient", False),
        ("Path,patient,sick", "subject", True),  # which then tells what CheXpert's table has
        ("image,subject,sick", "subject", True),
        (",".join([*HEADER, "patient"]), "patient", True),
        ("", "subject", True),
    ],
)
def test_tables_of_others_that_call_a_column_path(tmp_path, header, subject, expected):
    (tmp_path / "films.csv").write_text(header, encoding="utf-8")
    assert is_chexpert(tmp_path / "films.csv", subject_column=subject) is expected
    assert is_chexpert(tmp_path / "absent.csv")
    assert not is_chexpert(tmp_path / "films.csv", "file", subject)


def test_what_is_left_out_is_counted(tmp_path):
    records = [
        *PLAIN,
        record(5, "lateral", Pleural_Effusion=1.0),
        record(6, Sex="Unknown", Pleural_Effusion=1.0),
        record(7, Age=0, Pleural_Effusion=1.0),
        record(8, Pleural_Effusion=-1.0),
        record(9, Edema=1.0),
        record(10, Age=55, Pleural_Effusion=1.0),
    ]
    frame = read(write(tmp_path, records))
    assert len(frame) == 4
    assert frame.attrs["excluded"] == {
        "not a frontal view": 1,
        "Sex is Unknown": 1,
        "Age is 0": 1,
        "Pleural Effusion is uncertain": 1,
        "effusion is blank": 1,
        "age matches no rule (55 to 55)": 1,
    }
    assert len(read(write(tmp_path, records), frontal_only=False)) == 5


@pytest.mark.parametrize(
    ("uncertain", "effusion", "cod"),
    [("exclude", None, 0), ("zero", 0, 0), ("one", 1, 1)],
)
def test_uncertain_labels(tmp_path, uncertain, effusion, cod):
    records = [*PLAIN, record(5, Pleural_Effusion=-1.0), record(6, Pleural_Effusion=0.0, Edema=-1.0)]
    frame = read(write(tmp_path, records), uncertain=uncertain).set_index("subject")
    if effusion is None:
        assert "patient00005" not in frame.index
    else:
        assert frame.loc["patient00005", "effusion"] == effusion
    assert frame.loc["patient00006", "cod"] == cod


@pytest.mark.parametrize(("blank", "kept"), [("no_finding", [1]), ("zero", [1, 5]), ("exclude", [])])
def test_blank_labels(tmp_path, blank, kept):
    records = [*PLAIN[1:], PLAIN[0], record(5, Edema=1.0)]
    frame = read(write(tmp_path, records), blank=blank)
    negative = {int(s.removeprefix("patient")) for s in frame["subject"][frame["effusion"] == 0]}
    assert negative == {3, *kept}


def test_an_uncertain_finding_beside_a_positive_one_is_a_disease(tmp_path):
    records = [*PLAIN, record(5, Pleural_Effusion=0.0, Edema=-1.0, Fracture=1.0)]
    assert read(write(tmp_path, records))["cod"].tolist()[-1] == 1


def test_devices_are_no_disease_and_the_columns_are_a_choice(tmp_path):
    records = [*PLAIN, record(5, Pleural_Effusion=0.0, Support_Devices=1.0)]
    assert read(write(tmp_path, records))["cod"].tolist()[-1] == 0
    assert read(write(tmp_path, records), cod_columns=["Support Devices", "Edema"])["cod"].tolist() == [0, 1, 0, 0, 1]


def test_another_primary_label(tmp_path):
    records = [
        record(
            i, Edema=float(i % 2), Pleural_Effusion=float(i < 2), Sex=("Male", "Female")[i // 2], Age=30 + 40 * (i // 2)
        )
        for i in range(4)
    ]
    tasks = [{**TASKS[0], "column": "Edema"}, *TASKS[1:]]
    frame = read(write(tmp_path, records), tasks, primary="Edema")
    assert frame["effusion"].tolist() == [0, 1, 0, 1] and frame["cod"].tolist() == [1, 1, 0, 0]


def test_against_a_plain_loop(tmp_path):
    rng = np.random.default_rng(0)
    records = []
    for patient in range(400):
        labels = {name.replace(" ", "_"): rng.choice([1.0, 0.0, -1.0, None]) for name in LABELS}
        if patient % 4 == 0:
            labels = dict.fromkeys(labels) | {"No_Finding": 1.0}
        records.append(record(patient, Age=int(rng.choice([30, 70])), Sex=rng.choice(["Male", "Female"]), **labels))
    frame = read(write(tmp_path, records))
    expected = {}
    for patient, row in enumerate(records):
        effusion = row["Pleural Effusion"]
        if effusion is None and row["No Finding"] == 1.0:
            effusion = 0.0
        if effusion in (None, -1.0):
            continue
        others = [row[name] for name in PATHOLOGIES if name != "Pleural Effusion"]
        expected[f"patient{patient:05d}"] = (int(effusion), int(1.0 in others))
    found = {s: (int(y), int(c)) for s, y, c in zip(frame["subject"], frame["effusion"], frame["cod"])}
    assert found == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"uncertain": "maybe"}, "uncertain must be 'exclude', 'zero' or 'one', got 'maybe'"),
        ({"blank": "maybe"}, "blank must be 'no_finding', 'zero' or 'exclude', got 'maybe'"),
        ({"primary": "Flu"}, "primary to be one of .*, got 'Flu'"),
        ({"cod_columns": ["Flu"]}, "cod_columns among .*, got 'Flu'"),
        ({"cod_columns": ["Pleural Effusion"]}, "got 'Pleural Effusion'"),
    ],
)
def test_options(options, message):
    with pytest.raises(ValueError, match=message):
        CheXpertColumns(**options)


def test_bad_tables(tmp_path):
    with pytest.raises(ValueError, match="line 6, column 'Edema': expected 1.0, 0.0, -1.0 or blank, got '2.0'"):
        read(write(tmp_path, [*PLAIN, record(5, Edema=2)]))
    with pytest.raises(ValueError, match="line 6: expected a Path with a patient, .* got 'train/p1.jpg'"):
        read(write(tmp_path, [*PLAIN, record(5) | {"Path": "train/p1.jpg"}]))
    path = tmp_path / "other.csv"
    path.write_text("Path,Sex\nx,Male\n")
    with pytest.raises(
        ValueError, match="no column 'Age', 'Frontal/Lateral', .*: it has 'Path', 'Sex'; CheXpert's table has them"
    ):
        read(path)
    with pytest.raises(ValueError, match="no row of 1 is left; excluded: 1 not a frontal view"):
        read(write(tmp_path, [record(5, "lateral")]))


def test_find_table(tmp_path):
    table = write(tmp_path, PLAIN)
    assert find_table(tmp_path) == table and find_table(table.parent) == table
    (tmp_path / "labels.csv").touch()
    assert find_table(tmp_path) == tmp_path / "labels.csv"
    (tmp_path / "labels.csv").unlink()
    write(tmp_path, PLAIN, "CheXpert-v1.0")
    with pytest.raises(ValueError, match="holds 2 downloads"):
        find_table(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no labels.csv, train.csv or CheXpert"):
        find_table(tmp_path / "none")


def test_natural_correlations_are_the_published_ones_where_the_table_has_them(tmp_path):
    """The training subset induces sex and keeps age and co-occurring disease as the table has them."""
    table = chest_cohort._table("natural", 1.0, 0)
    path = tmp_path / "train.csv"
    table[list(chest_cohort.LABEL_COLUMNS)].to_csv(path, index=False)
    tasks = parse_tasks(TASKS)
    frame = read(path, tasks)
    subsets = make_subsets(
        frame, tasks, agreement=[0.9, "natural", "natural"], sizes={"train": 3000}, fractions=(0.4, 0.12, 0.48)
    )
    published = {
        "sex": [[0.45, 0.05], [0.05, 0.45]],
        "age": [[0.19, 0.31], [0.12, 0.38]],
        "cod": [[0.29, 0.21], [0.14, 0.36]],
    }
    for name, joint in published.items():
        here = pd.crosstab(subsets["train"]["effusion"], subsets["train"][name], normalize=True)
        # Four standard errors of a share among 3,000 rows; sex is exact.
        np.testing.assert_allclose(here, joint, atol=1e-9 if name == "sex" else 0.035)
    inverted = subsets["inv"]
    assert (inverted["sex"] == inverted["effusion"]).mean() == pytest.approx(0.1, abs=0.001)
    assert pd.crosstab(inverted["effusion"], inverted["age"], normalize=True).to_numpy() == pytest.approx(
        np.array(published["age"]), abs=0.045
    )
    balanced = subsets["bal"]
    assert np.ptp(balanced.groupby(["effusion", "sex", "age", "cod"]).size().to_numpy()) <= 1
    assert min(len(inverted), len(balanced), len(subsets["val"])) >= 2000 and len(subsets["train"]) == 3000


def test_no_columns_for_disease():
    table = pd.DataFrame(PLAIN, columns=HEADER).astype(object)
    table = table.astype(str).where(table.notna())
    prepared, _ = CheXpertColumns(cod_columns=[])(table, "t")
    assert prepared["CoD"].tolist() == ["0"] * len(prepared) and len(prepared) == 4


class TestPaths:
    """The quick readings of a path against the patterns that say what is meant."""

    PARTS = st.lists(
        st.sampled_from(
            ["", "CheXpert-v1.0", "CheXpert-v1.0-small", "CheXpert", "train", "patient", "patient12", "patient٣"]
            + ["patient7a", "xpatient8", "study1", "view1.jpg"]
        ),
        min_size=1,
        max_size=6,
    )

    @settings(max_examples=300, deadline=None)
    @given(parts=PARTS)
    def test_agree_with_the_patterns(self, parts):
        path = "/".join(parts)
        assert _below_download(path) == re.sub(r"^(/|\./)?CheXpert-v1\.0[^/]*/", "", path)
        match = re.search(r"(?:^|/)(patient\d+)/", path)
        assert _patient(path) == (match[1] if match else None)


def test_labels_paths_and_missing_images_are_told_at_once(tmp_path):
    records = [dict(row) for row in PLAIN]
    records[0]["Pleural Effusion"] = "yes"
    records[1]["Path"] = "CheXpert-v1.0-small/train/somebody/view1_frontal.jpg"
    path = write(tmp_path, records)
    with pytest.raises(ValueError, match="3 problems") as raised:
        read_table(path, TASKS, image_column="Path", subject_column="subject", prepare=CheXpertColumns())
    told = str(raised.value)
    assert "got 'yes'" in told and "expected a Path with a patient" in told
    assert "image files do not exist" in told
