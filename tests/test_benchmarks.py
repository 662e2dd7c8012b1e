# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""The benchmarks run, and compare what they say they compare."""

import importlib
import math
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # they are no part of the package

from benchmarks.__main__ import format_tables
from benchmarks.mine_update import AllPairs, make_update
from benchmarks.timing import interleaved, peak_megabytes


@pytest.mark.parametrize("name", ["mine_update", "epoch", "table_to_splits", "image_cache", "evaluation"])
def test_each_runs_at_tiny_size_and_gives_a_table(name):
    groups = importlib.import_module(f"benchmarks.{name}").measure(quick=True)
    machine = dict.fromkeys(("processor", "threads", "cores", "torch", "monai", "python"), "x")
    text = format_tables({"machine": machine, "benchmarks": {name: groups}})
    rows = [row for group in groups.values() for row in group]
    assert rows and all(math.isfinite(value) for row in rows for value in row.values() if isinstance(value, float))
    assert sum(line.startswith("|") for line in text.splitlines()) == len(rows) + 2 * len(groups)


def test_functions_take_turns():
    calls = []
    seconds = interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=2, warm_up=1)
    assert calls == ["a", "b"] * 3 and set(seconds) == {"a", "b"} and min(seconds.values()) >= 0


def _make_array(megabytes):
    return lambda: torch.ones(megabytes * 2**18)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc")
def test_peak_memory_is_that_of_the_call():
    assert peak_megabytes(_make_array, 200) == pytest.approx(200, abs=20)


def test_all_pairs_sees_every_pair_once():
    """The joint pairs are those of a sample with itself; the value is the bound over all pairs, written out."""
    torch.manual_seed(0)
    network = AllPairs(dim=3, width=8).eval()
    x, z = torch.randn(5, 3), torch.randn(5, 3)
    values = [[network.layers(torch.cat([x[i], z[j]])[None]).item() for j in range(5)] for i in range(5)]
    joint = sum(values[i][i] for i in range(5)) / 5
    product = [math.exp(values[i][j]) for i in range(5) for j in range(5) if i != j]
    assert network(x, z).item() == pytest.approx(joint - math.log(sum(product) / 20), abs=1e-5)


def test_updates_raise_the_estimate():
    update = make_update("ours", 200, correlation=0.7)
    first = update()
    assert [update() for _ in range(200)][-1] > first + 0.5
