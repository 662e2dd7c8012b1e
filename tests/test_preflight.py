# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""The table of what a user can get wrong, each with the one thing that is told; and several at once."""

import gzip
import itertools
import json
import os
import re
import shutil
import subprocess
import sys

import nibabel as nib
import numpy as np
import pandas as pd
import pydicom
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from monai.bundle import ConfigParser
from monai.utils import version_geq
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset

import monai_mimmx
from monai_mimmx.bundle_folders import bundle_folders
from monai_mimmx.errors import Problems, root_cause
from monai_mimmx.losses import make_dependence
from monai_mimmx.options import METHODS, RULES, idle_options, option_problems
from monai_mimmx.preflight import Preflight

PIXELS = np.random.default_rng(0).integers(1, 255, (20, 20)).astype(np.uint8)
SMALL = {
    "image_size": 16,
    "device": "cpu",
    "tensorboard": False,
    "network_def#encoder#strides": [2, 2, 1, 1],
    "cache_dir": None,
    "agreement": 0.5,  # so that all images are drawn
}


def write_picture(path):
    Image.fromarray(PIXELS).save(path)


def write_nifti(path):
    nib.save(nib.Nifti1Image(PIXELS[..., None].astype(np.float32), np.eye(4)), path)


def write_dicom(path):
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = pydicom.uid.SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    data.Rows, data.Columns, data.SamplesPerPixel, data.PhotometricInterpretation = 20, 20, 1, "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = 16
    data.HighBit, data.PixelRepresentation = 15, 0
    data.PixelData = (PIXELS.astype(np.uint16) * 200).tobytes()
    if version_geq(pydicom.__version__, "3.0"):
        data.save_as(path, enforce_file_format=True)
    else:
        data.is_little_endian, data.is_implicit_VR = True, False
        data.save_as(path, write_like_original=False)


WRITERS = {
    "png": write_picture,
    "jpg": write_picture,
    "tif": write_picture,
    "nii": write_nifti,
    "nii.gz": write_nifti,
    "dcm": write_dicom,
}


def make_study(folder, kind="png"):
    """A folder in the layout of `brain_age`: three subjects of every combination in each split, an image each."""
    (folder / "images").mkdir(parents=True)
    WRITERS[kind](folder / f"one.{kind}")
    rows = []
    cells = itertools.product(("train", "val", "test"), (40, 60), ("female", "male"), ("NAKO", "UKB"), range(3))
    for number, (split, age, sex, dataset, _) in enumerate(cells):
        os.link(folder / f"one.{kind}", folder / f"images/{number}.{kind}")
        rows.append((f"images/{number}.{kind}", f"s{number}", age, sex, dataset, split))
    table = pd.DataFrame(rows, columns=["image", "subject", "age", "sex", "dataset", "split"])
    table.to_csv(folder / "labels.csv", index=False)
    return folder


@pytest.fixture
def study(tmp_path):
    return make_study(tmp_path / "study")


def problems_of(parser, step):
    """What is told where a step of a config checks it; the parser, where nothing is."""
    try:
        parser.get_parsed_content(step)
    except RuntimeError as error:
        problems = root_cause(error)
        assert isinstance(problems, Problems), error
        return problems
    return parser


def check(folder, *, bundle="brain_age", **more):
    """What the bundle's preflight tells of a study; the parser too, for what it evaluates to."""
    root = bundle_folders()[bundle]
    parser = ConfigParser()
    parser.read_config(root / "configs/train.json")
    given = {"bundle_root": str(root), "output_dir": str(folder.parent / "output"), "dataset_dir": str(folder)}
    encoder = {} if "network_def#encoder" not in more else {"network_def#encoder": more.pop("network_def#encoder")}
    parser.update(
        {**given, **(SMALL if not encoder else {**SMALL, **encoder}), **more} if bundle == "brain_age" else given | more
    )
    return problems_of(parser, "initialize#1")


def test_a_config_of_another_bundle_than_the_folder_is_told(study, monkeypatch):
    monkeypatch.chdir(bundle_folders()["fashion_mnist"])
    other = json.loads((bundle_folders()["brain_age"] / "configs/train.json").read_text())["bundle_root"]
    tells(
        check(study, bundle_root=other),
        r"is of another bundle than the one in '\.', where it was started: run it in its own",
    )
    monkeypatch.chdir(bundle_folders()["brain_age"])
    assert not told(check(study, bundle_root=other))


def told(problems):
    return [str(error) for error in problems.errors] if isinstance(problems, Problems) else []


def tells(problems, *messages):
    """Just these, whatever the order."""
    found = told(problems)
    assert len(found) == len(messages), found
    for message in messages:
        assert any(re.search(message, text) for text in found), (message, found)


@pytest.mark.parametrize("kind", WRITERS)
def test_a_sound_study_of_any_format_passes(tmp_path, kind):
    parser = check(make_study(tmp_path / "study", kind))
    assert not told(parser) and parser["output_dir"] and (tmp_path / "output").is_dir()


def test_links_that_lead_nowhere_are_told_among_the_other_problems(study, tmp_path):
    for number in range(5):
        image = study / f"images/{number}.png"
        image.unlink()
        image.symlink_to("../../annex/objects/of_no_clone.png")
    tells(
        check(study, n_b=0, cache_dir=str(tmp_path / "cache")),
        r"5 of 72 image files do not exist: .*0\.png, .*1\.png, .*2\.png, \.\.\.",
        "n_b, .*, must be 1 or more, got 0",
    )


