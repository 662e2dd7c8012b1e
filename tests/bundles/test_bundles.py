# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""Each bundle, whole, at tiny size: train, evaluate, resume, infer, verify, export."""

import csv
import inspect
import json
import re
import shutil

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, ckpt_export, onnx_export, verify_metadata, verify_net_in_out
from monai.handlers import MLFlowHandler
from runs import BUNDLES, NAMES, OWN, ROOT, options, results, torchrun, train, workflow
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from monai_mimmx.comparison import format_tables, read_published
from monai_mimmx.comparison.methods import VARIANTS
from monai_mimmx.comparison.runner import PlannedRun
from monai_mimmx.engines import MIMMXTrainer
from monai_mimmx.errors import root_cause
from monai_mimmx.evaluation import ExperimentEvaluation, final_scores
from monai_mimmx.evaluation.protocol import source_commit
from monai_mimmx.handlers import RobustAccuracy, read_history
from monai_mimmx.report import final_table

pytestmark = pytest.mark.usefixtures("without_pictures")
IMAGES = (".nii", ".png", ".jpg")


def network_options(bundle):
    return {key: value for key, value in OWN[bundle].items() if key.startswith("network_def")}


@pytest.fixture(scope="module")
def trained(folders, tmp_path_factory):
    """Bundle name to the output folder and metrics of one training, on demand."""
    done = {}

    def get(bundle):
        if bundle not in done:
            output = tmp_path_factory.mktemp(bundle)
            done[bundle] = output, train(bundle, folders, output, pictures=True)
        return done[bundle]

    return get


@pytest.mark.parametrize("bundle", BUNDLES)
def test_training_ends_with_the_evaluation(bundle, trained):
    output, metrics = trained(bundle)
    factors = metrics["task_names"][1:]
    given = options(bundle, output, output)
    assert metrics["method"] == "mimmx" and metrics["epochs"] == given["epochs"] + given.get("refine_epochs", 0)
    assert metrics["config"]["n_b"] == json.loads((ROOT / bundle / "configs/train.json").read_text())["n_b"]
    for subset in ("val", "inv", "bal"):
        assert set(metrics["accuracy"][subset]) == {"y", *factors}
        assert all(0 <= value <= 1 for value in metrics["accuracy"][subset].values())
        assert sum(metrics["attention"][subset].values()) == pytest.approx(1, abs=1e-4)
    assert metrics["drop_val_inv"] == metrics["accuracy"]["val"]["y"] - metrics["accuracy"]["inv"]["y"]
    low, high = metrics["drop_val_inv_interval"]
    assert low <= metrics["drop_val_inv"] <= high
    assert str(metrics["commit"]).removesuffix("-dirty") == str(source_commit()).removesuffix("-dirty")
    assert set(metrics["probe"]) == {"f_y", *(f"f_{name}" for name in factors)}
    assert isinstance(metrics["mi"], float)
    for name in ("report.html", "model_card.md", "accuracy.png", "tsne.png", "history.jsonl", "models/model.pt"):
        assert (output / name).stat().st_size > 100, name


@pytest.mark.parametrize("bundle", BUNDLES)
def test_tensorboard_shows_what_the_history_and_the_final_table_hold(bundle, trained):
    output, metrics = trained(bundle)
    shown = EventAccumulator(str(output / "tensorboard")).Reload()
    rows = read_history(output / "history.jsonl")
    last = rows[-1]
    assert {"loss_y", "mi", "gamma_y"} <= set(last) and set(last) - {"epoch"} <= set(shown.Tags()["scalars"])
    for key in set(last) - {"epoch"}:
        expected = [(row["epoch"], pytest.approx(row[key], rel=1e-6)) for row in rows if key in row]
        assert [(event.step, event.value) for event in shown.Scalars(key)] == expected
    final = {key: shown.Scalars(key) for key in shown.Tags()["scalars"] if key.startswith("final/")}
    assert {key: [(event.step, event.value) for event in events] for key, events in final.items()} == {
        key: [(last["epoch"], pytest.approx(value, rel=1e-6))] for key, value in final_scores(metrics).items()
    }
    (table,) = shown.Tensors("final table/text_summary")
    assert table.tensor_proto.string_val[0].decode() == final_table(metrics)


