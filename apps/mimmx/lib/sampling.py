# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""Which image to label next."""

from __future__ import annotations

import logging
import os
from typing import Any

import numpy as np
from fastapi import HTTPException
from monailabel.interfaces.tasks.scoring import ScoringMethod
from monailabel.interfaces.tasks.strategy import Strategy
from monailabel.utils.others.generic import name_to_device

from lib.infer import MIMMXInfer
from lib.study import StudyFolder
from monai_mimmx.label import rare_cell_scores, shortcut_scores

logger = logging.getLogger(__name__)

SCORES = {"shortcut": shortcut_scores, "rare_cell": rare_cell_scores}


class PredictionScoring(ScoringMethod):
    """
    Note for every image the current checkpoint's logits (`logits`), and for those without a final label how much their
    prediction leans on spurious factors (`shortcut`, see `shortcut_scores`) and how rare their cell is (`rare_cell`, see
    `rare_cell_scores`). Only images that this checkpoint has not seen as they are now, with the bundle's present options, go
    through the network; an image that it cannot use is left out, with the reason noted (`unusable`).

    Args:
        infer: the network.
    """

    def __init__(self, infer: MIMMXInfer) -> None:
        super().__init__("Predict all images; score those without a label by shortcut and by rarity of their cell")
        self.infer = infer

    def __call__(self, request: dict[str, Any], datastore: StudyFolder) -> dict[str, int]:
        """Score, and return the numbers of images: `total`, `predicted` now, `unusable`."""
        self.infer.require_model()
        model = [os.stat(self.infer.get_path()).st_mtime, self.infer.bundle.digest]
        device = name_to_device(request.get("device"))
        infos = {image: datastore.get_image_info(image) for image in sorted(datastore.list_images())}
        seen = {image: [*model, *_state(datastore.get_image_uri(image))] for image in infos}
        stale = [image for image, info in infos.items() if info.get("seen") != seen[image]]
        new: dict[str, dict[str, Any]] = {image: {} for image in infos}
        for image in stale:
            try:
                found = {"logits": self.infer.logits(datastore.get_image_uri(image), device), "unusable": None}
            except HTTPException as error:
                logger.warning(error.detail)
                found = {"logits": None, "unusable": error.detail}
            infos[image] |= found
            new[image] = {"seen": seen[image]} | found
        usable = [image for image, info in infos.items() if info["logits"] is not None]
        if usable:
            tasks, final = self.infer.bundle.num_classes, datastore.final_labels()
            logits = np.array([infos[image]["logits"] for image in usable])
            labels = np.array([final[image][0] if image in final else [-1] * len(tasks) for image in usable])
            for name, score in SCORES.items():
                for image, value in zip(usable, score(logits, labels, tasks), strict=True):
                    new[image][name] = float(value)
        datastore.update_image_infos(new)
        return {"total": len(infos), "predicted": len(stale), "unusable": len(infos) - len(usable)}


def _state(path: str) -> tuple[float, int]:
    """When a file was written and how long it is: one may be looked at while it is being copied."""
    try:
        stat = os.stat(path)
    except OSError:
        return 0.0, 0
    return stat.st_mtime, stat.st_size


class HighestScore(Strategy):
    """
    The image without a final label that has the highest score, after the scores have followed the newest checkpoint and
    labels; one that this strategy has already given comes again only when all others have been given too.

    Args:
        scoring: makes the scores.
        name: of the score.
        description: for the clients.
    """

    def __init__(self, scoring: PredictionScoring, name: str, description: str) -> None:
        super().__init__(description)
        self.scoring, self.name = scoring, name

    def __call__(self, request: dict[str, Any], datastore: StudyFolder) -> dict[str, Any] | None:
        """`{"id", "score"}`, or None when every image that can be used is labelled."""
        self.scoring(request, datastore)
        infos = {image: datastore.get_image_info(image) for image in sorted(datastore.get_unlabeled_images())}
        infos = {image: info for image, info in infos.items() if info["logits"] is not None}
        if not infos:
            return None

        def order(image: str) -> tuple[float, float]:
            given = infos[image].get("strategy", {}).get(request["strategy"], {}).get("ts", 0)
            return given, -infos[image][self.name]

        best = min(infos, key=order)
        return {"id": best, "score": infos[best][self.name]}
