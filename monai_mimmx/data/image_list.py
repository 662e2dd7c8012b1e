# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""The images to run inference on."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

__all__ = ["list_images"]

SUFFIXES = (".nii", ".nii.gz", ".png", ".jpg", ".jpeg", ".dcm", ".mha", ".nrrd", ".tif", ".tiff", ".bmp")


def list_images(
    folder: str | os.PathLike[str] | None = None,
    images: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
) -> list[dict[str, str]]:
    """
    The data list of an inference: the given images, or every image below a folder, in order of path.

    Args:
        folder: searched with its subfolders for the usual image endings.
        images: a path or several; then ``folder`` is not searched.

    Returns:
        one ``{"image": path, "path": path}`` per image: the first is loaded, the second names it in the results.

    Raises:
        FileNotFoundError: a given image or the folder does not exist, or the folder holds no image.
        ValueError: neither is given.

    Example:
        >>> list_images(images=[])
        []
    """
    if isinstance(images, str | os.PathLike):
        images = [images]
    if images is not None:
        paths = [Path(image) for image in images]
        missing = [str(path) for path in paths if not path.exists()]
        if missing:
            raise FileNotFoundError(f"{len(missing)} of {len(paths)} images do not exist, such as {missing[:3]}.")
    elif folder is None:
        raise ValueError("name the images to predict: a folder by dataset_dir, or a list by images.")
    else:
        root = Path(folder)
        if not root.is_dir():
            raise FileNotFoundError(f"there is no folder {root}; name the folder with the images by dataset_dir.")
        paths = sorted(path for path in root.rglob("*") if path.name.lower().endswith(SUFFIXES) and path.is_file())
        if not paths:
            raise FileNotFoundError(f"no image ({', '.join(SUFFIXES)}) stands below {root}.")
    return [{"image": str(path), "path": str(path)} for path in paths]