@pytest.mark.parametrize("bundle", NAMES)
def test_the_settings_for_mlflow_name_what_the_bundle_has(bundle):
    settings = json.loads((ROOT.parent / "examples/mlflow.json").read_text())
    config = json.loads((ROOT / bundle / "configs/train.json").read_text())
    for engine, places in settings["handlers_id"].items():
        for path in places.values() if engine != "refiner" or "refine" in config else ():
            assert path in ConfigParser(config)
        handler = settings["configs"][engine]
        assert set(inspect.signature(MLFlowHandler.__init__).parameters) > set(handler) - {"_target_", "_disabled_"}
        assert handler["experiment_param"][1:] in config


@pytest.mark.parametrize("bundle", BUNDLES)
def test_same_seed_same_metrics(bundle, trained, folders, tmp_path):
    _, first = trained(bundle)
    again = train(bundle, folders, tmp_path)
    for key in ("seconds", "config"):
        first, again = ({k: v for k, v in metrics.items() if k != key} for metrics in (first, again))
    assert again == first


def test_fewer_epochs_than_the_validation_interval_still_give_a_model(folders, tmp_path):
    assert train("brain_age", folders, tmp_path, epochs=1, val_interval=5)["epochs"] == 1
    assert [path.name for path in tmp_path.glob("models/state*")] == ["state_checkpoint_epoch=1.pt"]


def test_fewer_images_than_a_batch_still_train(folders, tmp_path):
    train("brain_age", folders, tmp_path, epochs=1, batch_size=500)
    assert "loss_y" in json.loads((tmp_path / "history.jsonl").read_text())


def test_another_seed_gives_other_metrics(trained, folders, tmp_path):
    _, first = trained("brain_age")
    other = train("brain_age", folders, tmp_path, seed=1)
    assert other["mi"] != first["mi"]


@pytest.mark.parametrize("bundle", BUNDLES)
def test_evaluate_repeats_the_evaluation(bundle, trained, folders, tmp_path):
    output, metrics = trained(bundle)
    shutil.copytree(output, tmp_path / "copy")
    (tmp_path / "copy/metrics.json").unlink()
    workflow(bundle, "train", "evaluate", **options(bundle, folders, tmp_path / "copy")).run()
    again = json.loads((tmp_path / "copy/metrics.json").read_text())
    assert again["accuracy"] == metrics["accuracy"] and again["probes"] == metrics["probes"]


def test_evaluate_records_the_options_of_the_training(trained, folders, tmp_path):
    output, metrics = trained("brain_age")
    shutil.copytree(output, tmp_path / "copy")
    more = options("brain_age", folders, tmp_path / "copy", lambda_mi=7.0, seed=3, learning_rate=0.5)
    for last in (True, False):  # the training's own records, then its checkpoints alone
        workflow("brain_age", "train", "evaluate", **more).run()
        again = json.loads((tmp_path / "copy/metrics.json").read_text())
        own = {name: metrics["config"][name] for name in ("lambda_mi", "seed", "learning_rate", "epochs", "method")}
        assert {name: again["config"][name] for name in own} == own and again["seed"] == metrics["seed"]
        (tmp_path / "copy/metrics.json").unlink(missing_ok=last)


def test_an_unfinished_training_that_was_evaluated_goes_on(folders, tmp_path):
    metrics = train("brain_age", folders, tmp_path / "copy", refine_epochs=0)
    (tmp_path / "copy/metrics.json").unlink()  # as if it had been killed
    given = options("brain_age", folders, tmp_path / "copy", refine_epochs=0, epochs=metrics["epochs"] + 2)
    workflow("brain_age", "train", "evaluate", **given).run()
    first = json.loads((tmp_path / "copy/metrics.json").read_text())
    assert first["unfinished"] and first["epochs"] == metrics["epochs"]
    assert not PlannedRun("x", 0, tmp_path / "copy", {}, ()).is_finished
    workflow("brain_age", "train", **given | {"resume": True}).run()
    then = json.loads((tmp_path / "copy/metrics.json").read_text())
    assert then["epochs"] == metrics["epochs"] + 2 and "unfinished" not in then
    assert PlannedRun("x", 0, tmp_path / "copy", {}, ()).is_finished


def test_evaluate_keeps_the_subjects_of_the_training_apart(trained, folders, tmp_path, caplog):
    output, _ = trained("brain_age")
    shutil.copytree(output, tmp_path / "copy")
    before = (tmp_path / "copy/metrics.json").read_bytes()
    more = {"subset_sizes": {"select": 20}, "ckpt": str(tmp_path / "copy/models/model.pt")}
    given = options("brain_age", folders, tmp_path / "copy", **more)
    with pytest.raises(Exception, match="Failed to evaluate") as raised:
        workflow("brain_age", "train", "evaluate", **given).run()
    assert "training rows are others than those that" in str(root_cause(raised.value))
    assert (tmp_path / "copy/metrics.json").read_bytes() == before
    workflow("brain_age", "train", "evaluate", **options("brain_age", folders, tmp_path / "other", **more)).run()
    assert "where it has subjects of that training, their figures are too good" in caplog.text
    assert json.loads((tmp_path / "other/metrics.json").read_text())["trained_on"] == "other rows"
    assert "## Evaluated on" in (tmp_path / "other/model_card.md").read_text(encoding="utf-8")


