# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""Transforms that MONAI lacks."""

from monai_mimmx.transforms.axial_slice import AxialSliced
from monai_mimmx.transforms.batch_affine import RandBatchAffine
from monai_mimmx.transforms.batch_augment import RandBatchAugment
from monai_mimmx.transforms.load_grayscale import LoadGrayscaled

__all__ = ["AxialSliced", "LoadGrayscaled", "RandBatchAffine", "RandBatchAugment"]