def test_the_image_column_of_an_own_table_may_be_called_path(study):
    table = pd.read_csv(study / "labels.csv").rename(columns={"image": "Path"})
    table.to_csv(study / "labels.csv", index=False)
    tasks = [
        {"name": "old", "column": "age", "negative": "< 50", "positive": ">= 50"},
        {"name": "sex", "column": "sex", "negative": ["female"], "positive": ["male"]},
    ]
    small = {"image_size": 32, "device": "cpu", "tensorboard": False, "cache_dir": None, "agreement": 0.5}
    assert not told(check(study, bundle="pleural_effusion", tasks=tasks, **small))


def checkpoint_of(folder):
    """Weights that fit the network of `infer`."""
    parser = check(folder)
    torch.save(parser.get_parsed_content("network").state_dict(), folder.parent / "model.pt")
    return str(folder.parent / "model.pt")


def infer(folder, **more):
    """What the preflight of an inference tells of the images of a study."""
    own = {key: SMALL[key] for key in ("image_size", "device", "network_def#encoder#strides")}
    root = bundle_folders()["brain_age"]
    parser = ConfigParser()
    parser.read_config(root / "configs/inference.json")
    given = {
        "bundle_root": str(root),
        "output_dir": str(folder.parent / "output"),
        "dataset_dir": str(folder / "images"),
    }
    parser.update(given | own | more)
    return problems_of(parser, "run#0")


def test_an_inference_looks_at_options_images_and_checkpoint_too(study, tmp_path):
    ckpt = checkpoint_of(study)
    assert not told(infer(study, ckpt=ckpt, batch_size=1))  # of which only a training needs more
    (study / "images/3.png").unlink()  # one of many links to one file
    (study / "images/3.png").write_bytes((study / "one.png").read_bytes()[:200])
    tells(
        infer(study, ckpt=str(tmp_path / "absent.pt"), image_size=-3, batchsize=8, predictions_path="/proc/p/p.csv"),
        "image_size must be 1 or more, got -3",
        "nothing uses the option 'batchsize': did you mean 'batch_size'",
        "cannot write to predictions_path /proc/p",
        "1 of 72 images looked at cannot be used: .*3.png: it cannot be read",
        "there is no checkpoint .*absent.pt; train first, or name another with --ckpt",
    )


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"feature_dim": 7}, "model.pt does not fit the network; was it trained with the same tasks, feature_dim"),
        ({"dataset_dir": "/nowhere"}, "there is no folder /nowhere; name the folder with the images by dataset_dir"),
        ({"dataset_dir": None}, "name the images to predict: a folder by dataset_dir, or a list by images"),
        ({"batch_size": 0}, "batch_size.* must be 1 or more, got 0"),
        ({"dataset_dir": 5}, "dataset_dir must be the name of a folder, got 5"),
    ],
)
def test_an_inference_that_cannot_be_is_told(study, more, message):
    tells(infer(study, ckpt=checkpoint_of(study), **more), message)


def record_of(folder, **changed):
    """A checkpoint where a training leaves it, with the training's records beside."""
    records = {
        "config": {"image_size": 16, "slice_position": 0.5, "spatial_dims": 2, "strides": [2, 2, 1, 1]},
        "task_names": ["age_group", "sex", "dataset"],
        "classes": {"y": ["< 51", "> 57"], "sex": ["female", "male"], "dataset": ["NAKO", "UKB"]},
    }
    ckpt = folder.parent / "trained" / "models" / "model.pt"
    ckpt.parent.mkdir(parents=True)
    shutil.move(checkpoint_of(folder), ckpt)
    (ckpt.parents[1] / "metrics.json").write_text(json.dumps(records | changed))
    return str(ckpt)


def test_an_inference_is_held_to_the_images_and_classes_of_the_training(study):
    ckpt = record_of(study)
    assert not told(infer(study, ckpt=ckpt))
    tells(
        infer(study, ckpt=ckpt, image_size=20, slice_position=0.4, **{"network_def#encoder#strides": [1, 2, 2, 1]}),
        "image_size is 20, but was 16 in the training of .*model.pt, as .*metrics.json tells: pass --image_size '16'",
        "slice_position is 0.4, but was 0.5",
        r"network_def#encoder#strides is \[1, 2, 2, 1\], but was \[2, 2, 1, 1\] .*or the training's overlay",
    )
    tells(
        infer(study, ckpt=ckpt, **{"tasks#1#negative": ["f"]}), r"\['f', 'male'\], .*, but were .*\['female', 'male'\]"
    )
    record = study.parent / "trained/metrics.json"
    names = ["age_group", "dataset", "sex"]  # as if the classes of both were no and yes
    record.write_text(json.dumps(json.loads(record.read_text()) | {"task_names": names}))
    tells(infer(study, ckpt=ckpt), "'sex': .*, 'dataset': .*}, but were .*'dataset': .*, 'sex': .* give the same tasks")


def test_transforms_of_a_training_s_overlay_are_not_lost_in_an_inference(study):
    ckpt = checkpoint_of(study)
    own = {"_target_": "Compose", "transforms": [{"_target_": "LoadGrayscaled", "keys": "image"}]}
    own["transforms"].append({"_target_": "Resized", "keys": "image", "spatial_size": [16, 16]})
    tells(infer(study, ckpt=ckpt, load=own), "load, a training's transforms, is not what an inference applies")
    assert not told(infer(study, ckpt=ckpt, load=own, preprocessing=own))


