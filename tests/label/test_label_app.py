# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""The MONAI Label app by its REST interface: what it gives, and what it refuses."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import TINY, untrained
from PIL import Image

pytest.importorskip("monailabel", reason="MONAI Label is not installed: pip install 'monai_mimmx[label]'")

CLASSES = {"age_group": ("< 51", "> 57"), "sex": ("female", "male")}
FAST = {"max_epochs": 2, "batch_size": 8, "device": "cpu"}


def label_of(image):
    """The label that the name of a picture states; every fourth leaves the factor blank."""
    y, z = int(image[8]), int(image[11])
    label = {"age_group": CLASSES["age_group"][y], "sex": CLASSES["sex"][z], "dataset": ("NAKO", "UKB")[z]}
    return label | ({"sex": None} if int(image[4:6]) % 4 == 3 else {})


def save(client, image, label, **more):
    return client.put(
        "/datastore/label",
        params={"image": image} | more,
        files={"label": ("label.json", label if isinstance(label, str) else json.dumps(label))},
    )


def save_all(client, study, keep=lambda name: True):
    for path in sorted(study.glob("*.png")):
        if keep(path.stem):
            assert save(client, path.stem, label_of(path.stem)).status_code == 200


def refused(response, status, *parts):
    """A refusal with its status and a message that holds all parts."""
    assert response.status_code == status, response.text
    message = response.json()["detail"]
    for part in parts:
        assert part in message


def infer(client, image, /, model="brain_age", **params):
    return client.post(
        f"/infer/{model}", params={"image": image, "output": "json"}, data={"params": json.dumps(params)}
    )


@pytest.mark.parametrize("bundle", TINY)
def test_every_bundle_is_served(bundle, serve, study):
    client = serve(study, bundle)
    info = client.get("/info/").json()
    assert list(info["models"]) == list(info["trainers"]) == [bundle]
    assert set(info["strategies"]) == {"random", "shortcut", "rare_cell"}
    assert info["datastore"]["total"] == 24
    result = infer(client, "case00_y0_z0", bundle).json()
    for entries in (result["prediction"], *result["factors"].values()):
        assert [entry["idx"] for entry in entries] == list(range(len(entries)))
        assert sum(entry["score"] for entry in entries) == pytest.approx(1)
    assert [entry["label"] for entry in result["prediction"]] == info["labels"]
    assert list(result["factors"]) == list(result["attention"]) == list(info["models"][bundle]["factors"])
    assert sum(result["attention"].values()) == pytest.approx(1)


def test_a_bundle_folder_elsewhere_with_its_model_in_it_is_served(serve, study, tmp_path):
    import shutil

    from conftest import ROOT

    copy = shutil.copytree(ROOT / "bundles/brain_age/configs", tmp_path / "mine/configs").parent
    (copy / "models").mkdir()
    untrained("brain_age", copy / "models/model.pt")
    client = serve(study, str(copy), trained=False, options=TINY["brain_age"])
    assert infer(client, "case00_y0_z0", "mine").status_code == 200


