# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""A tiny study and a tiny untrained model of a bundle, served to a test client."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from PIL import Image

ROOT = Path(__file__).parents[2]
APP = ROOT / "apps" / "mimmx"
LIGHT = Path(__file__).parent / "light"
STRIDES = {"network_def#encoder#strides": [2, 2, 2, 1]}
TINY = {
    "brain_age": {"image_size": 32, **STRIDES},
    "fashion_mnist": {"image_size": 28},
    "pleural_effusion": {"image_size": 32},
    "pleural_effusion_natural": {"image_size": 32},
}
"""What makes each bundle tiny."""

if importlib.util.find_spec("monailabel") is not None and importlib.util.find_spec("torchvision") is None:
    sys.path.append(str(LIGHT))


def untrained(bundle, path):
    """A checkpoint of the tiny network with random weights."""
    import monai_mimmx  # noqa: F401

    torch.manual_seed(0)
    parser = ConfigParser()
    parser.read_config(ROOT / "bundles" / bundle / "configs" / "inference.json")
    parser.update(TINY[bundle])
    torch.save({"model": parser.get_parsed_content("network_def").state_dict()}, path)
    return path


def picture(path, y, z, seed):
    """A noisy picture: y is a bright square in the middle, z a bright edge."""
    pixels = np.random.default_rng(seed).integers(0, 60, (32, 32), dtype=np.uint8)
    pixels[10:22, 10:22] += 150 * y
    pixels[:, :4] += 150 * z
    Image.fromarray(pixels).save(path)


@pytest.fixture
def study(tmp_path):
    """A folder of 24 pictures of four equal (y, z) cells, named after them."""
    folder = tmp_path / "study"
    folder.mkdir()
    for i in range(24):
        y, z = i % 2, i // 2 % 2
        picture(folder / f"case{i:02d}_y{y}_z{z}.png", y, z, i)
    return folder


@pytest.fixture
def serve(tmp_path, monkeypatch):
    """Serve a bundle on a folder to a test client."""
    pytest.importorskip("monailabel", reason="MONAI Label is not installed: pip install 'monai_mimmx[label]'")
    from fastapi.testclient import TestClient
    from monailabel.app import app
    from monailabel.config import settings
    from monailabel.interfaces.utils.app import app_instance, clear_cache

    def start(folder, bundle="brain_age", trained=True, **conf):
        if trained:
            conf = {"ckpt": str(untrained(bundle, tmp_path / "base.pt"))} | conf
        options = json.dumps(TINY.get(bundle, {}) | conf.pop("options", {}))
        conf = {"models": bundle, "output_dir": str(tmp_path / "tuned"), "options": options} | conf
        for name, value in {
            "APP_DIR": str(APP),
            "STUDIES": str(folder),
            "APP_CONF": conf,
            "DATASTORE_AUTO_RELOAD": False,
            "SESSION_PATH": str(tmp_path / "sessions"),
        }.items():
            monkeypatch.setattr(settings, f"MONAI_LABEL_{name}", value)
        clear_cache()
        app_instance()  # as the server does when it starts
        return TestClient(app)

    yield start
    clear_cache()
