# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""The bundles that come with the package: where they stand, and a copy of one to work in."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

__all__ = ["bundle_folders", "copy_bundle"]

PARTS = ("LICENSE", "configs", "docs")
"""What a bundle consists of, without what its runs leave in it; the wheel holds the same."""


def bundle_folders() -> dict[str, Path]:
    """
    The folder of each bundle by its name: inside an installed package, or beside it in a checkout.

    Example:
        >>> sorted(bundle_folders())
        ['brain_age', 'fashion_mnist', 'pleural_effusion', 'pleural_effusion_natural']
    """
    package = Path(__file__).parent
    root = next((path for path in (package / "bundles", package.parent / "bundles") if path.is_dir()), package)
    return {path.parents[1].name: path.parents[1] for path in sorted(root.glob("*/configs/metadata.json"))}


def copy_bundle(name: str, folder: str | os.PathLike[str]) -> Path:
    """
    Copy a bundle's configs, docs and license to a new folder, where it runs by itself.

    Args:
        name: one of `bundle_folders`.
        folder: of the copy; made with its parents.

    Returns:
        The folder.

    Raises:
        ValueError: for a name that no bundle has.
        FileExistsError: if the folder exists: nothing is ever overwritten.

    Example:
        >>> sorted(path.name for path in copy_bundle("brain_age", "my_study").iterdir())
        ['LICENSE', 'configs', 'docs']
    """
    folders, target = bundle_folders(), Path(folder)
    if name not in folders:
        raise ValueError(f"there is no bundle {name!r}; there are {', '.join(folders)}")
    if target.exists():
        raise FileExistsError(f"{target} exists, and a copy overwrites nothing: name a new folder")
    shutil.copytree(
        folders[name],
        target,
        ignore=lambda path, names: {n for n in names if n not in PARTS} if Path(path) == folders[name] else set(),
    )
    return target
