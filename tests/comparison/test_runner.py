# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from monai_mimmx.__main__ import main
from monai_mimmx.comparison import (
    check_runs,
    collect_rows,
    execute_runs,
    make_tables,
    method_options,
    plan_runs,
    runner,
)
from monai_mimmx.comparison.methods import VARIANTS
from monai_mimmx.data.cohort_folder import available_cpus
from monai_mimmx.errors import Problems
from monai_mimmx.evaluation.scores import verdict_on
from monai_mimmx.files import locked

METRICS = {
    "accuracy": {"val": {"y": 0.9, "sex": 0.8}, "inv": {"y": 0.6, "sex": 0.8}, "bal": {"y": 0.7, "sex": 0.8}},
    "config": {"seed": 0},
    "task_names": ["sick", "sex"],
    "n": {"val": 10},
    "version": "0",
    "seconds": 1.0,
    "drop_val_inv": 0.3,
    "probes": {
        "linear": {"f_y": {"sex": 0.6}, "f_sex": {"y": 0.5}},
        "knn": {"f_y": {"sex": 0.6}},
        "chance": {"y": 0.5, "sex": 0.5},
    },
}


@pytest.fixture
def bundle(tmp_path):
    """A bundle that writes its metrics at once; it fails for one method, and waits where asked to."""
    config = {
        "imports": ["$import json", "$import os", "$import time", "$import monai_mimmx"],
        "output_dir": ".",
        "bundle_root": ".",
        "method": "mimmx",
        "sampling": None,
        "seed": 0,
        "wait": 0,
        "epochs": 2,
        "settings": {"seed": "@seed", "epochs": "@epochs", "device": "cpu"},
        "metrics": METRICS,
        "initialize": ["$monai_mimmx.errors.show_root_cause()"],
        "run": [
            "$print('threads', os.environ['OMP_NUM_THREADS'])",
            "$time.sleep(@wait)",
            "$1 / 0 if @method == 'dcor' else None",
            "$open(@output_dir + '/metrics.json', 'w').write(json.dumps(@metrics | {'config': @settings}))",
        ],
    }
    root = tmp_path / "a bundle"
    (root / "configs").mkdir(parents=True)
    (root / "configs/train.json").write_text(json.dumps(config))
    (root / "configs/logging.conf").write_text(
        "[loggers]\nkeys=root\n[handlers]\nkeys=\n[formatters]\nkeys=\n[logger_root]\nlevel=WARNING\nhandlers=\n"
    )
    return root


def runs(bundle, *names, **more):
    return plan_runs(bundle, method_options(names), **{"seeds": [0], "output_dir": bundle.parent / "out", **more})


STAND_IN = """
import json, os, pathlib, sys
print("threads", os.environ["OMP_NUM_THREADS"])
if sys.argv[1] == "dcor":
    1 / 0
for folder in sys.argv[2:sys.argv.index("--config_file")]:
    pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
    (pathlib.Path(folder) / "metrics.json").write_text(json.dumps(METRICS))
""".replace("METRICS", repr(METRICS))


def quick(run, *more):
    """The run with a process in place of the bundle's that starts at once; it finishes `more` runs too."""
    folders = [str(one.folder) for one in (run, *more)]
    arguments = (run.options["method"], *folders, "--config_file", run.config_file)
    return dataclasses.replace(run, command=(sys.executable, "-c", STAND_IN, *arguments))


