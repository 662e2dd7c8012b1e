# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""The rows of a comparison: a name each, and the bundle options that make it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["VARIANTS", "method_options"]

_PAPER = {"method": "mimmx", "sampling": "correlated"}

VARIANTS: dict[str, dict[str, Any]] = {
    "baseline": {"method": "baseline"},
    "baseline_dls_caw": {"method": "baseline", "dls": True, "caw": True},
    "rebalance": {"method": "rebalance"},
    "groupdro": {"method": "groupdro"},
    "dfr": {"method": "dfr"},
    "dcor": {"method": "dcor"},
    "dcor_conditional": {"method": "dcor", "conditional": True},
    "mmd": {"method": "mmd"},
    "mmd_conditional": {"method": "mmd", "conditional": True},
    "adversarial": {"method": "adversarial"},
    "adversarial_conditional": {"method": "adversarial", "conditional": True},
    "mimm": {"method": "mimm"},
    "mimm_conditional": {"method": "mimm", "conditional": True},
    "mimmx_no_dls_no_caw": {**_PAPER, "dls": False, "caw": False},
    "mimmx_no_dls_no_caw_conditional": {**_PAPER, "dls": False, "caw": False, "conditional": True},
    "mimmx_caw": {**_PAPER, "dls": False, "caw": True},
    "mimmx_caw_conditional": {**_PAPER, "dls": False, "caw": True, "conditional": True},
    "mimmx_dls": {**_PAPER, "dls": True, "caw": False},
    "mimmx_dls_conditional": {**_PAPER, "dls": True, "caw": False, "conditional": True},
    "mimmx": {**_PAPER, "dls": True, "caw": True},
    "mimmx_conditional": {**_PAPER, "dls": True, "caw": True, "conditional": True},
    "mimmx_caw_terms": {**_PAPER, "dls": True, "caw": "terms"},
    "mimmx_balanced": {"method": "mimmx", "sampling": "balanced"},
    "mimmx_balanced_marginal": {"method": "mimmx", "sampling": "balanced", "conditional": False},
    "mimmx_balanced_conditional": {"method": "mimmx", "sampling": "balanced", "conditional": True},
}
"""Name of a row to the options of its runs. `mimmx` is the published objective (DLS, CAW, marginal mutual information) on
correlated batches, with the bundle's other defaults; `mimmx_balanced` is the bundle's own setting of it on batches in
which every (y, z) cell is equally likely, i.e. rebalancing with mutual information. `_conditional`: within each class
of y; `_marginal`: over all."""


def method_options(names: Sequence[str] | str = "all") -> dict[str, dict[str, Any]]:
    """
    The rows of that name, in the order asked for.

    Args:
        names: of `VARIANTS`, or "all".

    Raises:
        ValueError: for an unknown name, or one given twice.

    Example:
        >>> method_options(["rebalance"])
        {'rebalance': {'method': 'rebalance'}}
    """
    names = [names] if isinstance(names, str) else list(names)
    if names == ["all"]:
        return dict(VARIANTS)
    if unknown := [name for name in names if name not in VARIANTS]:
        raise ValueError(f"expected methods among all, {', '.join(VARIANTS)}, got {unknown[0]!r}")
    if len(set(names)) < len(names):
        raise ValueError(f"expected each method once, got {' '.join(names)}")
    return {name: VARIANTS[name] for name in names}
