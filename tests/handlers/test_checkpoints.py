# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""The newest checkpoint is found; a training's state has all parts that have one."""

import errno
import os
import random
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from ignite.engine import Engine, Events
from monai.handlers import CheckpointSaver
from monai.transforms import Compose, RandGaussianNoise, RandGaussianNoised

from monai_mimmx.data import make_sampler
from monai_mimmx.handlers import (
    AtomicCheckpointSaver,
    RandomStates,
    TrainingIdentity,
    best_so_far,
    latest_checkpoint,
    training_state,
)
from monai_mimmx.transforms import RandBatchAugment


def test_newest_of_the_prefix(tmp_path):
    for age, name in enumerate(("state_10.pt", "state_9.pt", "model.pt")):
        torch.save({}, tmp_path / name)
        os.utime(tmp_path / name, (1000 + age, 1000 + age))
    assert latest_checkpoint(tmp_path) == str(tmp_path / "state_9.pt")


def test_the_last_epoch_is_the_newest_whatever_a_copy_made_of_the_times(tmp_path):
    for age, epoch in enumerate((10, 9)):
        torch.save({}, tmp_path / f"state_checkpoint_epoch={epoch}.pt")
        os.utime(tmp_path / f"state_checkpoint_epoch={epoch}.pt", (1000 + age, 1000 + age))
    assert latest_checkpoint(tmp_path) == str(tmp_path / "state_checkpoint_epoch=10.pt")