def test_evaluate_leaves_the_records_of_another_training_alone(trained, folders, tmp_path):
    output, _ = trained("brain_age")
    shutil.copytree(output, tmp_path / "resident")
    more = options("brain_age", folders, tmp_path / "resident", ckpt=str(output / "models/model.pt"))
    with pytest.raises(Exception, match="Failed to evaluate") as raised:
        workflow("brain_age", "train", "evaluate", **more).run()
    assert "holds the records of another training" in str(root_cause(raised.value))


def test_evaluate_takes_another_checkpoint(trained, folders, tmp_path):
    output, metrics = trained("brain_age")
    more = options("brain_age", folders, tmp_path, ckpt=str(output / "models/model.pt"))
    workflow("brain_age", "train", "evaluate", **more).run()
    again = json.loads((tmp_path / "metrics.json").read_text())
    assert again["accuracy"] == metrics["accuracy"] and "trained_on" not in again | metrics
    shutil.copy(output / "models/model.pt", tmp_path / "alone.pt")
    more |= {"ckpt": str(tmp_path / "alone.pt"), "output_dir": str(tmp_path / "alone")}
    workflow("brain_age", "train", "evaluate", **more).run()
    again = json.loads((tmp_path / "alone/metrics.json").read_text())
    assert again["accuracy"] == metrics["accuracy"] and again["trained_on"] == "unknown rows"
    assert again["method"] is again["seed"] is again["config"]["epochs"] is None and again["config"]["image_size"] == 32


