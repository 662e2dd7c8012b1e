# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""What a user can get wrong in a bundle's options, table or images, and the one error that tells it."""

import json
import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from ignite.engine import Events
from PIL import Image
from runs import ROOT, options, train, workflow

from monai_mimmx.data import write_brain_cohort, write_chest_cohort
from monai_mimmx.errors import Problems, root_cause


def fails(error, message, *arguments, **more):
    """Train, and check that nothing but this is told to be wrong."""
    with pytest.raises(Exception) as caught:
        train(*arguments, **more)
    problems = root_cause(caught.value)
    assert isinstance(problems, Problems)
    with pytest.raises(error, match=message) as cause:
        raise problems.errors[0]
    assert cause.type is error and (len(problems.errors) == 1 or all("subset" in str(e) for e in problems.errors))


@pytest.mark.parametrize(
    ("more", "error", "message"),
    [
        ({"n_b": 0}, ValueError, "n_b, the estimator steps per encoder batch, must be 1 or more, got 0"),
        ({"lambda_mi": -1.0}, ValueError, "lambda_mi must be 0 or more, got -1.0"),
        ({"feature_dim": 0}, ValueError, "feature_dim must be 1 or more, got 0"),
        ({"method": "magic"}, ValueError, "method must be .* got 'magic'"),
        ({"sampling": "fair"}, ValueError, "sampling must be 'correlated' or 'balanced', got 'fair'"),
        ({"caw": "terms", "estimator": "joint"}, ValueError, "needs one term per factor"),
        ({"dataset_dir": "/nowhere"}, FileNotFoundError, "no table at /nowhere/labels.csv"),
        ({"agreement": 1.5}, ValueError, "agreement must be a number from 0 to 1 or 'natural', got 1.5"),
    ],
)
def test_wrong_options_are_told(more, error, message, folders, tmp_path):
    fails(error, message, "brain_age", folders, tmp_path / "output", **more)
    assert not (tmp_path / "output/metrics.json").exists()


def test_output_that_cannot_be_written_is_told_before_anything_is_made(folders, tmp_path):
    (tmp_path / "file").touch()
    more = {"cohort_dir": str(tmp_path / "cohort")}
    message = r"cannot write to output_dir .*file/output: Not a directory; name another folder with --output_dir"
    fails(OSError, message, "brain_age", folders, tmp_path / "file/output", **more)
    assert not (tmp_path / "cohort").exists()


@pytest.fixture
def own(tmp_path, folders):
    """A user's own folder of images and table, small."""
    made = write_brain_cohort(folders / "brain_age" / "cohort", scale=0.02, seed=1, progress=False)
    shutil.copytree(made.parent, tmp_path / "own")
    return tmp_path / "own"


def rewrite(own, change):
    table = change(pd.read_csv(own / "labels.csv"))
    table.to_csv(own / "labels.csv", index=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.drop(columns="sex"),
            "labels.csv has no column 'sex': it has 'image', 'subject', 'age', 'dataset'",
        ),
        (lambda t: t.iloc[:0], "labels.csv is empty: it has a header and no rows"),
        (lambda t: t.assign(sex="male"), r"\['female'\] of task 'sex' matches no row; .*'male'"),
        (lambda t: t[t.age > 57], "column 'age': the rule < 51 of task 'age_group' matches no row"),
        (lambda t: t.assign(subject="s1"), "subject 's1' stands in the splits 'test' and 'train' and 'val'"),
        (lambda t: t.assign(age="old"), "labels.csv, line 2, column 'age': .* 'old'"),
        (
            lambda t: t[(t.sex == "male") == (t.age > 57)],
            r"subset 'train' .*: there are no rows with \(age_group=0, sex=1, dataset=0\), without which a correlated subset",
        ),
    ],
)
def test_bad_tables(own, folders, tmp_path, change, message):
    rewrite(own, change)
    fails(ValueError, message, "brain_age", folders, tmp_path / "output", dataset_dir=str(own))
    assert not list((tmp_path / "output").iterdir())