def test_the_whole_cycle(serve, study, tmp_path):
    client = serve(study)
    image = "case00_y0_z0"
    before = infer(client, image).json()

    with (study / f"{image}.png").open("rb") as file:
        uploaded = client.post("/infer/brain_age?output=json", files={"file": ("other.png", file)}).json()
    assert uploaded["prediction"] == before["prediction"]

    assert infer(client, image, save_label=True, label_tag="original").status_code == 200
    stored = client.get("/datastore/label", params={"label": image, "tag": "original"}).json()
    assert stored == {key: before[key] for key in ("prediction", "factors", "attention")}

    batch = client.post("/batch/infer/brain_age?run_sync=true", json={"device": "cpu", "max_workers": 1}).json()
    assert len(batch) == 24 and not [result for result in batch.values() if "error" in result]
    assert len(list((study / "labels/original").glob("*.json"))) == 24

    for strategy in ("random", "shortcut", "rare_cell"):
        first = client.post(f"/activelearning/{strategy}", json={}).json()
        assert Path(first["path"]).is_file()
    second = client.post("/activelearning/shortcut", json={}).json()
    first_again = client.get("/datastore/?output=all").json()["objects"]
    assert second["score"] <= max(entry["image"]["info"]["shortcut"] for entry in first_again.values())
    assert client.post("/scoring/predictions?run_sync=true", json={}).json() == {
        "total": 24,
        "predicted": 0,
        "unusable": 0,
    }

    save_all(client, study)
    assert client.post("/activelearning/shortcut", json={}).json() == {}  # nothing is left to label
    stats = client.post("/train/brain_age?run_sync=true", json=FAST).json()
    assert set(stats["accuracy"]) == {"y", "sex", "dataset"}
    assert {"cell", "accuracy", "n"} == set(stats["worst_group"]) == set(stats["groups"][0])
    assert stats["n"]["train"] + stats["n"]["held_out"] == 24
    assert client.get("/info/").json()["train_stats"]["brain_age"] == stats
    assert (tmp_path / "tuned/models/model.pt").is_file()
    after = infer(client, image).json()
    assert after["prediction"] != before["prediction"]
    assert client.post("/scoring/predictions?run_sync=true", json={}).json()["predicted"] == 24

    again = client.post("/train/brain_age?run_sync=true", json=FAST | {"sampling": "correlated"}).json()
    assert again["from"] == str(tmp_path / "tuned/models/model.pt")
    fresh = client.post("/train/brain_age?run_sync=true", json=FAST | {"pretrained": False}).json()
    assert fresh["from"] is None


def test_a_bundle_without_a_model_can_be_trained_from_labels_of_some_cells_only(serve, study, tmp_path):
    client = serve(study, trained=False)
    save_all(client, study, lambda name: not name.endswith("y1_z0"))
    stats = client.post("/train/brain_age?run_sync=true", json=FAST).json()
    assert stats["sampling"] == "correlated"
    assert infer(client, "case00_y0_z0").status_code == 200


def test_a_session_of_an_uploaded_image_is_predicted(serve, study):
    client = serve(study)
    content = (study / "case00_y0_z0.png").read_bytes()
    session = client.put("/session/", files={"files": ("x.png", content)}).json()["session_id"]
    result = client.post("/infer/brain_age", params={"session_id": session, "output": "json"}).json()
    assert result["prediction"] == infer(client, "case00_y0_z0").json()["prediction"]


def test_a_bundle_that_refines_at_the_end_is_fine_tuned_too(serve, study, tmp_path):
    client = serve(study, "pleural_effusion", options={"refine_epochs": 1})
    for path in study.glob("*.png"):
        label = {"effusion": int(path.stem[8]), "sex": ("Female", "Male")[int(path.stem[11])]}
        assert save(client, path.stem, label).status_code == 200
    request = {"max_epochs": 1, "batch_size": 8, "device": "cpu"}
    stats = client.post("/train/pleural_effusion?run_sync=true", json=request).json()
    assert stats["accuracy"]["age"] is None and stats["worst_group"] is None  # no label told the age
    assert (tmp_path / "tuned/models/model.pt").is_file()
    assert infer(client, "case00_y0_z0", "pleural_effusion").status_code == 200


def test_a_bundle_without_a_model_says_which_command_makes_it(serve, study):
    client = serve(study, trained=False)
    assert client.get("/info/").json()["models"] == {}
    for response in (
        infer(client, "case00_y0_z0"),
        client.post("/batch/infer/brain_age", json={}),
        client.post("/scoring/predictions", json={}),
        client.post("/activelearning/shortcut", json={}),
    ):
        refused(response, 404, "has no trained model", "python -m monai.bundle run --config_file", "train.json")
    assert "id" in client.post("/activelearning/random", json={}).json()