def test_resume_goes_on_where_the_training_stopped(trained, folders, tmp_path):
    output, _ = trained("brain_age")
    shutil.copytree(output, tmp_path / "copy")
    metrics = train("brain_age", folders, tmp_path / "copy", epochs=3, resume=True)
    history = [json.loads(line) for line in (tmp_path / "copy/history.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in history] == [1, 2, 3] and metrics["epochs"] == 3


class Killed(Exception):
    """Ends a training as an outside signal would: nobody knows of it."""


@pytest.mark.parametrize(
    ("bundle", "at", "more"),
    [
        ("brain_age", "step 14", {"val_interval": 2}),
        ("brain_age", "step 2", {"method": "baseline"}),
        ("brain_age", "evaluation", {"method": "baseline", "dls": True}),
        ("brain_age", "step 11", {"method": "mimm", "n_b": 1, "feature_batches": 0}),
        ("pleural_effusion_natural", "step 20", {"caw": "terms"}),
        ("pleural_effusion_natural", "evaluation", {}),
    ],
)
def test_a_killed_training_ends_as_if_undisturbed(bundle, at, more, folders, tmp_path, monkeypatch):
    more = {"epochs": 4, **more}
    train(bundle, folders, tmp_path / "whole", **more)
    with monkeypatch.context() as patch:
        if at == "evaluation":
            patch.setattr(ExperimentEvaluation, "__call__", lambda self, handlers: (_ for _ in ()).throw(Killed()))
        else:
            step, last = MIMMXTrainer._iteration, int(at.split()[1])

            def fails(self, engine, batch):
                if engine.state.iteration == last:
                    raise Killed
                return step(self, engine, batch)

            patch.setattr(MIMMXTrainer, "_iteration", fails)
        with pytest.raises(RuntimeError) as caught:
            train(bundle, folders, tmp_path / "killed", **more)
        assert isinstance(root_cause(caught.value), Killed)
    assert not (tmp_path / "killed/metrics.json").exists()
    torch.rand(3)
    train(bundle, folders, tmp_path / "killed", resume=True, **more)
    assert results(tmp_path / "killed") == results(tmp_path / "whole")


def test_a_finished_training_is_left_as_it_is(trained, folders, tmp_path, caplog):
    shutil.copytree(trained("brain_age")[0], tmp_path / "copy")  # to another place, which changes nothing
    before = {path: path.read_bytes() for path in (tmp_path / "copy").rglob("*") if path.is_file()}
    with caplog.at_level("INFO", logger="monai_mimmx"):
        train("brain_age", folders, tmp_path / "copy", resume=True)
    assert "is finished: nothing is left to resume" in caplog.text
    assert {path: path.read_bytes() for path in (tmp_path / "copy").rglob("*") if path.is_file()} == before
    metrics = json.loads((tmp_path / "copy/metrics.json").read_text())
    (tmp_path / "copy/metrics.json").write_text(json.dumps(metrics | {"fingerprint": "of other rows"}))
    made = workflow("brain_age", "train", **options("brain_age", folders, tmp_path / "copy", resume=True))
    assert not made.parser.get_parsed_content("evaluation").is_finished()


def test_a_resumed_training_keeps_a_better_model(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(RobustAccuracy, "compute", lambda self: 0.9)
    train("brain_age", folders, tmp_path)
    best = (tmp_path / "models/model.pt").read_bytes()
    monkeypatch.setattr(RobustAccuracy, "compute", lambda self: 0.1)
    train("brain_age", folders, tmp_path, epochs=3, resume=True)
    assert (tmp_path / "models/model.pt").read_bytes() == best


@pytest.mark.parametrize(
    ("bundle", "more"),
    [("brain_age", {"epochs": 1}), ("pleural_effusion", {"network_def#encoder": "four_conv"})],
)
def test_the_refinement_leaves_the_encoder_as_it_is(bundle, more, folders, tmp_path):
    """The epochs after the encoder's change projection and heads only, count on, and can be switched off."""
    plain = train(bundle, folders, tmp_path / "plain", method="rebalance", refine_epochs=0, **more)
    refined = train(bundle, folders, tmp_path / "refined", method="rebalance", refine_epochs=2, **more)
    before, after = (
        torch.load(tmp_path / name / "models/model.pt", weights_only=True) for name in ("plain", "refined")
    )
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name.split(".")[0] for name in changed} == {"projection", "standardize", "heads", "caw"}
    assert [plain["epochs"], refined["epochs"]] == [1, 3]
    losses = [json.loads(line)["loss_y"] for line in (tmp_path / "refined/history.jsonl").read_text().splitlines()]
    assert losses[2] < losses[1]
    # Another training there, without a second part, leaves no first part for one that is resumed with it.
    assert (tmp_path / "refined/models/unrefined.pt").is_file()
    train(bundle, folders, tmp_path / "refined", method="rebalance", refine_epochs=0, **more)
    assert not (tmp_path / "refined/models/unrefined.pt").exists()
    with pytest.raises(RuntimeError) as caught:
        train(bundle, folders, tmp_path / "refined", method="rebalance", refine_epochs=2, resume=True, **more)
    assert "is of a training with refine_epochs 0" in str(root_cause(caught.value))


@pytest.mark.parametrize(
    ("bundle", "files", "given", "expected"),
    [
        ("brain_age", ["train"], {}, (False, 3.0, 0, 1e-3)),
        ("brain_age", ["train"], {"method": "rebalance"}, (True, 1.0, 2, 1e-3)),
        ("brain_age", ["train"], {"sampling": "correlated"}, (True, 1.0, 2, 1e-3)),
        ("pleural_effusion", ["train"], {}, (False, 3.0, 0, 3e-4)),
        ("pleural_effusion", ["train"], {"lambda_mi": 0.5, "refine_feature_batches": 4}, (False, 1.5, 4, 3e-4)),
        ("pleural_effusion", ["train"], {"refine_detach_z": True}, (True, 1.0, 2, 1e-3)),
        ("pleural_effusion", ["train"], {"sampling": "correlated"}, (True, 1.5, 2, 1e-3)),
        ("pleural_effusion", ["train"], {"conditional": False}, (True, 1.5, 2, 1e-3)),
        ("pleural_effusion", ["train"], {"method": "rebalance"}, (True, 1.5, 2, 1e-3)),
        ("pleural_effusion", ["train", "quick"], {}, (True, 1.0, 2, 4e-3)),
        ("pleural_effusion_natural", ["train"], {"sampling": "balanced"}, (False, 3.0, 0, 3e-4)),
        ("pleural_effusion_natural", ["train"], {"sampling": "balanced", "lambda_mi": 0.5}, (False, 1.5, 0, 3e-4)),
        ("pleural_effusion_natural", ["train"], {"sampling": "correlated"}, (True, 1.5, 2, 1e-3)),
        ("pleural_effusion_natural", ["train", "quick"], {"sampling": "balanced"}, (True, 1.0, 2, 4e-3)),
    ],
)
def test_the_refinement_has_its_own_dependence_where_batches_are_balanced(
    bundle, files, given, expected, folders, tmp_path
):
    parser = ConfigParser()
    parser.read_config([str(ROOT / bundle / "configs" / f"{name}.json") for name in files])
    parser.update(options(bundle, folders, tmp_path, refine_epochs=1) | given)
    parser["train#sampler"] = None  # so small a cohort lacks combinations that a balanced one needs
    trainer = parser.get_parsed_content("refine#trainer")
    found = (trainer.detach_z, trainer.lambda_mi, trainer.feature_batches, trainer.optimizer.param_groups[0]["lr"])
    assert found == pytest.approx(expected) and parser.get_parsed_content("train#trainer").detach_z
    settings = parser.get_parsed_content("settings")
    names = ("detach_z", "lambda_mi", "feature_batches", "learning_rate")
    assert [settings[f"refine_{name}"] for name in names] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, 60), ({"method": "rebalance"}, 0), ({"method": "baseline"}, 0), ({"sampling": "correlated"}, 0)],
)
def test_brain_age_refines_mimmx_on_balanced_batches_alone(given, expected):
    parser = ConfigParser()
    parser.read_config(str(ROOT / "brain_age/configs/train.json"))
    parser.update(given)
    assert parser.get_parsed_content("refine_epochs") == expected


