# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""Where mixed precision is worth its switch."""

from __future__ import annotations

import torch

__all__ = ["computes_in_bfloat16"]


def computes_in_bfloat16(device: torch.device | str) -> bool:
    """
    Whether the device is a CPU with bfloat16 instructions (AVX-512 BF16 or AMX), where autocast makes convolutions fast.

    Args:
        device: where the network is.

    Returns:
        False for other devices, for a CPU that only imitates bfloat16, and where PyTorch cannot tell.

    Example:
        >>> computes_in_bfloat16("meta")
        False
    """
    if torch.device(device).type != "cpu":
        return False
    capabilities: dict = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
