# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""Predictions, scores, probes, embeddings and the evaluation protocol."""

from monai_mimmx.evaluation.embedding import tsne
from monai_mimmx.evaluation.predictions import Predictions, collect_predictions
from monai_mimmx.evaluation.probes import probe_matrix
from monai_mimmx.evaluation.protocol import ExperimentEvaluation, write_final_scores
from monai_mimmx.evaluation.refit import refit_last_layer
from monai_mimmx.evaluation.scores import (
    accuracy,
    auroc,
    balanced_accuracy,
    bootstrap_interval,
    cell_balanced_accuracy,
    drop_val_inv,
    final_scores,
    format_score_table,
    gap_interval,
    group_accuracies,
    score_table,
    switched_labels,
    verdict,
    worst_group,
)

__all__ = [
    "ExperimentEvaluation",
    "Predictions",
    "accuracy",
    "auroc",
    "balanced_accuracy",
    "bootstrap_interval",
    "cell_balanced_accuracy",
    "collect_predictions",
    "drop_val_inv",
    "final_scores",
    "format_score_table",
    "gap_interval",
    "group_accuracies",
    "probe_matrix",
    "refit_last_layer",
    "score_table",
    "switched_labels",
    "tsne",
    "verdict",
    "worst_group",
    "write_final_scores",
]