def predict(bundle, folders, output, predictions, *overlays, **more):
    """The rows that an inference writes of five images of the cohort, by image; numbers as such."""
    images = sorted(path for path in (folders / bundle / "cohort").rglob("*.*") if path.suffix in IMAGES)[:5]
    given = {"bundle_root": str(ROOT / bundle), "image_size": 32, "device": "cpu", "output_dir": str(output)}
    given |= {"images": [str(image) for image in images], "predictions_path": str(predictions)}
    given |= network_options(bundle) | more
    workflow(bundle, "inference", *overlays, workflow_type="infer", **given).run()
    rows = list(csv.DictReader(predictions.open()))
    assert [row.pop("image") for row in rows] == given["images"]
    return [{key: float(value) for key, value in row.items()} for row in rows]


@pytest.mark.parametrize("bundle", BUNDLES)
def test_inference_writes_probabilities_and_attention(bundle, trained, folders, tmp_path):
    output, _ = trained(bundle)
    for row in predict(bundle, folders, output, tmp_path / "predictions.csv"):
        # The probabilities of each task sum to 1, and so do the attention weights.
        tasks = 4 if bundle == "pleural_effusion_natural" else 3
        assert len(row) == 3 * tasks - 1 and sum(row.values()) == pytest.approx(tasks + 1, abs=1e-4)


@pytest.mark.parametrize("method", ["baseline", "rebalance", "groupdro", "dfr", "mimm", "dcor", "mmd", "adversarial"])
def test_every_method_runs(method, folders, tmp_path):
    more = {"agreement": 0.6} if method == "dfr" else {}  # which needs two images in every cell of the select subset
    metrics = train("brain_age", folders, tmp_path, method=method, epochs=1, pictures=True, **more)
    assert metrics["method"] == method


@pytest.mark.parametrize(
    "more",
    [
        {"sampling": "correlated", "conditional": True, "estimator": "joint"},
        {"caw": "terms", "feature_batches": 0, "ema": False},
        {"caw": False, "dls": False, "detach_z": False},
        # Without a compiler; tests/engines/test_trainer.py compares what the switches give.
        {"amp": True, "channels_last": True, "compile": True, "train#trainer#compile_kwargs": {"backend": "eager"}},
    ],
)
def test_options_run(more, folders, tmp_path):
    assert train("brain_age", folders, tmp_path, epochs=1, n_b=2, pictures=True, **more)["epochs"] == 1


@pytest.mark.parametrize("bundle", NAMES)
def test_the_switches_for_speed_reach_the_training(bundle):
    train = json.loads((ROOT / bundle / "configs/train.json").read_text())
    trainer = train["train"]["trainer"]
    assert train["compile"] is False and trainer["compile"] == "@compile"
    assert (trainer["amp"], trainer["amp_fresh"]) == ("@amp", "@amp_fresh")
    assert all(train[part]["trainer"]["cuda_graph"] == "@cuda_graph" for part in ("train", "refine") if part in train)
    assert "@channels_last" in train["network"]
    several = json.loads((ROOT / bundle / "configs/multi_gpu_train.json").read_text())
    for steps in (train["initialize"], several["initialize"]):
        assert sum("reuse_freed_memory" in step for step in steps) == 1
    parts = [trainer, train["validate"]["evaluator"], *([train["refine"]["dataset"]] if "refine" in train else [])]
    assert {part["amp_kwargs"] for part in parts} == {"$dict(dtype=getattr(torch, @amp_dtype))"}


