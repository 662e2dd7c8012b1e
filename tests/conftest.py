# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""
What holds for every test: a process of pytest-xdist, and whatever it starts, computes on one thread, as tests share the
processors; and every test draws the same random numbers each time, whichever tests ran before it.
"""

import multiprocessing
import os

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # before PyTorch is imported
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# Children of a process that has imported all this and computed nothing: they start at once, and no thread is torn.
multiprocessing.get_context("forkserver").set_forkserver_preload(
    ["monai.bundle", "monai_mimmx", "tensorboard", "matplotlib.pyplot", "sklearn.manifold"]
)


@pytest.fixture(autouse=True)
def same_random_numbers():
    import torch  # here, as the process that hands out tests needs none

    torch.manual_seed(0)
