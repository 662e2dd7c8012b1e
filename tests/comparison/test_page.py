# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""The page of a comparison holds its tables, pictures and failures, and needs nothing beside it."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest

from monai_mimmx.__main__ import main
from monai_mimmx.comparison import make_tables, read_published, write_comparison, write_results

PNG = b"\x89PNG\r\n\x1a\n-picture"


def add_run(folder, name, seed, inv, agreement=None, **more):
    """What a run of that name leaves in its folder."""
    path = folder / name / ("" if agreement is None else f"agreement_{agreement}") / f"seed_{seed}"
    path.mkdir(parents=True)
    options = {} if agreement is None else {"agreement": agreement}
    run = {"name": name, "seed": seed, "bundle": str(folder.parent / "bundle"), "config_file": "", "options": options}
    (path / "run.json").write_text(json.dumps(run))
    heads = {"sex": 1.0}
    metrics = {
        "task_names": ["sick", "sex"],
        "n": {"train": 3600, "val": 100, "inv": 100, "bal": 100},
        "version": "1",
        "config": {"image_size": 64, "method": name.split("_")[0], "lambda_mi": 1.5},
        "seconds": 1.0,
        "epochs": 3,
        "accuracy": {"val": {"y": 0.9, **heads}, "inv": {"y": inv, **heads}, "bal": {"y": 0.8, **heads}},
        "auroc": {"val": {"y": 0.95}, "inv": {"y": None}, "bal": {"y": 0.85}},
        "drop_val_inv": 0.9 - inv,
        "worst_group": {"bal": {"cell": "y=1", "accuracy": 0.5, "n": 10}},
        "probes": {
            kind: {"f_y": {"y": 0.9, "sex": 0.55}, "f_sex": {"y": 0.5, "sex": 1.0}} for kind in ("linear", "knn")
        }
        | {"chance": {"y": 0.5, "sex": 0.5}},
        **more,
    }
    (path / "metrics.json").write_text(json.dumps(metrics))
    (path / "history.jsonl").write_text('{"epoch": 1, "loss_y": 0.7}\n{"epoch": 2, "loss_y": 0.5}\n')
    for picture in ("tsne", "training", "samples", "cooccurrence"):
        (path / f"{picture}.png").write_bytes(PNG)
    return path


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "out"
    for seed in range(2):
        add_run(folder, "baseline", seed, 0.3)
        add_run(folder, "mimmx", seed, 0.88 + seed / 100)
        add_run(folder, "mimmx_dls", seed, 0.97)
    docs = tmp_path / "bundle" / "docs"
    docs.mkdir(parents=True)
    paper = [{"name": name, "accuracy": {"val": {"y": 0.842}, "inv": {"y": 0.828}}} for name in ("mimmx", "dcor")]
    (docs / "published.json").write_text(json.dumps({"source": "The paper, on other data", "rows": paper}))
    return folder


def page_of(folder):
    return (folder / "report.html").read_text(encoding="utf-8").replace("<wbr>", "")


