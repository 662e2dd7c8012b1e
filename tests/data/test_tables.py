# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import logging
import os
import re
import time

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monai_mimmx.data.tables import Task, parse_tasks, read_table

AGE = {"name": "age_group", "column": "age", "negative": "< 51", "positive": "> 57"}
SEX = {"name": "sex", "column": "sex", "negative": ["F"], "positive": ["M"]}


def write(folder, text):
    path = folder / "labels.csv"
    path.write_text(text)
    return path


def read(folder, rows, tasks=(AGE, SEX), header="image,subject,age,sex", **options):
    path = write(folder, "\n".join([header, *rows]) + "\n")
    return read_table(path, tasks, check_images=options.pop("check_images", False), **options)


GOOD = ["a.png,1,40,F", "b.png,2,60,M", "c.png,3,50,M", "d.png,4,58,F"]


@pytest.mark.parametrize(
    ("rule", "inside", "outside"),
    [
        ("< 51", [50, 50.99, -3], [51, 60]),
        ("<= 50", [50, 0], [50.01]),
        ("> 57", [57.01, 99], [57]),
        (">=60", [60, 61], [59.99]),
        ("51 - 57", [51, 54.5, 57], [50.99, 57.01]),
        ("-5 - -1", [-5, -1, -3], [0, -6]),
    ],
)
def test_rule_ends(rule, inside, outside):
    parsed = parse_tasks([{"name": "a", "column": "a", "classes": [["x"], rule]}, SEX])[0].classes[1]
    assert parsed.contains(np.array(inside, dtype=float)).all()
    assert not parsed.contains(np.array([*outside, np.nan], dtype=float)).any()


def test_labels_and_columns(tmp_path):
    frame = read(tmp_path, GOOD)
    assert frame.columns.tolist() == ["image", "subject", "age_group", "sex"]
    assert frame["age_group"].tolist() == [0, 1, 0, 1]
    assert frame["sex"].tolist() == [0, 1, 1, 0]
    assert frame["image"].iloc[0] == str(tmp_path / "a.png")
    assert frame["subject"].tolist() == ["1", "2", "3", "4"]
    assert frame.attrs["excluded"] == {}


def test_values_without_a_rule_can_count_as_unknown(tmp_path):
    rows = [*GOOD, "e.png,5,40,X", "f.png,6,54,F", "g.png,7,70,"]
    assert read(tmp_path, rows)["sex"].tolist() == [0, 1, 1, 0, -1]
    frame = read(tmp_path, rows, unmatched="unknown")
    assert frame["sex"].tolist() == [0, 1, 1, 0, -1, -1]
    assert frame.attrs["excluded"] == {"age_group matches no rule (54 to 54)": 1}  # of y a value needs a rule
    with pytest.raises(ValueError, match="unmatched to be 'exclude' or 'unknown', got 'keep'"):
        read(tmp_path, rows, unmatched="keep")


@pytest.mark.parametrize("blank", ["NA", " NA", " ", " NULL", "null ", "NaT"])
def test_a_blank_is_one_with_spaces_around_it_too(tmp_path, blank):
    assert read(tmp_path, [*GOOD, f"e.png,5,40,{blank}"])["sex"].tolist() == [0, 1, 1, 0, -1]
    with pytest.raises(ValueError, match="line 6: column 'subject' is blank"):
        read(tmp_path, [*GOOD, f"e.png,{blank},40,F"])


@pytest.mark.parametrize("end", [",", ",x"])
def test_rows_with_more_cells_than_the_header(tmp_path, end):
    with pytest.raises(ValueError, match="more cells than the header, which has 4: is there a comma at the end"):
        read(tmp_path, [row + end for row in GOOD])


@pytest.mark.parametrize("row", ["c.png,3,large, right,50,M", "c.png,3,large, right,50,"])
def test_a_comma_in_a_cell_without_quotes(tmp_path, row):
    """The cells behind it would be read one column too far to the right."""
    rows = ["a.png,1,ok,40,F", 'b.png,2,"a\nb",60,M', row]
    with pytest.raises(ValueError, match=r"line 5: more cells than the header, which has 5: .* without double quotes"):
        read(tmp_path, rows, header="image,subject,comment,age,sex")


