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

import pydicom
from monai.config import KeysCollection
from monai.data import PILReader, PydicomReader
from monai.transforms import LoadImage, MapTransform
from PIL import Image, ImageOps

__all__ = ["LoadGrayscaled"]

_LUMA = (0.299, 0.587, 0.114)
_PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")


def _to_gray(picture: Any) -> Any:
    """A picture as viewers turn it, in 8 bits where it has colours, a palette or transparency; grey ones keep their depth."""
    picture = ImageOps.exif_transpose(picture)
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

    Pictures of colour, palette or transparency and RGB DICOM become grey by PIL's luma; 16-bit ones keep their depth.
    Pictures are turned as their EXIF data say (TIFF as far as Pillow does it). A DICOM image whose
    PhotometricInterpretation is MONOCHROME1 (white is low) is inverted, so that bone is bright in all.

    Args:
        keys: of the file paths.
        spatial_dims: axes of the image; of others, those of length 1 are left out. None: as many as the file has.
        allow_missing_keys: do not raise where a key is absent.

    Raises:
        ValueError: an image of several channels that is no picture, a picture of several pages, a DICOM image of several
            frames, of a palette or of colours other than RGB, or axes other than `spatial_dims`.
        OSError, RuntimeError: a file that cannot be read.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> with tempfile.NamedTemporaryFile(suffix=".png") as file:
        ...     Image.new("RGB", (20, 10), "white").save(file.name)
        ...     LoadGrayscaled("image")({"image": file.name})["image"].shape
        torch.Size([1, 20, 10])
    """

    def __init__(
        self, keys: KeysCollection, allow_missing_keys: bool = False, *, spatial_dims: int | None = None
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.spatial_dims = spatial_dims
        with quiet_readers():
            self._picture = LoadImage(PILReader(converter=_to_gray), image_only=True, ensure_channel_first=True)
            # Left to choose, MONAI reads DICOM by ITK where that is installed, with other axes and another orientation.
            self._dicom = LoadImage(PydicomReader(), image_only=True, ensure_channel_first=True)
            self._other = LoadImage(image_only=True, ensure_channel_first=True)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The data with an image, a `MetaTensor`, in place of each path."""
        loaded = dict(data)
        for key in self.key_iterator(loaded):
            path = str(data[key])
            if path.lower().endswith((".tif", ".tiff")):
                with Image.open(path) as picture:
                    if (pages := getattr(picture, "n_frames", 1)) > 1:
                        raise ValueError(f"expected a picture of one page, got {pages} in {path}: choose one")
            header = _dicom_header(path)
            read = self._picture if path.lower().endswith(_PICTURES) else self._other if header is None else self._dicom
            with warnings.catch_warnings():
                # A radiograph has no position in the patient, and needs none here.
                warnings.filterwarnings("ignore", message="PydicomReader: ImageOrientationPatient")
                image = read(path)
            if image.shape[0] != 1:
                advice = "convert it to grayscale" if image.ndim == 3 else "choose one volume of the series"
                raise ValueError(f"expected one channel, got {image.shape[0]} in {path}: {advice}")
            if header is not None:
                image = _gray_of_dicom(image, header, path)
            loaded[key] = image if self.spatial_dims is None else self._flat(image, path)
        return loaded

    def _flat(self, image: Any, path: str) -> Any:
        """An image without the axes of length 1 that it has too many, the last first; it must have `spatial_dims` then."""
        shape = tuple(image.shape[1:])
        while image.ndim - 1 > self.spatial_dims and 1 in image.shape[1:]:
            image = image.squeeze(1 + max(axis for axis, size in enumerate(image.shape[1:]) if size == 1))
        if image.ndim - 1 != self.spatial_dims:
            raise ValueError(
                f"expected an image of {self.spatial_dims} axes, got {'x'.join(map(str, shape))} in {path}: choose one slice or "
                f"frame of each, or set spatial_dims to {len(shape)} where all are so"
            )
        return image


def _dicom_header(path: str) -> Any:
    """What the numbers of a DICOM image mean, and of how many frames they are; None for other files."""
    if os.path.isdir(path):  # a series, a slice in each file
        path = min((entry.path for entry in os.scandir(path) if entry.is_file()), default="")
    if not os.path.isfile(path) or not pydicom.misc.is_dicom(path):
        return None
    return pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["PhotometricInterpretation", "NumberOfFrames"])


def _gray_of_dicom(image: Any, header: Any, path: str) -> Any:
    """White high, and colours, which stand in the last axis, as PIL's luma."""
    if (frames := int(header.get("NumberOfFrames", None) or 1)) > 1:  # MONAI's reader does not tell where they lie
        raise ValueError(
            f"expected a DICOM image of one frame, got {frames} in {path}: convert it to NIfTI, or to a folder of single "
            "slices; or choose one frame"
        )
    photometric = header.get("PhotometricInterpretation")
    if photometric is None or photometric == "MONOCHROME2":
        return image
    if photometric == "MONOCHROME1":
        return image.max() + image.min() - image
    if photometric == "RGB" and image.shape[-1] == len(_LUMA):
        return (image * image.new_tensor(_LUMA)).sum(-1).round()
    raise ValueError(
        f"expected MONOCHROME1, MONOCHROME2 or RGB pixels, got {photometric} in {path}: convert it to grayscale"
    )
