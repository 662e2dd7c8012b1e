# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""Files that are there as a whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["replacing", "write_json", "write_text"]


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """
    A path beside `path` to write to; what was written takes its place at the end, or is removed after an error.

    Args:
        path: the file to write, in a folder that exists.

    Example:
        >>> with replacing("rows.csv") as part:
        ...     _ = part.write_text("a,b\\n")
        >>> Path("rows.csv").read_text()
        'a,b\\n'
    """
    target = Path(path)
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        yield part
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file as a whole."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Write a JSON file as a whole."""
    write_text(path, json.dumps(content, indent=1) + "\n")
