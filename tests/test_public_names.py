# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""Bundles name components in short; MONAI's parser must find every public one, and find the right one."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import pydoc
import sys
import warnings

import monai  # noqa: F401
import pytest
from monai.bundle import ComponentLocator, ConfigParser

import monai_mimmx

PACKAGES = [monai_mimmx, *(getattr(monai_mimmx, name) for name in monai_mimmx.__all__)]
PUBLIC = {f"{package.__name__}.{name}": getattr(package, name) for package in PACKAGES[1:] for name in package.__all__}


@pytest.fixture(scope="module")
def locator():
    for module in pkgutil.walk_packages(monai_mimmx.__path__, "monai_mimmx."):
        importlib.import_module(module.name)
    return ComponentLocator()


def test_there_are_names_in_every_subpackage():
    found = {module.name for module in pkgutil.iter_modules(monai_mimmx.__path__)} - {"__main__"}
    assert found == set(monai_mimmx.__all__)
    assert all(package.__all__ for package in PACKAGES)
    assert all(inspect.isclass(value) or inspect.isfunction(value) for value in PUBLIC.values())


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_lists_are_sorted_and_unique(package):
    assert list(package.__all__) == sorted(set(package.__all__))


@pytest.mark.parametrize("path", PUBLIC)
def test_short_name_is_found_once_and_is_not_monais(locator, path):
    name, value = path.rpartition(".")[2], PUBLIC[path]
    # A list of modules means that the name is ambiguous: MONAI has it too, or two of our modules define it.
    assert locator.get_component_module_name(name) == value.__module__
    assert value.__module__.startswith("monai_mimmx.")


@pytest.mark.parametrize("path", PUBLIC)
def test_dotted_paths_lead_to_the_object(path):
    # MONAI locates "package.module.name" with pydoc. A package that exports a function under the name of one of its
    # modules would hide that module, and lead to None or to something else.
    value = PUBLIC[path]
    assert pydoc.locate(path) is value
    assert pydoc.locate(f"{value.__module__}.{value.__name__}") is value


@pytest.mark.parametrize("path", PUBLIC)
def test_the_parser_resolves_the_short_target(path):
    name, value = path.rpartition(".")[2], PUBLIC[path]
    parser = ConfigParser({"item": {"_target_": name, "_mode_": "callable"}})
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # "more than 1 component" is only a warning
        assert parser.get_parsed_content("item") is value


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_no_export_hides_a_module(package):
    if not hasattr(package, "__path__"):
        return
    for module in pkgutil.iter_modules(package.__path__):
        full = f"{package.__name__}.{module.name}"
        importlib.import_module(full)
        assert getattr(package, module.name) is sys.modules[full], f"{full} is hidden by an export of the same name"


@pytest.mark.parametrize(
    "path",
    [
        "losses.MINELoss",
        "losses.DistanceCorrelationLoss",
        "networks.MIMMXNet",
        "handlers.DynamicLossScaling",
        "engines.MIMMXTrainer",
        "data.CorrelatedSplit",
    ],
)
def test_names_that_users_rely_on(path):
    assert f"monai_mimmx.{path}" in PUBLIC
