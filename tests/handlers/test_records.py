# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import logging

import pytest
import torch
from ignite.engine import Engine, Events
from monai.data import decollate_batch
from monai.handlers import from_engine

from monai_mimmx.handlers import EpochRecorder, read_history


def trainer_of(values):
    """An engine whose output at iteration i is values[i]."""

    def step(engine, batch):
        value = torch.tensor(values[engine.state.iteration - 1])
        return {"loss_y": value, "loss_sex": 2 * value, "mi": value / 2, "lambda": torch.tensor(0.5), "pred": batch}

    return Engine(step)


def run(path, values, epochs, *, evaluator=None, interval=1, before=None, after=0):
    engine = trainer_of(values)
    recorder = EpochRecorder(path, task_names=("y", "sex"), evaluator=evaluator, after=after)
    if evaluator is not None:
        engine.add_event_handler(Events.EPOCH_COMPLETED(every=interval), lambda: evaluator.run([0]))
    recorder.attach(engine)
    if before is not None:
        engine.add_event_handler(Events.STARTED, lambda: engine.load_state_dict(before))
    engine.run([torch.zeros(3), torch.zeros(3)], max_epochs=epochs)
    return engine


def evaluator_of(values):
    engine = Engine(lambda engine, batch: None)
    left = iter(values)

    @engine.on(Events.COMPLETED)
    def note(engine):
        engine.state.metrics = {"accuracy_y": next(left), "accuracy_sex": 0.5, "robust": 0.25}

    return engine


def test_rows_are_means_over_each_epoch(tmp_path):
    run(tmp_path / "new" / "history.jsonl", [1.0, 3.0, 5.0, 6.0], 2)
    rows = read_history(tmp_path / "new" / "history.jsonl")
    assert [row.pop("seconds") >= 0 for row in rows] == [True, True]
    assert rows == [
        {"epoch": 1, "loss_y": 2.0, "loss_sex": 4.0, "mi": 1.0, "lambda": 0.5},
        {"epoch": 2, "loss_y": 5.5, "loss_sex": 11.0, "mi": 2.75, "lambda": 0.5},
    ]


def test_the_row_becomes_the_trainers_metrics_for_loggers_behind(tmp_path):
    seen = []
    engine = trainer_of([1.0, 3.0, 5.0, 7.0])
    EpochRecorder(tmp_path / "h.jsonl", task_names=("y", "sex")).attach(engine)
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda: seen.append(dict(engine.state.metrics)))
    engine.run([torch.zeros(3), torch.zeros(3)], max_epochs=2)
    assert [row["loss_y"] for row in seen] == [2.0, 6.0] and [row["mi"] for row in seen] == [1.0, 3.0]
    assert all(isinstance(value, float) for row in seen for value in row.values())


def test_loggers_behind_see_a_validation_in_its_own_epoch_only(tmp_path):
    seen = []
    engine, evaluator = trainer_of([1.0] * 6), evaluator_of([0.7])
    engine.add_event_handler(Events.EPOCH_COMPLETED(every=2), lambda: evaluator.run([0]))
    EpochRecorder(None, task_names=("y", "sex"), evaluator=evaluator).attach(engine)
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda: seen.append(engine.state.metrics.get("select_accuracy_y")))
    engine.run([torch.zeros(3), torch.zeros(3)], max_epochs=3)
    assert seen == [None, 0.7, None]


def test_a_second_engine_goes_on_in_the_same_file(tmp_path, caplog):
    run(tmp_path / "h.jsonl", [1.0, 3.0], 1)
    with caplog.at_level(logging.INFO, logger="monai_mimmx"):
        run(tmp_path / "h.jsonl", [5.0] * 4, 2, after=1)
    assert [(row["epoch"], row["loss_y"]) for row in read_history(tmp_path / "h.jsonl")] == [
        (1, 2.0),
        (2, 5.0),
        (3, 5.0),
    ]
    assert caplog.messages[-1].startswith("epoch 3/3 |")


def test_validation_joins_the_epochs_that_had_one(tmp_path):
    run(tmp_path / "h.jsonl", [1.0] * 8, 4, evaluator=evaluator_of([0.7, 0.9]), interval=2)
    rows = read_history(tmp_path / "h.jsonl")
    assert [row.get("select_accuracy_y") for row in rows] == [None, 0.7, None, 0.9]
    assert rows[1]["select_accuracy_sex"] == 0.5 and rows[1]["select_robust"] == 0.25


def test_an_accuracy_without_labels_is_left_out(tmp_path):
    run(tmp_path / "h.jsonl", [1.0] * 4, 2, evaluator=evaluator_of([0.5, float("nan")]))
    first, second = read_history(tmp_path / "h.jsonl")
    assert first["select_accuracy_y"] == 0.5 and "select_accuracy_y" not in second
    assert second["select_accuracy_sex"] == 0.5 and "NaN" not in (tmp_path / "h.jsonl").read_text()


def test_line(tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="monai_mimmx"):
        run(None, [1.0, 3.0], 1, evaluator=evaluator_of([0.875]))
    (line,) = [record.getMessage() for record in caplog.records]
    expected = "epoch 1/1 | loss y 2.000 sex 4.000 | MI 1.000 x 0.50 | select y 87.5 sex 50.0 | robust 25.0 % | "
    assert line.startswith(expected) and line.endswith(" s")
    assert not list(tmp_path.iterdir())