def test_page_holds_tables_verdicts_and_pictures(folder, tmp_path):
    page = write_comparison(folder, read_published(tmp_path / "bundle/docs/published.json"))
    html = page_of(folder)
    assert page == folder / "report.html" and "6 runs finished, 0 failed" in html
    assert (
        "<td>baseline</td><td>shortcut</td><td>2</td><td>+60.0 ± 0.0</td>" in html
        and "<td>sex +5.0</td><td>-</td>" in html
    )
    assert "<td>sex +5.0</td><td>1.5</td>" in html
    assert "<td>mimmx</td><td>balanced</td>" in html
    assert "<td>mimmx_dls</td><td>over-corrected (anti-shortcut)</td><td>2</td><td>-7.0 ± 0.0</td>" in html
    assert "<td>mimmx, published</td><td>-</td><td>84.2</td><td>82.8</td><td>-</td>" in html
    assert "dcor" not in html  # published, but not run here
    assert "<td>DLS yes, CAW yes</td><td>90.0 ± 0.0</td>" in html and "+1.4</td></tr>" in html
    assert "Rows marked as published: The paper, on other data." in html
    assert "images of 64 pixels, 3,600 of them to train, 3 epochs" in html
    for name in ("gaps", "leaks", "courses"):
        assert f'id="figure-{name}"' in html and (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert html.count("<details>") == 3 and html.count('id="figure-tsne"') == 3
    assert html.count('id="figure-samples"') == 1
    assert not re.search(r"https?:|//[a-z]|@import|url\(|<script", re.sub(r"base64,[^\"]*", "", html))


def test_captions_name_what_is_drawn_only(folder, tmp_path):
    published = read_published(tmp_path / "bundle/docs/published.json")
    write_comparison(folder, published)
    assert "Hollow: published figures" in page_of(folder) and "the bar from Val to Inv" in page_of(folder)
    assert "Hollow: published" in write_results(folder, folder / "docs", published).read_text()
    write_comparison(folder, [row for row in published if row["name"] == "dcor"])  # which was not run here
    assert "Hollow" not in page_of(folder) and "Hollow" not in write_results(folder, folder / "docs").read_text()


def test_natural_factors_alone_have_no_word_of_inv(tmp_path):
    for name in ("baseline", "mimmx"):
        for seed in range(2):
            path = add_run(tmp_path, name, seed, 0.5) / "metrics.json"
            metrics = json.loads(path.read_text())
            del metrics["accuracy"]["inv"], metrics["auroc"]["inv"], metrics["drop_val_inv"], metrics["n"]["inv"]
            path.write_text(json.dumps(metrics))
    write_comparison(tmp_path)
    text, html = (tmp_path / "tables.md").read_text(), page_of(tmp_path)
    for words in (text, re.sub(r"base64,[^\"]*", "", html)):
        assert (
            not re.search(r"Val - Inv|Val to Inv|Inv:|y Inv|\bInv\b", words) and "Every factor has its natural" in words
        )
    assert "| method | seeds | y Val - Bal | y Bal |" in text and "| baseline | 2 | +10.0 ± 0.0 | 80.0 ± 0.0 |" in text
    assert "| baseline | 2 | 90.0 ± 0.0 | 80.0 ± 0.0 | 100.0 ± 0.0 |" in text and '<table class="words">' not in html
    assert "the verdict" not in text.lower()


def test_files_beside_the_page(folder):
    write_comparison(folder)
    rows = pd.read_csv(folder / "rows.csv")
    assert rows["accuracy.inv.y"].tolist() == [0.3, 0.3, 0.97, 0.97, 0.88, 0.89]
    table = pd.read_csv(folder / "table_accuracy.csv")
    assert table["method"].tolist() == ["baseline", "mimmx_dls", "mimmx"] and table["y Val"][0] == "90.0 ± 0.0"
    assert "| baseline | 2 | 90.0 ± 0.0 | 30.0 ± 0.0 |" in (folder / "tables.md").read_text()
    assert len(json.loads((folder / "rows.json").read_text())) == 6


def test_data_are_shown_of_every_agreement_of_a_sweep(tmp_path):
    for agreement in (0.6, 0.9):
        for name in ("baseline", "rebalance"):
            add_run(tmp_path, name, 0, 0.9 - agreement / 10, agreement=agreement)
    write_comparison(tmp_path)
    told = re.findall(r"<h2>Data</h2><p class=note>(.*?)</p>", page_of(tmp_path))
    assert told == ["With an agreement of 0.6 in training.", "With an agreement of 0.9 in training."]
    assert page_of(tmp_path).count('id="figure-cooccurrence"') == 2


def test_strength_curves_where_the_agreement_was_swept(folder):
    write_comparison(folder)
    assert 'id="figure-strength"' not in page_of(folder)
    for agreement in (0.6, 0.9):
        add_run(folder, "rebalance", 0, 0.9 - agreement / 10, agreement=agreement)
    write_comparison(folder)
    assert 'id="figure-strength"' in page_of(folder) and "rebalance @ 0.6" in page_of(folder)
    assert "A method with one seed has no interval." in page_of(folder)
    results = write_results(folder, folder / "docs")
    assert re.findall(r"\]\((.*?)\)", results.read_text())[:3] == ["rows.json", "gaps.png", "strength.png"]
    assert (folder / "docs/strength.png").read_bytes() == (folder / "strength.png").read_bytes()
    shutil.rmtree(folder / "rebalance")  # no sweep any more
    write_comparison(folder)
    write_results(folder, folder / "docs")
    assert "strength" not in results.read_text()
    assert not (folder / "strength.png").exists() and not (folder / "docs/strength.png").exists()


@pytest.mark.parametrize("agreement", [[0.9, "natural"], "natural"])
def test_an_agreement_that_is_no_number_is_none_of_a_sweep(folder, agreement):
    for seed in range(2):
        add_run(folder, "rebalance", seed, 0.8, agreement=agreement)
    write_comparison(folder)
    assert "| rebalance | 2 | 90.0 ± 0.0 | 80.0 ± 0.0 |" in (folder / "tables.md").read_text()


def test_failed_and_half_written_runs_are_named(folder):
    failed = add_run(folder, "dcor", 0, 0.5)
    (failed / "metrics.json").unlink()
    (failed / "error.json").write_text(json.dumps({"status": 1, "lines": ["...", "<b>out of memory</b>"]}))
    half = add_run(folder, "mmd", 0, 0.5)
    (half / "metrics.json").write_text('{"task_names": ["si')
    write_comparison(folder)
    html = page_of(folder)
    assert "6 runs finished, 2 failed" in html and "&lt;b&gt;out of memory&lt;/b&gt;" in html
    assert "mmd/seed_0/metrics.json is not whole" in html


def test_runs_that_are_missing_are_told(folder):
    killed = add_run(folder, "dcor", 3, 0.5)
    (killed / "metrics.json").unlink()
    write_comparison(folder)  # of a folder without a plan
    told = "Of 7 planned runs, 1 missing (method and seeds): not finished: dcor 3."
    assert "6 runs finished, 0 failed, 1 not finished" in page_of(folder) and told in page_of(folder)
    plan = [{"name": "mimmx", "seed": seed, "agreement": None, "options": {}, "aliases": ["x"]} for seed in range(4)]
    (folder / "plan.json").write_text(json.dumps({"runs": plan}))
    write_comparison(folder)
    told = "Of 9 planned runs, 3 missing (method and seeds): not finished: dcor 3; not begun: mimmx 2 3."
    for text in (page_of(folder), (folder / "tables.md").read_text()):
        assert told in text and "| dcor" not in text
    assert "6 runs finished, 0 failed, 1 not finished, 2 not begun" in page_of(folder)
    docs = write_results(folder, folder / "docs").parent
    write_comparison(docs)
    assert told in page_of(docs)
    for name in ("baseline", "mimmx", "mimmx_dls"):
        shutil.rmtree(folder / name)
    write_comparison(folder)
    assert (folder / "tables.md").read_text().startswith("No run finished.\n\nOf 5 planned runs, 5 missing")
    assert "0 runs finished, 0 failed, 1 not finished, 4 not begun" in page_of(folder)


def test_scores_of_a_training_that_is_not_over_are_no_row(folder):
    add_run(folder, "dcor", 3, 0.5, unfinished=True)
    write_comparison(folder)
    assert "Of 7 planned runs, 1 missing (method and seeds): not finished: dcor 3." in page_of(folder)
    assert "| dcor" not in (folder / "tables.md").read_text()
    (folder / "dcor/seed_3/error.json").write_text(json.dumps({"status": 1, "lines": ["no memory"]}))
    write_comparison(folder)
    assert "6 runs finished, 1 failed" in page_of(folder) and "no memory" in page_of(folder)


def test_nothing_finished_is_said(tmp_path):
    failed = add_run(tmp_path, "dcor", 0, 0.5)
    (failed / "metrics.json").unlink()
    (failed / "error.json").write_text(json.dumps({"status": 1, "lines": ["no memory"]}))
    write_comparison(tmp_path)
    assert "0 runs finished, 1 failed" in page_of(tmp_path) and "no memory" in page_of(tmp_path)
    assert "No run finished: dcor seed 0: no memory" in (tmp_path / "tables.md").read_text()


def test_mixed_versions_are_told(folder):
    add_run(folder, "rebalance", 0, 0.8, version="2")
    write_comparison(folder)
    assert "The runs are of different versions, 1, 2: they may not be comparable." in page_of(folder)


def test_the_command_finds_the_bundles_published_figures(folder, tmp_path, capsys):
    assert main(["report", str(folder), "--docs", str(tmp_path / "bundle/docs")]) == 0
    printed = capsys.readouterr().out
    assert f"report: {folder / 'report.html'}" in printed and "| mimmx, published | - | 84.2 |" in printed
    results = (tmp_path / "bundle/docs/results.md").read_text()
    assert "| mimmx, published | - | 84.2 |" in results and "](gaps.png)" in results and "strength" not in results
    assert (tmp_path / "bundle/docs/gaps.png").read_bytes() == (folder / "gaps.png").read_bytes()
    assert main(["report", str(folder), "--docs", str(tmp_path / "bundle/docs/quick")]) == 0
    assert "mimmx, published" in (tmp_path / "bundle/docs/quick/results.md").read_text()
    assert main(["report", str(folder)]) == 0
    assert "mimmx, published" in capsys.readouterr().out
    assert main(["report", str(tmp_path / "bundle/docs")]) == 0  # rows alone, without runs
    assert "mimmx, published" in capsys.readouterr().out
    html = page_of(tmp_path / "bundle/docs")
    assert "6 runs finished" in html and "<details>" not in html and 'id="figure-gaps"' in html


def test_a_published_row_without_inv_has_no_gap(tmp_path):
    rows = [{"name": "mimmx", "accuracy": {"val": {"y": 0.8}}}]
    (tmp_path / "published.json").write_text(json.dumps({"source": "Elsewhere", "rows": rows}))
    assert "drop_val_inv" not in read_published(tmp_path / "published.json")[0]


@pytest.mark.parametrize(
    ("tasks", "shown"),
    [({}, True), ({"name": "ill"}, False), ({"positive": ["severe"]}, False)],
    ids=["the bundle's", "another name", "other classes"],
)
def test_published_figures_stand_beside_runs_of_their_tasks_only(folder, tmp_path, capsys, tasks, shown):
    sick = {"name": "sick", "column": "sick", "negative": ["no"], "positive": ["yes"]} | tasks
    sex = {"name": "sex", "column": "sex", "negative": ["F"], "positive": ["M"]}
    config = {"imports": ["$import monai_mimmx"], "tasks": [sick, sex]}
    config["parsed_tasks"] = "$monai_mimmx.data.parse_tasks(@tasks)"
    (tmp_path / "bundle/configs").mkdir()
    (tmp_path / "bundle/configs/train.json").write_text(json.dumps(config))
    add_run(folder, "mimmx", 2, 0.9, classes={"y": ["no", "yes"], "sex": ["F", "M"]})
    assert main(["report", str(folder)]) == 0
    assert ("mimmx, published" in capsys.readouterr().out) is shown


def test_a_method_that_was_trained_under_another_name(folder):
    run = json.loads((folder / "mimmx/seed_0/run.json").read_text())
    for seed in range(2):
        (folder / f"mimmx/seed_{seed}/run.json").write_text(
            json.dumps(run | {"seed": seed, "aliases": ["mimmx_balanced", "mimmx_dls"]})
        )
    write_comparison(folder)
    rows = json.loads((folder / "rows.json").read_text())
    assert [row["name"] for row in rows if "same_as" in row] == ["mimmx_balanced"] * 2  # mimmx_dls has runs of its own
    html = page_of(folder)
    assert "mimmx and mimmx_balanced are the same setting here" in html and "6 runs finished, 0 failed" in html
    assert "<td>mimmx_balanced</td><td>balanced</td>" in html and html.count("<details>") == 3


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("run.json", '{"name": "mi', "mimmx/seed_0/run.json is not whole .*: remove it"),
        ("run.json", '{"name": "mimmx"}', "mimmx/seed_0/run.json lacks seed, options: remove it"),
    ],
)
def test_records_that_are_not_whole_are_named(folder, capsys, file, content, message):
    (folder / "mimmx/seed_0" / file).write_text(content)
    with pytest.raises(SystemExit):
        main(["report", str(folder)])
    assert re.search(message, capsys.readouterr().err)


