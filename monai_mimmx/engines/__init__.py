# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""Engines of MIMM-X and the preparation of their batches."""

from monai_mimmx.engines.prepare_batch import PrepareAugmentedBatch
from monai_mimmx.engines.trainer import MIMMXTrainer

__all__ = ["MIMMXTrainer", "PrepareAugmentedBatch"]
