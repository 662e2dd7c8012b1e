# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""Keep the memory of one batch for the next, where the C library would give it back to the system in between."""

from __future__ import annotations

import ctypes
import platform

__all__ = ["reuse_freed_memory"]

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # malloc.h


def reuse_freed_memory() -> bool:
    """
    From now on, let this process keep the memory that it frees, for its next allocations.

    glibc maps every tensor above 32 MB anew and unmaps it when it is freed: each batch of a training on a CPU waits for
    the system to clear its pages, tens of thousands of them, one by one. No value changes; at its end the process gives
    everything back, and until then holds what it needed at most.

    Returns:
        whether that was done: only where the C library is glibc. Elsewhere nothing happens.

    Example:
        >>> isinstance(reuse_freed_memory(), bool)
        True
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = {_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: -1, _M_TOP_PAD: 64 * 2**20}
    return all([mallopt(option, value) == 1 for option, value in settings.items()])
