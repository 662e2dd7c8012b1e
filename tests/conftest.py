# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""Tests share the processors: a process of pytest-xdist, and whatever it starts, computes on one thread."""

import multiprocessing
import os

if "PYTEST_XDIST_WORKER" in os.environ:  # before PyTorch is imported
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# Children of a process that has imported all this and computed nothing: they start at once, and no thread is torn.
multiprocessing.get_context("forkserver").set_forkserver_preload(
    ["monai.bundle", "monai_mimmx", "tensorboard", "matplotlib.pyplot", "sklearn.manifold"]
)
