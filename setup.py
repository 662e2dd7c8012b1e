# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""Which packages the wheel holds; all else stands in setup.cfg, where a folder cannot be added to those that are found."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["monai_mimmx*"]), "monai_mimmx.bundles"],
    package_dir={"monai_mimmx.bundles": "bundles"},
    package_data={"monai_mimmx.bundles": ["*/LICENSE", "*/configs/*", "*/docs/**"]},
)
