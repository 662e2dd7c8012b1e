# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""The benchmarks run, and compare what they say they compare."""

import importlib
import json
import math
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # they are no part of the package

from benchmarks import epoch, processes
from benchmarks.__main__ import (
    _SUMMARIES,
    HERE,
    NAMES,
    README,
    describe_machines,
    format_summary,
    format_tables,
    load_results,
)
from benchmarks.mine_update import FORMS, AllPairs, make_update
from benchmarks.readme import format_evidence, with_section
from benchmarks.timing import interleaved, median_ratio, peak_megabytes


@pytest.mark.parametrize("name", ["mine_update", "epoch", "switches", "table_to_splits", "image_cache", "evaluation"])
def test_each_runs_at_tiny_size_and_gives_a_table(name):
    groups = importlib.import_module(f"benchmarks.{name}").measure(quick=True)
    machine = dict.fromkeys(("processor", "threads", "cores", "torch", "monai", "python"), "x")
    machine |= {"threads": 1}
    results = {"machine": {name: machine}, "load": {name: 0.5}, "benchmarks": {name: groups}}
    text = format_tables(results)
    assert format_summary(results).count("\n| ") > 1  # a head, a line, and what was measured
    rows = [row for group in groups.values() for row in group]
    assert rows and all(math.isfinite(value) for row in rows for value in row.values() if isinstance(value, float))
    assert sum(line.startswith("|") for line in text.splitlines()) == len(rows) + 2 * len(groups)


def test_the_readme_says_what_is_recorded():
    text, results = README.read_text(encoding="utf-8"), load_results(HERE / "results.json")
    assert with_section(text, "benchmarks", format_summary(results)) == text
    assert with_section(text, "evidence", format_evidence(HERE.parent / "bundles")) == text
    if results["benchmarks"]:
        assert format_tables(results) == (HERE / "results.md").read_text(encoding="utf-8")


def test_a_summary_stands_between_its_markers():
    row = {"table_rows": 7, "read_seconds": 1.5, "split_seconds": 0.25}
    machine = {"processor": "P", "cores": 2, "threads": 1, "python": "3", "torch": "2", "monai": "1"}
    results = {
        "machine": {"table_to_splits": machine},
        "load": {"a": 2.5},
        "benchmarks": {"table_to_splits": {"table": [row]}},
    }
    text = README.read_text(encoding="utf-8")
    changed = with_section(text, "benchmarks", format_summary(results))
    assert "1.5 s to read, 0.25 s to split" in changed and "(load before a benchmark up to 2.5)" in changed
    recorded = format_summary(load_results(HERE / "results.json"))
    assert with_section(changed, "benchmarks", recorded) == text  # what stands around it is kept
    for broken in (text.replace("<!-- benchmarks: end -->", ""), text + "<!-- benchmarks: end -->"):
        with pytest.raises(ValueError, match="once each, in this order"):
            with_section(broken, "benchmarks", recorded)


def test_the_evidence_holds_every_recorded_method_of_every_bundle():
    lines = [line.split(" | ") for line in format_evidence(HERE.parent / "bundles").splitlines()[2:]]
    named = {(line[0].split("[")[1].split("]")[0], line[1]) for line in lines}
    for path in (HERE.parent / "bundles").glob("*/docs/rows.json"):
        recorded = {(path.parents[1].name, row["name"]) for row in json.loads(path.read_text(encoding="utf-8"))}
        assert recorded and recorded <= named


def test_each_is_summed_up_in_the_readme():
    assert sorted(_SUMMARIES) == sorted(NAMES)


def test_processes_stand_beside_what_the_machine_gives():
    rows = [
        {"bundle": "brain_age", "processes": name, "times_faster": value}
        for name, value in zip(processes.FORMS, (1, 1.5, 1.6, 1.75, 1.8), strict=True)
    ]
    machine = dict.fromkeys(("processor", "cores", "torch", "monai", "python"), "x") | {"threads": 1}
    summary = format_summary(
        {"machine": {"processes": machine}, "load": {}, "benchmarks": {"processes": {"processes": rows}}}
    )
    assert "1.5 times as many images a second as one (1.75 times for two that know nothing of each other" in summary
    assert "a batch each, `brain_age` | 1.6 times as many images a second as one (1.8 times" in summary