@pytest.mark.parametrize("records", ["{", "[]", "{}", '{"config": 3, "classes": []}'])
def test_records_that_tell_nothing_hold_an_inference_to_nothing(study, records):
    ckpt = record_of(study)
    (study.parent / "trained" / "metrics.json").write_text(records)
    assert not told(infer(study, ckpt=ckpt, image_size=20))


def test_an_inference_needs_no_bundle_around_its_config(study, tmp_path):
    assert not told(infer(study, ckpt=checkpoint_of(study), bundle_root=str(tmp_path)))


OPTIONS = {
    "method": [("magic", "one of 'mimmx', 'mimm', .*'dfr'"), (None, "one of")],
    "dls": [("ture", "True or False"), (1, "True or False")],
    "ema": [("no", "True or False")],
    "amp": [("half", "True or False")],
    "amp_fresh": [("always", "True or False")],
    "amp_dtype": [("float8", "'float16' or 'bfloat16'"), (16, "'float16' or 'bfloat16'")],
    "compile": [("inductor", "True or False")],
    "conditional": [(0.5, "True or False")],
    "detach_z": [("yes", "True or False")],
    "resume": [("latest", "True or False")],
    "caw": [("maps", "True, False, 'features' or 'terms'")],
    "sampling": [("fair", "'correlated' or 'balanced'")],
    "estimator": [("both", "'per_factor' or 'joint'")],
    "lambda_mi": [(-1.0, "0 or more"), (float("nan"), "0 or more"), ("much", "a number, 0 or more")],
    "lambda_warmup": [(-5, "0 or more")],
    "n_b": [(0, "1 or more"), (2.5, "a whole number, 1 or more"), (True, "a whole number, 1 or more")],
    "feature_batches": [(-1, "0 or more")],
    "feature_dim": [(0, "1 or more"), ("wide", "a whole number")],
    "alpha_y": [(-0.1, "0 or more")],
    "alpha_z": [(-3, "0 or more")],
    "beta_y": [(float("inf"), "finite")],
    "ema_decay": [(1.0, "at least 0 and below 1")],
    "image_size": [(0, "1 or more"), ("16x16", "a whole number")],
    "slice_position": [(1.5, "from 0 to 1 or 'foreground'")],
    "spatial_dims": [(4, "2 or 3")],
    "batch_size": [(0, "2 or more"), (1, "2 or more")],
    "epochs": [(0, "1 or more"), (3.5, "a whole number, 1 or more")],
    "val_interval": [(0, "1 or more")],
    "learning_rate": [(0, "above 0"), (-1e-3, "above 0"), ("1e-", "a number, above 0")],
    "mine_learning_rate": [(0.0, "above 0")],
    "seed": [(-1, "from 0 to 4294967295"), (0.5, "a whole number")],
    "num_workers": [(-2, "0 or more")],
    "device": [("cuda:97", "a device of this machine, such as cpu"), ("gpu", "a device of this machine")],
    "agreement": [(1.5, "from 0 to 1 or 'natural'"), ([0.9, "nat"], "from 0 to 1 or 'natural', for each factor")],
    "subset_sizes": [
        ({"tset": 3}, "subsets among train, .*, not 'tset'"),
        ({"val": 0}, "1 or more, or None, for 'val'"),
    ],
    "image_column": [(3, "a text")],
    "subject_column": [("", "a text")],
    "dataset_dir": [(5, "the name of a folder")],
}
CASES = [(name, value, expected) for name, cases in OPTIONS.items() for value, expected in cases]


@pytest.mark.parametrize(("name", "value", "expected"), CASES, ids=[f"{name}={value}" for name, value, _ in CASES])
def test_wrong_options(study, name, value, expected):
    problems = check(study, **{name: value})
    text = next(text for text in told(problems) if text.startswith(name))
    assert re.search(rf"^{name}(, .*,)? must .*{expected}.*, got {re.escape(repr(value))}\.$", text)
    if name not in ("image_column", "subject_column", "dataset_dir", "agreement"):  # without which there is no table
        tells(problems, re.escape(text))