def test_an_empty_study_is_told(serve, tmp_path):
    (tmp_path / "empty").mkdir()
    client = serve(tmp_path / "empty")
    assert client.get("/info/").json()["datastore"]["total"] == 0
    refused(infer(client, "case00"), 404, "there is no image 'case00'")
    for response in (
        client.post("/activelearning/random", json={}),
        client.post("/activelearning/shortcut", json={}),
        client.post("/batch/infer/brain_age", json={}),
        client.post("/scoring/predictions", json={}),
        client.post("/train/brain_age", json={}),
    ):
        refused(response, 404, "no image (.nii, ", str(tmp_path / "empty"))


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ({"age_group": "> 57", "sex": "purple"}, "expected 'sex' to be one of 'female', 'male' or null, got 'purple'"),
        ({"age_group": 54}, "expected 'age_group' to be one of '< 51', '> 57' or null, got 54"),
        ({"age_group": "> 57", "height": 180}, "expected a label with the keys age_group, sex, dataset, subject"),
        ({"sex": "male"}, "expected a label to state the primary task 'age_group', got none"),
        ([1, 0, 1], "expected a label as an object"),
        ("not JSON", "Expecting value"),
    ],
)
def test_a_label_that_is_not_in_the_config_is_told_and_not_kept(label, message, serve, study):
    client = serve(study)
    refused(save(client, "case00_y0_z0", label), 400, message)
    assert not list((study / "labels/final").iterdir())


def test_an_image_of_wrong_dimensions_is_told_and_stops_no_other(serve, study):
    nib.save(
        nib.Nifti1Image(np.random.default_rng(0).random((32, 32, 8, 2), dtype=np.float32), np.eye(4)),
        study / "series.nii.gz",
    )
    Image.fromarray(np.zeros((8, 8, 3), dtype=np.uint8)).save(study / "broken.png")
    (study / "broken.png").write_bytes(b"no picture")
    client = serve(study)
    refused(infer(client, "series"), 400, "series.nii.gz is no image for brain_age (2D network)", "channel")
    refused(infer(client, "broken"), 400, "broken.png is no image for brain_age")
    batch = client.post("/batch/infer/brain_age?run_sync=true", json={"device": "cpu", "max_workers": 1}).json()
    assert "is no image for" in batch["series"]["error"]
    assert sum("error" in result for result in batch.values()) == 2 and len(batch) == 26
    counts = client.post("/scoring/predictions?run_sync=true", json={}).json()
    assert counts == {"total": 26, "predicted": 26, "unusable": 2}
    assert client.post("/activelearning/rare_cell", json={}).json()["id"].startswith("case")


def test_images_are_found_in_capitals_too(serve, study):
    (study / "case00_y0_z0.png").rename(study / "ü.PNG")
    (study / "case01_y1_z0.png").rename(study / "b.Png")
    client = serve(study)
    assert client.get("/info/").json()["datastore"]["total"] == 24
    assert infer(client, "ü").status_code == infer(client, "b").status_code == 200


def test_images_that_differ_in_their_ending_only_are_told(serve, study):
    content = (study / "case00_y0_z0.png").read_bytes()
    client = serve(study)
    picture = {"file": ("x.jpg", content)}
    refused(client.put("/datastore/image?image=case00_y0_z0", files=picture), 400, "case00_y0_z0.png is there already")
    (study / "case00_y0_z0.jpg").write_bytes(content)
    with pytest.raises(ValueError, match="case00_y0_z0.jpg and case00_y0_z0.png .* would be one image.*: rename"):
        serve(study)


def test_a_volume_for_a_bundle_of_pictures_is_told(serve, study):
    nib.save(
        nib.Nifti1Image(np.random.default_rng(0).random((32, 32, 8), dtype=np.float32), np.eye(4)),
        study / "volume.nii.gz",
    )
    client = serve(study, "pleural_effusion")
    refused(infer(client, "volume", "pleural_effusion"), 400, "volume.nii.gz is no image for pleural_effusion (2D")