def test_a_file_that_is_cut_short_is_passed_over(tmp_path, caplog):
    for age, name in enumerate(("state_1.pt", "state_2.pt")):
        torch.save({"weights": torch.zeros(100)}, tmp_path / name)
        os.utime(tmp_path / name, (1000 + age, 1000 + age))
    whole = (tmp_path / "state_2.pt").read_bytes()
    for size in (0, 10, len(whole) // 2, len(whole) - 1):
        (tmp_path / "state_2.pt").write_bytes(whole[:size])
        os.utime(tmp_path / "state_2.pt", (2000, 2000))
        assert latest_checkpoint(tmp_path) == str(tmp_path / "state_1.pt")
    assert f"the checkpoint {tmp_path / 'state_2.pt'} is cut short" in caplog.text
    (tmp_path / "state_1.pt").write_bytes(b"")
    assert latest_checkpoint(tmp_path) is None


def trained(folder, epochs, *, interval=1, start=0, n_saved=2, name=None):
    """An engine that goes on from epoch `start`, saves its state, and a model that is better in each epoch."""
    engine, layer = Engine(lambda engine, batch: None), torch.nn.Linear(1, 1)
    options = {"file_prefix": "state", "save_interval": interval, "n_saved": n_saved}
    AtomicCheckpointSaver(str(folder), {"layer": layer}, **options).attach(engine)
    best = AtomicCheckpointSaver(
        str(folder), {"layer": layer}, save_key_metric=True, key_metric_name="score", key_metric_filename=name
    )

    @engine.on(Events.EPOCH_STARTED)
    def measure(engine):
        engine.state.metrics["score"] = float(engine.state.epoch)
        torch.nn.init.constant_(layer.weight, float(engine.state.epoch))

    best.attach(engine)
    if start:
        engine.add_event_handler(Events.STARTED, lambda: setattr(engine.state, "iteration", start))
        engine.add_event_handler(Events.STARTED, lambda: setattr(engine.state, "epoch", start))
    engine.run([0], max_epochs=epochs)


def names(folder, pattern="*"):
    return sorted(path.name for path in folder.glob(pattern))


class TestAtomicCheckpointSaver:
    def test_every_interval_and_the_last_epoch(self, tmp_path):
        trained(tmp_path, 5, interval=2, n_saved=None, name="model.pt")
        assert names(tmp_path, "state*") == [f"state_layer_epoch={epoch}.pt" for epoch in (2, 4, 5)]

    @pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
    def test_a_write_that_falls_short_leaves_what_was_saved_before(self, tmp_path, monkeypatch, error):
        save, calls = torch.save, []

        def fails(content, file):
            calls.append(file)
            save(content, file)
            if len(calls) > full:
                file.truncate(20)
                raise error

        monkeypatch.setattr(torch, "save", fails)
        for full in (2, 3):  # each epoch saves the state, then the model
            calls.clear()
            for path in tmp_path.iterdir():
                path.unlink()
            with pytest.raises(type(error)) as caught:
                trained(tmp_path, 3, name="model.pt")
            left = [1, 2] if full == 3 else [1]
            assert names(tmp_path) == ["model.pt", *(f"state_layer_epoch={epoch}.pt" for epoch in left)]
            assert float(torch.load(tmp_path / "model.pt")["weight"]) == 1.0
            assert float(torch.load(latest_checkpoint(tmp_path))["weight"]) == float(left[-1])
            if isinstance(error, OSError):
                message = r"cannot save .*/(state|model).*\.pt: No space left on device; a file saved there before"
                assert re.match(message, str(caught.value))

    def test_the_best_model_is_there_at_any_moment(self, tmp_path, monkeypatch):
        # MONAI's saver removes the best model before it writes the better one.
        missing, replace = [], os.replace

        def checks(source, target):
            missing.append(not Path(target).exists())
            replace(source, target)

        monkeypatch.setattr("monai_mimmx.files.os.replace", checks)
        trained(tmp_path, 3, interval=0, name="model.pt")
        assert missing == [True, False, False] and float(torch.load(tmp_path / "model.pt")["weight"]) == 3.0

    def test_a_new_training_removes_the_checkpoints_of_an_earlier_one(self, tmp_path):
        trained(tmp_path, 4, name="model.pt")
        trained(tmp_path, 1, name="model.pt")
        assert names(tmp_path) == ["model.pt", "state_layer_epoch=1.pt"]

    def test_a_resumed_training_counts_what_it_found(self, tmp_path):
        trained(tmp_path, 3, name="model.pt")
        assert names(tmp_path, "state*") == ["state_layer_epoch=2.pt", "state_layer_epoch=3.pt"]
        trained(tmp_path, 4, start=3, name="model.pt")
        assert names(tmp_path, "state*") == ["state_layer_epoch=3.pt", "state_layer_epoch=4.pt"]

    def test_other_users_may_read_the_files(self, tmp_path):
        trained(tmp_path, 1, name="model.pt")
        (tmp_path / "plain").touch()
        assert {path.stat().st_mode for path in tmp_path.iterdir()} == {(tmp_path / "plain").stat().st_mode}

    def test_by_iteration(self, tmp_path):
        engine = Engine(lambda engine, batch: None)
        parts = {"layer": torch.nn.Linear(1, 1)}
        AtomicCheckpointSaver(str(tmp_path), parts, save_interval=2, epoch_level=False).attach(engine)
        engine.run([0] * 5, max_epochs=1)
        assert names(tmp_path) == ["layer_iteration=2.pt", "layer_iteration=4.pt"]


def test_none_is_told(tmp_path, caplog):
    assert latest_checkpoint(tmp_path) is None
    assert f"no checkpoint state*.pt in {tmp_path}" in caplog.text and "starts from the beginning" in caplog.text


def draws(parts):
    shift, sampler, _ = parts
    images = torch.zeros(3, 1, 8, 8)
    own = [float(shift.transforms[0](images).sum()), list(sampler)]
    return [random.random(), float(np.random.rand()), float(torch.rand(1)), *own]  # noqa: NPY002


def test_every_generator_goes_on_where_it_was(tmp_path):
    shift = Compose([RandBatchAugment(seed=1)])
    parts = [shift, make_sampler(np.zeros((50, 2), int), (2, 2), "correlated"), torch.utils.data.SequentialSampler([1])]
    states = RandomStates(parts)
    draws(parts)
    torch.save(states.state_dict(), tmp_path / "state.pt")
    expected = draws(parts)
    assert draws(parts) != expected
    states.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert draws(parts) == expected


def test_other_processes_draw_what_no_process_drew_before(monkeypatch):
    """A process that begins anew would repeat, after each resumption, what it drew in its first epoch."""
    shift = Compose([RandBatchAugment(seed=1)])
    parts = [shift, make_sampler(np.zeros((50, 2), int), (2, 2), "correlated"), None]
    states, seen = RandomStates(parts), []
    first = states.state_dict()
    draws(parts)
    second = states.state_dict()
    for rank in (0, 1, 2):
        monkeypatch.setattr("ignite.distributed.get_rank", lambda rank=rank: rank)
        for state in (first, second):
            states.load_state_dict(state)
            seen.append(draws(parts))
            states.load_state_dict(state)
            assert draws(parts) == seen[-1]  # what it draws follows from the checkpoint
    for values in zip(*seen, strict=True):
        assert len({str(value) for value in values}) == len(seen)


def test_best_so_far(tmp_path):
    saver = CheckpointSaver(str(tmp_path), {"model": torch.nn.Linear(1, 1)}, save_key_metric=True)
    assert best_so_far(saver).state_dict()["_saved"] == []
    with pytest.raises(ValueError, match="save_key_metric=True"):
        best_so_far(CheckpointSaver(str(tmp_path), {"model": torch.nn.Linear(1, 1)}, save_interval=1))


def test_training_state_leaves_out_what_has_none(tmp_path):
    network = torch.nn.Linear(1, 1)
    saver = CheckpointSaver(str(tmp_path), {"model": network}, save_key_metric=True)
    parts = {"optimizer": torch.optim.SGD(network.parameters(), lr=0.1), "dependence": None, "loss": torch.nn.ReLU()}
    state = training_state(saver, network=network, **parts)
    assert list(state) == ["network", "optimizer", "best"]
    assert state["network"] is network and state["best"] is best_so_far(saver)


def test_training_state_needs_a_saver_of_the_best(tmp_path):
    with pytest.raises(ValueError, match="save_key_metric=True"):
        training_state(CheckpointSaver(str(tmp_path), {"model": torch.nn.Linear(1, 1)}, save_interval=1))


def study(**change):
    frame = pd.DataFrame(
        {"subject": ["a", "b", "c"], "image": ["1.png", "2.png", "3.png"], "sick": [0, 1, 1], "sex": [1, 0, 1]}
    )
    return {"train": frame.assign(**change), "select": frame[:2], "bal": frame[1:]}


def test_the_same_training_is_known_wherever_it_goes_on(tmp_path):
    settings = {
        "method": "mimmx",
        "agreement": (0.9, 0.5),
        "epochs": 3,
        "device": "cuda:0",
        "output_dir": "/a",
        "seed": 0,
        "refine_lambda_mi": 1.0,
    }
    identity = TrainingIdentity(settings, study(), ["sick", "sex"])
    torch.save(identity.state_dict(), tmp_path / "state.pt")
    stored = torch.load(tmp_path / "state.pt", weights_only=True)
    moved = settings | {"epochs": 9, "device": "cpu", "output_dir": "/b", "agreement": [0.9, 0.5]}
    moved |= {
        "refine_lambda_mi": 3.0,
        "refine_detach_z": False,
        "refine_learning_rate": 3e-4,
    }  # of a second part, which is run anew
    # The images may lie elsewhere, labels may be stored as another type, and only what is trained on counts.
    subsets = study(image=["/b/1.png", "/b/2.png", "/b/3.png"], sick=[0.0, 1.0, 1.0]) | {"bal": study()["bal"][:1]}
    TrainingIdentity(moved, subsets, ["sick", "sex"]).load_state_dict(stored)


@pytest.mark.parametrize(
    ("settings", "change", "message"),
    [
        (
            {"method": "baseline", "seed": 1},
            {},
            "other settings: method was 'mimmx' and is 'baseline'; seed was 0 and is 1",
        ),
        ({"method": "mimmx", "seed": 0, "n_b": 5}, {}, "n_b was absent and is 5"),
        ({"method": "mimmx"}, {}, "seed was 0 and is absent"),
        ({}, {"sick": [1, 1, 1]}, "other rows or labels in the subset 'train'"),
        ({}, {"sex": [1, float("nan"), 1]}, "other rows or labels in the subset 'train'"),
        ({}, {"subject": ["a", "b", "d"]}, "other rows or labels in the subset 'train'"),
    ],
)
def test_another_training_is_refused_with_what_differs(settings, change, message):
    first = {"method": "mimmx", "seed": 0}
    stored = TrainingIdentity(first, study(), ["sick", "sex"]).state_dict()
    with pytest.raises(ValueError, match=message) as caught:
        TrainingIdentity(settings or first, study(**change), ["sick", "sex"]).load_state_dict(stored)
    assert "without --resume" in str(caught.value)


@pytest.mark.parametrize(
    ("before", "after", "message"), [(2, 0, "a second part, refine_epochs above 0"), (0, 2, "refine_epochs 0")]
)
def test_whether_there_is_a_second_part_stays(before, after, message):
    stored = TrainingIdentity({"refine_epochs": before}, study(), ["sick", "sex"]).state_dict()
    with pytest.raises(ValueError, match=f"is of a training with {message}. Go on with what it had"):
        TrainingIdentity({"refine_epochs": after}, study(), ["sick", "sex"]).load_state_dict(stored)
    more = TrainingIdentity({"refine_epochs": 3 * before}, study(), ["sick", "sex"])
    more.load_state_dict(stored)
    del stored["second_part"]  # of an earlier version
    TrainingIdentity({"refine_epochs": after}, study(), ["sick", "sex"]).load_state_dict(stored)


def test_other_tasks_are_another_training():
    stored = TrainingIdentity({}, study(), ["sick", "sex"]).state_dict()
    with pytest.raises(ValueError, match="tasks were sick, sex and are sick"):
        TrainingIdentity({}, study(), ["sick"]).load_state_dict(stored)


def test_states_of_an_earlier_version_lack_the_sampler_of_a_group():
    sampler, augment = torch.utils.data.SubsetRandomSampler(range(9), torch.Generator()), RandBatchAugment(seed=1)
    held = RandomStates([augment]).state_dict()
    expected = augment(torch.zeros(2, 1, 9, 9))
    RandomStates([sampler, augment]).load_state_dict(held)
    assert torch.equal(augment(torch.zeros(2, 1, 9, 9)), expected)


@pytest.mark.parametrize("prefix", ["", "model"])
def test_files_of_others_stay(tmp_path, prefix):
    others = {"pretrained_backbone_epoch=100.pt", "model_teacher_epoch=50.pt", "modelB_net_epoch=3.pt", "net_best.pt"}
    own = f"{prefix}_net_epoch=7.pt".lstrip("_")
    for name in (*others, own):
        torch.save({}, tmp_path / name)
    trainer = Engine(lambda engine, batch: None)
    AtomicCheckpointSaver(tmp_path, {"net": torch.nn.Linear(1, 1)}, file_prefix=prefix, save_interval=1).attach(trainer)
    trainer.run([0], max_epochs=1)
    assert {path.name for path in tmp_path.iterdir()} == others | {own.replace("7", "1")}


def two_savers(folder, epochs, start=0):
    trainer = Engine(lambda engine, batch: None)
    for prefix in ("state", "state_ema"):
        parts = {"net": torch.nn.Linear(1, 1)}
        AtomicCheckpointSaver(folder, parts, file_prefix=prefix, save_interval=1, n_saved=2).attach(trainer)
    trainer.add_event_handler(Events.STARTED, lambda engine: setattr(engine.state, "epoch", start))
    trainer.run([0], max_epochs=epochs)


def test_savers_of_one_folder_keep_apart(tmp_path):
    two_savers(tmp_path, 3)
    two_savers(tmp_path, 5, start=3)
    names = [f"{prefix}_net_epoch={epoch}.pt" for prefix in ("state", "state_ema") for epoch in (4, 5)]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    with pytest.raises(
        ValueError, match=r"several savers .* begin with 'state': name one of state_ema_net, state_net\."
    ):
        latest_checkpoint(tmp_path)
    assert latest_checkpoint(tmp_path, "state_net") == str(tmp_path / "state_net_epoch=5.pt")


def test_a_prefix_is_no_pattern(tmp_path):
    torch.save({}, tmp_path / "run[1]_net_epoch=2.pt")
    assert latest_checkpoint(tmp_path, "run[1]") == str(tmp_path / "run[1]_net_epoch=2.pt")


@pytest.mark.parametrize(
    "make",
    [
        lambda: Compose([RandGaussianNoised("image", prob=1.0, std=1.0)]).set_random_state(0),
        lambda: RandGaussianNoise(prob=1.0, std=1.0).set_random_state(0),
        lambda: RandGaussianNoise(prob=1.0, std=1.0),  # which draws from what all such transforms share
        lambda: Compose([Compose([RandBatchAugment(seed=3)])]),
    ],
)
def test_transforms_of_monai_go_on_where_they_were(make, tmp_path):
    transform = make()
    image = torch.zeros(2, 1, 20, 20)

    def draw():
        dictionary = isinstance(transform, Compose) and isinstance(transform.transforms[0], RandGaussianNoised)
        return transform({"image": image})["image"] if dictionary else transform(image)

    states = RandomStates([transform])
    draw()
    torch.save(states.state_dict(), tmp_path / "states.pt")
    first = draw()
    states.load_state_dict(torch.load(tmp_path / "states.pt", weights_only=True))
    assert torch.equal(torch.as_tensor(draw()), torch.as_tensor(first)) and bool((torch.as_tensor(first) != 0).any())


def test_the_best_model_of_a_saver_is_no_series_of_its_own(tmp_path):
    for name in ("state_net_epoch=3.pt", "state_net_key_metric=0.9312.pt"):
        torch.save({}, tmp_path / name)
    assert latest_checkpoint(tmp_path) == str(tmp_path / "state_net_epoch=3.pt")
