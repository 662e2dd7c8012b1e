# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""Handlers: Dynamic Loss Scaling, averaged weights, metrics of the heads, records of the epochs."""

from monai_mimmx.handlers.checkpoints import (
    AtomicCheckpointSaver,
    EpochValidationHandler,
    RandomStates,
    TrainingIdentity,
    best_so_far,
    latest_checkpoint,
    training_state,
)
from monai_mimmx.handlers.faults import EstimatorCheck, FailureReport
from monai_mimmx.handlers.loss_scaling import DynamicLossScaling, loss_scaling_factors
from monai_mimmx.handlers.metrics import CellBalancedAccuracy, RobustAccuracy, head_accuracies, head_output
from monai_mimmx.handlers.prediction_writer import AttentionInferer, PredictionWriter
from monai_mimmx.handlers.records import EpochRecorder, has_tensorboard, read_history
from monai_mimmx.handlers.weight_averaging import WeightAveraging
from monai_mimmx.handlers.weights import WeightsLoader

__all__ = [
    "AtomicCheckpointSaver",
    "AttentionInferer",
    "CellBalancedAccuracy",
    "DynamicLossScaling",
    "EpochRecorder",
    "EpochValidationHandler",
    "EstimatorCheck",
    "FailureReport",
    "PredictionWriter",
    "RandomStates",
    "RobustAccuracy",
    "TrainingIdentity",
    "WeightAveraging",
    "WeightsLoader",
    "best_so_far",
    "has_tensorboard",
    "head_accuracies",
    "head_output",
    "latest_checkpoint",
    "loss_scaling_factors",
    "read_history",
    "training_state",
]