@pytest.mark.parametrize(
    ("keep", "request_", "parts"),
    [
        (lambda name: False, {}, ["2 or more classes of 'age_group' ('< 51', '> 57'), got 0 labels"]),
        (lambda name: "y0" in name, {}, ["got 12 of '< 51' only"]),
        (lambda name: name[:6] in ("case00", "case01"), {}, ["subjects of each: label more, or raise val_split"]),
        (lambda name: True, {"sampling": []}, ["expected sampling to be bundle, balanced or correlated, got []"]),
        (lambda name: True, {"pretrained": "no"}, ["expected pretrained to be true or false, got 'no'"]),
        (lambda name: True, {"epochs": 5}, ["epochs cannot be set by a request, only max_epochs, val_split"]),
        (lambda name: True, {"max_epochs": 0}, ["epochs must be 1 or more, got 0"]),
        (lambda name: True, {"batch_size": "$__import__('os').abort()"}, ["expected batch_size to be a number"]),
        (lambda name: True, {"batch_size": 8.5}, ["batch_size, ", "must be a whole number, 2 or more, got 8.5"]),
        (
            lambda name: True,
            {"learning_rate": -1, "lambda_mi": -1},
            ["learning_rate must be above 0, got -1", "lambda_mi"],
        ),
        (lambda name: True, {"sampling": "fair"}, ["expected sampling to be bundle, balanced or correlated"]),
        (lambda name: True, {"val_split": 1}, ["expected val_split to lie between 0 and 1, got 1"]),
    ],
)
def test_a_training_that_cannot_succeed_is_refused(keep, request_, parts, serve, study):
    client = serve(study)
    save_all(client, study, keep)
    refused(client.post("/train/brain_age", json=request_), 400, *parts)


def test_a_second_training_at_once_is_refused_unless_it_may_wait(serve, study, monkeypatch):
    from monailabel.utils.async_tasks import utils

    client = serve(study)
    save_all(client, study)
    for status in ("SUBMITTED", "RUNNING"):
        monkeypatch.setitem(utils.background_tasks, "train", [{"status": status}])
        refused(client.post("/train/brain_age", json=FAST), 429, "a training is already running")
    started = []
    monkeypatch.setattr(
        "monailabel.utils.async_tasks.task.run_background_task", lambda *args: started.append(args) or {}
    )
    assert client.post("/train/brain_age?enqueue=true", json=FAST).status_code == 200
    monkeypatch.setitem(utils.background_tasks, "train", [{"status": "DONE"}])
    assert client.post("/train/brain_age", json=FAST).status_code == 200
    assert len(started) == 2


@pytest.mark.parametrize("name", ["../outside", "../../etc/passwd", "/etc/passwd", "labels/x", "..", "a\\b"])
def test_names_that_leave_the_study_are_refused(name, serve, study, tmp_path):
    client = serve(study)
    (tmp_path / "outside.png").write_bytes((study / "case00_y0_z0.png").read_bytes())
    before = sorted(tmp_path.rglob("*"))
    refused(infer(client, name), 404, "there is no image")
    refused(infer(client, str(tmp_path / "outside.png")), 404, "there is no image")
    tricked = {"image": str(tmp_path / "outside.png"), "session": {}}
    refused(infer(client, "case00_y0_z0", **tricked), 404, "there is no image")
    refused(save(client, name, label_of("case00_y0_z0")), 404, "there is no image")
    refused(save(client, "case00_y0_z0", label_of("case00_y0_z0"), tag=name), 400, "expected the name of a label's tag")
    picture = {"file": ("x.png", (study / "case00_y0_z0.png").read_bytes())}
    refused(client.put("/datastore/image", params={"image": name}, files=picture), 400, "expected the name of an image")
    refused(client.delete("/datastore/image", params={"id": name}), 404, "there is no image")
    assert client.get("/datastore/image", params={"image": name}).status_code == 404
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["../outside", "../../etc/passwd", "/etc/passwd", "..", "other"])
def test_labels_are_found_by_the_names_of_an_image_and_a_tag_only(name, serve, study, tmp_path):
    client = serve(study)
    assert save(client, "case00_y0_z0", label_of("case00_y0_z0")).status_code == 200
    (tmp_path / "outside.json").write_text("{}")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for label, tag in ((name, "final"), ("case00_y0_z0", name)):
        asked = {"label": label, "tag": tag}
        assert client.get("/datastore/label", params=asked).status_code == 404
        told = f"there is no label of {label!r} with the tag {tag!r}"
        refused(client.put("/datastore/label/info", params=asked, data={"info": '{"a": 1}'}), 404, told)
        refused(client.delete("/datastore/label", params={"id": label, "tag": tag}), 404, told)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert client.delete("/datastore/label", params={"id": "case00_y0_z0", "tag": "final"}).status_code == 200
    assert not list((study / "labels/final").iterdir())