def volume(values):
    return lambda path: nib.save(nib.Nifti1Image(values.astype(np.float32), np.diag([1.6, 1.6, 6.0, 1.0])), path)


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (lambda path: path.unlink(), FileNotFoundError, r"labels.csv: \d+ of \d+ image files do not exist: .*\.nii"),
        (
            lambda path: path.write_bytes(path.read_bytes()[:9000]),
            ValueError,
            "{}it cannot be read as an image .*Expected 52272 bytes",
        ),
        (lambda path: path.write_text("not an image"), ValueError, "{}it cannot be read as an image"),
        (volume(np.full((9, 9, 3), 7)), ValueError, "{}after the transforms all its pixels are 0"),
        (
            volume(np.where(np.arange(243).reshape(9, 9, 3) == 100, np.nan, 1.0)),
            ValueError,
            "{}it holds NaN or infinite pixels",
        ),
    ],
)
def test_bad_images(own, folders, tmp_path, damage, error, message):
    for path in sorted((own / "images").iterdir())[::2]:
        damage(path)
    message = message.format(r"\d+ of \d+ images looked at cannot be used: /.*own/images/sub-\d+\.nii: ")
    more = {"dataset_dir": str(own), "cache_dir": str(tmp_path / "cache")}
    fails(error, message, "brain_age", folders, tmp_path / "output", **more)
    left = [path for path in (tmp_path / "cache").glob("*")] if (tmp_path / "cache").exists() else []
    assert not [path for path in left if path.suffix == ".npy"]


@pytest.fixture
def films(tmp_path, folders):
    """A user's own download in CheXpert's layout, small, under the folder name that its table does not tell."""
    cohort = folders / "pleural_effusion" / "cohort"
    made = write_chest_cohort(cohort, composition="induced", scale=0.06, seed=1, progress=False)
    shutil.copytree(made.parent, tmp_path / "CheXpert-v1.0-small")
    return tmp_path


def films_table(films):
    return next(films.rglob("train.csv"))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            lambda t: t.rename(columns={"Path": "dicom_id", "Sex": "gender"}),
            ValueError,
            "train.csv has no column 'Path', 'Sex': it has 'dicom_id', .*; CheXpert's table has them",
        ),
        (
            lambda t: t.assign(Path="CheXpert-v1.0/train/" + t.Path.str.split("/").str[-3] + "/x.jpg"),
            FileNotFoundError,
            r"train.csv: \d+ of \d+ image files do not exist: .*x\.jpg, .*x\.jpg, .*x\.jpg, \.\.\. ",
        ),
        (lambda t: t.assign(Path="a.jpg"), ValueError, "expected a Path with a patient, such as .*, got 'a.jpg'"),
        (lambda t: t.assign(Age="unknown"), ValueError, "train.csv, line 2, column 'Age': .* 'unknown'"),
        (lambda t: t.assign(Age=55), ValueError, "column 'Age': the rules < 50 and > 60 of task 'age' match no row"),
        (
            lambda t: t.assign(Sex="Unknown"),
            ValueError,
            r"no row of \d+ is left; excluded: \d+ not a frontal view, \d+ Sex is Unknown",
        ),
        (
            lambda t: t.assign(**{"Pleural Effusion": -1.0}),
            ValueError,
            r"no row of \d+ is left; excluded: .*\d+ Pleural Effusion is uncertain",
        ),
        (
            lambda t: t.assign(**{"Frontal/Lateral": "Lateral"}),
            ValueError,
            r"no row of (\d+) is left; excluded: \1 not a frontal view",
        ),
    ],
)
def test_bad_films_tables(films, folders, tmp_path, change, error, message):
    path = films_table(films)
    change(pd.read_csv(path)).to_csv(path, index=False)
    fails(error, message, "pleural_effusion", folders, tmp_path / "output", dataset_dir=str(films))
    assert not list((tmp_path / "output").iterdir())


def test_a_truncated_film_is_named_and_leaves_no_cache(films, folders, tmp_path):
    for path in sorted(films.rglob("*.jpg"))[::2]:
        path.write_bytes(path.read_bytes()[:600])
    message = r"20\d or more of [\d,]+ images looked at cannot be used: /.*patient\d+/study\d/view\d_frontal\.jpg: it cannot be read"
    more = {"dataset_dir": str(films), "cache_dir": str(tmp_path / "cache")}
    fails(ValueError, message, "pleural_effusion", folders, tmp_path / "output", **more)
    assert not list((tmp_path / "cache").glob("*.npy"))


def test_films_of_other_modes_give_the_same_images(films, folders, tmp_path):
    def images(name):
        more = {"dataset_dir": str(films), "cache_dir": str(tmp_path / name)}
        made = workflow("pleural_effusion", "train", **options("pleural_effusion", folders, tmp_path / "out", **more))
        data = made.parser.get_parsed_content("train#dataset")
        return data.__getitems__(range(40))["image"], data.files(range(40))

    grey, files = images("grey")
    for number, path in enumerate(map(Path, files)):
        values = np.asarray(Image.open(path))
        other = (
            Image.fromarray(values).convert("RGB") if number % 2 else Image.fromarray(values.astype(np.uint16) * 257)
        )
        other.save(path, format="PNG")
    other, again = images("other")
    assert again == files
    np.testing.assert_allclose(other, grey, atol=0.05)