def test_to_compile_needs_a_compiler(study, monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", "none++")
    tells(
        check(study, compile=True),
        r"compile must be False without a C\+\+ compiler: install none\+\+, or name .* CXX, got True",
    )
    other = {"train#trainer#compile_kwargs": {"backend": "eager"}}  # which generates no code
    assert not any("compiler" in text for text in told(check(study, compile=True, **other)))
    compiler = tmp_path / "none++"
    compiler.write_text("#!/bin/sh\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    assert not any("compiler" in text for text in told(check(study, compile=True)))


@pytest.mark.parametrize("value", [-1.0, "much", float("nan")])
def test_what_follows_from_a_wrong_option_is_not_told_as_well(study, value):
    """The weight of the second part is three times that of the first."""
    (told_,) = told(check(study, lambda_mi=value))
    assert told_.startswith("lambda_mi must be")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"lamda_mi": 1}, r"nothing uses the option 'lamda_mi': did you mean 'lambda_mi'\?"),
        ({"learning_rat": 1}, r"nothing uses the option 'learning_rat': did you mean 'learning_rate'\?"),
        ({"output": "x"}, r"nothing uses the option 'output': did you mean 'output_dir'\?"),
        ({"uncertain": "zero"}, "nothing uses the option 'uncertain'"),  # of other bundles
        ({"xyz": 1}, r"nothing uses the option 'xyz': see configs/train.json; a note begins with _"),
        ({"subest_sizes": {"val": 3}}, r"did you mean 'subset_sizes'\?"),
        ({"epochs": "$1 / 0"}, "epochs: ZeroDivisionError: division by zero"),
        ({"epochs": "@epoch"}, "the referring item `@epoch` is not defined in the config"),
        ({"train#trainer#lamda": 1}, "MIMMXTrainer: TypeError: .*unexpected keyword argument 'lamda'"),
        (
            {"caw": "terms", "estimator": "joint"},
            r"one term per factor \['sex', 'dataset'\], got \['sex\+dataset'\]; use",
        ),
        ({"caw": "terms", "method": "mimm"}, r"one term per factor \['sex', 'dataset'\], got \['sex'\]"),
        ({"caw": "terms", "method": "dcor"}, "weighter needs dependence_optimizer"),
        ({"agreement": [0.9]}, r"one agreement per spurious factor \(2\), got 1"),
        ({"network_def#encoder": "resnet"}, "encoder must be 'four_conv', 'densenet121' or"),
        ({"network_def#encoder#strides": [2, 2]}, r"strides must have 4 entries, got \(2, 2\)"),
        (
            {"network_def#encoder": "densenet121", "image_size": 8},
            r"images of shape \(1, 8, 8\): try another image_size or",
        ),
        ({"preflight#checkpoint": "absent.pt"}, "no checkpoint absent.pt; train first, or name another with --ckpt"),
        ({"dataset_dir": "/nowhere"}, "no table at /nowhere/labels.csv: expected a CSV file"),
        ({"tasks": "sex"}, "parsed_tasks: TypeError: expected a list of tasks, got 'sex'"),
        ({"tasks": []}, "a primary task and one or more spurious factors, got 0"),
        (
            {"cache_dir": "/proc/cache"},
            "cannot write to cache_dir /proc/cache: .*; name another folder with --cache_dir",
        ),
        (
            {"method": "dfr", "subset_sizes": {"select": 4}},
            r"every .* cell needs 2 or more rows in the data to refit on, the subset select: the classes \(.*\) have [01]",
        ),
    ],
)
def test_contradictions_and_what_nothing_uses(study, more, message):
    tells(check(study, **more), message)


def test_options_that_change_nothing_are_told_and_no_problem(study, caplog):
    assert not told(check(study, method="baseline", lambda_mi=3.0, n_b=2, alpha_y=0.5, refine_learning_rate=1e-4))
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warned == [
        "lambda_mi changes nothing where method is 'baseline'",
        "n_b changes nothing where method is 'baseline'",
        "alpha_y changes nothing where dls is False",
        "refine_learning_rate changes nothing where refine_epochs is 0",
    ]
    caplog.clear()
    assert not told(check(study, lambda_mi=3.0, n_b=2, alpha_y=0.5, refine_learning_rate=1e-4))
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


@pytest.mark.parametrize("method", METHODS)
def test_an_idle_option_is_one_that_the_components_do_not_take(method):
    idle = " ".join(idle_options(["lambda_mi", "n_b"], {"method": method}))
    term = make_dependence(method, 2, (2, 2))
    assert ("lambda_mi" in idle) == (term is None)
    assert ("n_b" in idle) == (term is None or not [*term.parameters()])


@pytest.mark.parametrize(
    ("values", "idle"),
    [
        ({"feature_batches": 0, "amp": False, "amp_fresh": True}, []),
        ({"feature_batches": 0, "amp": True, "amp_fresh": True}, ["amp_fresh"]),
        ({"feature_batches": 0, "amp": True, "amp_fresh": False}, ["amp_fresh"]),
        ({"feature_batches": 2, "amp": True, "amp_fresh": True}, ["amp_fresh"]),
        ({"feature_batches": 2, "amp": False, "amp_fresh": True}, ["amp_dtype", "amp_fresh"]),
        ({"feature_batches": 2, "amp": False, "amp_fresh": False}, ["amp_dtype", "amp_fresh"]),
    ],
)
def test_precision_of_passes_that_are_not_made_is_idle(values, idle):
    assert [told.split()[0] for told in idle_options(["amp_fresh", "amp_dtype"], values)] == idle


def test_a_cuda_graph_on_a_processor_is_told(study, caplog):
    check(study, cuda_graph=True, device="cpu")
    assert "cuda_graph changes nothing where cuda_graph is True and device is 'cpu'" in caplog.text
    caplog.clear()
    check(study, cuda_graph=False, device="cpu")
    assert "cuda_graph" not in caplog.text


def test_an_output_that_is_a_file(study):
    (study.parent / "taken").touch()
    tells(
        check(study, output_dir=str(study.parent / "taken")),
        "cannot write to output_dir .*/taken: File exists; name another folder with --output_dir",
    )


def test_ids_of_an_overlay_that_something_uses_are_fine(study):
    more = {
        "rate": 1e-3,
        "learning_rate": "$@rate / 2",
        "_note": "a text",
        "extra": {"_target_": "Identity"},
        "go": ["$1"],
    }
    assert not told(check(study, **more))


def test_words_of_the_command_line_are_what_they_mean_in_json(study):
    parser = check(study, ema="false", dls="true", caw="false", resume="false", cache_dir="null", image_root="null")
    assert [parser.get_parsed_content(name) for name in ("ema", "dls", "caw", "cache_dir")] == [
        False,
        True,
        False,
        None,
    ]


def rule(**changed):
    """The tasks of the bundle, one of them with other rules."""
    tasks = json.loads((bundle_folders()["brain_age"] / "configs/train.json").read_text())["tasks"]
    return [tasks[0], {**tasks[1], **changed}, tasks[2]]