@pytest.mark.parametrize("by", ["a request", "hand"])
def test_a_deleted_label_is_none(by, serve, study):
    client = serve(study)
    save_all(client, study)
    if by == "hand":
        (study / "labels/final/case00_y0_z0.json").unlink()
    else:
        assert client.delete("/datastore/label", params={"id": "case00_y0_z0", "tag": "final"}).status_code == 200
    for _ in range(2):  # it is the only one without a label
        answer = client.post("/activelearning/shortcut", json={})
        assert answer.status_code == 200 and answer.json()["id"] == "case00_y0_z0"
    assert client.get("/datastore/").json()["completed"] == 23
    stats = client.post("/train/brain_age?run_sync=true", json=FAST).json()
    assert stats["n"]["train"] + stats["n"]["held_out"] == 23


def test_a_label_saved_again_under_another_ending_is_one_file(serve, study, tmp_path):
    client = serve(study)
    for ending in ("json", "txt"):
        (tmp_path / f"l.{ending}").write_text('{"age_group": 40}')
        with (tmp_path / f"l.{ending}").open("rb") as file:
            given = {"image": "case00_y0_z0"}
            assert client.put("/datastore/label", params=given, files={"label": file}).status_code == 200
    assert [path.name for path in (study / "labels/final").iterdir()] == ["case00_y0_z0.txt"]


def test_an_image_that_was_still_being_copied_is_scored_once_it_is_whole(serve, study):
    whole = (study / "case00_y0_z0.png").read_bytes()
    (study / "case00_y0_z0.png").write_bytes(whole[:100])
    client = serve(study)
    score = lambda: client.post("/scoring/predictions?run_sync=true", json={}).json()  # noqa: E731
    assert score() == {"total": 24, "predicted": 24, "unusable": 1}
    (study / "case00_y0_z0.png").write_bytes(whole)
    assert score() == {"total": 24, "predicted": 1, "unusable": 0}


def test_an_image_that_is_gone_stops_no_other(serve, study):
    client = serve(study)
    (study / "case00_y0_z0.png").unlink()
    assert client.post("/scoring/predictions?run_sync=true", json={}).status_code == 200
    assert client.post("/activelearning/shortcut", json={}).status_code == 200
    assert infer(client, "case00_y0_z0").status_code in (400, 404)


def test_dicom_is_predicted_as_a_picture_of_the_same_pixels(serve, study, write_dicom):
    values = np.random.default_rng(0).integers(0, 256, (32, 32))
    Image.fromarray(values.astype(np.uint8)).save(study / "picture.png")
    place = {"ImagePositionPatient": [0, 0, 1], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0], "PixelSpacing": [1, 1]}
    write_dicom(study / "dicom.dcm", "MONOCHROME2", values, **place)
    client = serve(study)
    assert infer(client, "dicom").json()["prediction"] == infer(client, "picture").json()["prediction"]


def test_a_session_that_has_ended_and_an_empty_image_are_told(serve, study):
    client = serve(study)
    refused(client.post("/infer/brain_age?session_id=nope&output=json"), 404, "there is no such session")
    (study / "case00_y0_z0.png").write_bytes(b"")
    refused(infer(client, "case00_y0_z0"), 400, "case00_y0_z0.png is no image for brain_age", "the file is empty")


