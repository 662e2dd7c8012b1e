# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""What a training must survive or be exact in: full disks, workers, seeds, interrupts, long runs, odd paths."""

import contextlib
import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from deaths import run
from ignite.engine import Events
from runs import BUNDLES, ROOT, child_environment, options, results, train, workflow

from monai_mimmx.data import CachedImages, EncodedBatches
from monai_mimmx.errors import Problems, root_cause
from monai_mimmx.evaluation import ExperimentEvaluation
from monai_mimmx.files import FolderLock
from monai_mimmx.handlers import latest_checkpoint

EPOCHS = int(os.environ.get("MIMMX_EPOCHS", "24"))
"""Of the long run; 200 where there is time."""


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """They take longer than all the rest of a tiny run."""
    monkeypatch.setattr(ExperimentEvaluation, "_figures", lambda *args: {})


@pytest.mark.parametrize("fault", ["full", "read-only"])
def test_a_checkpoint_that_cannot_be_written_stops_with_the_cause(fault, folders, tmp_path, monkeypatch):
    resource = pytest.importorskip("resource", reason="Windows has no such limits")
    more = {"epochs": 3, "method": "baseline", "tensorboard": False}
    train("brain_age", folders, tmp_path / "whole", **more)
    given = options("brain_age", folders, tmp_path / "stopped", **more)
    made = workflow("brain_age", "train", **given)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    replace = os.replace

    def refuse(source, target):
        raise OSError(errno.EROFS, "Read-only file system", str(target))

    def strike(engine):
        if engine.state.epoch == 2 and fault == "full":
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
        elif engine.state.epoch == 2:
            monkeypatch.setattr(os, "replace", refuse)

    made.parser.get_parsed_content("train#trainer").add_event_handler(Events.EPOCH_STARTED, strike)
    try:
        with pytest.raises(RuntimeError) as caught:
            made.run()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        monkeypatch.setattr(os, "replace", replace)
    cause = root_cause(caught.value)
    reason = {"full": "File too large", "read-only": "Read-only file system"}[fault]
    assert type(cause) is OSError and str(cause).startswith(f"cannot save {tmp_path}/stopped/models/")
    assert f"{reason}; a file saved there before is unharmed" in str(cause)
    saved = latest_checkpoint(tmp_path / "stopped/models")
    assert saved.endswith("epoch=1.pt") and torch.load(saved, weights_only=True)["trainer"]["iteration"] > 0
    assert torch.load(tmp_path / "stopped/models/model.pt", weights_only=True)
    assert not (tmp_path / "stopped/metrics.json").exists()
    train("brain_age", folders, tmp_path / "stopped", resume=True, **more)
    assert results(tmp_path / "stopped") == results(tmp_path / "whole")


def test_a_loss_that_turns_nan_in_the_refinement_names_images_and_checkpoint(folders, tmp_path, monkeypatch):
    get = EncodedBatches.__getitems__

    def spoilt(self, rows):
        batch = get(self, rows)
        batch["image"][1] = float("nan")
        return batch

    monkeypatch.setattr(EncodedBatches, "__getitems__", spoilt)
    with pytest.raises(RuntimeError) as caught:
        train("pleural_effusion_natural", folders, tmp_path, epochs=1)
    message = str(root_cause(caught.value))
    assert message.startswith("the loss is nan in epoch 1, iteration 1; training stops before this step.")
    found = re.search(r"That is epoch 2 of the run\. Images of this batch, the most extreme first: (.*?), ", message)
    assert Path(found[1]).is_file()
    assert f"The last checkpoint is {tmp_path}/models/state_checkpoint_epoch=1.pt, from which" in message


def test_the_last_epoch_is_validated_and_saved_whatever_the_interval(folders, tmp_path):
    train("brain_age", folders, tmp_path, epochs=3, val_interval=2, method="baseline")
    rows = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows if "select_robust" in row] == [2, 3]
    assert sorted(path.name[-10:] for path in tmp_path.glob("models/state*")) == ["epoch=2.pt", "epoch=3.pt"]


def test_two_trainings_at_once_in_one_folder_do_not_mix(folders, tmp_path):
    given = options("brain_age", folders, tmp_path, epochs=1, method="baseline", tensorboard=False)
    command = [sys.executable, "-m", "monai.bundle", "run"]
    command += ["--config_file", str(ROOT / "brain_age/configs/train.json")]
    command += [word for key, value in given.items() for word in (f"--{key}", str(value))]
    environment = child_environment()
    (tmp_path / "metrics.json").write_text("of an earlier run")
    first = FolderLock(tmp_path)
    first.hold()
    second = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (
        second.returncode == 1
        and f"another training writes to output_dir {tmp_path} (process {os.getpid()} on " in second.stderr
    )
    assert (tmp_path / "metrics.json").read_text() == "of an earlier run" and not (tmp_path / "history.jsonl").exists()
    first.release()
    train("brain_age", folders, tmp_path, epochs=1, method="baseline", tensorboard=False)
    take = "import sys; from monai_mimmx.files import FolderLock; FolderLock(sys.argv[1]).hold()"
    assert subprocess.run([sys.executable, "-c", take, tmp_path], env=environment).returncode == 0  # it was let go


