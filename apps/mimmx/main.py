# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""MONAI Label app for every bundle built on monai_mimmx; see docs/monai_label.md."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from fastapi import HTTPException
from lib.infer import MIMMXInfer
from lib.requests import check_requests, require_device
from lib.sampling import HighestScore, PredictionScoring
from lib.served import ServedBundle, find_bundle
from lib.study import StudyFolder
from lib.train import MIMMXTrain
from monailabel.config import settings
from monailabel.interfaces.app import MONAILabelApp
from monailabel.tasks.activelearning.random import Random
from monailabel.utils.async_tasks.utils import tasks as background_tasks


class MIMMXApp(MONAILabelApp):
    """
    Args:
        app_dir: this folder.
        studies: the folder of images to label.
        conf: `models`, the name or folder of the one bundle to serve; and, if need be, `ckpt`, `output_dir` and, as
            JSON, `options`: see `monai_mimmx.label.serve_label_app`.

    Raises:
        FileNotFoundError, ValueError: for a bundle, checkpoint or option that does not exist or fit.
    """

    def __init__(self, app_dir: str, studies: str, conf: dict[str, str] | None) -> None:
        conf = conf or {}
        options = conf.get("options") or {}
        self.bundle = ServedBundle(
            find_bundle(conf.get("models", ""), app_dir),
            ckpt=conf.get("ckpt"),
            output_dir=conf.get("output_dir"),
            options=json.loads(options) if isinstance(options, str) else options,
        )
        self.infer_task = MIMMXInfer(self.bundle)
        self.scoring_task = PredictionScoring(self.infer_task)
        super().__init__(
            app_dir=app_dir,
            studies=studies,
            conf=conf,
            name=f"MIMM-X {self.bundle.name}",
            description=self.bundle.metadata.get("description", ""),
            version=self.bundle.metadata.get("version", ""),
            labels=self.bundle.tasks[0].class_names,
        )
        self._auto_update_scoring = False  # the strategies see to it
        check_requests()

    def init_datastore(self) -> StudyFolder:
        """The study folder; ValueError for a server of images, which this app cannot read."""
        if "://" in self.studies:
            raise ValueError(f"expected a folder of images as studies, got {self.studies!r}")
        return StudyFolder(
            self.studies,
            self.bundle.tasks,
            auto_reload=settings.MONAI_LABEL_DATASTORE_AUTO_RELOAD,
            read_only=settings.MONAI_LABEL_DATASTORE_READ_ONLY,
        )

    def init_infers(self) -> dict[str, Any]:
        """One model, named after the bundle."""
        return {self.bundle.name: self.infer_task}

    def init_trainers(self) -> dict[str, Any]:
        """One trainer, of the same name; none for a bundle without `configs/train.json`."""
        trainable = (self.bundle.root / "configs" / "train.json").is_file()
        return {self.bundle.name: MIMMXTrain(self.infer_task)} if trainable else {}

    def init_scoring_methods(self) -> dict[str, Any]:
        """One method, which makes all scores."""
        return {"predictions": self.scoring_task}

    def init_strategies(self) -> dict[str, Any]:
        """Random, and one per score."""
        return {
            "random": Random(),
            "shortcut": HighestScore(
                self.scoring_task, "shortcut", "The image whose prediction leans most on a spurious factor"
            ),
            "rare_cell": HighestScore(
                self.scoring_task, "rare_cell", "An image of the combination of classes with the fewest labels"
            ),
        }

    def infer(self, request: dict[str, Any], datastore: StudyFolder | None = None) -> dict[str, Any]:
        """Predict one image; HTTP 404 for an unknown model or image, or a bundle without a trained model."""
        self._require("model", request.get("model"), self._infers)
        self.infer_task.require_model()
        require_device(request.get("device"))
        image = str(request.get("image"))
        if not image:
            raise HTTPException(404, "there is no such session, or it has ended: name an image, or upload it anew")
        if not _is_upload(image) and not self._is_of_a_session(image):
            (datastore or self.datastore()).require_image(image)
        return super().infer(request, datastore)

    def batch_infer(self, request: dict[str, Any], datastore: StudyFolder | None = None) -> dict[str, Any]:
        """Predict many images; one that cannot be used has `{"error": ...}` as its result, and the others go on."""

        def infer_or_error(*arguments: Any) -> dict[str, Any]:
            try:
                return self.infer(*arguments)
            except HTTPException as error:
                return {"error": error.detail}

        # MONAI Label's default asks for GPUs that need not be there.
        request = request | {"multi_gpu": request.get("multi_gpu", True) and torch.cuda.is_available()}
        return self._batch_infer(request, datastore or self.datastore(), infer_or_error)

    def next_sample(self, request: dict[str, Any]) -> dict[str, Any]:
        """The next image; HTTP 404 for an unknown strategy or a folder without images; empty when all are labelled."""
        self._require("strategy", request.get("strategy") or "random", self._strategies)
        self.datastore().require_images()
        require_device(request.get("device"))
        return super().next_sample(request)

    def model_file(self, model: str, validate: bool = True) -> str | None:
        """Where a model stands; HTTP 405 for a client that would replace it, by what nothing has checked."""
        if not validate:
            raise HTTPException(405, "models are not uploaded: fine-tune on labels, or start the server with --ckpt")
        return super().model_file(model)

    def check(self, method: str, request: dict[str, Any], *, enqueue: bool = False) -> None:
        """HTTP error for a request of training, batch inference or scoring that cannot succeed."""
        if method == "scoring":
            self._require("method", request.get("method"), self._scoring_methods)
        else:
            self._require("model", request.get("model"), self._trainers if method == "train" else self._infers)
        self.datastore().require_images()
        require_device(request.get("device"))
        if method != "train":
            self.infer_task.require_model()
            return
        if not enqueue and any(task["status"] in ("SUBMITTED", "RUNNING") for task in background_tasks("train")):
            raise HTTPException(429, "a training is already running: wait for it, stop it, or ask with enqueue=true")
        self._trainers[self.bundle.name].prepare(request, self.datastore())

    def _is_of_a_session(self, path: str) -> bool:
        """Whether a file was uploaded for a session of MONAI Label's."""
        return self._sessions is not None and Path(self._sessions.store_path).resolve() in Path(path).resolve().parents

    @staticmethod
    def _require(what: str, name: str | None, known: dict[str, Any]) -> None:
        if name not in known:
            raise HTTPException(404, f"there is no {what} {name!r}, only {', '.join(known)}")


def _is_upload(path: str) -> bool:
    """Whether a path is a temporary file as the server makes for an upload: no other file is read by its path."""
    folder, name = os.path.split(path)
    return folder == tempfile.gettempdir() and name.startswith(tempfile.gettempprefix()) and os.path.isfile(path)
