# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""What an annotator may write as a label."""

import pytest

from monai_mimmx.data import parse_tasks
from monai_mimmx.label import parse_label

TASKS = parse_tasks(
    [
        {"name": "effusion", "column": "Pleural Effusion", "negative": [0], "positive": [1]},
        {"name": "age", "column": "Age", "negative": "< 50", "positive": "> 60"},
        {"name": "device", "column": "scanner", "classes": [["Alpha"], ["Beta"], ["Gamma", "Gamma-2"]]},
    ]
)


@pytest.mark.parametrize(
    ("label", "classes"),
    [
        ({"effusion": 1}, [1, -1, -1]),
        ({"effusion": "1.0", "age": None, "device": ""}, [1, -1, -1]),
        ({"effusion": 0, "age": "> 60", "device": "Gamma-2"}, [0, 1, 2]),
        ({"effusion": "0", "age": 49.5, "device": "Gamma / Gamma-2"}, [0, 0, 2]),
        ({"effusion": 0, "age": "71", "device": " Beta "}, [0, 1, 1]),
    ],
)
def test_class_names_and_values_of_the_table_are_understood(label, classes):
    assert parse_label(label, TASKS) == (classes, None)


def test_the_subject_is_kept_as_text():
    assert parse_label({"effusion": 1, "subject": 7}, TASKS)[1] == "7"


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (None, "expected a label as an object with the keys effusion, age, device, got None"),
        ({"effusion": 1, "sex": "F"}, "expected a label with the keys effusion, age, device, subject, got 'sex'"),
        ({"age": 40}, "expected a label to state the primary task 'effusion', got none"),
        ({"effusion": None}, "expected a label to state the primary task 'effusion', got none"),
        ({"effusion": True}, "expected 'effusion' to be one of '0', '1' or null, got True"),
        ({"effusion": 2}, "expected 'effusion' to be one of '0', '1' or null, got 2"),
        ({"effusion": 1, "age": 55}, "expected 'age' to be one of '< 50', '> 60' or null, got 55"),
        ({"effusion": 1, "age": "old"}, "got 'old'"),
        ({"effusion": 1, "age": float("inf")}, "got inf"),
        ({"effusion": 1, "device": ["Alpha"]}, r"got \['Alpha'\]"),
    ],
)
def test_anything_else_is_told(label, message):
    with pytest.raises(ValueError, match=message):
        parse_label(label, TASKS)
