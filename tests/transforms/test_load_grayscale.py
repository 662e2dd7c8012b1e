# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import warnings

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from monai_mimmx.transforms import LoadGrayscaled


def read(path, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        return LoadGrayscaled("image", **options)({"image": str(path), "label": 1})["image"]


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


@pytest.mark.parametrize(("orientation", "turned"), [(1, RAMP), (2, RAMP[:, ::-1]), (6, np.rot90(RAMP, -1))])
def test_a_picture_is_turned_as_viewers_turn_it(tmp_path, orientation, turned):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(RAMP).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read(tmp_path / "a.png")[0].numpy().T, turned)


def test_volumes(tmp_path):
    nib.save(
        nib.Nifti1Image(np.random.default_rng(0).random((4, 5, 6)).astype(np.float32), np.eye(4)), tmp_path / "a.nii.gz"
    )
    assert read(tmp_path / "a.nii.gz").shape == (1, 4, 5, 6)
    nib.save(
        nib.Nifti1Image(np.random.default_rng(0).random((4, 5, 6, 2)).astype(np.float32), np.eye(4)),
        tmp_path / "b.nii.gz",
    )
    with pytest.raises(ValueError, match=r"expected one channel, got 2 in .*b\.nii\.gz: choose one volume"):
        read(tmp_path / "b.nii.gz")


def test_inverted_dicom(tmp_path, write_dicom):
    values = np.arange(200).reshape(10, 20) * 20
    write_dicom(tmp_path / "two.dcm", "MONOCHROME2", values)
    write_dicom(tmp_path / "one.dcm", "MONOCHROME1", values.max() - values)
    np.testing.assert_array_equal(read(tmp_path / "two.dcm")[0].numpy().T, values)
    np.testing.assert_array_equal(read(tmp_path / "one.dcm")[0].numpy().T, values)


def test_colour_dicom_is_gray_like_a_picture(tmp_path, write_dicom):
    colours = np.random.default_rng(0).integers(0, 256, (10, 20, 3)).astype(np.uint8)
    tags = {"SamplesPerPixel": 3, "PlanarConfiguration": 0, "BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}
    write_dicom(tmp_path / "a.dcm", "RGB", colours, PixelData=colours.tobytes(), **tags)
    Image.fromarray(colours).save(tmp_path / "a.png")
    assert read(tmp_path / "a.dcm").shape == (1, 20, 10)
    np.testing.assert_allclose(read(tmp_path / "a.dcm").numpy(), read(tmp_path / "a.png").numpy(), atol=1)


def test_a_palette_is_refused(tmp_path, write_dicom):
    write_dicom(tmp_path / "a.dcm", "PALETTE COLOR", np.arange(200).reshape(10, 20))
    with pytest.raises(ValueError, match=r"MONOCHROME2 or RGB pixels, got PALETTE COLOR in .*a\.dcm: convert it"):
        read(tmp_path / "a.dcm")


def test_axes_other_than_those_of_the_network(tmp_path):
    values = np.random.default_rng(0).random((4, 5, 1)).astype(np.float32)
    nib.save(nib.Nifti1Image(values, np.eye(4)), tmp_path / "flat.nii.gz")
    nib.save(nib.Nifti1Image(np.concatenate([values, values], 2), np.eye(4)), tmp_path / "frames.nii.gz")
    np.testing.assert_array_equal(read(tmp_path / "flat.nii.gz", spatial_dims=2)[0].numpy(), values[..., 0])
    assert read(tmp_path / "flat.nii.gz", spatial_dims=3).shape == (1, 4, 5, 1)
    with pytest.raises(ValueError, match=r"of 2 axes, got 4x5x2 in .*frames\.nii\.gz: .*, or set spatial_dims to 3"):
        read(tmp_path / "frames.nii.gz", spatial_dims=2)


def test_not_an_image(tmp_path):
    (tmp_path / "a.png").write_text("hello")
    with pytest.raises(Exception, match=r"a\.png"):
        read(tmp_path / "a.png")


def test_a_folder_of_slices_is_a_volume(tmp_path, write_dicom):
    values = np.arange(200, dtype=np.uint16).reshape(10, 20)
    (tmp_path / "series").mkdir()
    for number in range(3):
        place = {"ImagePositionPatient": [0, 0, number], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}
        place |= {"SeriesInstanceUID": "1.2.3", "PixelSpacing": [1, 1], "InstanceNumber": number}
        write_dicom(tmp_path / f"series/{number}.dcm", "MONOCHROME2", values + number, **place)
    assert read(tmp_path / "series").shape == (1, 20, 10, 3)


def test_dicom_is_read_alike_whatever_other_readers_are_installed(tmp_path, write_dicom):
    values = np.arange(200).reshape(10, 20) * 20
    place = {"ImagePositionPatient": [0, 0, 1], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0], "PixelSpacing": [1, 1]}
    write_dicom(tmp_path / "a.dcm", "MONOCHROME2", values, **place)
    loader = LoadGrayscaled("image")
    loader._other = None  # the reader that MONAI would choose
    np.testing.assert_array_equal(loader({"image": str(tmp_path / "a.dcm")})["image"][0].numpy().T, values)


def test_several_frames_in_a_file_are_refused(tmp_path, write_dicom):
    """MONAI's reader puts the frames between rows and columns, and tells no position of theirs."""
    frames = np.arange(600).reshape(30, 20)
    write_dicom(tmp_path / "a.dcm", "MONOCHROME2", frames, Rows=10, NumberOfFrames=3)
    with pytest.raises(ValueError, match=r"DICOM image of one frame, got 3 in .*a\.dcm: convert it to NIfTI"):
        read(tmp_path / "a.dcm")
    first, *others = (Image.fromarray(RAMP + page) for page in range(2))
    first.save(tmp_path / "a.tif", save_all=True, append_images=others)
    with pytest.raises(ValueError, match=r"a picture of one page, got 2 in .*a\.tif: choose one"):
        read(tmp_path / "a.tif")
