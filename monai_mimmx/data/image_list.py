# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""The image files to run inference on."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from monai.data import Dataset
from monai.utils import convert_to_tensor

from monai_mimmx.errors import first_line, first_three, root_cause

__all__ = ["ImageFileDataset", "list_images"]

SUFFIXES = (".nii", ".nii.gz", ".png", ".jpg", ".jpeg", ".dcm", ".mha", ".nrrd", ".tif", ".tiff", ".bmp")
READERS = {".mha": ("itk",), ".nrrd": ("itk", "nrrd")}
"""Those of :data:`SUFFIXES` that only modules beyond this package's own dependencies read."""


def list_images(
    folder: str | os.PathLike[str] | None = None,
    images: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
) -> list[dict[str, str]]:
    """
    The data list of an inference: the given images, or every image below a folder, in order of path.

    Args:
        folder: searched with its subfolders for the usual image endings; the log tells of other files.
        images: a path or several; then ``folder`` is not searched.

    Returns:
        one ``{"image": path, "path": path}`` per image: the first is loaded, the second names it in the results.

    Raises:
        FileNotFoundError: a given image or the folder does not exist, or the folder holds no image.
        ValueError: neither is given, or no image.

    Example:
        >>> Path("lung.png").touch()
        >>> list_images(images="lung.png")
        [{'image': 'lung.png', 'path': 'lung.png'}]
    """
    if isinstance(images, str | os.PathLike):
        images = [images]
    if images is not None:
        paths = [Path(image).expanduser() for image in images]
        if not paths:
            raise ValueError("images is an empty list: name the images to predict, or a folder by dataset_dir alone.")
        missing = [str(path) for path in paths if not path.exists()]
        if missing:
            raise FileNotFoundError(f"{len(missing)} of {len(paths)} images do not exist, such as {missing[:3]}.")
    elif folder is None:
        raise ValueError("name the images to predict: a folder by dataset_dir, or a list by images.")
    else:
        root = Path(folder).expanduser()
        if not root.is_dir():
            raise FileNotFoundError(f"there is no folder {root}; name the folder with the images by dataset_dir.")
        files = sorted(path for path in root.rglob("*") if path.is_file())
        paths = [path for path in files if path.name.lower().endswith(SUFFIXES)]
        if others := sorted({*files} - {*paths}):
            names = first_three([path.relative_to(root) for path in others])
            logging.getLogger("monai_mimmx").info(f"{len(others)} files below {root} have no image's ending: {names}")
        if not paths:
            raise FileNotFoundError(f"no image ({', '.join(SUFFIXES)}) stands below {root}.")
    return [{"image": str(path), "path": str(path)} for path in paths]


class ImageFileDataset(Dataset):
    """
    MONAI's dataset of image files, where an error names the file, and images of several formats can be collated.

    The metadata of a :class:`~monai.data.MetaTensor` are left out: what NIfTI, DICOM and pictures tell of themselves
    differs, and MONAI does not collate it.

    Args:
        data: dictionaries with the file as "image", such as those of :func:`list_images`.
        transform: dictionary transform of them.

    Raises:
        RuntimeError: when indexed, if the transform fails; with the file and the cause.

    Example:
        >>> from monai_mimmx.transforms import LoadGrayscaled
        >>> ImageFileDataset([{"image": "lung.png"}], LoadGrayscaled("image"))[0]
        Traceback (most recent call last):
            ...
        RuntimeError: ...lung.png...
    """

    def _transform(self, index: int) -> dict[str, Any]:
        file = str(self.data[index]["image"])
        try:
            item = dict(super()._transform(index))
            item["image"] = convert_to_tensor(item["image"], track_meta=False)
        except Exception as error:
            cause = first_line(root_cause(error))
            readers = READERS.get(Path(file).suffix.lower(), ())
            if readers and not any(map(find_spec, readers)):
                cause += f" ({Path(file).suffix} images need {' or '.join(readers)}: pip install {readers[0]})"
            raise RuntimeError(cause if file in cause else f"{file}: {cause}") from error
        return item