def test_nothing_goes_on_from_another_trainings_checkpoint(folders, tmp_path):
    """Killed before its first checkpoint, in a folder that holds an earlier training's."""
    output, more = tmp_path / "output", {"epochs": 1, "tensorboard": False}
    train("brain_age", folders, output, method="baseline", **more)
    before = {path: path.read_bytes() for path in output.rglob("[!.]*") if path.is_file()}
    code, _ = run("brain_age", folders, output, at=("start", 1), seed=5, agreement=0.8, **more)
    assert code == -signal.SIGKILL
    with pytest.raises(RuntimeError) as caught:
        train("brain_age", folders, output, seed=5, agreement=0.8, resume=True, **more)
    (told,) = root_cause(caught.value).errors
    assert re.match(
        rf"{output}/models/state_checkpoint_epoch=1.pt: .* other settings: method was 'baseline' and is", str(told)
    )
    assert "agreement was 0.9 and is 0.8" in str(told) and "and other rows or labels in the subset 'train'" in str(told)
    assert {path: path.read_bytes() for path in output.rglob("[!.]*") if path.is_file()} == before
    # Whose it is may go on, for longer and elsewhere.
    shutil.move(output, tmp_path / "moved")
    metrics = train("brain_age", folders, tmp_path / "moved", method="baseline", resume=True, **more | {"epochs": 2})
    assert metrics["epochs"] == 2


def test_workers_change_nothing(folders, tmp_path):
    for workers in (0, 2):
        train("pleural_effusion_natural", folders, tmp_path / str(workers), epochs=1, num_workers=workers)
    assert results(tmp_path / "0") == results(tmp_path / "2")


@pytest.mark.parametrize("bundle", BUNDLES)
def test_the_network_is_built_after_seeding(bundle, folders, tmp_path):
    """Its first weights are those of the seed, whatever was drawn before."""

    def first_weights(seed):
        torch.rand(7)
        given = options(bundle, folders, tmp_path, seed=seed)
        parser = workflow(bundle, "train", **given).parser
        parts = [parser.get_parsed_content("network"), parser.get_parsed_content("dependence")]
        return torch.cat(
            [value.flatten().double().nan_to_num().cpu() for part in parts for value in part.state_dict().values()]
        )

    first = first_weights(0)
    assert torch.equal(first_weights(0), first) and not torch.equal(first_weights(1), first)


@pytest.mark.parametrize(
    ("bundle", "method"), [("brain_age", "mimmx"), ("brain_age", "dfr"), ("pleural_effusion_natural", "mimmx")]
)
def test_nothing_but_train_and_select_is_read_before_the_evaluation(bundle, method, folders, tmp_path, monkeypatch):
    read, evaluating = set(), []
    get, evaluate = CachedImages.__getitems__, ExperimentEvaluation.__call__
    given = options(bundle, folders, tmp_path, method=method, epochs=1, agreement=0.6 if method == "dfr" else 0.9)
    if bundle != "brain_age":
        del given["agreement"]
    made = workflow(bundle, "train", **given)
    names = {id(data.labels): name for name, data in made.parser.get_parsed_content("images").items()}

    def watched(self, rows):
        read.add(names[id(self.labels)])
        if not evaluating and names[id(self.labels)] not in ("train", "select"):
            raise PermissionError(f"{names[id(self.labels)]} is read before the evaluation")
        return get(self, rows)

    def note(self, handlers=()):
        evaluating.append(set(read))
        return evaluate(self, handlers)

    monkeypatch.setattr(CachedImages, "__getitems__", watched)
    monkeypatch.setattr(ExperimentEvaluation, "__call__", note)
    made.run()
    assert evaluating == [{"train", "select"}] and read == {"train", "select", "probe", "val", "inv", "bal"}
    frames = {name: data.frame for name, data in made.parser.get_parsed_content("images").items()}
    assert not set(frames["probe"]["subject"]) & set(frames["bal"]["subject"])


