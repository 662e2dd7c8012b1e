# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""A training that the system kills anywhere ends, resumed, as one that was left alone, to the last bit."""

import json
import os
import random
import signal

import pytest
from deaths import run
from runs import options, results, workflow

KILLS = int(os.environ.get("MIMMX_KILLS", "3"))
"""Deaths per bundle; the suite has time for few."""
SEED = int(os.environ.get("MIMMX_SEED", random.randrange(10**6)))
"""Of their places: another one each time, printed by a test that fails."""


def history(output):
    """The rows of a run's epochs, without the time they took."""
    rows = {}
    for line in (output / "history.jsonl").read_text().splitlines():
        row = json.loads(line)
        rows[row["epoch"]] = {key: value for key, value in row.items() if key != "seconds"}
    return rows


@pytest.mark.parametrize(
    ("bundle", "more"),
    [("brain_age", {"epochs": 3}), ("pleural_effusion_natural", {"epochs": 2, "caw": "terms"})],
)
def test_killed_anywhere(bundle, more, folders, tmp_path):
    made = workflow(bundle, "train", **options(bundle, folders, tmp_path / "none", **more))
    made.parser.get_parsed_content("images")  # so that no run is the one that makes cohort and cache
    code, counts = run(bundle, folders, tmp_path / "whole", **more)
    assert code == 0, (tmp_path / "whole.log").read_text()
    expected = results(tmp_path / "whole"), history(tmp_path / "whole")
    rng = random.Random(SEED)
    places = rng.sample(sorted(counts), len(counts)) * KILLS
    for number, place in enumerate(places[:KILLS]):
        at = place, rng.randint(1, counts[place])
        output = tmp_path / str(number)
        told = f"seed {SEED}, {bundle}, killed at {place} {at[1]} of {counts[place]}"
        code, _ = run(bundle, folders, output, at=at, **more)
        assert code == -signal.SIGKILL, f"{told}: {output.with_suffix('.log').read_text()[-3000:]}"
        left = sorted(path.name for path in (output / "models").glob("*")) if output.exists() else []
        code, _ = run(bundle, folders, output, resume=True, **more)
        assert code == 0, f"{told}, not resumed: {output.with_suffix('.log').read_text()[-3000:]}"
        assert (results(output), history(output)) == expected, told
        assert not list(output.rglob(".*.part")), told
        print(f"{told}; left then: {', '.join(left)}")
