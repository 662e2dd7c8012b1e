# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""A training step of many small operations, started on a GPU as one."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

__all__ = ["GraphedStep"]

_WARM_UP, _WORTH = 12, 100
"""Steps alike before one is recorded, when libraries are ready; as many again where a record served fewer than it cost."""


class GraphedStep:
    """
    A training step that is recorded as a CUDA graph and then replayed, with the same result.

    Where a step is many small operations, to start them one by one takes a GPU longer than to compute them. It is recorded
    anew when the shapes of its inputs, the optimizer's options, or the place in memory of anything it trains have changed.
    The generator of the device goes on as it does without a graph.

    Args:
        step: called with tensors on a GPU and with options; trains by ``optimizer``. Its operations must depend on
            options and the tensors' shapes alone, and must not wait for the GPU.
        optimizer: of all that ``step`` changes, which counts its steps on the GPU: made with ``fused`` or ``capturable``,
            such as ``torch.optim.Adam(..., fused=True)``.

    Raises:
        ValueError: an optimizer made otherwise.

    Example:
        >>> device = "cuda" if torch.cuda.is_available() else "cpu"
        >>> weight = torch.nn.Parameter(torch.ones(3, device=device))
        >>> optimizer = torch.optim.Adam([weight], fused=True)
        >>> def step(target):
        ...     (weight.grad,) = torch.autograd.grad((weight - target).square().sum(), [weight])
        ...     optimizer.step()
        ...     optimizer.zero_grad()
        >>> taken = GraphedStep(step, optimizer) if device == "cuda" else step
        >>> for _ in range(20):
        ...     taken(torch.zeros(3, device=device))

    Reference:
        PyTorch documentation, CUDA semantics, "CUDA Graphs".
    """

    def __init__(self, step: Callable[..., None], optimizer: Optimizer) -> None:
        self._step, self._optimizer = step, optimizer
        self._require_capturable()
        self._graph: Any = None
        self._inputs: tuple[Tensor, ...] = ()
        self._kind: Hashable = None
        self._alike, self._replayed, self._needed = 0, 0, _WARM_UP

    def __call__(self, *inputs: Tensor, **options: Hashable) -> None:
        """Take the step."""
        kind = self._kind_of(inputs), tuple(options.items())
        if kind != self._kind:
            self._require_capturable()  # a state that was loaded may have changed it
            if self._graph is not None:
                self._needed = 2 * self._needed if self._replayed < _WORTH else _WARM_UP
            self._kind, self._alike, self._replayed, self._graph = kind, 0, 0, None
        if self._alike < self._needed:
            self._alike += 1
            self._step(*inputs, **options)
            return
        if self._graph is None:
            self._record(inputs, options)
        else:
            torch._foreach_copy_(self._inputs, inputs)
        self._graph.replay()
        self._replayed += 1

    def _require_capturable(self) -> None:
        for group in self._optimizer.param_groups:
            if "capturable" not in group or not (group["capturable"] or group.get("fused")):
                raise ValueError(
                    "the optimizer of steps that are recorded as a CUDA graph must be capturable, such as "
                    "torch.optim.Adam(..., fused=True); give such a one, or set cuda_graph to False, got "
                    f"{type(self._optimizer).__name__}"
                )

    def _kind_of(self, inputs: tuple[Tensor, ...]) -> Hashable:
        """What a recorded step holds as it was when it was recorded."""
        groups = self._optimizer.param_groups
        parameters = [parameter for group in groups for parameter in group["params"]]
        kept = [value for parameter in parameters for value in self._optimizer.state.get(parameter, {}).values()]
        return (
            tuple((value.shape, value.dtype) for value in inputs),
            tuple(str(value) for group in groups for name, value in group.items() if name != "params"),
            tuple(value.data_ptr() for value in (*parameters, *kept) if isinstance(value, Tensor)),
            tuple(parameter.requires_grad for parameter in parameters),
        )

    def _record(self, inputs: tuple[Tensor, ...], options: dict[str, Hashable]) -> None:
        groups = self._optimizer.param_groups
        before = [group["capturable"] for group in groups]
        self._inputs = tuple(value.clone() for value in inputs)
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream(self._inputs[0].device)
        try:
            for group in groups:
                group["capturable"] = True  # and back again: a checkpoint is the same with a graph and without
            # Other threads may well copy batches meanwhile.
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                self._step(*self._inputs, **options)
        finally:
            for group, value in zip(groups, before, strict=True):
                group["capturable"] = value
        self._graph = graph