@pytest.mark.parametrize("bundle", ["brain_age", "pleural_effusion_natural"])
def test_paths_with_spaces_and_letters_beyond_ascii(bundle, tmp_path, monkeypatch):
    """Working folder, the bundle's copy, data and output: a whole run, an evaluation, an inference."""
    place = tmp_path / "Ärzte & Bilder (neu)" / "ça marche 画像"
    shutil.copytree(ROOT / bundle, place / bundle, ignore=shutil.ignore_patterns("data", "output", "models"))
    monkeypatch.chdir(place)
    monkeypatch.setattr("runs.ROOT", Path())
    given = options(bundle, Path("Daten öffentlich"), Path("Ausgabe 1"), bundle_root=bundle)
    workflow(bundle, "train", **given).run()
    metrics = json.loads(Path("Ausgabe 1/metrics.json").read_text())
    workflow(bundle, "train", "evaluate", **given | {"ckpt": "Ausgabe 1/models/model.pt"}).run()
    assert json.loads(Path("Ausgabe 1/metrics.json").read_text())["accuracy"] == metrics["accuracy"]
    image = next(path for path in Path("Daten öffentlich").rglob("*") if path.suffix in (".nii", ".jpg", ".png"))
    network = {key: value for key, value in given.items() if key.startswith("network_def")}
    asked = {"images": [str(image)], "output_dir": "Ausgabe 1", "image_size": 32, "device": "cpu"}
    workflow(bundle, "inference", workflow_type="infer", bundle_root=bundle, **asked, **network).run()
    assert str(image) in Path("Ausgabe 1/predictions.csv").read_text(encoding="utf-8")


def test_a_checkpoint_that_does_not_fit_is_told_by_inference(folders, tmp_path):
    made = workflow("brain_age", "train", **options("brain_age", folders, tmp_path))
    torch.save(made.parser.get_parsed_content("network").state_dict(), tmp_path / "model.pt")
    made.parser.get_parsed_content("images")
    image = next((folders / "brain_age/cohort").rglob("*.nii"))
    asked = {"images": [str(image)], "output_dir": str(tmp_path), "image_size": 32, "device": "cpu"}
    asked |= {"bundle_root": str(ROOT / "brain_age"), "network_def#encoder#strides": [2, 2, 2, 1]}
    for ckpt, message in (
        ("model.pt", "model.pt does not fit the network; was it trained with the same tasks, feature_dim"),
        ("absent.pt", "there is no checkpoint .*absent.pt; train first, or name another with --ckpt"),
    ):
        given = asked | {"ckpt": str(tmp_path / ckpt), "feature_dim": 7}
        with pytest.raises(Exception) as caught:
            workflow("brain_age", "inference", workflow_type="infer", **given).run()
        with pytest.raises(Problems, match=message):
            raise root_cause(caught.value)


def processes_of(group):
    """The living processes of a process group."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, number = path.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(number) == group and state != "Z":
            found.append(int(path.parent.name))
    return found


@pytest.mark.usefixtures("interruptible")
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="only Linux tells its processes so")
@pytest.mark.parametrize("whom", ["the group, as Ctrl-C does", "the main process only"])
def test_an_interrupt_leaves_no_process_behind(whom, folders, tmp_path):
    given = options("brain_age", folders, tmp_path / "output", epochs=1000, num_workers=8, method="baseline")
    workflow("brain_age", "train", **given).parser.get_parsed_content("images")
    command = [sys.executable, "-m", "monai.bundle", "run"]
    command += ["--config_file", str(ROOT / "brain_age/configs/train.json")]
    command += [word for key, value in given.items() for word in (f"--{key}", str(value))]
    environment = child_environment()
    with (tmp_path / "log").open("w") as log:
        main = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        saved, deadline = tmp_path / "output/models", time.monotonic() + 120
        while not (list(saved.glob("state*.pt")) and len(processes_of(main.pid)) > 4):
            assert main.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()[-3000:]
            time.sleep(0.02)
        deadline = time.monotonic() + 60
        while (
            main.poll() is None
        ):  # again, as a user would: Python drops an interrupt that comes while it forks a worker
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()[-3000:]
            if whom.startswith("the group"):
                os.killpg(main.pid, signal.SIGINT)
            else:
                main.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                main.wait(10)
        assert main.returncode != 0
        deadline = time.monotonic() + 10
        while processes_of(main.pid) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert processes_of(main.pid) == []
        assert "KeyboardInterrupt" in (tmp_path / "log").read_text()
    finally:
        if left := processes_of(main.pid):
            os.killpg(main.pid, signal.SIGKILL)
            print(f"killed {left}")
    assert latest_checkpoint(tmp_path / "output/models") is not None


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="only Linux tells its memory so")
def test_memory_and_open_files_stay_constant(folders, tmp_path):
    made = workflow("brain_age", "train", **options("brain_age", folders, tmp_path, epochs=EPOCHS))
    trainer, memory, files = made.parser.get_parsed_content("train#trainer"), [], []

    def measure():
        memory.append(int(Path("/proc/self/statm").read_text().split()[1]))
        files.append(len(os.listdir("/proc/self/fd")))

    made.parser.get_parsed_content("checkpoint").attach(trainer)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, measure)
    trainer.run()
    warm = EPOCHS // 3
    print(
        f"{EPOCHS} epochs: pages {memory[0]}, {memory[warm]} after {warm}, {memory[-1]}; files {files[warm]}, {files[-1]}"
    )
    assert len(memory) == EPOCHS and max(memory[warm:]) < 1.05 * memory[warm]
    assert max(files[warm:]) <= files[warm]