def test_natural_correlations_are_printed_beside_the_published_ones(folders, tmp_path, capsys):
    workflow("pleural_effusion_natural", "train", **options("pleural_effusion_natural", folders, tmp_path))
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    joint = {line[0]: line[1:] for line in lines if len(line) == 11 and line[0] in ("sex", "age", "cod")}
    assert joint["sex"][5:] == ["0.45", "0.05", "/", "0.05", "0.45"]
    met = [float(share) for share in joint["sex"][:5] if share != "/"]
    assert met == pytest.approx([0.45, 0.05, 0.05, 0.45], abs=0.011)  # a few rows only, so one of them counts
    assert joint["age"][5:] == ["0.19", "0.31", "/", "0.12", "0.38"]
    assert joint["cod"][5:] == ["0.29", "0.21", "/", "0.14", "0.36"]


@pytest.mark.parametrize(("bundle", "spatial_dims"), [("brain_age", 2), *((name, 3) for name in NAMES)])
def test_a_volume_looks_the_same_whatever_its_orientation_in_the_file(bundle, spatial_dims, tmp_path):
    volume = nib.Nifti1Image(np.random.default_rng(0).random((16, 18, 20)), np.diag([2.0, 2.0, 2.0, 1.0]))
    seen = []
    for code in ("RAS", "LPS", "PIR"):
        path, ornt = tmp_path / f"{code}.nii.gz", nib.orientations.axcodes2ornt(code)
        nib.save(volume.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(volume.affine), ornt)), path)
        for config, name in (("train", "load"), ("inference", "preprocessing")):
            parser = ConfigParser()
            parser.read_config(ROOT / bundle / f"configs/{config}.json")
            parser.update({"bundle_root": str(ROOT / bundle), "spatial_dims": spatial_dims, "image_size": 16})
            seen.append(np.asarray(parser.get_parsed_content(name)({"image": str(path)})["image"]))
    for other in seen[1:]:
        np.testing.assert_allclose(other, seen[0], atol=1e-5)


def test_whole_volumes_train(folders, tmp_path):
    metrics = train("brain_age", folders, tmp_path, epochs=1, pictures=True, spatial_dims=3, image_size=24)
    assert metrics["epochs"] == 1


@pytest.mark.parametrize("bundle", ["brain_age", "pleural_effusion_natural"])
def test_two_processes_train_one_model(bundle, trained, folders, tmp_path):
    _, alone = trained(bundle)
    given = options(bundle, folders, tmp_path / "output", backend="gloo")
    del given["device"]
    done = torchrun(bundle, 2, given)
    metrics = json.loads((tmp_path / "output/metrics.json").read_text())
    assert metrics["epochs"] == alone["epochs"] and metrics["n"] == alone["n"]
    assert len((tmp_path / "output/history.jsonl").read_text().splitlines()) == metrics["epochs"]
    assert done.stdout.count("subset ") == 1  # told by one process


@pytest.mark.parametrize("bundle", BUNDLES)
def test_training_images_move_as_they_are_stored_and_train_as_float32(bundle, folders, tmp_path):
    parser = workflow(bundle, "train", **options(bundle, folders, tmp_path, sampling="correlated")).parser
    batch, prepare = (parser.get_parsed_content(f"train#{name}") for name in ("dataloader", "prepare_batch"))
    batch = next(iter(batch))
    assert batch["image"].to("cpu").dtype == torch.float16 and prepare(batch, "cpu")[0].dtype == torch.float32
    own = {"train#prepare_batch#augment": {"_target_": "torch.nn.Identity"}}  # an overlay's, which knows nothing of it
    parser = workflow(bundle, "train", **options(bundle, folders, tmp_path, sampling="correlated", **own)).parser
    batch, prepare = (parser.get_parsed_content(f"train#{name}") for name in ("dataloader", "prepare_batch"))
    assert prepare(next(iter(batch)), "cpu")[0].dtype == torch.float32


