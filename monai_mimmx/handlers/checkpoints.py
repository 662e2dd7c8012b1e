# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""Which checkpoint a training goes on from."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["latest_checkpoint"]


def latest_checkpoint(folder: str | os.PathLike[str], prefix: str = "state") -> str:
    """
    The newest checkpoint file of a training.

    Args:
        folder: where the training saved.
        prefix: start of the files' names.

    Raises:
        FileNotFoundError: there is none.
    """
    found = sorted(Path(folder).glob(f"{prefix}*.pt"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise FileNotFoundError(
            f"there is no checkpoint {prefix}*.pt in {folder} to resume from; train without --resume."
        )
    return str(found[-1])
