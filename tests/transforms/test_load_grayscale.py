# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import warnings

import nibabel as nib
import numpy as np
import pytest
from monai.utils import version_geq
from PIL import Image

from monai_mimmx.transforms import LoadGrayscaled


def read(path):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        return LoadGrayscaled("image")({"image": str(path), "label": 1})["image"]


RAMP = np.arange(200, dtype=np.uint8).reshape(10, 20)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P"])
def test_pictures_of_every_mode_are_equal(tmp_path, mode):
    picture = Image.fromarray(RAMP)
    picture = picture.convert("L").quantize(256) if mode == "P" else picture.convert(mode)
    picture.save(tmp_path / "a.png")
    image = read(tmp_path / "a.png")
    assert image.shape == (1, 20, 10)
    np.testing.assert_allclose(image[0].numpy().T, RAMP, atol=1)


def test_sixteen_bits_keep_their_depth(tmp_path):
    values = (np.arange(200).reshape(10, 20) * 300).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read(tmp_path / "a.png")[0].numpy().T, values)


def test_volumes(tmp_path):
    nib.save(
        nib.Nifti1Image(np.random.default_rng(0).random((4, 5, 6)).astype(np.float32), np.eye(4)), tmp_path / "a.nii.gz"
    )
    assert read(tmp_path / "a.nii.gz").shape == (1, 4, 5, 6)
    nib.save(
        nib.Nifti1Image(np.random.default_rng(0).random((4, 5, 6, 2)).astype(np.float32), np.eye(4)),
        tmp_path / "b.nii.gz",
    )
    with pytest.raises(ValueError, match=r"expected one channel, got 2 in .*b\.nii\.gz"):
        read(tmp_path / "b.nii.gz")


def write_dicom(path, photometric, values, **tags):
    pydicom = pytest.importorskip("pydicom")
    meta = pydicom.dataset.FileMetaDataset()
    meta.MediaStorageSOPClassUID = pydicom.uid.DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    data = pydicom.dataset.FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    data.Modality, data.PhotometricInterpretation = "DX", photometric
    data.Rows, data.Columns = values.shape
    data.SamplesPerPixel, data.PixelRepresentation = 1, 0
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, 12, 11
    data.PixelData = values.astype("<u2").tobytes()
    for name, value in tags.items():
        setattr(data, name, value)
    if version_geq(pydicom.__version__, "3.0"):
        data.save_as(path, enforce_file_format=True)
    else:
        data.is_little_endian, data.is_implicit_VR = True, False
        data.save_as(path, write_like_original=False)


def test_inverted_dicom(tmp_path):
    values = np.arange(200).reshape(10, 20) * 20
    write_dicom(tmp_path / "two.dcm", "MONOCHROME2", values)
    write_dicom(tmp_path / "one.dcm", "MONOCHROME1", values.max() - values)
    np.testing.assert_array_equal(read(tmp_path / "two.dcm")[0].numpy().T, values)
    np.testing.assert_array_equal(read(tmp_path / "one.dcm")[0].numpy().T, values)


def test_not_an_image(tmp_path):
    (tmp_path / "a.png").write_text("hello")
    with pytest.raises(Exception, match=r"a\.png"):
        read(tmp_path / "a.png")


def test_a_folder_of_slices_is_a_volume(tmp_path):
    values = np.arange(200, dtype=np.uint16).reshape(10, 20)
    (tmp_path / "series").mkdir()
    for number in range(3):
        place = {"ImagePositionPatient": [0, 0, number], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}
        place |= {"SeriesInstanceUID": "1.2.3", "PixelSpacing": [1, 1], "InstanceNumber": number}
        write_dicom(tmp_path / f"series/{number}.dcm", "MONOCHROME2", values + number, **place)
    assert read(tmp_path / "series").shape == (1, 20, 10, 3)