def test_a_failed_cell_is_recorded_and_the_rest_go_on(bundle, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    lines = []
    made = [quick(run) for run in runs(bundle, "dcor", "baseline", "rebalance")]
    counts = execute_runs(made, jobs=2, progress=False, report=lines.append)
    assert counts == {"finished": 2, "skipped": 0, "failed": 1, "elsewhere": 0, "not begun": 0}
    error = json.loads((bundle.parent / "out/dcor/seed_0/error.json").read_text())
    assert error["status"] == 1 and error["lines"][-1] == "ZeroDivisionError: division by zero"
    assert sorted(lines)[0].startswith("baseline seed 0: y val 90.0 inv 60.0 bal 70.0 %")
    assert "dcor seed 0: FAILED with status 1" in "\n".join(lines)
    assert f"threads {max(1, available_cpus() // 2)}\n" in (made[1].folder / "log.txt").read_text()
    # Again: only the failed one is tried.
    stamp = (made[1].folder / "metrics.json").stat().st_mtime_ns
    assert execute_runs(made, progress=False, report=lines.append) == {
        "finished": 0,
        "skipped": 2,
        "failed": 1,
        "elsewhere": 0,
        "not begun": 0,
    }
    assert (made[1].folder / "metrics.json").stat().st_mtime_ns == stamp


def test_all_problems_of_a_failed_cell_are_told(bundle):
    told = str(Problems([ValueError(f"wrong {number}") for number in range(30)]))
    (run,) = runs(bundle, "baseline")
    run = dataclasses.replace(run, command=(sys.executable, "-c", f"raise SystemExit('before\\n' + {told!r})"))
    lines = []
    execute_runs([run], progress=False, report=lines.append)
    assert "FAILED with status 1: 30 problems: 1. wrong 0 2. wrong 1 " in lines[0] and "30. wrong 29 | see" in lines[0]
    error = json.loads((run.folder / "error.json").read_text())
    assert runner.failure(error["status"], error["lines"]).startswith("30 problems: 1. wrong 0 2.")


def test_a_cell_that_cannot_be_started_is_recorded_too(bundle):
    first, second = runs(bundle, "baseline", "rebalance")
    broken = dataclasses.replace(first, command=("/no/such/python", *first.command[1:]))
    counts = execute_runs([broken, quick(second)], progress=False, report=lambda line: None)
    assert counts["failed"] == 1 and counts["finished"] == 1
    error = json.loads((first.folder / "error.json").read_text())
    assert error["lines"] == ["it could not be started: [Errno 2] No such file or directory: '/no/such/python'"]


def begun(run, target, *arguments, **more):
    """A process of a comparison that has begun with the run."""
    parent = multiprocessing.get_context("forkserver").Process(target=target, args=arguments, kwargs=more)
    parent.start()
    while not (run.folder / "log.txt").exists():
        time.sleep(0.1)
        assert parent.is_alive()
    time.sleep(0.3)
    return parent


def test_a_killed_comparison_goes_on_without_starting_its_orphan_again(bundle):
    made = runs(bundle, "baseline", options={"wait": 6})
    parent = begun(made[0], execute_runs, made, progress=False)
    parent.kill()
    parent.join()
    assert execute_runs(made, progress=False, report=lambda line: None)["elsewhere"] == 1
    deadline = time.monotonic() + 300  # a busy machine is slow to start a process
    while not made[0].is_finished and time.monotonic() < deadline:
        time.sleep(0.2)
    assert execute_runs(made, progress=False)["skipped"] == 1


def test_a_terminated_comparison_ends_its_runs_too(bundle):
    made = runs(bundle, "baseline", options={"wait": 600})
    arguments = ["compare", "--bundle", str(bundle), "--methods", "baseline", "--seeds", "1"]
    arguments += ["--output_dir", str(bundle.parent / "out"), "--", "--wait", "600"]
    parent = begun(made[0], main, arguments)
    parent.terminate()
    parent.join(300)
    assert parent.exitcode == 128 + signal.SIGTERM
    assert not runner.is_running(made[0]) and not made[0].is_finished
    assert not (made[0].folder / "error.json").exists()  # it did not fail: it is one of those not finished
    (row,) = collect_rows(bundle.parent / "out")
    assert row["missing"] == "not finished"


@pytest.mark.usefixtures("interruptible")
def test_a_run_that_is_about_to_start_ends_with_its_comparison(bundle, monkeypatch):
    made, record = runs(bundle, "baseline", options={"wait": 600}), runner._record

    def stop(run):
        record(run)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)

    monkeypatch.setattr(runner, "_record", stop)
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        execute_runs(made, progress=False)
    assert time.monotonic() - started < 300 and not made[0].is_finished
    assert not (made[0].folder / "error.json").exists()


