# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""
One epoch of `mimmx` against one of `baseline` in the brain bundle: same data, same encoder, and where the time goes.

Trainings take turns: `baseline`; `mimmx` with its estimator on buffered features, as the bundle does; and `mimmx` whose
every estimator step encodes a fresh batch, as the method is written, with these passes in float32 or in mixed precision,
while what is trained stays in float32 (`amp_fresh`, on in the bundle where the processor computes in bfloat16). On a GPU
`mimmx` also trains without the CUDA graph of its estimator steps, and the first two compiled. Peak memory is what an epoch
adds to a process with the bundle built. `passes alone` is what the network's passes of a form with fresh batches would cost
by themselves, one with a backward pass and N_B without, in units of the one with it.
"""

from __future__ import annotations

import contextlib
import io
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Events
from monai.bundle import ConfigParser
from monai.engines.utils import IterationEvents

from benchmarks.timing import median_ratio, peak_megabytes, take_turns, wait_for_gpu
from monai_mimmx.engines import reuse_freed_memory

BUNDLES = Path(__file__).parents[1] / "bundles"
FORMS: dict[str, dict[str, Any]] = {
    "baseline": {"method": "baseline"},
    "mimmx": {"method": "mimmx"},
    "mimmx_fresh_batches": {"method": "mimmx", "feature_batches": 0, "amp_fresh": False},
    "mimmx_fresh_batches_mixed_precision": {"method": "mimmx", "feature_batches": 0, "amp_fresh": True},
}
ON_GPU = {"mimmx_without_graph": FORMS["mimmx"] | {"cuda_graph": False}} | {
    f"{form}_compiled": FORMS[form] | {"compile": True} for form in ("baseline", "mimmx")
}
"""A processor has no CUDA graph, and to compile for it takes longer than such an epoch."""


class Stopwatch:
    """Seconds of a training in each part of its iterations, wherever in an iteration a part comes."""

    def __init__(self, trainer: Any) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._last = 0.0
        for event, part in (
            (Events.GET_BATCH_STARTED, "handlers"),
            (Events.GET_BATCH_COMPLETED, "data"),
            (IterationEvents.INNER_ITERATION_STARTED, "losses"),
            (IterationEvents.INNER_ITERATION_COMPLETED, "estimator"),
            (IterationEvents.LOSS_COMPLETED, "losses"),
            (IterationEvents.BACKWARD_COMPLETED, "encoder"),
            (IterationEvents.MODEL_COMPLETED, "optimizer"),
            (Events.ITERATION_COMPLETED, "handlers"),
        ):
            trainer.add_event_handler(event, self._note, part)
        trainer.prepare_batch = self._watched(trainer.prepare_batch, "data", "augmentation")
        trainer.inferer = self._watched(trainer.inferer, "data", "encoder")

    def _note(self, *arguments: Any) -> None:
        wait_for_gpu()
        now = time.perf_counter()
        if self._last:
            self.seconds[arguments[-1]] += now - self._last
        self._last = now

    def _watched(self, function: Callable[..., Any], before: str, within: str) -> Callable[..., Any]:
        def watched(*arguments: Any, **options: Any) -> Any:
            self._note(before)
            result = function(*arguments, **options)
            self._note(within)
            return result

        return watched

    def start(self) -> None:
        """Forget the time since the last event."""
        self._last = 0.0


def make_trainer(
    folder: Path,
    scale: float,
    options: dict[str, Any],
    *,
    bundle: str = "brain_age",
    overlays: Sequence[str] = (),
    **more: Any,
) -> Any:
    """A bundle's trainer without validation, on a cohort in `folder`."""
    parser = ConfigParser()
    parser.read_config([BUNDLES / bundle / "configs" / f"{name}.json" for name in ("train", *overlays)])
    parser.update(
        {
            "bundle_root": str(BUNDLES / bundle),
            "cohort_dir": str(folder / bundle / "cohort"),
            "cache_dir": str(folder / bundle / "cache"),
            "output_dir": str(folder / "output"),
            "cohort_scale": scale,
            "epochs": 1000,
            **options,
            **more,
        }
    )
    for handler in (2, 3, 4):  # progress bar, validation, records
        parser[f"train#handlers#{handler}#_disabled_"] = True
    parser.parse(True)
    trainer = parser.get_parsed_content("train#trainer")
    trainer.add_event_handler(Events.EPOCH_COMPLETED, trainer.terminate)
    return trainer


def make_epoch(folder: Path, scale: float, options: dict[str, Any], more: dict[str, Any]) -> Callable[[], Any]:
    """What trains an epoch when called; for a process of its own."""
    reuse_freed_memory()
    with contextlib.redirect_stdout(io.StringIO()):
        return make_trainer(folder, scale, options, **more).run  # type: ignore[no-any-return]


def passes_alone(trainer: Any, repeats: int) -> float:
    """What the passes of a step with fresh batches cost next to those of a step of `baseline`."""
    image, _ = trainer.prepare_batch(next(iter(trainer.data_loader)), trainer.state.device)
    network = trainer.network

    @torch.no_grad()
    def fresh() -> None:
        with torch.autocast(image.device.type, enabled=trainer.amp_fresh, **trainer.amp_kwargs):
            network(image)

    turns = take_turns({"step": lambda: network(image).sum().backward(), "fresh": fresh}, repeats, warm_up=3)
    return 1 + trainer.n_b * median_ratio(turns["fresh"], turns["step"])


def measure(quick: bool = False, device: str = "cpu") -> dict[str, list[dict[str, Any]]]:
    """All rows; ``quick``: sizes that only show that it runs."""
    scale, repeats, more = (0.02, 1, {"image_size": 32, "batch_size": 16}) if quick else (0.25, 11, {})
    more["device"] = device
    forms = FORMS if device == "cpu" or quick else FORMS | ON_GPU
    with tempfile.TemporaryDirectory() as name, contextlib.redirect_stdout(io.StringIO()):
        trainers = {form: make_trainer(Path(name), scale, options, **more) for form, options in forms.items()}
        turns = take_turns({form: trainer.run for form, trainer in trainers.items()}, repeats)
        alone = {f: passes_alone(trainers[f], 3 * repeats) for f in forms if forms[f].get("feature_batches") == 0}
        # Then where the time goes: on a GPU to ask after every part takes time itself.
        watches = {form: Stopwatch(trainer) for form, trainer in trainers.items()}

        def epoch(form: str) -> None:
            watches[form].start()
            trainers[form].run()

        take_turns({form: partial(epoch, form) for form in forms}, 1 + repeats // 4, warm_up=0)
        memory = peak_megabytes(make_epoch, Path(name), scale, FORMS["mimmx"], more)
    rows = []
    for form, watch in watches.items():
        images = len(trainers[form].data_loader) * trainers[form].data_loader.batch_size
        total, seconds = sum(watch.seconds.values()), statistics.median(turns[form])
        rows.append(
            {
                "training": form,
                "seconds": seconds,
                "times_baseline": median_ratio(turns[form], turns["baseline"]),
                "images_per_second": images / seconds,
                **({"peak_megabytes": memory} if form == "mimmx" else {}),
                **({"passes_alone": alone[form]} if form in alone else {}),
                **{f"share_{part}": value / total for part, value in sorted(watch.seconds.items())},
                "share_outside_encoder_and_estimator": 1
                - (watch.seconds["encoder"] + watch.seconds["estimator"]) / total,
            }
        )
    return {"epoch": rows}
