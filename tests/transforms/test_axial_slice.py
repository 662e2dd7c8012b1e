# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools

import nibabel
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, NormalizeIntensityd, Orientationd, Resized

from monai_mimmx.transforms.axial_slice import AxialSliced, axial_slice


def volume(shape=(6, 7, 5)):
    return np.random.default_rng(0).gamma(2, 100, shape).astype(np.float32)


@pytest.mark.parametrize(("position", "index"), [(0, 0), (0.5, 2), (1.0, 4), (0.3, 1), (0.9, 4)])
def test_position(position, index):
    data = volume()[None]
    np.testing.assert_array_equal(axial_slice(data, position), data[..., index])
    np.testing.assert_array_equal(np.asarray(axial_slice(torch.as_tensor(data), position)), data[..., index])
    np.testing.assert_array_equal(AxialSliced("x", position)({"x": data})["x"], data[..., index])


def test_foreground_is_the_fullest_slice():
    data = torch.zeros(1, 8, 8, 5)
    data[0, 3:5, 3:5, 1] = 100.0  # bright but small
    data[0, 1:7, 1:7, 3] = 5.0
    np.testing.assert_array_equal(axial_slice(data, "foreground"), data[..., 3])
    flipped = MetaTensor(data.flip(3), affine=torch.diag(torch.tensor([1.0, 1, -1, 1])))
    assert torch.equal(AxialSliced("x", "foreground")({"x": flipped})["x"].as_tensor(), data[..., 3])


@pytest.mark.parametrize("axes", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, 1, 1), (1, -1, -1), (-1, -1, -1)])
def test_any_orientation_gives_the_slice_that_orientationd_gives(tmp_path, axes, flips):
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    for axis, (world, sign) in enumerate(zip(axes, flips)):
        affine[world, axis] = sign * (1.5, 2.0, 8.0)[world]
    affine[:3, 3] = (-10, 20, 30)
    affine[0, :3] += 0.05  # a little oblique
    nibabel.save(nibabel.Nifti1Image(volume(), affine), tmp_path / "v.nii")
    load = [LoadImaged("image"), EnsureChannelFirstd("image")]
    item = {"image": tmp_path / "v.nii"}
    sliced = Compose([*load, AxialSliced("image", 0.25)])(dict(item))["image"]
    oriented = Compose([*load, Orientationd("image", axcodes="RAS", labels=None)])(dict(item))["image"]
    index = int(np.floor(0.25 * (oriented.shape[3] - 1) + 0.5))
    np.testing.assert_array_equal(sliced.numpy(), oriented.numpy()[..., index])
    expected = oriented.affine.numpy()
    np.testing.assert_allclose(sliced.affine.numpy()[:2, :2], expected[:2, :2], atol=1e-6)
    np.testing.assert_allclose(sliced.affine.numpy()[:2, -1], expected[:2, 3] + index * expected[:2, 2], atol=1e-6)


def test_pipeline_goes_on_in_two_dimensions(tmp_path):
    nibabel.save(nibabel.Nifti1Image(volume(), np.diag([-1.6, 1.6, 8, 1])), tmp_path / "v.nii.gz")
    steps = [LoadImaged("image"), EnsureChannelFirstd("image"), AxialSliced("image"), Resized("image", (16, 12))]
    image = Compose([*steps, NormalizeIntensityd("image")])({"image": tmp_path / "v.nii.gz"})["image"]
    assert tuple(image.shape) == (1, 16, 12)
    assert image.mean().item() == pytest.approx(0, abs=1e-5)
    assert image.std(correction=0).item() == pytest.approx(1, abs=1e-5)
    assert str(image.meta["filename_or_obj"]).endswith("v.nii.gz")
    np.testing.assert_allclose(np.abs(image.affine.numpy()[[0, 1], [0, 1]]), [1.6 * 6 / 16, 1.6 * 7 / 12], rtol=1e-6)


def test_flat_images_and_single_slices_pass():
    flat = torch.rand(3, 6, 7)
    assert AxialSliced("x")({"x": flat, "label": 1}) == {"x": flat, "label": 1}
    single = MetaTensor(flat[..., None], affine=torch.eye(4))
    for position in (0.0, 0.7, "foreground"):
        assert torch.equal(AxialSliced("x", position)({"x": single})["x"].as_tensor(), flat)


def test_input_is_unchanged():
    image = MetaTensor(torch.rand(1, 4, 5, 6), affine=torch.diag(torch.tensor([-2.0, -2, 3, 1])))
    pixels, affine = image.as_tensor().clone(), image.affine.clone()
    AxialSliced("x")({"x": image})["x"].zero_()
    assert torch.equal(image.as_tensor(), pixels)
    assert torch.equal(image.affine, affine)


def test_plain_slice_may_be_missing():
    assert AxialSliced(["x", "z"], allow_missing_keys=True)({"x": volume()[None]})["x"].shape == (1, 6, 7)
    with pytest.raises(KeyError, match="z"):
        AxialSliced(["x", "z"])({"x": volume()[None]})


@pytest.mark.parametrize("position", [-0.1, 1.1, "middle", True, float("nan")])
def test_wrong_position(position):
    with pytest.raises(ValueError, match="number from 0 to 1 or 'foreground'"):
        AxialSliced("x", position)
    with pytest.raises(ValueError, match="number from 0 to 1 or 'foreground'"):
        axial_slice(volume()[None], position)


def test_wrong_images():
    with pytest.raises(ValueError, match=r"'x': expected \(C, X, Y, Z\) or \(C, X, Y\), got shape \(1, 2, 3, 4, 5\)"):
        AxialSliced("x")({"x": torch.zeros(1, 2, 3, 4, 5)})
    with pytest.raises(ValueError, match=r"expected a volume \(C, X, Y, Z\), got shape \(6, 7, 5\)"):
        axial_slice(volume())
    with pytest.raises(ValueError, match="does not say which axis is axial"):
        AxialSliced("x")({"x": MetaTensor(torch.zeros(1, 2, 3, 4), affine=torch.diag(torch.tensor([1.0, 1, 0, 1])))})
