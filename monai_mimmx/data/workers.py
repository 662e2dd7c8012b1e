# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""What the processes of a pool need, which outlive the one that started them and what it held."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time


def end_with_parent() -> None:
    """
    Let this process, a worker of a pool, end when the one that started it does, as a first step of the worker.

    By itself it would wait for work for ever: the pipe that the work comes through stays open, for the other workers have
    it too. So do files that the killed process had locked. On Windows, where nothing is inherited, nothing is needed.
    """
    parent = multiprocessing.parent_process()
    if parent is None or os.name == "nt":
        return

    def watch() -> None:
        while os.getppid() == parent.pid:
            time.sleep(0.2)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