def test_a_failure_is_recorded_before_another_process_may_run_it(bundle, monkeypatch):
    made, write, free = runs(bundle, "dcor"), runner.write_json, []

    def look(path, content):
        if Path(path).name == "error.json":
            with locked(made[0].folder / ".lock") as lock:
                free.append(lock is not None)
        write(path, content)

    monkeypatch.setattr(runner, "write_json", look)
    assert execute_runs(made, progress=False, report=lambda line: None)["failed"] == 1
    assert free == [False]


def test_an_option_that_says_what_the_config_says_is_no_other(bundle):
    execute_runs([quick(run) for run in runs(bundle, "baseline", options={"wait": 0})], progress=False)
    check_runs(runs(bundle, "baseline"))


def test_what_another_process_finished_meanwhile_is_not_run_again(bundle):
    first, second = runs(bundle, "baseline", "rebalance")
    counts = execute_runs([quick(first, second), second], progress=False, report=lambda line: None)
    assert counts["finished"] == 1 and counts["skipped"] == 1 and not (second.folder / "log.txt").exists()


def test_half_written_metrics_are_run_again(bundle):
    made = [quick(run) for run in runs(bundle, "baseline")]
    execute_runs(made, progress=False, report=lambda line: None)
    (made[0].folder / "metrics.json").write_text('{"accuracy": {"val"')
    assert not made[0].is_finished
    assert execute_runs(made, progress=False, report=lambda line: None)["finished"] == 1
    assert made[0].is_finished


def test_planned_runs_that_never_began_are_told(bundle):
    output, started = bundle.parent / "out", []

    def stop(line):
        started.append(line)
        raise KeyboardInterrupt

    made = [quick(run) for run in runs(bundle, "baseline", "rebalance", "groupdro", seeds=[0, 1])]
    with pytest.raises(KeyboardInterrupt):
        execute_runs(made, progress=False, report=stop)
    rows = collect_rows(output)
    assert len(started) == 1 and len(rows) == 6 and sum("missing" in row for row in rows) >= 4
    execute_runs([quick(run) for run in runs(bundle, "dcor")], progress=False, report=lambda line: None)
    assert len(collect_rows(output)) == 7  # a later call with other methods leaves the plan as it was
    execute_runs(made, progress=False, report=lambda line: None)
    assert not any("missing" in row for row in collect_rows(output))


def test_other_options_in_the_same_folder_are_refused(bundle):
    execute_runs([quick(run) for run in runs(bundle, "baseline")], progress=False, report=lambda line: None)
    with pytest.raises(ValueError, match="with other options .wait: 0 there, 1 now.: name another output_dir"):
        execute_runs(runs(bundle, "baseline", options={"wait": 1}), progress=False)


def test_other_config_files_in_the_same_folder_are_refused(bundle):
    execute_runs([quick(run) for run in runs(bundle, "baseline")], progress=False, report=lambda line: None)
    with pytest.raises(ValueError, match="holds a run of .*: name another output_dir"):
        execute_runs(runs(bundle, "baseline", overlays=[bundle / "configs/train.json"]), progress=False)


def test_an_edited_config_in_the_same_folder_is_refused(bundle):
    overlay = bundle / "configs/own.json"
    overlay.write_text('{"epochs": 3}')
    made = runs(bundle, "baseline", overlays=[overlay])
    execute_runs([quick(run) for run in made], progress=False, report=lambda line: None)
    overlay.write_text('{"epochs": 3, "num_workers": 4}')
    check_runs(made)
    overlay.write_text('{"epochs": 30, "subset_sizes": {"train": 9}}')
    with pytest.raises(ValueError, match="with another content, in epochs, subset_sizes: name another output_dir"):
        check_runs(made)


def test_where_and_how_it_is_called_may_differ(bundle):
    execute_runs([quick(run) for run in runs(bundle, "baseline")], progress=False, report=lambda line: None)
    check_runs(runs(bundle, "baseline", options={"device": "cpu", "num_workers": 2, "resume": True}))


