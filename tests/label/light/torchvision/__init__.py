# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""
Stands for torchvision where that is not installed.

MONAI Label imports two functions of it that only its segmentation apps call; a build of torchvision that fits a CPU-only
torch is not to be had everywhere.
"""
