# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""What a checkpoint of a training holds, which one it goes on from, and which model it has to beat."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
import pandas as pd
import torch
from ignite.engine import Engine, Events
from ignite.handlers import Checkpoint
from ignite.handlers.checkpoint import BaseSaveHandler
from monai.handlers import CheckpointSaver, ValidationHandler
from monai.transforms import Randomizable, Transform

from monai_mimmx.files import write_checkpoint
from monai_mimmx.options import OF_THE_MACHINE
from monai_mimmx.trained_model import newest_whole, subset_digest

__all__ = [
    "AtomicCheckpointSaver",
    "EpochValidationHandler",
    "RandomStates",
    "TrainingIdentity",
    "best_so_far",
    "latest_checkpoint",
    "training_state",
]


def every_and_last(interval: int) -> Any:
    """The event at the end of every ``interval``-th epoch, and of the last one."""

    def due(engine: Engine, epoch: int) -> bool:
        return epoch % interval == 0 or epoch == engine.state.max_epochs

    return Events.EPOCH_COMPLETED(event_filter=due)


class EpochValidationHandler(ValidationHandler):
    """
    MONAI's handler that validates every ``interval`` epochs, which here validates after the last epoch too.

    Otherwise the epochs behind the last multiple of ``interval`` would be trained and never used.

    Args:
        interval: epochs from one validation to the next.
        validator: the evaluator.

    Example:
        >>> trainer, seen = Engine(lambda engine, batch: None), []
        >>> handler = EpochValidationHandler(2)
        >>> handler.validator = type("Validator", (), {"run": lambda self, epoch: seen.append(epoch)})()
        >>> handler.attach(trainer)
        >>> _ = trainer.run([0], max_epochs=5)
        >>> seen
        [2, 4, 5]
    """

    def attach(self, engine: Engine) -> None:
        """Validate at the end of every ``interval``-th epoch of ``engine`` and of its last."""
        engine.add_event_handler(every_and_last(self.interval), self)


class _WholeFiles(BaseSaveHandler):
    """Where a saver's files go: each is there as a whole or not at all, written by the first process."""

    def __init__(self, folder: str | os.PathLike[str], filename: str | None) -> None:
        self.folder, self.filename = Path(folder), filename

    def __call__(self, checkpoint: Mapping, filename: str, metadata: Mapping | None = None) -> None:
        if idist.get_rank() == 0:
            write_checkpoint(self.folder / (self.filename or filename), checkpoint)

    def remove(self, filename: str) -> None:
        # A file of a fixed name is not removed to make room for the next: that one replaces it, or fails to.
        if idist.get_rank() == 0 and self.filename is None:
            (self.folder / filename).unlink(missing_ok=True)


