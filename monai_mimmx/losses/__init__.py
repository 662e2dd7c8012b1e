# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""Mutual information, distance correlation and multi-task cross-entropy as PyTorch losses."""

from monai_mimmx.losses.dcor import DistanceCorrelationLoss, distance_correlation
from monai_mimmx.losses.dependence import (
    BlockAdversary,
    BlockDistanceCorrelation,
    BlockMMD,
    BlockMutualInformation,
    make_dependence,
)
from monai_mimmx.losses.group_dro import GroupDROCrossEntropy, make_task_loss
from monai_mimmx.losses.mine import MINELoss, donsker_varadhan, product_partners
from monai_mimmx.losses.multi_task import MultiTaskCrossEntropy

__all__ = [
    "BlockAdversary",
    "BlockDistanceCorrelation",
    "BlockMMD",
    "BlockMutualInformation",
    "DistanceCorrelationLoss",
    "GroupDROCrossEntropy",
    "MINELoss",
    "MultiTaskCrossEntropy",
    "distance_correlation",
    "donsker_varadhan",
    "make_dependence",
    "make_task_loss",
    "product_partners",
]