@pytest.mark.parametrize(
    ("changed", "messages"),
    [
        ({"negative": ["male"]}, [r"the rules \['male'\] and \['male'\] overlap"]),
        ({"negative": "< 51", "positive": "> 40"}, ["the rules < 51 and > 40 overlap"]),
        ({"positive": "male"}, ["class 1: expected a list of values .*, got 'male'"]),
        (
            {"positive": ["m"]},
            [r"the rule \['m'\] of task 'sex' matches no row; the column holds 'female' \(36\), 'male'"],
        ),
        ({"positive": ["m"], "negative": ["f"]}, [r"the rules \['f'\] and \['m'\] of task 'sex' match no row"]),
        ({"positive": []}, ["class 1: expected at least one value, got an empty list"]),
        ({"positve": ["male"]}, [r"unknown key \['positve'\]"]),
        ({"column": "gender"}, ["labels.csv has no column 'gender': it has 'image', 'subject', 'age', 'sex'"]),
        ({"name": "image"}, ["the name 'image' is reserved"]),
        ({"name": "dataset"}, ["every task to have its own name, got 'dataset' twice"]),
        ({"negative": 3, "positive": 4}, ["class 0: expected a list .*, got 3", "class 1: expected a list .*, got 4"]),
        (
            {"negative": "young", "column": ""},
            ["'column' to be a text, got ''", "class 0: expected a list .*, got 'young'"],
        ),
    ],
)
def test_wrong_tasks(study, changed, messages):
    tells(check(study, tasks=rule(**changed)), *messages)


def rewrite(study, change):
    change(pd.read_csv(study / "labels.csv")).to_csv(study / "labels.csv", index=False)


def put(column, value, rows=slice(0, 1)):
    def change(table):
        table[column] = table[column].astype(object)
        table.loc[table.index[rows], column] = value
        return table

    return change


TABLES = {
    "no image column": (lambda t: t.drop(columns="image"), ["no column 'image': it has 'subject', 'age'"]),
    "three columns missing": (
        lambda t: t.drop(columns=["image", "sex", "age"]),
        ["no column 'image', 'age', 'sex': it has 'subject', 'dataset', 'split'"],
    ),
    "nothing known": (lambda t: t[["split"]].rename(columns={"split": "x"}), ["separator a comma"]),
    "no rows": (lambda t: t[:0], ["labels.csv is empty: it has a header and no rows"]),
    "one class": (lambda t: t.assign(sex="male"), [r"the rule \['female'\] of task 'sex' matches no row"]),
    "an unknown split": (
        put("split", "dev", slice(1, 4)),
        [r"line 3, column 'split': .*, got 'dev' \(and in 2 more rows\)"],
    ),
    "blank splits": (put("split", None), ["line 2, column 'split': expected train, val or test, got a blank"]),
    "no validation": (lambda t: t[t.split != "val"], ["'select' comes from the partition 'val'", "'probe' comes from"]),
    "a subject in all splits": (
        lambda t: t.assign(subject="s1"),
        [r"subject 's1' stands in the splits 'train' and 'val' and 'test' \(2 such\)"],
    ),
    "blank subjects": (
        put("subject", None, slice(4, 6)),
        [r"line 6: column 'subject' is blank \(and in 1 more rows\)"],
    ),
    "a blank image": (put("image", " "), ["line 2: column 'image' is blank: every row needs one"]),
    "an image of two subjects": (
        put("image", "images/1.png"),
        [r"1\.png belongs to two subjects, 's0' and 's1' \(1 such\): give each image one subject"],
    ),
    "ages in words": (
        put("age", "old", slice(0, 7)),
        [r"line 2, column 'age': the rule '< 51' of task 'age_group' compares numbers, .*'old' \(and in 6 more rows\)"],
    ),
    "ages without numbers": (
        lambda t: t.assign(age="fifty"),
        [r"compares numbers, but the value is 'fifty' \(and in 71 more"],
    ),
    "no age": (
        lambda t: t.assign(age=None),
        ["the rules < 51 and > 57 of task 'age_group' match no row; .*only blanks"],
    ),
    "ages between": (
        lambda t: t.assign(age=t.age.clip(52, 55)),
        ["rules < 51 and > 57 of task 'age_group' match no row"],
    ),
    "an empty combination": (
        lambda t: t[~((t.split == "train") & (t.age > 57) & (t.sex == "female") & (t.dataset == "NAKO"))],
        [r"subset 'train' .*: it has 1 row.s., .* since there are none with \(age_group=1, sex=0, dataset=0\)"],
    ),
    "a test set of one class": (
        lambda t: t[(t.split != "test") | (t.age < 51)],
        [
            f"subset '{name}' .*, 12 rows.: it has 1 row.s., fewer than 'age_group' has classes"
            for name in ("val", "inv", "bal")
        ],
    ),
    "an image elsewhere": (
        put("image", "/etc/hostname"),
        [
            r"line 2, column 'image': '/etc/hostname' leads out of /.*/study: move the images below it, or name .*image_root"
        ],
    ),
    "an image above": (
        put("image", "../x.png", slice(0, 3)),
        [r"'\.\./x\.png' leads out of .* \(and in 2 more rows\)"],
    ),
    "a folder above": (put("image", ".."), ["'..' leads out of"]),
    "missing images": (
        lambda t: t.assign(image=t.image.where(t.index > 4, t.image + "x")),
        [
            r"labels.csv: 5 of 72 image files do not exist: .*0\.pngx, .*1\.pngx, .*2\.pngx, \.\.\. \(relative names start"
        ],
    ),
    "much at once": (
        lambda t: put("subject", None)(put("image", "no.png", slice(3, 5))(put("split", "x", slice(6, 7))(t))).drop(
            columns="sex"
        ),
        [
            "no column 'sex'",
            "line 2: column 'subject' is blank",
            "1 of 72 image files do not exist",
            "line 8, column 'split'",
        ],
    ),
}


