# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""Interleaved timings, and the memory that one call takes, on a processor or a GPU."""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

FRESH = multiprocessing.get_context("forkserver")
"""Starts processes from one that has computed nothing."""


def wait_for_gpu() -> None:
    """Return when the GPU has done what it was asked for; at once where none is in use."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def take_turns(functions: Mapping[str, Callable[[], Any]], repeats: int, warm_up: int = 1) -> dict[str, list[float]]:
    """
    Seconds of each call of each function, turn by turn: a machine that slows down slows all of them.

    Args:
        functions: name to what is timed.
        repeats: calls that count, of each.
        warm_up: calls before, of each, that do not.
    """
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(warm_up + repeats):
        for name, function in functions.items():
            wait_for_gpu()
            started = time.perf_counter()
            function()
            wait_for_gpu()
            if turn >= warm_up:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def interleaved(functions: Mapping[str, Callable[[], Any]], repeats: int, warm_up: int = 1) -> dict[str, float]:
    """Median seconds of each function; arguments as of :func:`take_turns`."""
    return {name: statistics.median(values) for name, values in take_turns(functions, repeats, warm_up).items()}


def median_ratio(seconds: Sequence[float], others: Sequence[float]) -> float:
    """The median of the ratios of the same turn, which a machine that slows down between turns does not change."""
    return statistics.median(value / other for value, other in zip(seconds, others, strict=True))


def _kilobytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name + ":"))


def _measure(pipe: Any, make: Callable[..., Callable[[], Any]], arguments: tuple, options: dict, threads: int) -> None:
    torch.set_num_threads(threads)
    function = make(*arguments, **options)
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
        allocated = torch.cuda.memory_allocated()
        function()
        pipe.send((torch.cuda.max_memory_allocated() - allocated) / 1024)
        return
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts anew
    before = _kilobytes("VmRSS")
    function()
    pipe.send(_kilobytes("VmHWM") - before)


def peak_megabytes(make: Callable[..., Callable[[], Any]], *arguments: Any, **options: Any) -> float:
    """
    By how much one call raises the peak memory of a fresh process (Linux); the GPU's, where what is called uses one.

    Args:
        make: a function of a module, which returns the function to call.
        arguments: of ``make``.
        options: of ``make``, by name.

    Raises:
        RuntimeError: the process ended without an answer, most likely for want of memory.
    """
    receiver, sender = FRESH.Pipe(duplex=False)
    arguments_of_it = (sender, make, arguments, options, torch.get_num_threads())
    process = FRESH.Process(target=_measure, args=arguments_of_it, daemon=True)
    process.start()
    sender.close()
    try:
        kilobytes = receiver.recv()
    except EOFError:
        process.join()
        raise RuntimeError(f"{make.__name__}{arguments} ended with exit code {process.exitcode}.") from None
    process.join()
    return float(kilobytes) / 1024
