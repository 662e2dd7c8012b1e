# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""What a user gets without a checkout: the sdist, the wheel made of it, and a bundle copied from it that trains."""

import fcntl
import json
import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from monai_mimmx.__main__ import main
from monai_mimmx.bundle_folders import PARTS, bundle_folders, copy_bundle

ROOT = Path(__file__).parents[1]
NAMES = sorted(path.parents[1].name for path in ROOT.glob("bundles/*/configs/metadata.json"))
FILES = {
    str(file.relative_to(ROOT))
    for name in NAMES
    for part in PARTS
    for file in [ROOT / "bundles" / name / part, *(ROOT / "bundles" / name / part).rglob("*")]
    if file.is_file()
}


def run(*command, cwd):
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The sdist and the wheel."""
    pytest.importorskip("setuptools", minversion="77", reason="the package is built by setuptools 77 or later")
    folder = tmp_path_factory.mktemp("built")
    with open(tmp_path_factory.getbasetemp().parent / "build.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # setuptools works in the checkout, which the processes of pytest-xdist share
        run(
            sys.executable,
            "-c",
            f"from setuptools import build_meta; build_meta.build_sdist({str(folder)!r})",
            cwd=ROOT,
        )
    (sdist,) = folder.glob("*.tar.gz")
    pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(folder))
    run(*pip, str(sdist), cwd=folder)
    return sdist, next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """The python of an environment with the wheel, which sees this one's torch and MONAI but not the checkout."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, with_pip=False)
    python = next(path for path in folder.glob("*/python*") if path.stem == "python")
    run(
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(python),
        "install",
        "--quiet",
        "--no-deps",
        str(built[1]),
        cwd=folder,
    )
    (site,) = folder.rglob("site-packages")
    (site / "others.pth").write_text(sysconfig.get_path("purelib"))  # whose own .pth files do not count
    return str(python)


def test_the_wheel_holds_the_package_and_every_file_of_the_bundles(built):
    names = set(zipfile.ZipFile(built[1]).namelist())
    assert {name.removeprefix("monai_mimmx/") for name in names if "/bundles/" in name} == FILES
    assert {str(path.relative_to(ROOT)) for path in ROOT.glob("monai_mimmx/**/*.py")} <= names
    assert {name.split("/")[0].split("-")[0] for name in names} == {"monai_mimmx"}


def test_the_sdist_holds_bundles_tests_docs_and_examples(built):
    with tarfile.open(built[0]) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    assert names >= FILES | {"README.md", "LICENSE", "CHANGELOG.md", "setup.py", "tests/test_install.py"}
    assert names >= {str(path.relative_to(ROOT)) for part in ("docs", "examples") for path in ROOT.glob(f"{part}/*.*")}


def test_a_bundle_copied_from_an_installed_wheel_trains(installed, tmp_path):
    code = "from monai_mimmx.__main__ import main; main(['bundles']); main(['bundles', '--copy', 'brain_age', 'mine'])"
    told = run(installed, "-c", code, cwd=tmp_path)
    assert [line.split(":")[0] for line in told.splitlines()[: len(NAMES)]] == NAMES and f"{ROOT}/" not in told
    assert "configs/train.json" in told
    run(
        *(installed, "-m", "monai.bundle", "run", "--config_file", "configs/train.json", "--cohort_scale", "0.02"),
        *("--image_size", "32", "--batch_size", "16", "--epochs", "1", "--refine_epochs", "1", "--device", "cpu"),
        cwd=tmp_path / "mine",
    )
    assert json.loads((tmp_path / "mine/output/metrics.json").read_text())["epochs"] == 2


def test_a_copy_has_the_bundles_files_and_nothing_that_runs_left(tmp_path):
    for name in NAMES:
        copy = copy_bundle(name, tmp_path / "new" / name)
        assert {f"bundles/{path.relative_to(copy.parent)}" for path in copy.rglob("*") if path.is_file()} == {
            file for file in FILES if file.startswith(f"bundles/{name}/")
        }
    assert sorted(bundle_folders()) == NAMES


def test_a_copy_overwrites_nothing_and_an_unknown_name_is_told(tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    with pytest.raises(FileExistsError, match="mine exists, and a copy overwrites nothing: name a new folder"):
        copy_bundle("brain_age", tmp_path / "mine")
    with pytest.raises(ValueError, match="there is no bundle 'brain'; there are brain_age, fashion_mnist"):
        copy_bundle("brain", tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"] and not list((tmp_path / "mine").iterdir())
    with pytest.raises(SystemExit) as stopped:
        main(["bundles", "--copy", "brain", str(tmp_path / "new")])
    assert stopped.value.code == 2 and "there is no bundle 'brain'" in capsys.readouterr().err