def test_lines_are_those_of_the_file(tmp_path):
    rows = ['a.png,1,"x\ny\nz",40,F', "", 'b.png,2,"q",60,M', "c.png,3,q,old,M"]
    with pytest.raises(ValueError, match="line 7, column 'age'"):
        read(tmp_path, rows, header="image,subject,comment,age,sex")
    with pytest.raises(ValueError, match="line 3, column 'age'"):
        read(tmp_path, ["a.png,1,40,F", "c.png,3,old,M"])


def test_an_image_in_several_rows(tmp_path, caplog):
    with pytest.raises(ValueError, match=r"lines 2 and 6: .*a\.png belongs to the classes 0 and 1 of 'sex' \(1 such\)"):
        read(tmp_path, [*GOOD, "a.png,1,40,M"])
    with caplog.at_level(logging.INFO, logger="monai_mimmx.data.tables"):
        assert len(read(tmp_path, [*GOOD, "a.png,1,41,", "a.png,1,42,F"])) == 6
    assert "6 of 6 rows kept; 2 of them list an image that another row lists" in caplog.text


def test_a_column_twice(tmp_path):
    with pytest.raises(ValueError, match="has the column 'sex' twice: rename one"):
        read(tmp_path, [row + ",M" for row in GOOD], header="image,subject,age,sex, sex")
    assert len(read(tmp_path, [row + ",x,x" for row in GOOD], header="image,subject,age,sex,note,note")) == 4


def test_numbers_match_however_they_are_written(tmp_path):
    tasks = [{"name": "e", "column": "e", "negative": [0], "positive": ["1.0"]}, SEX]
    rows = ["a.png,1,1,F", "b.png,2, 1.0 ,M", "c.png,3,0.0,F", "d.png,4,1.00,M", "e.png,5,0,M"]
    assert read(tmp_path, rows, tasks, header="image,subject,e,sex")["e"].tolist() == [1, 1, 0, 1, 0]


def test_three_classes_and_mixed_rules(tmp_path):
    tasks = [{"name": "g", "column": "age", "classes": ["< 10", "10 - 20", ["old", 99]]}, SEX]
    rows = ["a.png,1,5,F", "b.png,2,10,M", "c.png,3,20,F", "d.png,4,old,M", "e.png,5,99.0,M"]
    assert read(tmp_path, rows, tasks)["g"].tolist() == [0, 1, 1, 2, 2]


def test_excluded_rows_are_counted_once_and_logged(tmp_path, caplog):
    rows = [*GOOD, "e.png,5,54,F", "f.png,6,52,X", "g.png,7,,F", "h.png,8,40,X", "i.png,9,40,", "j.png,10,61,NaN"]
    with caplog.at_level(logging.INFO, logger="monai_mimmx.data.tables"):
        frame = read(tmp_path, rows)
    excluded = {"age_group is blank": 1, "age_group matches no rule (52 to 54)": 2, "sex='X' matches no rule": 1}
    assert frame.attrs["excluded"] == excluded
    assert len(frame) == len(rows) - sum(excluded.values())
    assert frame["sex"].tolist() == [0, 1, 1, 0, -1, -1]
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path / 'labels.csv'}: 6 of 10 rows kept, excluded: {excluded}"
    ]


def test_paths(tmp_path):
    frame = read(tmp_path, ["/data/x/a.png,1,40,F", "sub/../b.png,2,60,M"], image_root="/data")
    assert frame["image"].tolist() == ["/data/x/a.png", "/data/b.png"]
    frame = read(tmp_path, ["/abs/a.png,1,40,F", "/b.png,2,60,M"], image_root="/")
    assert frame["image"].tolist() == ["/abs/a.png", "/b.png"]


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../secret.png", "images/../../secret.png", "{root}-other/a.png", ".."]
)
def test_an_image_cannot_lead_out_of_its_root(tmp_path, name):
    name = name.format(root=tmp_path)
    with pytest.raises(
        ValueError, match=rf"line 3, column 'image': '{name}' leads out of {tmp_path}: move .* image_root$"
    ):
        read(tmp_path, ["a.png,1,40,F", f"{name},2,60,M"])


