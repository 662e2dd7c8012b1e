# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""The two names that MONAI Label imports."""

make_grid = save_image = None
