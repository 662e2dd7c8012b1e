# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""Figures, the report page and the model card."""

from monai_mimmx.report.card import final_table, write_model_card
from monai_mimmx.report.figures import (
    accuracy_figure,
    cooccurrence_figure,
    courses_figure,
    gap_figure,
    interval_figure,
    probe_figure,
    sample_figure,
    save_figures,
    strength_figure,
    training_figure,
    tsne_figure,
    upright,
)
from monai_mimmx.report.html import write_report

__all__ = [
    "accuracy_figure",
    "cooccurrence_figure",
    "courses_figure",
    "final_table",
    "gap_figure",
    "interval_figure",
    "probe_figure",
    "sample_figure",
    "save_figures",
    "strength_figure",
    "training_figure",
    "tsne_figure",
    "upright",
    "write_model_card",
    "write_report",
]