def test_a_third_class_without_a_rule_is_excluded_and_counted(own, folders, tmp_path, capsys):
    def change(table):
        extra = table[::10].assign(dataset="GNC", subject=lambda t: t.subject + "-g", image=lambda t: t.image)
        extra["image"] = [f"images/{name}.nii" for name in extra.subject]
        for image, source in zip(extra.image, table.image[::10]):
            shutil.copy(own / source, own / image)
        return pd.concat([table, extra], ignore_index=True)

    rewrite(own, change)
    metrics = train("brain_age", folders, tmp_path / "output", dataset_dir=str(own), epochs=1)
    assert any("dataset" in reason and count > 10 for reason, count in metrics["excluded"].items()), metrics["excluded"]


def test_names_of_tasks_and_classes_are_text_wherever_they_go(own, folders, tmp_path):
    """Into report, card, pictures and TensorBoard they go; into paths and as HTML or mathematics never."""
    hostile = "<script>alert(1)</script>/../../$x_{ `|`"
    rewrite(own, lambda t: t.assign(sex=t.sex.replace("male", hostile)))
    tasks = json.loads((ROOT / "brain_age/configs/train.json").read_text())["tasks"]
    tasks[1] |= {"name": hostile, "positive": [hostile]}
    before = {path.name for path in tmp_path.rglob("*")}
    train("brain_age", folders, tmp_path / "output", dataset_dir=str(own), tasks=tasks, epochs=1, cache_dir=None)
    told = {name: (tmp_path / "output" / name).read_text() for name in ("report.html", "model_card.md", "metrics.json")}
    assert "<script" not in told["report.html"] + told["model_card.md"] and "&lt;script" in told["report.html"]
    assert hostile in json.loads(told["metrics.json"])["task_names"]
    assert not [
        path for path in {path.name for path in tmp_path.rglob("*")} - before if "script" in path or "$" in path
    ]


def test_batches_that_lack_a_class_train(folders, tmp_path):
    more = {"conditional": True, "sampling": "correlated", "batch_size": 3, "epochs": 1, "n_b": 1}
    metrics = train("brain_age", folders, tmp_path, **more)
    assert np.isfinite(metrics["mi"])


def test_a_run_that_fails_leaves_nothing_of_an_earlier_one(folders, tmp_path):
    train("brain_age", folders, tmp_path)
    made = {path.name for path in tmp_path.rglob("*.*")}
    whole = {"metrics.json", "report.html", "model_card.md", "model.pt", "predictions_bal.npz", "samples.png"}
    assert whole <= made
    more = {"learning_rate": 1e30, "train#trainer#max_grad_norm": None, "epochs": 4}
    with pytest.raises(Exception, match="Failed to evaluate"):
        train("brain_age", folders, tmp_path, **more)
    left = {path.name for path in tmp_path.rglob("*.*")}
    assert not whole & left and not [name for name in left if name.endswith((".png", ".npz"))]


def test_an_earlier_checkpoint_of_more_epochs_is_told_before_the_start(folders, tmp_path):
    train("brain_age", folders, tmp_path, epochs=3, method="baseline")
    message = "is of epoch 3: go on with epochs of 3 or more, .*got epochs 2"
    fails(ValueError, message, "brain_age", folders, tmp_path, epochs=2, method="baseline", resume=True)


def test_a_loss_that_turns_nan_stops_and_keeps_the_checkpoint(folders, tmp_path):
    made = workflow("brain_age", "train", **options("brain_age", folders, tmp_path, epochs=4))
    trainer, network = (made.parser.get_parsed_content(name) for name in ("train#trainer", "network"))
    made.parser.get_parsed_content("checkpoint").attach(trainer)

    def spoil(engine):
        if engine.state.epoch == 3:
            next(network.parameters()).data.fill_(float("nan"))

    trainer.add_event_handler(Events.EPOCH_STARTED, spoil)
    message = r"the loss is nan in epoch 3, .*or train anew with a lower learning_rate.* most extreme first: (.*?), .* in the log"
    with pytest.raises(FloatingPointError, match=message) as caught:
        trainer.run()
    assert str(caught.value).endswith(
        f"The last checkpoint is {tmp_path}/models/state_checkpoint_epoch=2.pt, from which --resume true goes on."
    )
    assert Path(re.search(message, str(caught.value))[1]).is_file()
    saved = sorted(path.name for path in tmp_path.glob("models/state*"))
    assert saved == ["state_checkpoint_epoch=1.pt", "state_checkpoint_epoch=2.pt"]
    assert (tmp_path / "models/model.pt").is_file()
    assert [json.loads(line)["epoch"] for line in (tmp_path / "history.jsonl").open()] == [1, 2]
