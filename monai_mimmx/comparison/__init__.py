# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""Every method, every seed: one run of a bundle each, and the tables over all of them."""

from monai_mimmx.comparison.methods import method_options
from monai_mimmx.comparison.page import write_comparison, write_results
from monai_mimmx.comparison.runner import PlannedRun, check_runs, execute_runs, plan_runs
from monai_mimmx.comparison.tables import (
    ScoreTable,
    collect_rows,
    format_tables,
    make_tables,
    paired_differences,
    read_published,
    summarise,
)

__all__ = [
    "PlannedRun",
    "ScoreTable",
    "check_runs",
    "collect_rows",
    "execute_runs",
    "format_tables",
    "make_tables",
    "method_options",
    "paired_differences",
    "plan_runs",
    "read_published",
    "summarise",
    "write_comparison",
    "write_results",
]
