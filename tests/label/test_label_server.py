# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""A real server, started as the documentation says and driven by MONAI Label's own client."""

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import time

import pytest
from conftest import APP, LIGHT, ROOT, untrained

pytest.importorskip("monailabel", reason="MONAI Label is not installed: pip install 'monai_mimmx[label]'")

SECONDS = 300
"""After which the test gives up on whatever it waits for."""


def wait_for(what, found):
    """The first true value that `found` returns."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        if value := found():
            return value
        time.sleep(0.5)
    raise TimeoutError(what)


@pytest.fixture
def server(study, tmp_path):
    """The port of a server on the study, which is stopped in the end."""
    app = shutil.copytree(APP, tmp_path / "app", ignore=shutil.ignore_patterns("logs", "model", "bin", "__pycache__"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    light = [str(LIGHT)] if importlib.util.find_spec("torchvision").origin.startswith(str(LIGHT)) else []
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([*light, *filter(None, [os.environ.get("PYTHONPATH")])]),
        "MONAI_LABEL_SESSION_PATH": str(tmp_path / "sessions"),
    }
    command = [sys.executable, "-m", "monai_mimmx", "label", "--bundle", str(ROOT / "bundles" / "brain_age")]
    command += ["--studies", str(study), "--ckpt", str(untrained("brain_age", tmp_path / "base.pt"))]
    command += ["--output_dir", str(tmp_path / "tuned"), "--app", str(app), "--port", str(port)]
    command += ["--", "--image_size", "32", "--network_def#encoder#strides", "[2, 2, 2, 1]"]
    with (tmp_path / "log.txt").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=ROOT)
    try:
        wait_for("the server", lambda: _answers("127.0.0.1", port) or process.poll() is not None)
        assert process.poll() is None, (tmp_path / "log.txt").read_text()
        yield port
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()


def _answers(host, port):
    with socket.socket() as connection:
        connection.settimeout(2)
        return connection.connect_ex((host, port)) == 0


def test_monai_labels_client_goes_the_whole_way(server, study, tmp_path):
    import requests
    from monailabel.client import MONAILabelClient
    from monailabel.client.client import MONAILabelClientException

    if sys.platform == "linux":  # where all of 127.0.0.0/8 is this computer
        assert not _answers("127.0.0.2", server), "the server listens to more than 127.0.0.1"
    client = MONAILabelClient(f"http://127.0.0.1:{server}", tmpdir=str(tmp_path))
    assert list(client.info()["models"]) == ["brain_age"]
    for origin, told in ((f"http://127.0.0.1:{server}", True), ("http://elsewhere.example", False)):
        answer = requests.get(f"http://127.0.0.1:{server}/info/", headers={"Origin": origin}, timeout=60)
        assert (answer.headers.get("access-control-allow-origin") == origin) == told, origin

    image = "case00_y0_z0"
    file, before = client.infer("brain_age", image, {"device": "cpu"})
    with open(file) as stored:
        assert json.load(stored) == {key: before[key] for key in ("prediction", "factors", "attention")}
    _, uploaded = client.infer("brain_age", "", {"device": "cpu"}, file=str(study / f"{image}.png"))
    uploaded = json.loads(uploaded) if isinstance(uploaded, str | bytes) else uploaded
    assert uploaded["prediction"] == before["prediction"]

    sample = client.next_sample("shortcut", {})
    assert sample["id"] in {path.stem for path in study.glob("*.png")}
    for path in sorted(study.glob("*.png")):
        y, z = int(path.stem[8]), int(path.stem[11])
        label = tmp_path / "label.json"
        label.write_text(json.dumps({"age_group": ("< 51", "> 57")[y], "sex": ("female", "male")[z]}))
        assert client.save_label(path.stem, str(label))["label"] == path.stem
    label.write_text(json.dumps({"age_group": "old"}))
    with pytest.raises(MONAILabelClientException) as told:
        client.save_label(image, str(label))
    assert "Status: 400" in told.value.msg and "expected 'age_group' to be one of '< 51', '> 57'" in told.value.msg
    assert client.next_sample("shortcut", {}) == {}

    client.train_start("brain_age", {"max_epochs": 1, "batch_size": 8, "device": "cpu"})
    with pytest.raises(MONAILabelClientException) as told:
        client.train_start("brain_age", {"max_epochs": 1})
    assert "Status: 429" in told.value.msg and "a training is already running" in told.value.msg
    wait_for("the training", lambda: client.train_status(False)["status"] not in ("SUBMITTED", "RUNNING"))
    task = client.train_status(False)
    assert task["status"] == "DONE", task["details"]
    assert client.info()["train_stats"]["brain_age"]["worst_group"] is None  # the dataset was in no label
    _, after = client.infer("brain_age", image, {"device": "cpu"})
    assert after["prediction"] != before["prediction"]

    # The client has no method for this one.
    options = {"device": "cpu", "multi_gpu": False, "max_workers": 1}
    assert requests.post(f"http://127.0.0.1:{server}/batch/infer/brain_age", json=options, timeout=60).ok
    wait_for("all results", lambda: len(list((study / "labels/original").glob("*.json"))) == 24)
