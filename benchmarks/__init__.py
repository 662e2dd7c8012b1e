# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""What the package costs, as ratios measured side by side; `python -m benchmarks` runs them all."""
