# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""Engines of MIMM-X, their batches, their precision and memory, and how processes of several end."""

from monai_mimmx.engines.cuda_graph import GraphedStep
from monai_mimmx.engines.memory import reuse_freed_memory
from monai_mimmx.engines.precision import computes_in_bfloat16
from monai_mimmx.engines.prepare_batch import PrepareAugmentedBatch
from monai_mimmx.engines.process_group import leave_process_group
from monai_mimmx.engines.trainer import MIMMXTrainer

__all__ = [
    "GraphedStep",
    "MIMMXTrainer",
    "PrepareAugmentedBatch",
    "computes_in_bfloat16",
    "leave_process_group",
    "reuse_freed_memory",
]
