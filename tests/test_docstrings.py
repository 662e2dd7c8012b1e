# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""The examples of all docstrings run and are right, and what is public is documented."""

from __future__ import annotations

import doctest
import importlib
import inspect
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


@pytest.mark.parametrize("name", MODULES)
def test_examples(name, tmp_path, monkeypatch):
    module = importlib.import_module(name)
    assert module.__doc__ and module.__doc__.strip()
    monkeypatch.chdir(tmp_path)  # an example may write files
    torch.manual_seed(0)
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    for test in doctest.DocTestFinder(exclude_empty=True).find(module, name):
        assert not any(doctest.SKIP in example.options for example in test.examples), f"{test.name} skips an example"
        report: list[str] = []
        result = doctest.DocTestRunner(optionflags=flags).run(test, out=report.append)
        assert result.failed == 0, "".join(report)


@pytest.mark.parametrize("value", PUBLIC, ids=lambda value: f"{value.__module__}.{value.__name__}")
def test_public_objects_are_documented(value):
    assert inspect.getdoc(value)
    if inspect.isfunction(value):
        signature, documented = inspect.signature(value), value.__doc__
    else:
        signature, documented = inspect.signature(value.__init__), f"{value.__doc__}{value.__init__.__doc__}"
    for parameter in signature.parameters.values():
        if parameter.name != "self" and parameter.kind is not parameter.VAR_POSITIONAL:
            assert f"{parameter.name}:" in documented, f"{parameter.name} is not documented"


@pytest.mark.parametrize("value", PUBLIC, ids=lambda value: f"{value.__module__}.{value.__name__}")
def test_public_objects_have_an_example(value):
    tests = doctest.DocTestFinder(exclude_empty=True, recurse=False).find(value, value.__name__)
    assert any(test.examples for test in tests) or value.__name__ in NEED_FILES


# These need image files, a cohort or a trained network, which their tests provide.
NEED_FILES: set[str] = set()