def test_a_batch_larger_than_one_process_has_images_is_all_of_them(folders, tmp_path, monkeypatch):
    made = workflow("brain_age", "train", **options("brain_age", folders, tmp_path, batch_size=100_000))
    monkeypatch.setattr("ignite.distributed.get_world_size", lambda: 2)
    loader = made.parser.get_parsed_content("train#dataloader")
    assert len(loader) == 1 and loader.batch_size == len(loader.dataset) // 2
    sizes = {
        json.loads((ROOT / name / "configs/train.json").read_text())["train"]["dataloader"]["batch_size"]
        for name in NAMES
    }
    assert len(sizes) == 1


@pytest.mark.parametrize("bundle", NAMES)
def test_only_the_first_process_shows_and_records(bundle):
    train, several = (
        json.loads((ROOT / bundle / f"configs/{name}.json").read_text()) for name in ("train", "multi_gpu_train")
    )
    places = [key.split("#") for key in several if "_disabled_" in key]
    silent = [(part, train[part]["handlers"][int(place)]["_target_"]) for part, _, place, _ in places]
    parts = [part for part in ("train", "refine") if part in train]
    assert silent == [(part, name) for part in parts for name in ("ignite.handlers.ProgressBar", "EpochRecorder")]
    assert len(several["run"]) == len(train["run"]) + 1
    assert several["tensorboard"] == f"$@rank == 0 and {train['tensorboard'][1:]}"


@pytest.mark.parametrize("bundle", NAMES)
def test_all_bundles_predict_from_an_exported_file_alike(bundle):
    overlay, first = (ROOT / name / "configs/inference_exported.json" for name in (bundle, NAMES[0]))
    assert overlay.read_text() == first.read_text()


@pytest.mark.parametrize("bundle", NAMES)
def test_inference_is_built_as_the_training_is(bundle):
    train, infer = (json.loads((ROOT / bundle / f"configs/{name}.json").read_text()) for name in ("train", "inference"))
    shared = ("network_def", "tasks", "spatial_dims", "image_size", "feature_dim")
    assert {key: infer[key] for key in shared} == {key: train[key] for key in shared}
    assert infer["preprocessing"] == train["load"]


@pytest.mark.parametrize("bundle", BUNDLES)
def test_properties_are_complete(bundle, folders, tmp_path):
    made = workflow(bundle, "train", **options(bundle, folders, tmp_path))
    assert not made.check_properties()
    made = workflow(
        bundle, "inference", workflow_type="infer", bundle_root=str(ROOT / bundle), images=[__file__], device="cpu"
    )
    assert not made.check_properties()


@pytest.mark.parametrize("path", sorted(ROOT.glob("*/docs/**/rows.json")), ids=lambda path: path.parts[-3])
def test_results_are_what_the_rows_say(path):
    rows = json.loads(path.read_text())
    published = next(
        (folder / "published.json" for folder in path.parents if (folder / "published.json").is_file()), None
    )
    figures = read_published(published) if published else []
    results = path.with_name("results.md").read_text()
    assert format_tables(rows, figures) in results
    assert all(path.with_name(name).is_file() for name in re.findall(r"\]\((\w+\.png)\)", results))
    assert len(rows) == len({(row["name"], row["seed"], row["agreement"]) for row in rows})


@pytest.mark.parametrize("path", sorted(ROOT.glob("*/docs/published.json")), ids=lambda path: path.parts[-3])
def test_published_figures_have_the_bundles_tasks(path):
    rows = read_published(path)
    tasks = {
        "y",
        *(task["name"] for task in json.loads((path.parents[1] / "configs/train.json").read_text())["tasks"][1:]),
    }
    assert {row["name"] for row in rows} <= set(VARIANTS) and {"baseline", "rebalance", "dcor", "mimmx"} <= {
        row["name"] for row in rows
    }
    for row in rows:
        values = [value for table in row["accuracy"].values() for value in table.values()]
        assert all(set(table) <= tasks for table in row["accuracy"].values()) and all(
            0 < value <= 1 for value in values
        )
    full = next(row for row in rows if row["name"] == "mimmx")
    figures = [full["accuracy"][subset]["y"] for subset in ("val", "inv", "bal")]
    assert figures in ([0.842, 0.828, 0.826], [0.863, 0.704, 0.765], [0.817, 0.702, 0.729])