def test_line_without_dependence_or_validation():
    recorder = EpochRecorder(None, task_names=("y",))
    assert (
        recorder.describe({"epoch": 3, "loss_y": 0.5, "seconds": 1.25}, 120) == "epoch   3/120 | loss y 0.500 | 1.2 s"
    )


def test_line_says_how_long_it_takes():
    line = EpochRecorder(None, task_names=("y",)).describe({"epoch": 1, "loss_y": 0.5, "seconds": 40.0}, 101, 4000.4)
    assert line.endswith("| 40.0 s, 1:06:40 left")


def test_a_new_training_begins_a_new_file(tmp_path):
    run(tmp_path / "h.jsonl", [1.0] * 6, 3)
    run(tmp_path / "h.jsonl", [2.0] * 2, 1)
    assert [row["loss_y"] for row in read_history(tmp_path / "h.jsonl")] == [2.0]


def test_a_resumed_training_keeps_the_rows(tmp_path):
    # A checkpoint loader restores the epoch at STARTED too, and may come after the recorder.
    state = run(tmp_path / "h.jsonl", [1.0] * 4, 2).state_dict()
    run(tmp_path / "h.jsonl", [2.0] * 8, 4, before=state | {"max_epochs": 4})
    assert [(row["epoch"], row["loss_y"]) for row in read_history(tmp_path / "h.jsonl")] == [
        (1, 1.0),
        (2, 1.0),
        (3, 2.0),
        (4, 2.0),
    ]


@pytest.mark.parametrize("torn", ['{"epoch": 2, "lo', "", '{"epoch": 2, "loss_y": 9.0}'])
def test_a_resumed_training_does_not_write_on_a_torn_line(tmp_path, torn):
    state = run(tmp_path / "h.jsonl", [1.0] * 2, 1).state_dict()
    with (tmp_path / "h.jsonl").open("a") as file:
        file.write(torn)
    run(tmp_path / "h.jsonl", [2.0] * 6, 3, before=state | {"max_epochs": 3})
    assert [(row["epoch"], row["loss_y"]) for row in read_history(tmp_path / "h.jsonl")] == [
        (1, 1.0),
        (2, 2.0),
        (3, 2.0),
    ]


def test_decollated_outputs(tmp_path):
    # One dictionary per sample, with the batch's scalars as numbers in each.
    engine = Engine(
        lambda engine, batch: decollate_batch({"loss_y": torch.tensor(float(batch)), "pred": torch.zeros(3, 2)})
    )
    EpochRecorder(tmp_path / "h.jsonl", task_names=("y",)).attach(engine)
    engine.run([1, 2], max_epochs=1)
    assert read_history(tmp_path / "h.jsonl")[0]["loss_y"] == 1.5


def test_monais_loggers_behind_find_the_scalars_of_an_iteration():
    seen = []
    engine = trainer_of([1.0, 3.0])
    EpochRecorder(None, task_names=("y", "sex")).attach(engine)
    read = from_engine(["loss_y"], first=True)
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda: seen.append(read(engine.state.output).item()))
    engine.run([torch.zeros(3), torch.zeros(3)], max_epochs=1)
    assert seen == [1.0, 3.0]


class TestReadHistory:
    def test_last_run_of_an_epoch_counts_and_a_torn_line_does_not(self, tmp_path):
        path = tmp_path / "h.jsonl"
        path.write_text('{"epoch": 1, "a": 0}\n{"epoch": 2, "a": 0}\n{"epoch": 2, "a": 1}\n{"epoch": 3, "a"')
        assert read_history(path) == [{"epoch": 1, "a": 0}, {"epoch": 2, "a": 1}]

    def test_a_torn_line_that_a_resumed_training_wrote_on(self, tmp_path):
        path = tmp_path / "h.jsonl"
        path.write_text('{"epoch": 1, "a": 0}\n{"epoch": 2, "a"{"epoch": 2, "a": 1}\n{"epoch": 3, "a": 0}\n')
        assert [row["epoch"] for row in read_history(path)] == [1, 3]

    def test_absent_file(self, tmp_path):
        assert read_history(tmp_path / "none.jsonl") == []


def test_failed_iteration_leaves_the_finished_epochs(tmp_path):
    with pytest.raises(IndexError):
        run(tmp_path / "h.jsonl", [1.0] * 3, 2)
    assert [row["epoch"] for row in read_history(tmp_path / "h.jsonl")] == [1]


def test_a_training_that_goes_on_from_an_earlier_epoch_leaves_none_of_the_later_ones(tmp_path):
    path = tmp_path / "history.jsonl"
    rows = [{"epoch": epoch, "run": run} for run, epochs in enumerate(([1, 2, 3, 4, 5], [3, 4])) for epoch in epochs]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [(row["epoch"], row["run"]) for row in read_history(path)] == [(1, 0), (2, 0), (3, 1), (4, 1)]


def test_epochs_that_are_trained_anew_have_one_row_on_file(tmp_path):
    path = tmp_path / "history.jsonl"
    run(path, [1.0] * 4, 2)
    run(path, [2.0] * 6, 3, after=2)  # a second part, which is killed and run anew
    run(path, [3.0] * 6, 3, after=2)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4, 5]
    assert [row["loss_y"] for row in rows] == [1.0, 1.0, 3.0, 3.0, 3.0]
