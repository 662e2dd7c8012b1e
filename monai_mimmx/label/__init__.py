# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""What the MONAI Label app of `apps/mimmx` computes, and the command that starts it; nothing here imports MONAI Label."""

from monai_mimmx.label.labels import parse_label
from monai_mimmx.label.scoring import factor_effects, rare_cell_scores, shortcut_scores
from monai_mimmx.label.server import serve_label_app

__all__ = ["factor_effects", "parse_label", "rare_cell_scores", "serve_label_app", "shortcut_scores"]