@pytest.mark.parametrize("device", ["quantum", "cpu:x", "cuda:99", 7])
def test_a_device_that_is_not_there_is_told(device, serve, study):
    client = serve(study)
    save_all(client, study)
    asked = {"device": device}
    for response in (
        infer(client, "case00_y0_z0", **asked),
        client.post("/batch/infer/brain_age", json=asked),
        client.post("/train/brain_age", json=asked),
        client.post("/scoring/predictions", json=asked),
        client.post("/activelearning/shortcut", json=asked),
    ):
        refused(response, 400, f"expected device to be cpu or one of this computer's GPUs, got {device!r}")


def test_a_model_is_not_taken_from_a_client(serve, study, tmp_path):
    client = serve(study)
    before = (tmp_path / "base.pt").read_bytes()
    refused(client.put("/model/brain_age", files={"file": ("x.pt", b"x")}), 405, "models are not uploaded")
    assert (tmp_path / "base.pt").read_bytes() == before and not (tmp_path / "tuned").exists()
    assert client.get("/model/brain_age").content == before


def test_an_image_can_be_added_and_removed(serve, study):
    client = serve(study)
    content = (study / "case00_y0_z0.png").read_bytes()
    added = client.put("/datastore/image", params={"image": "new"}, files={"file": ("x.png", content)})
    assert added.json() == {"image": "new"} and (study / "new.png").is_file()
    assert infer(client, "new").status_code == 200
    refused(client.put("/datastore/image?image=text", files={"file": ("x.txt", b"x")}), 400, "expected an image")
    assert client.delete("/datastore/image", params={"id": "new"}).status_code == 200
    assert not (study / "new.png").exists()


def test_unknown_models_strategies_and_scores_are_told(serve, study):
    client = serve(study)
    refused(infer(client, "case00_y0_z0", "other"), 404, "there is no model 'other', only brain_age")
    refused(client.post("/train/other", json={}), 404, "there is no model 'other'")
    refused(client.post("/activelearning/other", json={}), 404, "there is no strategy 'other', only random, shortcut")
    refused(client.post("/scoring/other", json={}), 404, "there is no method 'other', only predictions")


def test_scores_follow_the_options(serve, study, tmp_path):
    ckpt, score = str(untrained("brain_age", tmp_path / "model.pt")), "/scoring/predictions?run_sync=true"
    for options, predicted in (({}, 24), ({}, 0), ({"image_size": 40}, 24)):
        assert serve(study, ckpt=ckpt, options=options).post(score, json={}).json()["predicted"] == predicted


def test_a_model_is_served_as_it_was_trained(serve, study, tmp_path):
    (tmp_path / "run/models").mkdir(parents=True)
    ckpt = untrained("brain_age", tmp_path / "run/models/model.pt")
    names = {"y": ["< 51", "> 57"], "site": ["A", "B"], "sex": ["female", "male"]}
    record = {"config": {"image_size": 40}, "task_names": ["age_group", "site", "sex"], "classes": names}
    (tmp_path / "run/metrics.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match="2 problems:\n.*image_size is 32, but was 40 .*\n.*'site': .* the same tasks"):
        serve(study, ckpt=str(ckpt))


@pytest.mark.parametrize(
    ("conf", "error", "message"),
    [
        ({"models": "nothing"}, FileNotFoundError, "there is no bundle 'nothing' with configs/inference.json"),
        ({"ckpt": "/nowhere.pt"}, FileNotFoundError, "there is no checkpoint /nowhere.pt"),
        ({"options": {"imagesize": 3}}, ValueError, "has no option 'imagesize'"),
        ({"options": {"feature_dim": 5}}, ValueError, "does not fit the network"),
    ],
)
def test_what_cannot_be_served_is_told_at_the_start(conf, error, message, serve, study):
    with pytest.raises(error, match=message):
        serve(study, **conf)