@pytest.mark.parametrize("case", TABLES)
def test_wrong_tables(study, case):
    change, messages = TABLES[case]
    rewrite(study, change)
    problems = check(study)
    tells(problems, *messages)
    assert all("labels.csv" in text or "subset" in text or "sampling" in text for text in told(problems))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "labels.csv is empty: expected a header"),
        (
            b"image;subject;age;sex;dataset\na;1;40;male;UKB\n",
            r"it has 'image;subject;age;sex;dataset' \(is the separator a comma",
        ),
        (
            "image,subject,age,sex,dataset\na,J\xfcrg,40,male,UKB\n".encode("latin-1"),
            "is not in UTF-8 in line 2, after 'a,J'",
        ),
        (b'image,subject,age,sex,dataset\n"a,1,40,male,UKB\n', "cannot be read as CSV in UTF-8"),
        (b"image,subject,age,sex,dataset,sex\na,1,40,male,UKB,male\n", "has the column 'sex' twice: rename one"),
        (bytes(range(256)) * 4, "labels.csv is not in UTF-8"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 99, "labels.csv is not in UTF-8 in line 1: save"),
    ],
)
def test_files_that_are_no_such_table(study, content, message):
    (study / "labels.csv").write_bytes(content)
    tells(check(study), message)


def test_a_folder_in_place_of_the_table(study):
    (study / "labels.csv").unlink()
    (study / "labels.csv").mkdir()
    tells(check(study), "no table at .*labels.csv: expected a CSV file")


def replace(path, change):
    content = path.read_bytes()
    path.unlink()  # the images are links to one
    path.write_bytes(change(content))


