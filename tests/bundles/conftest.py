# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
import os

import pytest

from monai_mimmx.evaluation import ExperimentEvaluation


@pytest.fixture
def without_pictures(monkeypatch):
    """They take most of a tiny run's time: of this process only `runs.train(.., pictures=True)` draws them."""
    monkeypatch.setattr(ExperimentEvaluation, "_figures", lambda *_: {})


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Cohort and cache of each bundle, made once; the processes of pytest-xdist have them in common."""
    base = tmp_path_factory.getbasetemp()
    common = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "bundles"
    common.mkdir(exist_ok=True)
    return common
