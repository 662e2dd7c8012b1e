# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""Tables, label rules, correlated splits, image caches and embedded cohorts."""

from monai_mimmx.data.brain_cohort import write_brain_cohort
from monai_mimmx.data.cache import CachedImages, StoredImages, cache_subsets, keep_batch, select_subset
from monai_mimmx.data.chest_cohort import write_chest_cohort
from monai_mimmx.data.chexpert import CheXpertColumns, find_table, is_chexpert
from monai_mimmx.data.encoded import EncodedBatches
from monai_mimmx.data.fashion_mnist import read_idx, write_fashion_cohort
from monai_mimmx.data.image_list import ImageFileDataset, list_images
from monai_mimmx.data.sampling import make_sampler
from monai_mimmx.data.splits import (
    CorrelatedSplit,
    balanced_weights,
    cell_index,
    describe_joint,
    describe_subsets,
    make_subsets,
    subject_partition,
)
from monai_mimmx.data.tables import Rule, Task, parse_tasks, read_table

__all__ = [
    "CachedImages",
    "CheXpertColumns",
    "CorrelatedSplit",
    "EncodedBatches",
    "ImageFileDataset",
    "Rule",
    "StoredImages",
    "Task",
    "balanced_weights",
    "cache_subsets",
    "cell_index",
    "describe_joint",
    "describe_subsets",
    "find_table",
    "is_chexpert",
    "keep_batch",
    "list_images",
    "make_sampler",
    "make_subsets",
    "parse_tasks",
    "read_idx",
    "read_table",
    "select_subset",
    "subject_partition",
    "write_brain_cohort",
    "write_chest_cohort",
    "write_fashion_cohort",
]