DAMAGES = {
    "cut in half": (lambda content: content[: len(content) // 2], "it cannot be read as an image"),
    "header only": (lambda content: content[:60], "it cannot be read as an image"),
    "empty": (lambda content: b"", r"it cannot be read as an image \(the file is empty"),
    "not an image": (lambda content: b"not an image, but a text" * 50, "it cannot be read as an image"),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", WRITERS)
def test_damaged_images(tmp_path, kind, damage):
    study = make_study(tmp_path / "study", kind)
    change, message = DAMAGES[damage]
    for number in range(0, 72, 6):
        replace(study / f"images/{number}.{kind}", change)
    shown = rf"/.*/images/\d+\.{kind}: {message}.*; " * 3
    tells(
        check(study, **{"preflight#decode": 1}),
        rf"^12 of 72 images looked at cannot be used: {shown}\.\.\. \(replace them",
    )


def test_a_folder_in_place_of_an_image(study):
    (study / "images/7.png").unlink()
    (study / "images/7.png").mkdir()
    tells(check(study), r"1 of 72 images looked at cannot be used: .*images/7\.png: it cannot be read as an image")


def volume(values):
    return lambda path: nib.save(nib.Nifti1Image(values.astype(np.float32), np.eye(4)), path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (volume(np.full((20, 20, 1), 7)), "after the transforms all its pixels are 0"),
        (volume(np.where(np.arange(400).reshape(20, 20, 1) == 9, np.nan, 1.0)), "it holds NaN or infinite pixels"),
        (volume(np.ones((20, 20, 2, 3))), "expected one channel, got 3|cannot be read as an image"),
        (volume(np.ones(20)), "it cannot be read as an image"),
    ],
)
def test_images_that_are_whole_and_of_no_use(tmp_path, damage, message):
    study = make_study(tmp_path / "study", "nii")
    (study / "images/7.nii").unlink()
    damage(study / "images/7.nii")
    tells(check(study, **{"preflight#decode": 72}), rf"1 of 72 images looked at .*images/7\.nii: .*{message}")


def test_a_volume_among_flat_images_is_told_from_its_header(tmp_path):
    study = make_study(tmp_path / "study", "nii")
    (study / "images/7.nii").unlink()
    volume(np.random.default_rng(0).random((20, 20, 5)))(study / "images/7.nii")
    overlay = {"load#transforms": [{"_target_": "LoadGrayscaled", "keys": "image", "spatial_dims": 2}]}
    for decoded in (1, 72):
        tells(
            check(study, **{"preflight#decode": decoded}, **overlay),
            r"^1 of 72 images looked at cannot be used: .*7\.nii: .*expected an image of 2 axes, got 20x20x5",
        )


def test_a_doubtful_end_is_decoded_before_it_is_told(tmp_path):
    study = make_study(tmp_path / "study", "nii.gz")
    two = gzip.compress(b"")  # a second member, as block compression writes: its size is not that of the whole
    replace(study / "images/7.nii.gz", lambda content: content + two)
    assert not told(check(study))


def test_headers_within_the_time(study, caplog):
    with caplog.at_level("INFO", logger="monai_mimmx"):
        assert not told(check(study, **{"preflight#seconds": 0}))
    assert re.search(r"headers of 64 of 72 images read in \d+\.\d s; the rest is checked when decoded", caplog.text)


def test_cached_images_are_not_read_again(study, caplog):
    parser = check(study, cache_dir=str(study / "cache"))
    parser.get_parsed_content("images")
    with caplog.at_level("INFO", logger="monai_mimmx"):
        assert not told(check(study, cache_dir=str(study / "cache")))
    assert "all images were decoded before, in " in caplog.text and "headers" not in caplog.text
    caplog.clear()
    (stored,) = (study / "cache").glob("*.npy")
    np.save(stored, np.zeros((72, 1, 4, 4), dtype=np.float16))  # as by other transforms under the same key
    with caplog.at_level("INFO", logger="monai_mimmx"):
        assert not told(check(study, cache_dir=str(study / "cache")))
    assert "headers of all images" in caplog.text and "decoded before" not in caplog.text


def test_all_is_told_at_once(study):
    rewrite(study, lambda t: put("age", "old")(t).drop(columns="dataset"))
    (study / "images/9.png").unlink()
    replace(study / "images/10.png", lambda content: content[:100])
    problems = check(study, n_b=0, lamda_mi=3, ema="perhaps", output_dir="/proc/out")
    tells(
        problems,
        "nothing uses the option 'lamda_mi'",
        "n_b, the estimator steps",
        "ema must be True or False, got 'perhaps'",
        "cannot write to output_dir /proc/out",
        "line 2, column 'age'",
        "no column 'dataset'",
        "1 of 72 image files do not exist",
        r"1 of 71 images looked at cannot be used: .*10\.png",
    )
    assert str(problems).startswith("8 problems:\n  1. ")


def test_a_wrong_rule_does_not_hide_the_table(study):
    rewrite(study, put("image", "absent.png"))
    problems = check(study, tasks=rule(negative="male"), agreement=2)
    tells(problems, "class 0: expected a list", "agreement must", "1 of 72 image files do not exist")


def test_a_cohort_is_not_written_for_wrong_options(tmp_path):
    problems = check(tmp_path / "x", dataset_dir=None, cohort_dir=str(tmp_path / "cohort"), n_b=0)
    tells(problems, "n_b, the estimator steps")
    assert not (tmp_path / "cohort").exists()


@pytest.mark.parametrize("bundle", ["pleural_effusion", "pleural_effusion_natural"])
def test_the_table_of_another_data_set(tmp_path, bundle):
    folder = make_study(tmp_path / "study")
    (folder / "labels.csv").rename(folder / "train.csv")
    problems = check(folder, bundle=bundle, device="cpu")
    tells(problems, r"train.csv has no column 'Path', 'Sex', 'Age', .*: it has 'image', .*; CheXpert's table has them")


@pytest.mark.parametrize("bundle", ["pleural_effusion", "pleural_effusion_natural"])
def test_policies_of_chexpert(tmp_path, bundle):
    folder = make_study(tmp_path / "study")
    more = {
        "uncertain": "maybe",
        "blank": "never",
        "fractions": [0.5, 0.6, 0.2],
        "refine_epochs": -1,
        "refine_detach_z": "no",
        "refine_lambda_mi": -2,
        "refine_feature_batches": -1,
        "refine_learning_rate": 0,
        "cod_columns": ["Flu"],
    }
    problems = check(folder, bundle=bundle, device="cpu", **more)
    tells(
        problems,
        "uncertain must be 'exclude', 'zero' or 'one', got 'maybe'",
        "blank must be 'no_finding', 'zero' or 'exclude', got 'never'",
        r"fractions must be three fractions, of train, val and test, that sum to 1, got \[0.5",
        "refine_epochs must be 0 or more, got -1",
        "cod_columns among .*, got 'Flu'",
        "refine_detach_z must be True or False, got 'no'",
        "refine_lambda_mi must be .*0 or more, got -2",
        "refine_feature_batches must be .*0 or more, got -1",
        "refine_learning_rate must be .*above 0, got 0",
    )


def test_check_only_ends_without_a_trace(study, capsys):
    before = {path for path in study.parent.rglob("*")}
    with pytest.raises(SystemExit) as ended:
        check(study, check_only="true", output_dir=str(study.parent / "new" / "output"))
    assert ended.value.code == 0
    assert {path for path in study.parent.rglob("*")} == before
    printed = capsys.readouterr().out
    assert "nothing is wrong" in printed and "headers of all images read" in printed and "P(sex=age_group)" in printed


@pytest.mark.parametrize(("n_b", "status"), [(6, 0), (0, 1)])
def test_check_only_tells_a_scheduler_by_its_status(study, n_b, status):
    root = bundle_folders()["brain_age"]
    given = {
        "bundle_root": root,
        "dataset_dir": study,
        "output_dir": study / "output",
        "check_only": "true",
        "n_b": n_b,
    }
    words = ["-m", "monai.bundle", "run", "--config_file", root / "configs/train.json"]
    words += [word for name, value in given.items() for word in (f"--{name}", value)]
    words += [word for name, value in SMALL.items() for word in (f"--{name}", str(value))]
    ended = subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True, timeout=300)
    assert ended.returncode == status, ended.stderr
    assert ("nothing is wrong" in ended.stdout) is (status == 0)
    cause = "n_b, the estimator steps per encoder batch, must be 1 or more, got 0."
    assert (ended.stderr.splitlines()[-1:] == [cause]) is (status == 1)
    assert not (study / "output").exists()


def test_a_run_from_elsewhere_is_told_of_the_bundle_s_folder_and_of_nothing_else(study, monkeypatch):
    monkeypatch.chdir(study)
    problems = check(study, bundle_root=".", output_dir=str(study / "output"))
    tells(problems, r"bundle_root is '\.', where configs/train.json is missing: run in the bundle's folder, or pass")
    assert not (study / "output").exists()


def test_an_augmentation_that_refuses_the_images_is_told_before_they_are_decoded(study):
    problems = check(study, **{"train#prepare_batch#augment#max_shift": 40})
    tells(problems, r"train#prepare_batch cannot take images of shape \(1, 16, 16\): .*above max_shift=40")


def test_only_the_first_process_checks(study):
    parser = ConfigParser({"n_b": 0, "ema": "false", "preflight": {"_target_": "Preflight"}, "go": "$@preflight(1)"})
    parser.get_parsed_content("go")
    assert parser.get_parsed_content("ema") is False
    parser = ConfigParser({"check_only": True, "preflight": {"_target_": "Preflight"}, "go": "$@preflight(1)"})
    with pytest.raises(SystemExit):
        parser.get_parsed_content("go")


def test_outside_of_a_config_and_wrong_settings():
    with pytest.raises(RuntimeError, match="called by an expression of a config"):
        Preflight()()
    with pytest.raises(ValueError, match="seconds and decode of 0 or more, got -1 and 8"):
        Preflight(seconds=-1)


def test_every_bundle_declares_it_alike():
    for root in bundle_folders().values():
        configs = {
            name: json.loads((root / f"configs/{name}.json").read_text())
            for name in ("train", "multi_gpu_train", "evaluate")
        }
        train = configs["train"]
        assert (
            train["check_only"] is False
            and train["image_root"] is None
            and train["preflight"] == {"_target_": "Preflight"}
        )
        steps = train["initialize"]
        (seeding,) = (number for number, step in enumerate(steps) if "set_determinism" in step)
        assert steps[1] == "$@preflight()" and seeding > 1
        assert configs["multi_gpu_train"]["initialize"][1] == "$@preflight(@rank)"
        assert configs["evaluate"]["preflight#checkpoint"] == "@ckpt"
        missing = {name for name in train["settings"] if name in RULES} - {*train}
        assert not missing


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=6),
    st.lists(st.one_of(st.floats(), st.text(max_size=3)), max_size=4),
    st.dictionaries(st.text(max_size=5), st.one_of(st.integers(), st.text(max_size=3)), max_size=3),
)