class AtomicCheckpointSaver(CheckpointSaver):
    """
    MONAI's :class:`~monai.handlers.CheckpointSaver`, safe against a death in the middle of it.

    Files are written beside their place and then renamed: a training that is killed while it saves, or that finds the
    disk full, leaves the checkpoint before as it was. Those of every ``save_interval``-th epoch are joined by one of
    the last epoch. Where a training starts from its first epoch, checkpoints that an earlier one left under the same
    names are removed, so that nobody resumes from them by mistake; where it goes on, they count among the ``n_saved``.

    Args:
        args: those of :class:`~monai.handlers.CheckpointSaver`.
        kwargs: the same.

    Raises:
        OSError: while training, if a checkpoint cannot be written, with the cause.

    Example:
        >>> from torch import nn
        >>> trainer = Engine(lambda engine, batch: None)
        >>> saver = AtomicCheckpointSaver("models", {"net": nn.Linear(1, 1)}, file_prefix="state", save_interval=2)
        >>> saver.attach(trainer)
        >>> _ = trainer.run([0], max_epochs=3)
        >>> sorted(path.name for path in Path("models").iterdir())
        ['state_net_epoch=2.pt', 'state_net_epoch=3.pt']
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for checkpoint in (self._final_checkpoint, self._key_metric_checkpoint, self._interval_checkpoint):
            if checkpoint is not None:
                named = getattr(checkpoint.save_handler, "filename", None)
                checkpoint.save_handler = _WholeFiles(self.save_dir, named)  # type: ignore[assignment]
        self._begun = False

    def attach(self, engine: Engine) -> None:
        """Save in the epochs of ``engine``."""
        interval, self._interval_checkpoint = self._interval_checkpoint, None
        super().attach(engine)
        self._interval_checkpoint = interval
        if interval is None:
            return
        if not self.epoch_level:
            engine.add_event_handler(Events.ITERATION_COMPLETED(every=self.save_interval), self.interval_completed)
            return
        # Not at STARTED, where a checkpoint that restores the epoch may not have been loaded yet.
        engine.add_event_handler(Events.EPOCH_STARTED, self._take_over)
        engine.add_event_handler(every_and_last(self.save_interval), self.interval_completed)

    def _saved_name(self) -> str:
        """What Ignite puts between the prefix and the epoch."""
        return next(iter(self.save_dict)) if len(self.save_dict) == 1 else "checkpoint"

    def _take_over(self, engine: Engine) -> None:
        """Deal with what an earlier training left, once."""
        if self._begun or self._interval_checkpoint is None:
            return
        self._begun = True
        if idist.get_rank() > 0:
            return
        own = "_".join(filter(None, (self._interval_checkpoint.filename_prefix, self._saved_name())))
        found: dict[int, Path] = {}
        for path in Path(self.save_dir).glob("*.pt"):
            if match := re.fullmatch(rf"{re.escape(own)}_epoch=(\d+)\.pt", path.name):
                found[int(match[1])] = path
        earlier = sorted(epoch for epoch in found if epoch < engine.state.epoch)
        kept = earlier[-self._interval_checkpoint.n_saved :] if self._interval_checkpoint.n_saved else earlier
        for epoch in found.keys() - set(kept):
            found[epoch].unlink(missing_ok=True)
        self._interval_checkpoint._saved = [Checkpoint.Item(epoch, found[epoch].name) for epoch in kept]


_HOLDERS: tuple[type, ...] = (torch.Generator, np.random.RandomState, Randomizable, Transform, list, tuple)
"""What can hold a generator, among what a part is made of."""


def _generators(part: Any, seen: set[int]) -> Iterator[Any]:
    """The generators of a part and of those that it holds, each once."""
    if id(part) in seen:
        return
    seen.add(id(part))
    if isinstance(part, torch.Generator | np.random.RandomState):
        yield part
        return
    if isinstance(part, list | tuple):
        held = list(part)
    else:
        held = [*getattr(part, "__dict__", {}).values(), getattr(part, "R", None)]  # R may be the class's
    for inner in held:
        if isinstance(inner, _HOLDERS):
            yield from _generators(inner, seen)


def _without_arrays(state: Any) -> dict[str, Any]:
    """A state of NumPy's as it loads with ``weights_only=True``."""
    inner = state["state"]
    return {**state, "state": {**inner, "key": torch.from_numpy(inner["key"].astype(np.int64))}}


def _with_arrays(state: dict[str, Any]) -> dict[str, Any]:
    inner = state["state"]
    return {**state, "state": {**inner, "key": inner["key"].cpu().numpy().astype(np.uint32)}}


