# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""The data list of an inference."""

import pytest

from monai_mimmx.data import list_images


def test_folder_is_searched_in_order(tmp_path):
    (tmp_path / "b").mkdir()
    for name in ("b/2.PNG", "a.nii.gz", "notes.txt"):
        (tmp_path / name).touch()
    found = list_images(tmp_path)
    assert [item["path"] for item in found] == [str(tmp_path / "a.nii.gz"), str(tmp_path / "b/2.PNG")]
    assert all(item["image"] == item["path"] for item in found)


def test_errors(tmp_path):
    with pytest.raises(ValueError, match="name the images to predict"):
        list_images()
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
