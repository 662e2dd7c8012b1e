# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""The command that starts the server, without one."""

import json
import subprocess
import sys

import pytest

from monai_mimmx.__main__ import main


def started(monkeypatch, arguments):
    """What the command would give to MONAI Label."""
    pytest.importorskip("monailabel", reason="MONAI Label is not installed: pip install 'monai_mimmx[label]'")
    found = []
    monkeypatch.setattr("monailabel.main.Main.action_start_server", lambda self, args: found.append(args))
    assert main(["label", *arguments]) == 0
    return found[0]


def test_only_this_computer_is_served_unless_told_otherwise(monkeypatch, tmp_path):
    asked = ["--bundle", "brain_age", "--studies", str(tmp_path)]
    plain = started(monkeypatch, asked)
    assert (plain.host, plain.port, plain.studies) == ("127.0.0.1", 8000, str(tmp_path))
    assert plain.conf == [["models", "brain_age"], ["options", "{}"]]
    more = started(
        monkeypatch, [*asked, "--host", "0.0.0.0", "--port", "81", "--ckpt", "x.pt", "--", "--feature_dim", "4"]
    )
    assert (more.host, more.port) == ("0.0.0.0", 81)
    assert more.conf[1:] == [["ckpt", "x.pt"], ["options", '{"feature_dim": 4}']]


@pytest.mark.parametrize(
    ("given", "arguments", "allowed"),
    [
        ([], [], ["http://127.0.0.1:8000"]),
        ([], ["--port", "81"], ["http://127.0.0.1:81"]),
        ([], ["--host", "::1"], ["http://[::1]:8000"]),
        (["https://viewer.example", "http://127.0.0.1:3000"], [], ["https://viewer.example", "http://127.0.0.1:3000"]),
    ],
)
def test_pages_of_other_origins_are_allowed_only_where_named(given, arguments, allowed, monkeypatch, tmp_path):
    pytest.importorskip("monailabel", reason="MONAI Label is not installed: pip install 'monai_mimmx[label]'")
    from monailabel.config import Settings, settings

    monkeypatch.setenv("MONAI_LABEL_CORS_ORIGINS", json.dumps(given))
    monkeypatch.setattr(settings, "MONAI_LABEL_CORS_ORIGINS", Settings().MONAI_LABEL_CORS_ORIGINS)
    monkeypatch.delitem(sys.modules, "monailabel.app", raising=False)  # which reads them when it is imported
    started(monkeypatch, ["--bundle", "brain_age", "--studies", str(tmp_path), *arguments])
    assert sys.modules["monailabel.app"].origins == allowed
    json.dumps(settings.model_dump())  # as MONAI Label does when it starts, and in every training


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--studies", "/nowhere"], "there is no folder /nowhere: name the folder with the images by --studies"),
        (["--studies", ".", "--app", "/nowhere"], "there is no MONAI Label app in /nowhere"),
    ],
)
def test_what_is_missing_is_told(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["label", "--bundle", "brain_age", *arguments])
    assert stop.value.code == 2 and message in capsys.readouterr().err


def test_without_monai_label_the_command_says_what_to_install(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "monailabel.main", None)
    with pytest.raises(SystemExit):
        main(["label", "--bundle", "brain_age", "--studies", str(tmp_path)])
    assert "pip install 'monai_mimmx[label]'" in capsys.readouterr().err


def test_the_package_does_not_import_monai_label():
    pytest.importorskip("monailabel")
    code = "import sys, monai_mimmx.__main__; print([name for name in sys.modules if name.startswith('monailabel')])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
