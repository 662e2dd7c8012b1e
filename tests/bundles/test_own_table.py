# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""A study made of a bundle by an overlay alone: the example's overlay on a table and images that the test makes."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from monai.bundle import ConfigWorkflow
from PIL import Image
from runs import NAMES, ROOT

OVERLAY = ROOT.parent / "examples" / "own_table.json"
AS_IS = {"brain_age": {"train#prepare_batch#augment#max_shift": 0}}
"""What leaves images as they are where the augmentation is no list that can be emptied."""
ROWS, SCANNERS = 2400, ["Alpha", "Beta", "Gamma", "Gamma-2", "other"]


@pytest.fixture(scope="module")
def ward(tmp_path_factory):
    """
    A folder with the columns of the overlay. The age is the direction of stripes all over the image, the scanner a
    bright corner, and the finding a corner so little brighter that the age is the easier way to the label.
    """
    folder, draw = tmp_path_factory.mktemp("ward"), np.random.default_rng(0)
    finding, old = draw.integers(0, 2, (2, ROWS))
    scanner = draw.choice(len(SCANNERS), ROWS, p=[0.3, 0.3, 0.2, 0.15, 0.05])
    stripes = np.arange(16) // 2 % 2 - 0.5
    images = draw.standard_normal((ROWS, 16, 16)) + np.where(old[:, None, None], stripes[:, None], stripes[None])
    images[:, :4, :4] += 0.5 * finding[:, None, None]
    images[:, -4:, -4:] += 2.0 * np.minimum(scanner, 2)[:, None, None]
    files = [f"{number}.png" for number in range(ROWS)]
    for file, image in zip(files, np.clip(images * 30 + 120, 0, 255).astype(np.uint8), strict=True):
        Image.fromarray(image).save(folder / file)
    table = pd.DataFrame({"file": files, "patient_id": draw.integers(0, ROWS, ROWS)})
    table["report"] = np.where(finding, draw.choice(["effusion", "oedema"], ROWS), "normal")
    table["age_years"] = np.where(old, draw.integers(65, 90, ROWS), draw.integers(20, 50, ROWS))
    table["scanner"] = np.array(SCANNERS)[scanner]
    table.to_csv(folder / "films.csv", index=False)
    return folder


@pytest.fixture
def train(ward, tmp_path):
    """The metrics of a training with the overlay, given more options."""

    def run(bundle="pleural_effusion", **more):
        made = ConfigWorkflow(
            config_file=[str(ROOT / bundle / "configs/train.json"), str(OVERLAY)],
            meta_file=str(ROOT / bundle / "configs/metadata.json"),
            logging_file=False,
            workflow_type="train",
            bundle_root=str(ROOT / bundle),
            table=str(ward / "films.csv"),
            cache_dir=str(ward / "cache"),
            output_dir=str(tmp_path / "_".join(map(str, more.values()))),
            **{"image_size": 16, "batch_size": 25, "device": "cpu", "network_def#encoder": "four_conv"},
            # shifts and flips would move the corners of images this small
            **AS_IS.get(bundle, {"train#prepare_batch#augment#transforms": []}),
            **more,
        )
        made.initialize()
        made.run()
        return json.loads(Path(made.parser.get_parsed_content("output_dir"), "metrics.json").read_text())

    return run


def test_an_overlay_alone_makes_a_study_finds_its_shortcut_and_predicts(train, ward):
    metrics = train(method="baseline", epochs=12, refine_epochs=2)
    assert metrics["task_names"] == ["finding", "age", "device"] and metrics["config"]["agreement"] == [0.9, "natural"]
    assert metrics["classes"]["device"] == ["Alpha", "Beta", "Gamma / Gamma-2"]
    assert any(reason.startswith("device='other'") for reason in metrics["excluded"])
    assert metrics["n"]["train"] == sum(metrics["cells"]["train"].values())
    assert metrics["drop_val_inv"] > 0.4
    output = Path(metrics["config"]["output_dir"])
    assert "# Model card: finding\n" in (output / "model_card.md").read_text()
    ConfigWorkflow(
        config_file=[str(ROOT / "pleural_effusion/configs/inference.json"), str(OVERLAY)],
        meta_file=str(ROOT / "pleural_effusion/configs/metadata.json"),
        logging_file=False,
        workflow_type="infer",
        **{"network_def#encoder": "four_conv", "method": "baseline", "image_size": 16, "device": "cpu"},
        **{"dataset_dir": str(ward), "output_dir": str(output)},
    ).run()
    predictions = pd.read_csv(output / "predictions.csv")
    assert len(predictions) == ROWS and "device: Gamma / Gamma-2" in predictions


@pytest.mark.parametrize("bundle", NAMES)
def test_every_bundle_runs_on_any_table_and_has_no_gap_where_nothing_is_induced(train, bundle, tmp_path):
    more = {} if bundle == "fashion_mnist" else {"refine_epochs": 1}
    metrics = train(bundle, method="baseline", epochs=1, agreement="natural", subset_sizes={"train": 200}, **more)
    assert {*metrics["accuracy"]} == {"val", "bal"} and not {"drop_val_inv", "drop_val_inv_interval"} & {*metrics}
    (page,) = tmp_path.glob("*/report.html")
    text = page.read_text()
    assert "<title>finding</title>" in text
    assert "No verdict" in text and "Val − Bal (points)" in text and "Val − Inv" not in text