@pytest.mark.parametrize("bundle", NAMES)
def test_metadata_and_network_agree(bundle, tmp_path):
    configs = ROOT / bundle / "configs"
    metadata = json.loads((configs / "metadata.json").read_text())
    required = [
        "schema",
        "version",
        "monai_version",
        "pytorch_version",
        "numpy_version",
        "required_packages_version",
        "task",
        "description",
        "authors",
        "copyright",
        "network_data_format",
    ]
    schema = {"type": "object", "required": required, "properties": {"network_data_format": {"required": ["inputs"]}}}
    (tmp_path / "schema.json").write_text(json.dumps(schema))
    metadata["schema"] = (tmp_path / "schema.json").as_uri()
    (tmp_path / "metadata.json").write_text(json.dumps(metadata))
    verify_metadata(meta_file=str(tmp_path / "metadata.json"), filepath=str(tmp_path / "schema.json"))
    assert metadata["version"] in metadata["changelog"]
    outputs = metadata["network_data_format"]["outputs"]["pred"]
    tasks = json.loads((configs / "train.json").read_text())["tasks"]
    assert len(outputs["channel_def"]) == outputs["num_channels"] == 2 * len(tasks)
    verify_net_in_out(
        "network_def",
        device="cpu",
        meta_file=str(configs / "metadata.json"),
        config_file=str(configs / "inference.json"),
    )


def export(exporter, bundle, output, path, **more):
    """Export the trained network of a bundle as its docs say."""
    configs = ROOT / bundle / "configs"
    exporter(
        "network_def",
        filepath=str(path),
        ckpt_file=str(output / "models/model.pt"),
        meta_file=str(configs / "metadata.json"),
        config_file=str(configs / "inference.json"),
        **network_options(bundle),
        **more,
    )


@pytest.fixture
def logits(trained):
    """Logits of a bundle's trained network for a batch, eager and unexported."""

    def get(bundle, image):
        output, _ = trained(bundle)
        given = {"bundle_root": str(ROOT / bundle), "device": "cpu"} | network_options(bundle)
        made = workflow(bundle, "inference", workflow_type="infer", **given)
        network = made.parser.get_parsed_content("network_def").eval()
        network.load_state_dict(torch.load(output / "models/model.pt", weights_only=True))
        with torch.no_grad():
            return network(image)

    return get


@pytest.mark.parametrize("bundle", BUNDLES)
def test_a_torchscript_file_predicts_as_the_checkpoint_does(bundle, trained, logits, folders, tmp_path):
    output, _ = trained(bundle)
    export(ckpt_export, bundle, output, tmp_path / "model.ts")
    image = torch.randn(3, 1, 32, 32)
    with torch.no_grad():
        found = torch.jit.load(tmp_path / "model.ts").eval()(image)
    torch.testing.assert_close(found, logits(bundle, image), rtol=1e-5, atol=1e-5)
    rows = predict(bundle, folders, output, tmp_path / "eager.csv")
    (tmp_path / "run/models").mkdir(parents=True)
    shutil.copy(output / "metrics.json", tmp_path / "run")
    inside = str(shutil.copy(tmp_path / "model.ts", tmp_path / "run/models"))
    # Named, and found in the output_dir.
    for folder, more in (
        (tmp_path, {"exported": str(tmp_path / "model.ts"), "ckpt": "absent.pt"}),
        (tmp_path / "run", {}),
    ):
        again = predict(bundle, folders, folder, tmp_path / "exported.csv", "inference_exported", **more)
        for row, other in zip(rows, again, strict=True):
            told = {key: value for key, value in row.items() if not key.startswith("attention")}
            assert other == pytest.approx(told, abs=1e-5)
    more = {"exported": inside, "ckpt": "absent.pt"}
    with pytest.raises(Exception, match="Failed to") as raised:
        predict(bundle, folders, tmp_path, tmp_path / "other.csv", "inference_exported", **more, image_size=48)
    assert "image_size is 48, but was 32 in the training of" in str(root_cause(raised.value))


@pytest.mark.parametrize("bundle", BUNDLES)
def test_an_onnx_file_gives_the_same_logits_in_onnxruntime(bundle, trained, logits, tmp_path):
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason="the export to ONNX needs the extra [onnx]")
    import onnxruntime

    output, _ = trained(bundle)
    size = json.loads((ROOT / bundle / "configs/inference.json").read_text())["image_size"]
    names = {"input_names": ["image"], "output_names": ["pred"]}
    batch = {"dynamic_axes": {"image": {0: "batch"}, "pred": {0: "batch"}}}
    shape, path = [2, 1, size, size], tmp_path / "model.onnx"
    export(onnx_export, bundle, output, path, input_shape=shape, converter_kwargs=names | batch)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for count in (1, 3):
        image = torch.randn(count, *shape[1:])
        (found,) = session.run(None, {"image": image.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), logits(bundle, image), rtol=1e-5, atol=1e-5)