def test_metrics_of_a_command_with_other_options_are_refused(bundle):
    (bundle / "configs/short.json").write_text('{"epochs": "$1 + @seed"}')
    (run,) = runs(bundle, "baseline")
    run.folder.mkdir(parents=True)
    config = {"seed": 0, "epochs": 2, "device": "cuda:1"}
    (run.folder / "metrics.json").write_text(json.dumps(METRICS | {"config": config}))
    check_runs([run])
    message = "with other options .epochs: 2 there, {} now.: name another output_dir"
    for other, epochs in (({"options": {"epochs": "$1 + 2"}}, 3), ({"overlays": [bundle / "configs/short.json"]}, 1)):
        with pytest.raises(ValueError, match=message.format(epochs)):
            execute_runs(runs(bundle, "baseline", **other), progress=False)


def test_metrics_of_something_else_are_run_again(bundle):
    (run,) = (quick(run) for run in runs(bundle, "baseline"))
    run.folder.mkdir(parents=True)
    (run.folder / "metrics.json").write_text('{"accuracy": 1.0}')
    assert execute_runs([run], progress=False, report=lambda line: None)["finished"] == 1


@pytest.mark.parametrize("name", ["brain_age", "pleural_effusion"])
def test_what_a_bundle_resolves_to_the_same_is_planned_once(name, tmp_path):
    bundle = Path(__file__).parents[2] / "bundles" / name
    twin = "mimmx_balanced_marginal" if name == "brain_age" else "mimmx_balanced_conditional"
    made = plan_runs(bundle, method_options("all"), seeds=[0, 1], output_dir=tmp_path)
    assert {run.name: run.aliases for run in made if run.aliases} == {"mimmx_balanced": (twin,)}
    assert len(made) == 2 * (len(VARIANTS) - 1)
    # Where the other one is finished, it stands for both.
    (tmp_path / twin / "seed_0").mkdir(parents=True)
    (tmp_path / twin / "seed_0/metrics.json").write_text(json.dumps(METRICS))
    again = plan_runs(bundle, method_options("all"), seeds=[0, 1], output_dir=tmp_path)
    assert [(run.name, run.seed) for run in again if run.aliases] == [(twin, 0), ("mimmx_balanced", 1)]
    switched = plan_runs(
        bundle, method_options("all"), seeds=[0], output_dir=tmp_path / "x", options={"conditional": True}
    )
    assert "mimmx_balanced_conditional" in {name for run in switched for name in run.aliases}