@settings(max_examples=300, deadline=None)
@given(name=st.sampled_from(sorted(RULES)), value=VALUES)
def test_any_value_is_right_or_refused_by_name(name, value):
    for error in option_problems(**{name: value}):
        assert str(error).startswith(name) and str(error).endswith(f"got {value!r}.")


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(["lambda_mi", "feature_dim", "learning_rate", "subset_sizes", "image_column"]), data=st.data()
)
def test_a_slip_of_the_finger_is_told_with_the_name_that_was_meant(tmp_path, name, data):
    place = data.draw(st.integers(1, len(name) - 2))
    letter = data.draw(st.sampled_from("abcxyz"))
    slip = name[:place] + letter + name[place + data.draw(st.sampled_from([0, 1])) :]
    if slip == name:
        return
    problems = check(tmp_path / "absent", **{slip: 1})
    assert any(text == f"nothing uses the option {slip!r}: did you mean {name!r}?" for text in told(problems)), told(
        problems
    )


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(0, 2000), kind=st.sampled_from(["png", "jpg", "nii", "nii.gz", "dcm"]))
def test_no_truncation_passes_that_the_decoder_refuses(tmp_path_factory, cut, kind):
    folder = tmp_path_factory.mktemp("cut")
    whole = folder / f"whole.{kind}"
    WRITERS[kind](whole)
    content = whole.read_bytes()
    part = folder / f"part.{kind}"
    part.write_bytes(content[: cut % len(content)])
    transform = monai_mimmx.transforms.LoadGrayscaled("image")
    try:
        transform({"image": str(part)})
    except Exception:
        assert monai_mimmx.data.headers.image_axes(part) is None
    shutil.rmtree(folder)


@pytest.mark.parametrize("missing", [1, 2, 4])
def test_a_dicom_image_that_lacks_its_last_bytes_is_not_whole(tmp_path, missing):
    WRITERS["dcm"](tmp_path / "whole.dcm")
    assert monai_mimmx.data.headers.image_axes(tmp_path / "whole.dcm") == 2
    (tmp_path / "part.dcm").write_bytes((tmp_path / "whole.dcm").read_bytes()[:-missing])
    assert monai_mimmx.data.headers.image_axes(tmp_path / "part.dcm") is None


def test_a_finished_cache_need_not_be_written(study, monkeypatch):
    cache = study / "cache"

    def refuse(folder, option="output_dir", **more):
        if option == "cache_dir":
            raise OSError(f"cannot write to cache_dir {folder}: Read-only file system")

    monkeypatch.setattr("monai_mimmx.preflight.check_writable", refuse)
    assert told(check(study, cache_dir=str(cache))) == [f"cannot write to cache_dir {cache}: Read-only file system"]
    monkeypatch.undo()
    check(study, cache_dir=str(cache)).get_parsed_content("images")
    monkeypatch.setattr("monai_mimmx.preflight.check_writable", refuse)
    assert not told(check(study, cache_dir=str(cache)))


def test_a_folder_that_a_table_of_its_own_makes_useless_is_told(study, caplog):
    problems = check(study, table=str(study / "labels.csv"), dataset_dir="/nowhere")
    assert not told(problems)
    assert "dataset_dir changes nothing: what uses it in configs/train.json has been replaced" in caplog.text


def test_a_folder_without_a_name(study):
    tells(check(study, output_dir=""), "output_dir must be the name of a folder, got ''")
