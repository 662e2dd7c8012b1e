# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
import pytest


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Cohort and cache of each bundle, made once."""
    return tmp_path_factory.mktemp("bundles")
