# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""The parts of the app: the served bundle, the study folder, and MONAI Label's tasks on them."""