class RandomStates:
    """
    The states of all random generators, so that a resumed training draws what an undisturbed one would have drawn.

    Those of Python, NumPy, PyTorch and its CUDA devices are always among them.

    Args:
        parts: what draws from a generator of its own: samplers, transforms (MONAI's
            :class:`~monai.transforms.Randomizable` too), or a composition of such transforms. Parts without one, such as
            a sampler whose order follows from the epoch, are left alone. Workers of a data loader draw from copies.

    Example:
        >>> states = RandomStates()
        >>> before = states.state_dict()
        >>> first = torch.rand(2)
        >>> states.load_state_dict(before)
        >>> torch.equal(torch.rand(2), first)
        True
    """

    def __init__(self, parts: Sequence[Any] = ()) -> None:
        seen: set[int] = set()
        found = [generator for part in parts for generator in _generators(part, seen)]
        self.generators = [generator for generator in found if isinstance(generator, torch.Generator)]
        self.random_states = [state for state in found if isinstance(state, np.random.RandomState)]

    def state_dict(self) -> dict[str, Any]:
        """The states, of types that load with ``weights_only=True``."""
        return {
            "python": random.getstate(),
            "numpy": _without_arrays(np.random.get_state(legacy=False)),  # noqa: NPY002 (transforms of others draw from it)
            "random_states": [_without_arrays(state.get_state(legacy=False)) for state in self.random_states],
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all(),
            "generators": [generator.get_state() for generator in self.generators],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """
        Go on from the states; those of CUDA devices only where there are as many.

        A checkpoint holds the states of the first process. With the same the others would draw the same samples, so they
        go on from new ones, which follow from those states and from their rank.
        """
        if rank := idist.get_rank():
            held = [state_dict["torch"], *state_dict["generators"]]
            drawn = hashlib.sha256(b"".join(state.cpu().numpy().tobytes() for state in held))
            self._start_anew(random.Random(f"{drawn.hexdigest()} {rank}"))
            return
        version, internal, gauss = state_dict["python"]
        random.setstate((version, tuple(internal), gauss))
        np.random.set_state(_with_arrays(state_dict["numpy"]))  # noqa: NPY002
        if "random_states" in state_dict:  # which earlier versions did not hold
            for part, kept in zip(self.random_states, state_dict["random_states"], strict=True):
                part.set_state(_with_arrays(kept))
        torch.set_rng_state(state_dict["torch"].cpu())
        if len(state_dict["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all([state.cpu() for state in state_dict["cuda"]])
        states = state_dict["generators"]
        # The sampler of a process group held none in earlier versions; samplers come first.
        own = self.generators[max(len(self.generators) - len(states), 0) :]
        for generator, state in zip(own, states, strict=True):
            generator.set_state(state.cpu())

    def _start_anew(self, seeds: random.Random) -> None:
        random.seed(seeds.getrandbits(64))
        np.random.seed(seeds.getrandbits(32))  # noqa: NPY002
        torch.manual_seed(seeds.getrandbits(63))
        for generator in self.generators:
            generator.manual_seed(seeds.getrandbits(63))
        for part in self.random_states:
            part.seed(seeds.getrandbits(32))


class TrainingIdentity:
    """
    What makes a training the one that it is: saved with its state, it refuses to go on from that of another.

    An `output_dir` may hold what an earlier training left, of another method, say, or of a table that changed since.

    Args:
        settings: option to value, as JSON can hold them. Those in ``free`` may change from start to end.
        subsets: of :func:`~monai_mimmx.data.make_subsets`; what is trained and selected on is compared by subjects and
            labels, in their order, wherever the images lie.
        task_names: the columns of the labels.
        free: where it runs and where it writes, for how long, and what only a second part follows, which is run anew.
            Whether there is one (``refine_epochs`` above 0) is not free: the first part's best model is kept for it.

    Raises:
        ValueError: when it loads the state of another training, with everything that differs.

    Example:
        >>> TrainingIdentity({"n_b": 6}, {}, ["sick"]).load_state_dict(TrainingIdentity({"n_b": 5}, {}, ["sick"]).state_dict())
        Traceback (most recent call last):
            ...
        ValueError: the checkpoint is of a training with other settings: n_b was 5 and is 6. Go on with ...
    """

    def __init__(
        self,
        settings: Mapping[str, Any],
        subsets: Mapping[str, pd.DataFrame],
        task_names: Sequence[str],
        free: Sequence[str] = (
            *(*OF_THE_MACHINE, "dataset_dir", "epochs"),
            *("refine_detach_z", "refine_epochs", "refine_feature_batches", "refine_lambda_mi", "refine_learning_rate"),
        ),
    ) -> None:
        compared = {name: value for name, value in settings.items() if name not in free}
        tasks = list(task_names)
        self._state = {
            "settings": json.loads(json.dumps(compared)),
            "tasks": tasks,
            "second_part": bool(settings.get("refine_epochs")),
            "subsets": {name: subset_digest(subsets[name], tasks) for name in ("train", "select") if name in subsets},
        }

    def state_dict(self) -> dict[str, Any]:
        """Settings, tasks, and a digest of each subset."""
        return self._state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Compare."""
        own, other = self._state, state_dict
        differ = []
        changed = [
            f"{name} was {_shown(other['settings'], name)} and is {_shown(own['settings'], name)}"
            for name in {**other["settings"], **own["settings"]}
            if _shown(other["settings"], name) != _shown(own["settings"], name)
        ]
        if changed:
            differ.append(f"other settings: {'; '.join(changed)}")
        if other.get("second_part", own["second_part"]) != own["second_part"]:
            differ.append("a second part, refine_epochs above 0" if other["second_part"] else "refine_epochs 0")
        if other["tasks"] != own["tasks"]:
            differ.append(f"other tasks: tasks were {', '.join(other['tasks'])} and are {', '.join(own['tasks'])}")
        else:
            differ += [
                f"other rows or labels in the subset {name!r}"
                for name, digest in own["subsets"].items()
                if other["subsets"].get(name) != digest
            ]
        if differ:
            raise ValueError(
                f"the checkpoint is of a training with {', and '.join(differ)}. Go on with what it had; or train anew, "
                "without --resume, which replaces it, or in another --output_dir."
            )


def _shown(settings: Mapping[str, Any], name: str) -> str:
    return repr(settings[name]) if name in settings else "absent"


def best_so_far(saver: CheckpointSaver) -> Checkpoint:
    """
    What a saver of the best model remembers of it, to save and restore with the training's state.

    Without it the first validation of a resumed training overwrites the best model, however much worse it is.

    Args:
        saver: with ``save_key_metric``.

    Returns:
        an object with ``state_dict`` and ``load_state_dict``.

    Raises:
        ValueError: the saver does not look for the best model.
    """
    checkpoint = saver._key_metric_checkpoint
    if checkpoint is None:
        raise ValueError("saver must have save_key_metric=True, got one that does not look for the best model.")
    return checkpoint


def latest_checkpoint(folder: str | os.PathLike[str], prefix: str = "state") -> str | None:
    """
    The newest whole checkpoint file of a training; ``None`` where it stopped before the first, which the log says.

    A file that is cut short, such as by a loss of power, is passed over, which the log says too.

    Args:
        folder: where the training saved.
        prefix: start of the files' names, or all of it before the epoch where several savers write there.

    Raises:
        ValueError: where the files of several savers have that prefix.

    Example:
        >>> latest_checkpoint("there/is/no/such/folder") is None
        True
    """
    logger = logging.getLogger("monai_mimmx")
    found, damaged = newest_whole(folder, prefix)
    for path in damaged:
        logger.warning(f"the checkpoint {path} is cut short and cannot be loaded: looking for one before it.")
    if found is None:
        logger.warning(
            f"there is no checkpoint {prefix}*.pt in {folder} to resume from: the training starts from the beginning."
        )
        return None
    return str(found)


def training_state(best: CheckpointSaver, **parts: Any) -> dict[str, Any]:
    """
    What a training must save to go on from where it stopped, as :class:`~monai.handlers.CheckpointSaver` takes it.

    Args:
        best: the saver of the best model, so that a resumed training does not overwrite it with a worse one.
        parts: networks, optimizers, the trainer and whatever else has a state, by name. ``None`` and what has an empty
            state are left out: the same declaration serves methods that lack some of the parts.

    Returns:
        name to object, to save and to load.

    Raises:
        ValueError: the saver does not look for the best model.

    Example:
        >>> from torch import nn
        >>> saver = AtomicCheckpointSaver("models", {"model": nn.Linear(1, 1)}, save_key_metric=True)
        >>> list(training_state(saver, network=nn.Linear(1, 1), dependence=None, loss=nn.ReLU()))
        ['network', 'best']
    """
    kept = {name: part for name, part in parts.items() if part is not None and part.state_dict()}
    return {**kept, "best": best_so_far(best)}