def test_byte_order_mark_spaces_in_header_and_blank_lines(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_bytes("\ufeffimage, subject,age,sex\na.png,1,40,F\n\nb.png,2,60,M\n\n".encode())
    assert read_table(path, [AGE, SEX], check_images=False)["sex"].tolist() == [0, 1]


def test_split_column(tmp_path):
    rows = ["a.png,1,40,F,train", "b.png,1,60,M,train", "c.png,2,60,M,test"]
    assert read(tmp_path, rows, header="image,subject,age,sex,split")["split"].tolist() == ["train", "train", "test"]


@pytest.mark.parametrize(
    ("rows", "header", "match"),
    [
        (
            ["a.png,1,40,F,train", "b.png,1,60,M,val"],
            "image,subject,age,sex,split",
            r"subject '1' .* 'train' and 'val'",
        ),
        (["a.png,1,40,F,train", "b.png,2,60,M,dev"], "image,subject,age,sex,split", r"line 3, .* got 'dev'"),
        (["a.png,1,40,F", "b.png,2,sixty,M"], "image,subject,age,sex", r"line 3, column 'age': .*'< 51'.* 'sixty'"),
        (
            ["a.png,1,40,F", "b.png,2,60,F"],
            "image,subject,age,sex",
            r"\['M'\] of task 'sex' matches no row; .*'F' \(2\)",
        ),
        (
            ["a.png,1,40,F", "b.png,2,60,X", "c.png,3,54,M"],
            "image,subject,age,sex",
            r"2 or more classes of 'age_group'",
        ),
        (
            ["a.png,1,40,X", "b.png,2,60,X", "c.png,3,54,M", "d.png,4,54,F"],
            "image,subject,age,sex",
            "every row is excl",
        ),
        (["a.png,1,40,F", "a.png,2,60,M"], "image,subject,age,sex", r"a.png belongs to two subjects, '1' and '2'"),
        *(
            (
                [f"a.png,{first},40,F", f"b.png,{second},60,M", "c.png,A07,60,M", "d.png,A7,40,F"],
                "image,subject,age,sex",
                rf"'subject': '{first}' and '{second}' would be two subjects \(1 such\)",
            )
            for first, second in (
                ("12", "00012"),
                ("123456789", "123456789.0"),
                ("0", "00"),
                ("7.5", "7.50"),
                ("-3", "-3.0"),
                ("12345678901234567890", "012345678901234567890"),
            )
        ),
        (
            ["a.png,7,40,F", "b.png,7.0,60,M"],
            "image,subject,age,sex",
            r"'subject': '7' and '7.0' would be two subjects",
        ),
        (["a.png,1,40,F", "b.png,,60,M"], "image,subject,age,sex", r"line 3: column 'subject' is blank"),
        (["a.png,1,40,F"], "image,subject,Age,sex", r"no column 'age': it has 'image', 'subject', 'Age', 'sex'"),
        (["a.png;1;40;F"], "image;subject;age;sex", r"separator a comma"),
        (["a.png;1;40;F"], "image;subject;age;sex;Age, years", r"separator a comma"),
        ([], "image,subject,age,sex", r"labels.csv is empty: it has a header and no rows"),
        (['a.png,"1,40,F'], "image,subject,age,sex", r"cannot be read as CSV"),
    ],
)
def test_table_errors(tmp_path, rows, header, match):
    with pytest.raises(ValueError, match=match):
        read(tmp_path, rows, header=header)


def test_no_table_and_empty_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no table at .*absent\.csv"):
        read_table(tmp_path / "absent.csv", [AGE, SEX])
    with pytest.raises(ValueError, match=r"labels\.csv is empty"):
        read_table(write(tmp_path, ""), [AGE, SEX])
    with pytest.raises(ValueError, match=r"labels\.csv begins with a blank line: expected a header"):
        read(tmp_path, GOOD, header="\nimage,subject,age,sex")


@pytest.mark.parametrize("dangling", [False, True])  # a link that leads nowhere is listed, too
@pytest.mark.parametrize("count", [4, 20])  # below and above the number for which a folder is listed
def test_missing_images(tmp_path, count, dangling):
    rows = [f"images/{i}.png,{i},{40 + 20 * (i % 2)},{'FM'[i % 2]}" for i in range(count)]
    (tmp_path / "images").mkdir()
    for i in range(count):
        (tmp_path / f"{i}.png").touch()
        (tmp_path / "images" / f"{i}.png").symlink_to(f"../{i}.png")
    assert len(read(tmp_path, rows, check_images=True)) == count
    for i in range(4):
        ((tmp_path if dangling else tmp_path / "images") / f"{i}.png").unlink()
    with pytest.raises(FileNotFoundError, match=rf"4 of {count} image files .*0\.png, .*1\.png, .*2\.png, \.\.\."):
        read(tmp_path, rows, check_images=True)


@pytest.mark.skipif(os.sep != "/", reason="names of Windows are those of this machine")
def test_why_images_are_missing(tmp_path):
    (tmp_path / "a.nii.gz").touch()
    for name, told in {
        "a.nii": "there is a.nii.gz, though: write that ending",
        "images\\a.png": "the names hold backslashes: write / between folders",
        "C:\\images\\a.png": "the names are of a Windows drive: write them relative to the table",
    }.items():
        with pytest.raises(FileNotFoundError, match=re.escape(f"image_root changes that): {told}")):
            read(tmp_path, [f"{name},1,40,F", f"{name},1,40,F", f"b{name},2,60,M"], check_images=True)


def test_other_capitals_are_told(tmp_path):
    frame = read(tmp_path, ["a,1,40,F", "b,2,60,M", "c,3,60,m", "d,4,60,x"])
    assert frame.attrs["excluded"] == {
        "sex='m' matches no rule ('M' does, with other capitals)": 1,
        "sex='x' matches no rule": 1,
    }


@pytest.mark.parametrize(
    ("task", "match"),
    [
        ({**SEX, "postive": ["M"]}, r"unknown key \['postive'\]"),
        ({"name": "s", "column": "s", "negative": ["F"]}, r"got no 'positive'"),
        ({**SEX, "classes": [["F"], ["M"]]}, r"either 'classes' or"),
        ({"name": "s", "column": "s", "classes": [["F"]]}, r"2 or more classes, got 1"),
        ({"name": "s", "column": "s", "classes": "FM"}, r"'classes' to be a list"),
        ({**SEX, "positive": "M"}, r"class 1: expected a list of values such as .*got 'M'"),
        ({**SEX, "positive": []}, r"got an empty list"),
        ({**SEX, "positive": [["M"]]}, r"texts and numbers"),
        ({**SEX, "positive": [""]}, r"a blank counts as missing"),
        ({**SEX, "positive": ["M", "F"]}, r"\['F'\] and \['M', 'F'\] overlap"),
        ({**SEX, "negative": [1], "positive": ["1.0"]}, r"overlap"),
        ({**SEX, "negative": "<= 50", "positive": ">= 50"}, r"<= 50 and >= 50 overlap"),
        ({**SEX, "negative": "< 50", "positive": [49]}, r"overlap"),
        ({**SEX, "positive": "9 - 1"}, r"from low to high"),
        ({**SEX, "name": "y"}, r"'y' stands for the primary task"),
        ({**SEX, "name": "age_group"}, r"'age_group' twice"),
        ({**SEX, "name": "image"}, r"'image' is reserved"),
        ({**SEX, "column": 3}, r"'column' to be a text, got 3"),
    ],
)
def test_task_errors(task, match):
    with pytest.raises(ValueError, match=match):
        parse_tasks([AGE, task])


def test_touching_open_ends_do_not_overlap():
    touching = {**SEX, "negative": "< 50", "positive": "50 - 60"}
    assert parse_tasks([AGE, touching])[1].num_classes == 2


def test_task_types():
    with pytest.raises(ValueError, match="one or more spurious factors"):
        parse_tasks([AGE])
    with pytest.raises(TypeError, match=r"tasks\[1\]: expected a mapping"):
        parse_tasks([AGE, "sex"])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="expected a list of tasks"):
        parse_tasks(AGE)  # type: ignore[arg-type]
    parsed = parse_tasks([{**AGE, "name": "y"}, SEX])
    assert all(isinstance(task, Task) for task in parsed)
    assert parse_tasks(parsed) == parsed