def test_rows_that_are_not_whole_are_named(tmp_path, capsys):
    (tmp_path / "rows.json").write_text("[{")
    with pytest.raises(SystemExit):
        main(["report", str(tmp_path)])
    assert "rows.json is not whole: Expecting" in capsys.readouterr().err


def test_runs_of_single_commands_are_not_overlooked(folder, capsys):
    for path in folder.rglob("run.json"):
        path.unlink()
    with pytest.raises(SystemExit):
        main(["report", str(folder)])
    assert "no finished run of a comparison below" in (told := capsys.readouterr().err) and "takes in what" in told


def test_metrics_of_something_else_are_a_failed_run(folder):
    (folder / "mimmx/seed_0/metrics.json").write_text('{"accuracy": 1.0}')
    write_comparison(folder)
    assert "mimmx/seed_0/metrics.json lacks config, n, probes, seconds" in page_of(folder)
    assert "5 runs finished, 1 failed" in page_of(folder)


def test_the_recorded_rows_of_the_bundles_are_read():
    """Rows of before a field was added still make tables."""
    for path in sorted((Path(__file__).parents[2] / "bundles").glob("*/docs/**/rows.json")):
        made = make_tables(json.loads(path.read_text()))
        assert {"summary", "accuracy", "probes_linear"} <= {table.name for table in made}, path
