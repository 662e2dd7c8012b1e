# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""The audit of any trained classifier: which attributes of its images does it make use of?"""

from monai_mimmx.audit.attributes import audit_attributes, audit_verdict
from monai_mimmx.audit.features import extract_features
from monai_mimmx.audit.run import attribute_tasks, audit_classifier

__all__ = [
    "attribute_tasks",
    "audit_attributes",
    "audit_classifier",
    "audit_verdict",
    "extract_features",
]