def test_large_table_is_vectorised(tmp_path):
    count = 200_000
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"image": [f"i{i}.png" for i in range(count)], "subject": np.arange(count) // 3})
    frame["age"], frame["sex"] = rng.integers(20, 90, count), rng.choice(["F", "M"], count)
    frame.to_csv(tmp_path / "labels.csv", index=False)
    start = time.process_time()
    read = read_table(tmp_path / "labels.csv", [AGE, SEX], check_images=False)
    assert time.process_time() - start < 5  # about 0.6 s; a loop over the rows with pandas takes 10 s or more
    kept = frame[(frame["age"] < 51) | (frame["age"] > 57)]
    assert (read["age_group"].to_numpy() == (kept["age"] > 57).to_numpy()).all()
    assert (read["sex"].to_numpy() == (kept["sex"] == "M").to_numpy()).all()


def test_class_names_are_written_as_people_do():
    tasks = parse_tasks([{"name": "a", "column": "a", "negative": [0, "x"], "positive": [1.0, 2.5]}, SEX])
    assert tasks[0].class_names == ["0 / x", "1 / 2.5"]


JSON_VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-5, 99), st.floats(), st.text(max_size=8)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)),
    max_leaves=10,
)
TASK_LIKE = st.fixed_dictionaries(
    {},
    optional={"name": JSON_VALUES, "column": JSON_VALUES}
    | {
        key: st.one_of(JSON_VALUES, st.sampled_from(["< 51", "> 57", "9 - 1", "nan - 3", "<", ["F"]]))
        for key in ("negative", "positive", "classes")
    },
)