def test_every_form_of_an_epoch_has_a_name_in_the_summary():
    known = load_results(HERE / "results_gpu.json")
    row = known["benchmarks"]["epoch"]["epoch"][0]
    known["benchmarks"] = {"epoch": {"epoch": [row | {"training": form} for form in {**epoch.FORMS, **epoch.ON_GPU}]}}
    assert format_summary(known).count("Epoch of `brain_age`") == len(epoch.FORMS) + len(epoch.ON_GPU)


@pytest.mark.parametrize("stem", ["results", "results_gpu"])
def test_the_tables_hold_what_is_recorded(stem):
    assert (HERE / f"{stem}.md").read_text() == format_tables(load_results(HERE / f"{stem}.json"))


def test_rows_of_two_machines_are_told_apart():
    machine = {"processor": "P", "cores": 2, "threads": 1, "python": "3", "torch": "2", "monai": "1"}
    where = {"epoch": machine, "processes": machine | {"processor": "Q"}, "evaluation": machine}
    told = describe_machines({"machine": where, "load": {"epoch": 0.9}, "benchmarks": {}})
    assert told == (
        "Measured on P, 1 thread(s) of 2 cores, PyTorch 2, MONAI 1, Python 3: epoch, evaluation. "
        "Measured on Q, 1 thread(s) of 2 cores, PyTorch 2, MONAI 1, Python 3: processes."
    )


def test_functions_take_turns():
    calls = []
    seconds = interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=2, warm_up=1)
    assert calls == ["a", "b"] * 3 and set(seconds) == {"a", "b"} and min(seconds.values()) >= 0


def test_a_ratio_is_of_the_same_turn():
    assert median_ratio([2.0, 20.0, 3.0], [1.0, 10.0, 1.0]) == 2.0  # of the medians it would be 3


def test_all_forms_see_the_same_data(monkeypatch):
    seen = []

    class Spy(torch.nn.Module):
        def __init__(self, dim, factors):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.rand(dim))  # as any estimator, it draws its weights

        def forward(self, x, z):
            seen.append((x, z))
            return (self.weight * x[:, None] * z).mean()

    monkeypatch.setitem(FORMS, "literature", Spy)
    monkeypatch.setitem(FORMS, "default", Spy)
    for form in ("literature", "default"):
        make_update(form, 6, 0.9, dim=2, factors=2, seed=3)()
    (x, z), (same_x, same_z) = seen
    assert torch.equal(x, same_x) and torch.equal(z, same_z)
    assert x.shape == (6, 2) and z.shape == (6, 2, 2) and not torch.equal(z[:, 0], z[:, 1])


def _make_array(megabytes):
    return lambda: torch.ones(megabytes * 2**18)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc")
def test_peak_memory_is_that_of_the_call():
    assert peak_megabytes(_make_array, 200) == pytest.approx(200, abs=20)


def test_all_pairs_sees_every_pair_once():
    """The joint pairs are those of a sample with itself; the value is the bound over all pairs, written out."""
    torch.manual_seed(0)
    network = AllPairs(3, width=8).eval()
    x, z = torch.randn(5, 3), torch.randn(5, 3)
    values = [[network.layers(torch.cat([x[i], z[j]])[None]).item() for j in range(5)] for i in range(5)]
    joint = sum(values[i][i] for i in range(5)) / 5
    product = [math.exp(values[i][j]) for i in range(5) for j in range(5) if i != j]
    assert network(x, z).item() == pytest.approx(joint - math.log(sum(product) / 20), abs=1e-5)


def test_updates_raise_the_estimate():
    update = make_update("bundles", 200, correlation=0.7)
    first = update()
    assert [update() for _ in range(200)][-1] > first + 0.5
