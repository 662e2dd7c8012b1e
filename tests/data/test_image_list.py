# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""The data list of an inference, and its images."""

import nibabel as nib
import numpy as np
import pytest
from monai.data import DataLoader
from monai.transforms import Compose, Resized
from PIL import Image

from monai_mimmx.data import ImageFileDataset, list_images
from monai_mimmx.transforms import LoadGrayscaled

PREPROCESSING = Compose([LoadGrayscaled("image", spatial_dims=2), Resized("image", [16, 16])])


def test_folder_is_searched_in_order(tmp_path, caplog):
    caplog.set_level("INFO")
    (tmp_path / "b").mkdir()
    for name in ("b/2.PNG", "a.nii.gz", "notes.txt"):
        (tmp_path / name).touch()
    found = list_images(tmp_path)
    assert [item["path"] for item in found] == [str(tmp_path / "a.nii.gz"), str(tmp_path / "b/2.PNG")]
    assert all(item["image"] == item["path"] for item in found)
    assert f"1 files below {tmp_path} have no image's ending: notes.txt" in caplog.text


def test_errors(tmp_path):
    with pytest.raises(ValueError, match="name the images to predict"):
        list_images()
    with pytest.raises(ValueError, match="images is an empty list: name the images to predict"):
        list_images(images=[])
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        list_images(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="no image .* stands below"):
        list_images(tmp_path)
    with pytest.raises(FileNotFoundError, match="1 of 1 images do not exist"):
        list_images(images=[tmp_path / "x.png"])


def test_one_path_is_a_list_of_one(tmp_path):
    (tmp_path / "a b.png").touch()
    path = str(tmp_path / "a b.png")
    assert list_images(images=path) == list_images(images=[path]) == [{"image": path, "path": path}]


@pytest.fixture
def files(tmp_path):
    pixels = np.random.default_rng(0).integers(1, 255, (20, 20)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.jpg")
    nib.save(nib.Nifti1Image(pixels[..., None].astype(np.float32), np.eye(4)), tmp_path / "b.nii.gz")
    return [str(tmp_path / "a.jpg"), str(tmp_path / "b.nii.gz")]


def test_images_of_several_formats_are_one_batch(files):
    items = [{"image": file, "path": file} for file in files]
    (batch,) = DataLoader(ImageFileDataset(items, PREPROCESSING), batch_size=2)
    assert batch["path"] == files and batch["image"].shape == (2, 1, 16, 16) and not hasattr(batch["image"], "meta")
    # the picture's array is (width, height), as MONAI reads it, of pixels that JPEG changed a little
    assert np.abs(batch["image"][0, 0].T.numpy() - batch["image"][1, 0].numpy()).mean() < 10


def test_an_error_names_the_file_once_and_the_cause_in_a_line(files, tmp_path):
    with open(files[0], "rb+") as file:
        file.truncate(200)
    with pytest.raises(RuntimeError, match="cannot find a suitable reader for") as caught:
        ImageFileDataset([{"image": files[0]}], PREPROCESSING)[0]
    assert str(caught.value).count(files[0]) == 1 and "\n" not in str(caught.value)
    with pytest.raises(RuntimeError, match=r"^[^\n]*b\.nii: 'label'$"):
        ImageFileDataset([{"image": "b.nii"}], lambda item: {"image": item["label"]})[0]


def test_what_reads_an_image_is_named_where_it_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr("monai_mimmx.data.image_list.find_spec", lambda name: None)
    (tmp_path / "a.NRRD").write_text("NRRD0004\n")
    data = ImageFileDataset(list_images(tmp_path), LoadGrayscaled("image"))
    with pytest.raises(RuntimeError, match=r"a\.NRRD: .* \(\.NRRD images need itk or nrrd: pip install itk\)"):
        data[0]
