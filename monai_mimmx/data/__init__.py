# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""Tables, label rules, correlated splits, image caches and embedded cohorts."""

from monai_mimmx.data.brain_cohort import write_brain_cohort
from monai_mimmx.data.cache import CachedImages, cache_subsets, keep_batch, select_subset
from monai_mimmx.data.chest_cohort import write_chest_cohort