@settings(max_examples=300, deadline=None)
@given(tasks=st.one_of(JSON_VALUES, st.lists(st.one_of(TASK_LIKE, JSON_VALUES), max_size=3)))
def test_whatever_stands_in_the_config_is_parsed_or_refused_in_words(tasks):
    try:
        parsed = parse_tasks(tasks)
    except (TypeError, ValueError) as error:
        assert "expected" in str(error) or "name" in str(error) or "rule" in str(error), str(error)
    else:
        assert all(isinstance(task, Task) and task.num_classes >= 2 for task in parsed)


CELLS = st.one_of(
    st.sampled_from(["", "F", "M", "40", "60", "nan", "1e9", "=1+1", "-", "a.png", "<b>"]),
    st.text("aé\t ;0-", max_size=5),
)


@settings(max_examples=150, deadline=None)
@given(rows=st.lists(st.lists(CELLS, min_size=2, max_size=5), max_size=8))
def test_any_text_in_a_table_is_read_or_refused_naming_the_file(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("table")
    text = "image,subject,age,sex\n" + "".join(",".join(row) + "\n" for row in rows)
    try:
        frame = read_table(write(folder, text), (AGE, SEX), check_images=False)
    except ValueError as error:
        assert str(folder / "labels.csv") in str(error), str(error)
    else:
        assert frame["age_group"].isin([0, 1]).all() and frame["sex"].isin([-1, 0, 1]).all()


@pytest.mark.parametrize(
    ("encoding", "place"), [("latin-1", " in line 2, after 'a.png,M'"), ("utf-16", ", but in UTF-16")]
)
def test_a_table_in_another_encoding(tmp_path, encoding, place):
    (tmp_path / "labels.csv").write_bytes("image,subject,age,sex\na.png,Müller,40,F\n".encode(encoding))
    with pytest.raises(ValueError, match=rf"labels.csv is not in UTF-8{place}: save it as CSV in UTF-8"):
        read_table(tmp_path / "labels.csv", parse_tasks([AGE, SEX]))


def test_classes_of_long_numbers_have_their_whole_names():
    (task, other) = parse_tasks(
        [
            {"name": "site", "column": "site", "classes": [[1000001], [1000002], ["00012.50"]]},
            {"name": "x", "column": "x", "negative": [0.1234567], "positive": [0.1234568]},
        ]
    )
    assert task.class_names == ["1000001", "1000002", "12.5"] and other.class_names == ["0.1234567", "0.1234568"]


def test_a_split_in_other_letters_is_told(tmp_path, caplog):
    write(tmp_path, "image,subject,age,sex,Split\na.png,1,40,F,train\nb.png,2,60,M,test\n")
    read_table(tmp_path / "labels.csv", parse_tasks([AGE, SEX]), check_images=False)
    assert "the column 'Split' is not taken for 'split': rename it if it is meant" in caplog.text
