# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""Predict the classes of an image."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fastapi import HTTPException
from monai.inferers import Inferer
from monailabel.interfaces.tasks.infer_v2 import InferType
from monailabel.tasks.infer.basic_infer import BasicInferTask
from torch import Tensor

from lib.served import ServedBundle
from monai_mimmx.errors import first_line, raise_problems, root_cause
from monai_mimmx.preflight import training_differences
from monai_mimmx.trained_model import load_model


class MIMMXInfer(BasicInferTask):
    """
    A result holds `prediction`, the probabilities of the primary task's classes as `[{"idx", "label", "score"}]`;
    `factors`, the same per spurious factor; and `attention`, the weight of each factor. The file of the result is this
    as JSON. The newest checkpoint is used: a fine-tuned one where there is one.

    Args:
        bundle: what is served.

    Raises:
        ValueError: the checkpoint does not fit the network, or its training had other images or tasks.
    """

    def __init__(self, bundle: ServedBundle) -> None:
        self.bundle = bundle
        super().__init__(
            path=bundle.checkpoints,
            network=bundle.network(),
            type=InferType.CLASSIFICATION,
            labels={name: index for index, name in enumerate(bundle.tasks[0].class_names)},
            dimension=int(bundle.parser.get_parsed_content("spatial_dims")) if "spatial_dims" in bundle.parser else 2,
            description=bundle.metadata.get("description", ""),
        )
        if self.is_valid():
            raise_problems(training_differences(self.get_path(), bundle.value))
            load_model(self.network, Path(self.get_path()))

    def is_valid(self) -> bool:
        """Whether there is a checkpoint."""
        return self.get_path() is not None

    def require_model(self) -> None:
        """HTTP 404 where there is none, with what to do."""
        if not self.is_valid():
            raise HTTPException(404, self.bundle.untrained)

    def info(self) -> dict[str, Any]:
        """MONAI Label's, with the factors' classes."""
        factors = {task.name: task.class_names for task in self.bundle.tasks[1:]}
        return super().info() | {"task": self.bundle.tasks[0].name, "factors": factors}

    def pre_transforms(self, data: Any = None) -> Sequence[Callable]:
        """The bundle's preprocessing."""
        return [self.bundle.parser.get_parsed_content("preprocessing")]

    def inferer(self, data: Any = None) -> Inferer:
        """The bundle's inferer, whose result is `(B, sum C + N)` or `(B, sum C)`."""
        return self.bundle.parser.get_parsed_content("inferer")

    def post_transforms(self, data: Any = None) -> Sequence[Callable]:
        """None."""
        return []

    def run_pre_transforms(self, data: dict[str, Any], transforms: Sequence[Callable]) -> Any:
        """Read and prepare the image; HTTP 400 with the cause where that fails."""
        path = Path(data["image"])
        try:
            return super().run_pre_transforms(data, transforms)
        except Exception as error:
            empty = path.is_file() and not path.stat().st_size
            cause = "the file is empty" if empty else first_line(root_cause(error))
            raise HTTPException(
                400, f"{path.name} is no image for {self.bundle.name} ({self.dimension}D network): {cause}"
            ) from error

    def logits(self, image: str, device: str) -> list[float]:
        """The logits of all heads for one image file; HTTP 400 where it cannot be used."""
        data = self.run_pre_transforms({"image": image, "logging": "WARNING"}, self.pre_transforms())
        pred = self.run_inferer(data, device=device)[self.output_label_key]
        return pred[: sum(self.bundle.num_classes)].tolist()

    def result(self, pred: Tensor) -> dict[str, Any]:
        """Logits and attention `(sum C [+ N],)` to what the class says of a result."""
        tasks, width = self.bundle.tasks, sum(self.bundle.num_classes)
        heads = [head.softmax(0).tolist() for head in pred[:width].float().cpu().split(self.bundle.num_classes)]
        named = {
            task.name: [
                {"idx": index, "label": label, "score": score}
                for index, (label, score) in enumerate(zip(task.class_names, head, strict=True))
            ]
            for task, head in zip(tasks, heads, strict=True)
        }
        attention = dict(zip([task.name for task in tasks[1:]], pred[width:].tolist(), strict=False))
        return {"prediction": named.pop(tasks[0].name), "factors": named, "attention": attention}

    def writer(self, data: dict[str, Any], extension: Any = None, dtype: Any = None) -> tuple[str, dict[str, Any]]:
        """The file of the result, and the result."""
        result = self.result(data[self.output_label_key])
        handle, path = tempfile.mkstemp(suffix=".json")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(result, file, indent=1)
        return path, result
