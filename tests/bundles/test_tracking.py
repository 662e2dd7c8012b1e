# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""What MLflow shows of a training, by MONAI's own settings and by the example's."""

import json

import monai.utils
import pytest
from runs import OWN, ROOT, options, workflow

from monai_mimmx.evaluation import final_scores
from monai_mimmx.handlers import read_history

EXAMPLE = str(ROOT.parent / "examples/mlflow.json")
SMALL = {"brain_age": {"epochs": 1}, "pleural_effusion_natural": {"epochs": 1, "refine_epochs": 1}}


def tracked(bundle, tracking, folders, output):
    """The runs that MLflow shows of a training, the oldest first, and the history and metrics that they are to show."""
    mlflow = pytest.importorskip("mlflow", reason="MLflow is not installed: pip install 'monai_mimmx[tracking]'")
    if not hasattr(monai.utils, "path_to_sqlite_uri"):
        pytest.skip("the tracking needs MONAI 1.6")
    workflow(
        bundle, "train", tracking=tracking, **options(bundle, folders, output, **OWN[bundle] | SMALL[bundle])
    ).run()
    client = mlflow.MlflowClient(tracking_uri=monai.utils.path_to_sqlite_uri(str(output / "mlruns.db")))
    (experiment,) = (found for found in client.search_experiments() if found.name != "Default")
    runs = client.search_runs([experiment.experiment_id], order_by=["start_time"])
    assert {run.info.status for run in runs} == {"FINISHED"}
    history = read_history(output / "history.jsonl")
    return client, runs, history, json.loads((output / "metrics.json").read_text())


@pytest.mark.parametrize("bundle", SMALL)
def test_the_example_shows_the_whole_training_and_its_final_table_as_one_run(bundle, folders, tmp_path):
    client, (run,), history, metrics = tracked(bundle, EXAMPLE, folders, tmp_path)
    assert run.info.run_name.startswith("mimmx, seed 0, ") and run.data.params["lambda_mi"] == str(
        metrics["config"]["lambda_mi"]
    )
    for key in set(history[-1]) - {"epoch"}:
        shown = [(entry.step, entry.value) for entry in client.get_metric_history(run.info.run_id, key)]
        assert shown == [(row["epoch"], pytest.approx(row[key])) for row in history if key in row]
    shown = {key: value for key, value in run.data.metrics.items() if key.startswith("final/")}
    assert shown == pytest.approx(final_scores(metrics))
    names = {entry.path for entry in client.list_artifacts(run.info.run_id)}
    assert names >= {"report.html", "model_card.md", "metrics.json"}


def test_monais_own_settings_show_each_iteration_and_the_final_table_as_a_run_of_its_own(folders, tmp_path):
    client, (training, evaluation), history, metrics = tracked("brain_age", "mlflow", folders, tmp_path)
    losses = [entry.value for entry in client.get_metric_history(training.info.run_id, "train_loss")]
    assert sum(losses) / len(losses) == pytest.approx(history[-1]["loss"])
    assert {"loss_y", "mi", "gamma_y", "attention_sex", "select_accuracy_y"} <= set(training.data.metrics)
    assert evaluation.data.metrics == pytest.approx(final_scores(metrics))
