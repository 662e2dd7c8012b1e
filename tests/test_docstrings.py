# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""The examples of all docstrings run and are right, and what is public is documented."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest
import torch

import monai_mimmx

MODULES = ["monai_mimmx", *(module.name for module in pkgutil.walk_packages(monai_mimmx.__path__, "monai_mimmx."))]
PUBLIC = [
    getattr(package, name)
    for package in (getattr(monai_mimmx, name) for name in monai_mimmx.__all__)
    for name in package.__all__
]

CORE = [value for value in PUBLIC if value.__module__.split(".")[1] in ("losses", "networks", "engines")]
# Examples that are shown but not run: they need a trained network or write a whole cohort. Their own tests run them.
NOT_RUN = {
    "monai_mimmx.data.brain_cohort.write_brain_cohort",
    "monai_mimmx.data.chest_cohort.write_chest_cohort",
    "monai_mimmx.evaluation.predictions.collect_predictions",
    "monai_mimmx.evaluation.probes.probe_matrix",
    "monai_mimmx.evaluation.scores.bootstrap_interval",
    "monai_mimmx.evaluation.scores.group_accuracies",
    "monai_mimmx.evaluation.scores.score_table",
    "monai_mimmx.report.html.write_report",
}


@pytest.mark.parametrize("name", MODULES)
def test_examples(name, tmp_path, monkeypatch):
    module = importlib.import_module(name)
    assert module.__doc__ and module.__doc__.strip()
    monkeypatch.chdir(tmp_path)  # an example may write files
    torch.manual_seed(0)
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    for test in doctest.DocTestFinder(exclude_empty=True).find(module, name):
        skips = any(example.options.get(doctest.SKIP) for example in test.examples)
        assert skips is (test.name in NOT_RUN), f"{test.name}: an example that is not run must be named in NOT_RUN"
        report: list[str] = []
        result = doctest.DocTestRunner(optionflags=flags).run(test, out=report.append)
        assert result.failed == 0, "".join(report)


@pytest.mark.parametrize("value", PUBLIC, ids=lambda value: f"{value.__module__}.{value.__name__}")
def test_public_objects_are_documented(value):
    # A dataclass without a docstring would get its signature as one.
    assert value.__doc__ and not value.__doc__.startswith(f"{value.__name__}(")


@pytest.mark.parametrize("value", CORE, ids=lambda value: f"{value.__module__}.{value.__name__}")
def test_losses_networks_and_engines_have_an_example(value):
    tests = doctest.DocTestFinder(exclude_empty=True, recurse=False).find(value, value.__name__)
    assert any(test.examples for test in tests)
