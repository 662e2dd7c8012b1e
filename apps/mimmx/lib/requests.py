# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""Requests that MONAI Label would run in the background, refused at once where they cannot succeed."""

from __future__ import annotations

from typing import Any

import torch
from fastapi import HTTPException
from monailabel.endpoints import batch_infer, scoring, train
from monailabel.interfaces.utils.app import app_instance
from monailabel.utils.async_tasks.task import AsyncTask
from monailabel.utils.others.generic import name_to_device


class CheckedTask(AsyncTask):
    """
    MONAI Label's, but the app looks at a request first.

    A background task runs in a process of its own, whose errors stand in its log only: what can be known before should
    be the answer to the request.
    """

    @staticmethod
    def run(
        method: str, request: Any = None, params: Any = None, force_sync: bool = False, enqueue: bool = False
    ) -> tuple[Any, Any]:
        """Let the app check, then run as MONAI Label does."""
        app_instance().check(method, {**(request or {}), **(params or {})}, enqueue=enqueue)
        return AsyncTask.run(method, request=request, params=params, force_sync=force_sync, enqueue=enqueue)


def check_requests() -> None:
    """From now on, the server's endpoints let the app check training, batch inference and scoring."""
    for endpoint in (batch_infer, scoring, train):
        endpoint.AsyncTask = CheckedTask


def require_device(device: Any) -> None:
    """HTTP 400 for a device that this computer does not have; MONAI Label takes names of GPUs too, and any GPU for the CPU."""
    try:
        named = isinstance(device, str) and device.startswith("cuda")
        torch.empty(0, device=device if named else name_to_device(device))
    except (RuntimeError, TypeError, AssertionError) as error:
        raise HTTPException(400, f"expected device to be cpu or one of this computer's GPUs, got {device!r}") from error
