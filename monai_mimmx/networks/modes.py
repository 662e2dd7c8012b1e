# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""A network in evaluation mode for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["evaluated"]


@contextmanager
def evaluated(network: torch.nn.Module) -> Iterator[None]:
    """As MONAI's `eval_mode`, but after it every module has its own mode again, frozen ones too."""
    training = [module for module in network.modules() if module.training]
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True
