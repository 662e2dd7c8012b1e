# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""The end of a process of several."""

from __future__ import annotations

import time

import torch.distributed as dist

__all__ = ["leave_process_group"]


def leave_process_group(seconds: float = 1.0) -> None:
    """
    Destroy the process group, and wait until its threads have let go of the tensors that they reduced last.

    One that lets go of a tensor of Python's while the interpreter ends would abort the process ("terminate called without
    an active exception"), and torchrun then stops all others: one that evaluates, say, while this one has nothing left to do.

    Args:
        seconds: to wait.

    Example:
        >>> leave_process_group(0)  # there is none

    Reference:
        https://github.com/pytorch/pytorch/pull/179291
    """
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
        time.sleep(seconds)
