# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""
MIMM-X for MONAI: training classifiers that do not take shortcuts, and finding out whether one does.

Importing this package makes its components known to MONAI's bundle parser by their short names.
"""

from monai_mimmx import (
    audit,
    bundle_folders,
    comparison,
    data,
    engines,
    errors,
    evaluation,
    files,
    handlers,
    label,
    losses,
    networks,
    options,
    preflight,
    report,
    trained_model,
    transforms,
)

__version__ = "0.1.0"

__all__ = [
    "audit",
    "bundle_folders",
    "comparison",
    "data",
    "engines",
    "errors",
    "evaluation",
    "files",
    "handlers",
    "label",
    "losses",
    "networks",
    "options",
    "preflight",
    "report",
    "trained_model",
    "transforms",
]
