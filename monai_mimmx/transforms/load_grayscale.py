# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""Read an image of any of the field's formats as one grayscale channel."""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Hashable, Iterator, Mapping
from typing import Any

from monai.config import KeysCollection
from monai.data import PILReader
from monai.transforms import LoadImage, MapTransform

__all__ = ["LoadGrayscaled"]

_PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")


def _to_gray(picture: Any) -> Any:
    """A colour, palette or transparent picture in 8 bits; grey ones of any depth stay as they are."""
    return picture if picture.mode in ("L", "F") or picture.mode.startswith("I") else picture.convert("L")


@contextlib.contextmanager
def quiet_readers() -> Iterator[None]:
    """Make MONAI's image readers without its word on a GPU decoder that is not installed, which it gives each time."""
    plugin = logging.getLogger("monai.data.nvimgcodec_pydicom_plugin")
    level = plugin.level
    plugin.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="NvImgCodecPydicomReader")
            yield
    finally:
        plugin.setLevel(level)


class LoadGrayscaled(MapTransform):
    """
    Read NIfTI, DICOM, PNG, JPEG and whatever else MONAI's `LoadImage` reads, as `(1, *spatial)` float32.

    Pictures of colour, palette or transparency become grey by PIL's luma; 16-bit ones keep their depth. A DICOM image
    whose PhotometricInterpretation is MONOCHROME1 (white is low) is inverted, so that bone is bright in all.

    Args:
        keys: of the file paths.
        allow_missing_keys: do not raise where a key is absent.

    Raises:
        ValueError: an image of several channels that is no picture.
        OSError, RuntimeError: a file that cannot be read.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> with tempfile.NamedTemporaryFile(suffix=".png") as file:
        ...     Image.new("RGB", (20, 10), "white").save(file.name)
        ...     LoadGrayscaled("image")({"image": file.name})["image"].shape
        torch.Size([1, 20, 10])
    """

    def __init__(self, keys: KeysCollection, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        with quiet_readers():
            self._picture = LoadImage(PILReader(converter=_to_gray), image_only=True, ensure_channel_first=True)
            self._other = LoadImage(image_only=True, ensure_channel_first=True)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The data with an image, a `MetaTensor`, in place of each path."""
        loaded = dict(data)
        for key in self.key_iterator(loaded):
            path = str(data[key])
            with warnings.catch_warnings():
                # A radiograph has no position in the patient, and needs none here.
                warnings.filterwarnings("ignore", message="PydicomReader: ImageOrientationPatient")
                image = (self._picture if path.lower().endswith(_PICTURES) else self._other)(path)
            if image.shape[0] != 1:
                raise ValueError(f"expected one channel, got {image.shape[0]} in {path}: convert it to grayscale")
            if _is_inverted(path):
                image = image.max() + image.min() - image
            loaded[key] = image
        return loaded


def _is_inverted(path: str) -> bool:
    try:
        import pydicom
    except ImportError:
        return False
    if os.path.isdir(path):  # a series, a slice in each file
        path = min((entry.path for entry in os.scandir(path) if entry.is_file()), default="")
    if not os.path.isfile(path) or not pydicom.misc.is_dicom(path):
        return False
    header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["PhotometricInterpretation"])
    return header.get("PhotometricInterpretation") == "MONOCHROME1"