def test_one_run_under_two_names(bundle, capsys):
    config = json.loads((bundle / "configs/train.json").read_text()) | {"conditional": "$@method == 'mimmx'"}
    (bundle / "configs/train.json").write_text(json.dumps(config))
    output = bundle.parent / "out"
    arguments = ["compare", "--bundle", str(bundle), "--output_dir", str(output), "--seeds", "1", "--methods"]
    names = ["mimmx_balanced", "mimmx_balanced_conditional"]
    assert main([*arguments, *names, "--list"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1
    execute_runs([quick(run) for run in runs(bundle, names[1])], progress=False, report=lambda line: None)
    assert main([*arguments, *names]) == 0
    printed = capsys.readouterr().out
    assert "mimmx_balanced: as mimmx_balanced_conditional here, trained once" in printed and "1 skipped" in printed
    assert "| mimmx_balanced | 1 | 90.0 |" in printed and "| mimmx_balanced_conditional | 1 | 90.0 |" in printed
    rows = json.loads((output / "rows.json").read_text())
    assert [(row["name"], row.get("same_as")) for row in rows] == [(names[0], names[1]), (names[1], None)]


def failing(run, words, *, epochs=0):
    """A run that says its last words, after it has trained some epochs."""
    train = f"open({str(run.folder / 'history.jsonl')!r}, 'w').close();" if epochs else ""
    return dataclasses.replace(run, command=(sys.executable, "-c", f"import sys; {train} sys.exit({words!r})"))


def test_runs_that_all_fail_alike_before_they_train_end_the_comparison(bundle):
    made = runs(bundle, *list(VARIANTS)[:12])
    lines = []
    counts = execute_runs([failing(run, "no column 'age'") for run in made], progress=False, report=lines.append)
    assert 3 <= counts["failed"] <= 5 and counts["failed"] + counts["not begun"] == len(made)  # some begun meanwhile
    assert sum(line.startswith("the first 3 runs failed alike, before they trained") for line in lines) == 1
    assert not made[-1].folder.exists()


@pytest.mark.parametrize("kind", ["each its own way", "after an epoch", "one goes well"])
def test_runs_that_fail_for_causes_of_their_own_do_not_end_it(bundle, kind):
    made = runs(bundle, *list(VARIANTS)[:5])
    if kind == "each its own way":
        others = [failing(run, run.name) for run in made]
    elif kind == "after an epoch":
        others = [failing(run, "no memory", epochs=3) for run in made]
    else:
        others = [quick(made[0]), *(failing(run, "no column 'age'") for run in made[1:])]
    assert execute_runs(others, progress=False, report=lambda line: None)["not begun"] == 0


def test_a_failed_run_of_its_own_does_not_hide_the_same_setting(bundle, capsys):
    config = json.loads((bundle / "configs/train.json").read_text()) | {"conditional": "$@method == 'mimmx'"}
    (bundle / "configs/train.json").write_text(json.dumps(config))
    output, names = bundle.parent / "out", ["mimmx_balanced", "mimmx_balanced_conditional"]
    (alone,) = runs(bundle, names[1])
    failing = dataclasses.replace(alone, command=("/no/such/python", *alone.command[1:]))
    execute_runs([failing], progress=False, report=lambda line: None)
    assert ["error" in row for row in collect_rows(output)] == [True]
    (both,) = runs(bundle, *names)
    assert (both.name, both.aliases) == (names[0], (names[1],))
    execute_runs([quick(both)], progress=False, report=lambda line: None)
    rows = collect_rows(output)
    assert [(row["name"], row.get("same_as"), "error" in row) for row in rows] == [
        (names[0], None, False),
        (names[1], names[0], False),
    ]


def test_a_comparison_in_a_folder_of_another_is_not_mixed_in(bundle):
    output = bundle.parent / "out"
    for folder in (output, output / "quick"):
        made = runs(bundle, "baseline", agreements=[0.8], output_dir=folder)
        execute_runs([quick(run) for run in made], progress=False, report=lambda line: None)
    for folder in (output, output / "quick"):
        assert [(row["name"], row["agreement"]) for row in collect_rows(folder)] == [("baseline", 0.8)]


def test_a_run_that_goes_on_elsewhere_is_not_listed(bundle, capsys):
    (run,) = runs(bundle, "baseline")
    run.folder.mkdir(parents=True)
    arguments = ["compare", "--bundle", str(bundle), "--output_dir", str(bundle.parent / "out"), "--list"]
    with locked(run.folder / ".lock"):
        assert main([*arguments, "--methods", "baseline", "--seeds", "1"]) == 0
    printed = capsys.readouterr()
    assert not printed.out and "baseline seed 0: another process is running it" in printed.err


def test_a_sweep_leaves_natural_factors_as_they_are(bundle):
    config = json.loads((bundle / "configs/train.json").read_text()) | {"agreement": [0.9, "natural", 0.8]}
    (bundle / "configs/train.json").write_text(json.dumps(config))
    (run,) = runs(bundle, "baseline", agreements=[0.7])
    assert run.options["agreement"] == [0.7, "natural", 0.7] and "agreement_0.7" in str(run.folder)
    execute_runs([quick(run)], progress=False, report=lambda line: None)
    assert [row["agreement"] for row in collect_rows(bundle.parent / "out")] == [0.7]


def test_the_list_of_commands_runs_by_itself(bundle, capsys):
    arguments = ["--bundle", str(bundle), "--output_dir", str(bundle.parent / "out")]
    assert main(["compare", *arguments, "--methods", "baseline", "--seeds", "2", "--list", "--", "--wait", "0"]) == 0
    first, _ = capsys.readouterr().out.splitlines()
    (bundle.parent / "out/baseline/seed_0").mkdir(parents=True)
    subprocess.run(
        shlex.split(first), check=True, capture_output=True, env={"OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    )
    assert main(["compare", *arguments, "--methods", "baseline", "--seeds", "2", "--list"]) == 0
    assert "seed_1" in capsys.readouterr().out
    assert main(["compare", *arguments, "--methods", "baseline", "--seeds", "1", "--", "--wait", "0"]) == 0
    assert "| baseline | 1 |" in capsys.readouterr().out


def test_no_command_is_listed_for_a_folder_that_holds_another_config(bundle, capsys):
    execute_runs([quick(run) for run in runs(bundle, "dcor")], progress=False, report=lambda line: None)
    arguments = ["compare", "--bundle", str(bundle), "--output_dir", str(bundle.parent / "out"), "--list"]
    assert main([*arguments, "--methods", "dcor", "--seeds", "1"]) == 0
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main([*arguments, "--methods", "dcor", "--seeds", "1", "--overlay", str(bundle / "configs/train.json")])
    printed = capsys.readouterr()
    assert "name another output_dir" in printed.err and not printed.out


def test_a_killed_cell_is_told_so(bundle):
    (run,) = runs(bundle, "baseline")
    killed = "import os, signal; print('training: 14 %', flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    lines = []
    killed_run = dataclasses.replace(run, command=(sys.executable, "-c", killed))
    execute_runs([killed_run], progress=False, report=lines.append)
    (row,) = collect_rows(bundle.parent / "out")
    assert row["error"] == "killed by signal 9 (Killed), after: training: 14 %" and row["error"] in lines[0]


def test_sweep_folders_and_commands(bundle):
    made = runs(bundle, "mimmx", agreements=[0.5, 0.95], seeds=[3], overlays=[bundle / "configs/train.json"])
    assert [run.folder.relative_to(bundle.parent).as_posix() for run in made] == [
        "out/mimmx/agreement_0.5/seed_3",
        "out/mimmx/agreement_0.95/seed_3",
    ]
    command = shlex.join(made[1].command)
    assert "--agreement 0.95 --seed 3" in command and "--method mimmx --sampling correlated --dls True" in command


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"seeds": []}, "one or more different seeds"),
        ({"seeds": [1, 1]}, "one or more different seeds"),
        ({"options": {"seed": 1}}, "sets seed itself"),
        ({"options": {"ckpt_dir": "models"}}, "sets ckpt_dir itself"),
        ({"options": {"agreement": 0.5}, "agreements": [0.9]}, "both as a sweep"),
        ({"agreements": [0.9, 0.9000001]}, "expected different agreements, got 0.9, 0.9"),
        ({"agreements": [0.9, 1.7]}, "a share from 0 to 1, got 1.7"),
        ({"agreements": [float("nan")]}, "a share from 0 to 1, got nan"),
        ({"overlays": ["no.json"]}, "no.json"),
        ({"options": {"sampling": "$1 / 0"}}, "train.json cannot resolve the options of .*: division by zero"),
    ],
)
def test_wrong_plans(bundle, more, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        runs(bundle, "baseline", "mimmx", **more)
    with pytest.raises(ValueError, match="jobs of 1 or more"):
        execute_runs([], jobs=0)


def test_a_config_that_is_no_json_is_named(bundle, tmp_path):
    (tmp_path / "mine.json").write_text('{"epochs": 3')
    with pytest.raises(ValueError, match=r"the config .*mine\.json cannot be read: Expecting"):
        runs(bundle, "baseline", overlays=[tmp_path / "mine.json"])


def test_a_config_that_is_a_list_is_named(bundle, tmp_path):
    (tmp_path / "mine.json").write_text("[1, 2]")
    with pytest.raises(ValueError, match=r"the config .*mine\.json must hold options by name, .* got a list"):
        runs(bundle, "baseline", overlays=[tmp_path / "mine.json"])


def test_a_row_has_what_the_verdict_of_its_run_went_by(bundle):
    (run,) = runs(bundle, "baseline")
    execute_runs([run], progress=False)
    metrics = json.loads((run.folder / "metrics.json").read_text()) | {"n": {"bal": 800}, "subjects": {"bal": 100}}
    metrics |= {
        "accuracy": {subset: {"y": 0.75, "sex": 0.5} for subset in ("val", "inv", "bal")},
        "drop_val_inv": 0.0,
        "switched_labels": {"bal": {"f_y": {"y": 0.75, "sex": 0.58}}},
        "chance": {"bal": {"y": 0.5, "sex": 0.5}},
        "probes": {"linear": {}, "knn": {}, "chance": {"y": 0.5, "sex": 0.5}},
    }
    (run.folder / "metrics.json").write_text(json.dumps(metrics))
    for table in make_tables(collect_rows(bundle.parent / "out")):
        if table.name == "summary":
            assert table.lines[0][1] == verdict_on(metrics) == "balanced"
            break
    else:
        pytest.fail("no summary")


def test_compare_writes_tables(bundle, capsys):
    output = bundle.parent / "out"
    arguments = [
        "compare",
        "--bundle",
        str(bundle),
        "--output_dir",
        str(output),
        "--methods",
        "baseline",
        "dcor",
        "--seeds",
        "1",
    ]
    assert main(arguments) == 1
    printed = capsys.readouterr().out
    assert "| baseline | 1 | 90.0 | 60.0 | 70.0 |" in printed and "1 finished, 1 failed" in printed
    assert "| baseline | 1 | 90.0 |" in (output / "tables.md").read_text()
    assert [row["name"] for row in json.loads((output / "rows.json").read_text())] == ["baseline", "dcor"]
    assert (
        f"report: {output / 'report.html'}" in printed
        and "1 run finished, 1 failed" in (output / "report.html").read_text()
    )
    assert json.loads((output / "baseline/seed_0/run.json").read_text())["bundle"] == str(bundle)
    docs = bundle / "docs"
    assert main(["report", str(output), "--docs", str(docs)]) == 0
    results = (docs / "results.md").read_text()
    assert "| baseline | 1 | 90.0 |" in results
    (docs / "results.md").unlink()
    assert main(["report", str(docs), "--docs", str(docs)]) == 0  # from the rows alone
    assert (docs / "results.md").read_text() == results


def test_an_interrupt_is_told_in_one_line(bundle, capsys, monkeypatch):
    def interrupted(made, jobs):
        execute_runs([quick(made[0])], progress=False, report=lambda line: None)
        raise KeyboardInterrupt

    monkeypatch.setattr("monai_mimmx.__main__.execute_runs", interrupted)
    output = str(bundle.parent / "out")
    with pytest.raises(SystemExit) as stop:
        main(["compare", "--bundle", str(bundle), "--output_dir", output, "--methods", "baseline", "--seeds", "3"])
    assert stop.value.code == 130
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert f"interrupted: 1 of 3 runs are finished and kept in {output}; the same command goes on" in line


def test_wrong_arguments_are_told(bundle, capsys, tmp_path):
    for arguments, message in (
        (["compare", "--bundle", str(tmp_path / "none"), "--output_dir", "x"], "there is no .*none/configs/train.json"),
        (["compare", "--bundle", str(bundle), "--output_dir", "x", "--methods", "magic"], "got 'magic'"),
        (["compare", "--bundle", str(bundle), "--output_dir", "x", "--", "--epochs"], "pairs of --key value"),
        (["report", str(tmp_path / "nothing")], "no finished run of a comparison below .*nothing$"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 2
        assert re.search(message, capsys.readouterr().err)


def test_methods():
    assert list(method_options("all")) == list(VARIANTS)
    assert VARIANTS["mimmx"]["sampling"] == "correlated" and VARIANTS["mimmx_balanced"]["sampling"] == "balanced"
    with pytest.raises(ValueError, match="got 'x'"):
        method_options(["x"])
    with pytest.raises(ValueError, match="each method once"):
        method_options(["mimm", "mimm"])
