# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""Start MONAI Label with the app `apps/mimmx`."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["serve_label_app"]

APP = Path(__file__).parents[2] / "apps" / "mimmx"


def serve_label_app(
    bundle: str,
    studies: str | os.PathLike[str],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    ckpt: str | None = None,
    output_dir: str | None = None,
    app: str | os.PathLike[str] = APP,
    options: Mapping[str, Any] | None = None,
) -> None:
    """
    Serve a bundle to MONAI Label's clients until interrupted.

    Of the pages in a browser only the server's own may use it, where MONAI Label alone would let those of any origin; the
    environment's ``MONAI_LABEL_CORS_ORIGINS``, a JSON list, names others.

    Args:
        bundle: its folder, or the name of one of this project's.
        studies: the folder of images to label; MONAI Label keeps the labels there. A copy, as clients can delete images.
        host: address to listen on. There is no login: whoever reaches it can read, add and delete the images, write and
            delete labels, start trainings and put the served model aside.
        port: to listen on.
        ckpt: the trained model; by default the bundle's own.
        output_dir: where fine-tuned models go; by default `output/label` in the bundle.
        app: folder of the app, into which MONAI Label writes its logs.
        options: replace values of the bundle's configs; those that shape the network must be what it was trained with.

    Raises:
        FileNotFoundError: there is no such app, or no folder of studies.
        ImportError: MONAI Label is not installed.
    """
    if not (Path(app) / "main.py").is_file():
        raise FileNotFoundError(f"there is no MONAI Label app in {app}: name the folder apps/mimmx by --app")
    if not Path(studies).is_dir():
        raise FileNotFoundError(f"there is no folder {studies}: name the folder with the images by --studies")
    try:
        from monailabel.config import settings
        from monailabel.main import Main
    except ImportError as error:
        raise ImportError(f"MONAI Label cannot be used ({error}): pip install 'monai_mimmx[label]'") from error
    # No browser sends the final slash of the URLs that MONAI Label makes of the variable.
    origins = [str(origin).rstrip("/") for origin in settings.MONAI_LABEL_CORS_ORIGINS]
    settings.MONAI_LABEL_CORS_ORIGINS = origins or [f"http://{f'[{host}]' if ':' in host else host}:{port}"]
    importlib.import_module("monailabel.app")  # reads them
    settings.MONAI_LABEL_CORS_ORIGINS = []  # with the URLs it can neither start nor train
    conf = {"models": str(bundle), "ckpt": ckpt, "output_dir": output_dir, "options": json.dumps(dict(options or {}))}
    words = ["start_server", "--app", str(app), "--studies", str(studies), "--host", host, "--port", str(port)]
    for key, value in conf.items():
        words += ["--conf", key, value] if value else []
    main = Main()
    main.action_start_server(main.args_parser().parse_args(words))
