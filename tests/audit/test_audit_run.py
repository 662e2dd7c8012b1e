# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""The audit command, from config, checkpoint and table to the page."""

from __future__ import annotations

import json
import re

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

from monai_mimmx.__main__ import main
from monai_mimmx.audit import attribute_tasks
from monai_mimmx.audit.run import _likelier_order

N = 240


@pytest.fixture
def study(tmp_path):
    """A table of pictures, and a network that looks at a bright corner, which is where the scanner shows."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(N):
        sick = i % 2
        scanner = sick if rng.random() < 0.8 else 1 - sick
        pixels = rng.integers(0, 50, (8, 8), dtype=np.uint8)
        pixels[0, 0] = 200 * scanner
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
        age, site = rng.integers(20, 80), "abcdefghijklmnop"[i % 16]
        rows.append([f"{i}.png", i // 2, sick, "AB"[scanner], age, "rare" if i < 3 else "<b>", f"text {i}", site])
    columns = ["image", "subject", "sick", "scanner", "age", "batch", "note", "site"]
    pd.DataFrame(rows, columns=columns).to_csv(tmp_path / "table.csv", index=False)
    config = {
        "size": 8,
        "network_def": "$torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(@size**2, 2))",
        "imports": ["$import torch"],
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [{"_target_": "LoadGrayscaled", "keys": "image"}],
        },
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    with torch.no_grad():
        network[1].weight.zero_()
        network[1].weight[1, 0] = 1.0
        network[1].bias.copy_(torch.tensor([100.0, 0.0]))
    torch.save([1], tmp_path / "list.pt")
    torch.save(nn.Sequential(nn.Linear(8, 2)).state_dict(), tmp_path / "narrow.pt")
    torch.save(nn.Sequential(nn.Flatten(), nn.Conv2d(3, 2, 1)).state_dict(), tmp_path / "conv.pt")
    (tmp_path / "net.json").write_text('{"network_def": ')
    (tmp_path / "many.json").write_text("[1, 2]")
    torch.save(
        {"state_dict": {f"module.{key}": value for key, value in network.state_dict().items()}}, tmp_path / "net.pt"
    )
    return tmp_path


def arguments(study, *more, **other):
    given = {"config": "config.json", "ckpt": "net.pt", "table": "table.csv", "output_dir": "out", **other}
    paths = [word for key, value in given.items() for word in (f"--{key}", str(study / value))]
    return ["audit", *paths, "--label", "sick", "--device", "cpu", *more]


def test_the_command_finds_the_shortcut(study, capsys):
    assert main(arguments(study)) == 0
    printed = capsys.readouterr().out
    found = json.loads((study / "out/audit.json").read_text())
    assert "scanner: shortcut (gap +" in printed and f"sick (0, 1): accuracy {100 * found['accuracy']:.1f} %" in printed
    assert "likelier" not in found
    table = pd.read_csv(study / "table.csv")
    # The network's prediction is the scanner, so its accuracy is how often the scanner and the label agree.
    assert found["accuracy"] == pytest.approx(((table["scanner"] == "B") == table["sick"]).mean())
    scanner = found["attributes"]["scanner"]
    assert scanner["predictions"]["value"] == 1 and scanner["accuracy"]["bal"] == 0.5
    assert found["attributes"]["age"]["verdict"] == "no sign of it"
    assert found["left_out"]["note"] == "240 different values, not all of them numbers"
    assert "fewer than two values" in found["left_out"]["batch"] and "different values" in found["left_out"]["site"]
    html = (study / "out/report.html").read_text()
    assert "<td>scanner</td><td>shortcut</td>" in html and "<td>y: 0, scanner: B</td><td>0.0</td>" in html
    assert f"<td>{100 * scanner['turned']:.0f}</td>" in html and "turned round (%)" in html
    assert html.count("<img ") == 2 and not re.search(r"https?:|<script", re.sub(r"base64,[^\"]*", "", html))


def test_outputs_in_another_order_than_the_label_are_told(study, capsys):
    table = pd.read_csv(study / "table.csv")
    table["sick"] = 1 - table["sick"]
    table.to_csv(study / "table.csv", index=False)
    assert main(arguments(study)) == 0
    found, printed = json.loads((study / "out/audit.json").read_text()), capsys.readouterr().out
    assert found["likelier"]["order"] == ["1", "0"] and found["likelier"]["accuracy"] == pytest.approx(
        1 - found["accuracy"]
    )
    told = f"If the outputs are in the order 1, 0, the accuracy is {100 * (1 - found['accuracy']):.1f} %"
    assert "sick (0, 1): accuracy" in printed and told in printed and told in (study / "out/report.html").read_text()


def test_an_order_of_three_classes():
    labels = np.repeat([0, 1, 2], 20)
    logits = np.eye(3)[(labels + 1) % 3]  # the outputs are in the order c, a, b
    found = _likelier_order(logits, labels, ["a", "b", "c"])
    assert found == {"classes": ["a", "b", "c"], "likelier": {"order": ["c", "a", "b"], "accuracy": 1.0}}
    assert _likelier_order(np.eye(3)[labels], labels, "abc") == {"classes": ["a", "b", "c"]}


def test_values_too_rare_to_be_a_class_are_told(study, capsys):
    table = pd.read_csv(study / "table.csv")
    table.loc[:4, "scanner"] = ["Q", "R", "Q", "R", "S"]
    table.to_csv(study / "table.csv", index=False)
    assert main(arguments(study)) == 0
    found = json.loads((study / "out/audit.json").read_text())
    assert found["attributes"]["scanner"]["rare"] == ["Q", "R", "S"] and found["attributes"]["scanner"]["n"] == N - 5
    assert "<td>scanner</td><td>Q, R, S</td>" in (study / "out/report.html").read_text()


def test_a_checkpoint_is_audited_as_it_was_trained(study, capsys):
    (study / "run/models").mkdir(parents=True)
    (study / "net.pt").rename(study / "run/models/model.pt")
    record = {"config": {"image_size": 8, "strides": [2, 2]}, "task_names": ["ill"], "classes": {"y": ["no", "yes"]}}
    (study / "run/metrics.json").write_text(json.dumps(record))
    config = json.loads((study / "config.json").read_text()) | {"image_size": 9}
    (study / "config.json").write_text(json.dumps(config))
    with pytest.raises(SystemExit):
        main(arguments(study, ckpt="run/models/model.pt"))
    assert "image_size is 9, but was 8 in the training of" in capsys.readouterr().err
    # What the label is called is another matter.
    assert main([*arguments(study, ckpt="run/models/model.pt"), "--", "--image_size", "8"]) == 0


def test_a_label_by_rule_and_chosen_columns(study):
    label = json.dumps({"name": "old", "column": "age", "negative": "< 45", "positive": "> 55"})
    assert main([*arguments(study, "--columns", "scanner"), "--label", label]) == 0
    found = json.loads((study / "out/audit.json").read_text())
    assert list(found["attributes"]) == ["scanner"] and found["label"] == "old"
    assert sum(found["excluded"].values()) + found["n"] == N


def test_options_replace_those_of_the_config(study, capsys):
    with pytest.raises(SystemExit):
        main([*arguments(study), "--", "--size", "9"])
    assert "does not fit the network; is the config that of its training?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "other", "message"),
    [
        ([], {"ckpt": "none.pt"}, "there is no checkpoint .*none.pt; name the weights of the classifier"),
        ([], {"config": "none.json"}, "there is no config .*none.json"),
        ([], {"table": "none.csv"}, "no table at .*none.csv"),
        ([], {"ckpt": "table.csv"}, "table.csv holds no weights that can be loaded"),
        ([], {"ckpt": "list.pt"}, "list.pt holds a list, not the network's state_dict"),
        (["--subject_column", "pateint"], {}, "has no column 'pateint'"),
        (["--split", "test"], {}, "has no column 'split'"),
        (["--columns", "weight"], {}, "has no column 'weight': it has 'image', 'subject', 'sick'"),
        (["--label", "note"], {}, "'note' has 240 different values; give its classes as a task"),
        (["--columns", "note"], {}, "no column to audit .note: 240 different values"),
        (["--network", "model_def"], {}, "the config has no 'model_def'"),
        (["--preprocessing", "transforms"], {}, "the config has no 'transforms'"),
        (["--layer", "9"], {}, "the network has no module '9'; it has 0, 1"),
        (
            ["--label", '{"name": "scanner", "column": "age", "negative": "< 45", "positive": "> 55"}'],
            {},
            "the label is named 'scanner', as a column to audit: give the label another name",
        ),
        (["--label", "{"], {}, "--label { is not JSON: Expecting"),
        ([], {"config": "net.json"}, "the config .*net.json.* cannot be read: Expecting value"),
        (
            ["--", "--preprocessing", "$monai.transforms.LoadImage(image_only=True)"],
            {},
            "preprocessing of the config cannot use an image: .*0.png.* a dictionary transform of the key 'image'",
        ),
        (["--", "--network_def", "$torch.nn.Sequential(torch.nn.Linear(8, 2))"], {"ckpt": "narrow.pt"}, "of shape"),
        (["--", "--network_def", "$1 / 0"], {}, "'network_def' of the config cannot be made: division by zero"),
        (["--", "--network_def", "$[1]"], {}, "'network_def' of the config is a list, no torch.nn.Module"),
        (
            ["--", "--preprocessing#transforms#0#_target_", "Nothing"],
            {},
            "'preprocessing' of the config cannot be made",
        ),
        (["--", "--sizes", "9"], {}, "the config has no 'sizes' whose value could be replaced"),
        (["--device", "cuda:77"], {}, "device must be a device of this machine, such as cpu"),
        ([], {"config": "many.json"}, "the config .*many.json.* is no mapping of ids"),
        (
            ["--", "--network_def", "$torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Conv2d(3, 2, 1))"],
            {"ckpt": "conv.pt"},
            "does not run on its preprocessing of the images: .*a dictionary transform of the key 'image'",
        ),
    ],
)
def test_wrong_arguments_are_told(study, capsys, more, other, message):
    with pytest.raises(SystemExit) as stop:
        main(arguments(study, *more, **other))
    assert stop.value.code == 2 and re.search(message, capsys.readouterr().err)


def test_tasks_of_a_table(tmp_path):
    path = tmp_path / "t.csv"
    frame = pd.DataFrame({"y": [0, 1] * 50, "age": range(100), "sex": ["F", " M"] * 50, "grade": [1, 2, 10, 2] * 25})
    frame["mostly_zero"] = [0] * 88 + list(range(1, 13))
    frame.to_csv(path, index=False)
    tasks, left_out, _ = attribute_tasks(path, "y")
    rules = {task.name: task.class_names for task in tasks}
    assert rules == {
        "y": ["0", "1"],
        "age": ["<= 49.5", "> 49.5"],
        "sex": ["F", "M"],
        "grade": ["1", "2", "10"],
        "mostly_zero": ["<= 0", "> 0"],
    }
    assert left_out == {}


def test_spellings_blanks_and_odd_columns(tmp_path):
    path = tmp_path / "t.csv"
    frame = pd.DataFrame({"y": ["None", "Effusion"] * 50, "flag": ["0", "1", "0.0", "1.0"] * 25})
    frame["stamp"] = [20210315080000 + i for i in range(100)]
    frame["late"] = [str(i) for i in range(99)] + ["inf"]
    frame["fu"] = [None] * 50 + ["a", "b"] * 25
    frame.loc[50:, "y"] = ["", "Effusion"] * 25  # "a" stands in rows without a label only
    frame.to_csv(path)
    tasks, left_out, _ = attribute_tasks(path, "y")
    rules = {task.name: task.class_names for task in tasks}
    assert rules["y"] == ["Effusion", "None"] and rules["flag"] == ["0", "1"] and list(rules)[-1] == "stamp"
    assert left_out["fu"] == "fewer than two values stand in 20 labelled rows or more"
    assert left_out["late"] == "75 different values, not all of them numbers"
    below = [int(float(text.split()[1])) for text in rules["stamp"]]
    assert below[0] == below[1] and abs(below[0] - 20210315080000 - 37) <= 13


def test_a_column_twice(tmp_path):
    (tmp_path / "t.csv").write_text("image,y,sex, sex\na,0,F,F\nb,1,M,M\n")
    with pytest.raises(ValueError, match="has the column 'sex' twice"):
        attribute_tasks(tmp_path / "t.csv", "y")


def test_columns_without_a_name_are_none(tmp_path):
    (tmp_path / "t.csv").write_text(",y,sex,\n" + "".join(f"{i},{i % 2},{'FM'[i // 2 % 2]},{i}\n" for i in range(80)))
    tasks, left_out, _ = attribute_tasks(tmp_path / "t.csv", "y")
    assert [task.name for task in tasks] == ["y", "sex"] and not left_out


@pytest.mark.parametrize("workers", ["0", "1"])
def test_an_image_that_cannot_be_read_is_told(study, capsys, workers):
    (study / "7.png").write_bytes(b"no picture")
    with pytest.raises(SystemExit):
        main(arguments(study, "--num_workers", workers))
    assert re.search("preprocessing of the config cannot use an image: .*/7.png", capsys.readouterr().err)


def test_pictures_of_an_earlier_audit_do_not_stay(study, capsys):
    assert main(arguments(study, "--columns", "scanner")) == 0 and (study / "out/gaps.png").is_file()
    table = pd.read_csv(study / "table.csv")
    table["scanner"] = table["sick"].map({0: "A", 1: "B"})  # with the label, so that it cannot be audited
    table.to_csv(study / "table.csv", index=False)
    assert main(arguments(study, "--columns", "scanner")) == 0
    assert "scanner: not audited" in capsys.readouterr().out
    assert not (study / "out/gaps.png").exists() and not (study / "out/readings.png").exists()


def test_one_split_of_the_table(study):
    table = pd.read_csv(study / "table.csv")
    table["split"] = ["holdout", "train", "holdout"] * (N // 3)
    table.to_csv(study / "split.csv", index=False)
    assert main(arguments(study, "--split", "holdout", table="split.csv")) == 0
    found = json.loads((study / "out/audit.json").read_text())
    assert found["n"] == 160 and found["excluded"] == {"split is not holdout": 80}


def test_classes_are_those_of_the_split(tmp_path):
    frame = pd.DataFrame({"y": [0, 1] * 60, "age": range(120), "site": ["a", "b", "c"] * 40})
    frame["split"] = ["train"] * 60 + ["test"] * 60
    frame.loc[60:, "site"] = ["a", "b", "a"] * 20  # no c in test
    frame.to_csv(tmp_path / "t.csv", index=False)
    tasks, *_ = attribute_tasks(tmp_path / "t.csv", "y", split="test")
    assert {task.name: task.class_names for task in tasks[1:]} == {"age": ["<= 89.5", "> 89.5"], "site": ["a", "b"]}
    with pytest.raises(ValueError, match="t.csv has no row of the split 'tset': it has 'train', 'test'"):
        attribute_tasks(tmp_path / "t.csv", "y", split="tset")


def test_without_subjects_the_page_says_so(study):
    pd.read_csv(study / "table.csv").drop(columns="subject").to_csv(study / "alone.csv", index=False)
    assert main(arguments(study, table="alone.csv")) == 0
    assert "by image, as the table tells no subjects" in (study / "out/report.html").read_text()
