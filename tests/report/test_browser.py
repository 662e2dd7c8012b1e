# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""The pages in a real browser, on a desk and on a phone: nothing sticks out, every picture shows, nothing is loaded."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import escape, unescape
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from monai_mimmx.comparison import read_published, write_comparison
from monai_mimmx.report import write_report

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
WIDTHS = (1280, 390)
DOCS = Path(__file__).parents[2] / "bundles/pleural_effusion_natural/docs"  # four tasks: the widest tables
MEASURE = """
const found = {};
for (const frame of document.querySelectorAll("iframe")) {
  const page = frame.contentDocument, root = page.documentElement;
  page.querySelectorAll("details").forEach(fold => fold.open = true);
  // What a table's own scroll bar reaches is no overflow.
  const out = [...page.body.querySelectorAll("*")].filter(
    part => !part.closest(".wide table") && part.getBoundingClientRect().right > root.clientWidth + 1);
  found[frame.name] = {
    width: root.clientWidth, content: root.scrollWidth, out: out.map(part => part.outerHTML.slice(0, 80)),
    blank: [...page.images].filter(image => !image.naturalWidth).length, images: page.images.length,
    loaded: performance.getEntriesByType("resource").concat(frame.contentWindow.performance.getEntriesByType("resource"))
      .map(entry => entry.name).filter(name => !name.startsWith("data:")).length,
    small: [...page.querySelectorAll("td, th, p")].filter(
      part => parseFloat(frame.contentWindow.getComputedStyle(part).fontSize) < 12).length,
  };
}
document.body.innerHTML = "<pre id=found></pre>";
document.getElementById("found").textContent = JSON.stringify(found);
"""


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """What a browser finds of each page at each width, from one start of it."""
    if BROWSER is None:
        pytest.skip("no browser to look with: apt-get install chromium")
    folder = tmp_path_factory.mktemp("pages")
    shutil.copy(DOCS / "rows.json", folder)
    comparison = write_comparison(folder, read_published(DOCS / "published.json"), title="A comparison")
    long = "a_" + "very_" * 12 + "long_name_of_a_factor"
    matrix = {f"f_{block}": {name: 0.5 for name in ("y", long)} for block in ("y", long)}
    metrics = {
        "task_names": ["age", long],
        "accuracy": {subset: {"y": 0.9, long: 0.8} for subset in ("val", "inv", "bal")},
        "interval": {subset: [0.8, 0.95] for subset in ("val", "inv", "bal")},
        "worst_group": {"val": {"cell": f"y=1, {long}=0", "accuracy": 0.1, "n": 4}},
        "probes": {"linear": matrix, "chance": {"y": 0.5, long: 0.5}},
        "config": {"dataset_dir": "/a/folder" * 30, "tasks": [{"name": long}] * 5},
    }
    run = write_report(folder / "run", metrics, {"picture": (Figure(figsize=(5, 3)), long)}, title=long)
    frames = "".join(
        f'<iframe name="{name} {width}" style="width:{width}px;height:900px" srcdoc="{escape(page.read_text(encoding="utf-8"))}"></iframe>'
        for name, page in (("comparison", comparison), ("run", run))
        for width in WIDTHS
    )
    (folder / "all.html").write_text(
        f"<body>{frames}<script>addEventListener('load', () => {{{MEASURE}}})</script></body>", encoding="utf-8"
    )
    flags = ("no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking")
    flags = (
        *flags,
        "disable-component-update",
        "disable-sync",
        "window-size=1400,1000",
        f"user-data-dir={folder}/home",
    )
    shown = subprocess.run(
        [BROWSER, "--headless", *(f"--{flag}" for flag in flags), "--dump-dom", (folder / "all.html").as_uri()],
        capture_output=True,
        text=True,
        timeout=240,
    )
    found = re.search(r"<pre id=\"found\">(.*?)</pre>", shown.stdout, re.DOTALL)
    assert found, shown.stderr[-500:]
    return json.loads(unescape(found[1]))


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("page", ["comparison", "run"])
def test_a_page_fits_the_screen(measured, page, width):
    found = measured[f"{page} {width}"]
    assert 0 < found["width"] <= width  # a scroll bar may take some
    assert found["content"] <= found["width"] and found["out"] == []
    assert found["images"] > 0 and found["blank"] == 0
    assert found["loaded"] == 0 and found["small"] == 0
