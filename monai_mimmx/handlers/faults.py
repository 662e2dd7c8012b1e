# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""What a training that goes wrong tells: which images were at hand, what is saved, and whether the estimate means anything."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from torch import Tensor

from monai_mimmx.data import StoredImages
from monai_mimmx.trained_model import newest_whole

__all__ = ["EstimatorCheck", "FailureReport"]


def batch_files(batch: Any, dataset: Any) -> list[str]:
    """
    The image files of a batch, the most extreme pixels first; none where it does not tell.

    Args:
        batch: with "image" `(B, ...)`, a tensor or :class:`~monai_mimmx.data.StoredImages`, and "row", positions in the
            dataset, `(B,)`, or the file names in the metadata of a :class:`~monai.data.MetaTensor`.
        dataset: with ``files``, from rows to names, such as :class:`~monai_mimmx.data.CachedImages`.
    """
    image = batch.get("image") if isinstance(batch, Mapping) else None
    if isinstance(image, StoredImages):
        image = image.to("cpu")
    if not isinstance(image, Tensor):
        return []
    if "row" in batch and hasattr(dataset, "files"):
        names = dataset.files(batch["row"].tolist())
    else:
        names = getattr(image, "meta", {}).get("filename_or_obj", [])
    names = [names] if isinstance(names, str) else [str(name) for name in names]
    if len(names) != len(image):
        return []
    extreme = torch.as_tensor(image).detach().float().flatten(1).abs().amax(1).nan_to_num(nan=float("inf"))
    return [names[i] for i in extreme.argsort(descending=True, stable=True).tolist()]


class FailureReport:
    """
    Add to a loss or gradient that is not finite what the trainer cannot know: the batch's images and the last checkpoint.

    The message names the first images, those with the most extreme pixels leading; the log lists all of them. An interrupt
    (Ctrl-C) gets the epoch and the last checkpoint.

    Args:
        checkpoint_dir: where the training saves.
        prefix: start of its checkpoints' names.
        after: epochs that another engine trained before; those of this one are counted on from there.
        shown: images that the message names.

    Raises:
        FloatingPointError: the trainer's, with more to say.
        KeyboardInterrupt: likewise.

    Example:
        >>> def step(engine, batch):
        ...     raise FloatingPointError("the loss is nan in epoch 1.")
        >>> trainer = Engine(step)
        >>> FailureReport("models").attach(trainer)
        >>> trainer.run([{"image": torch.zeros(2, 1)}])
        Traceback (most recent call last):
            ...
        FloatingPointError: the loss is nan in epoch 1. No checkpoint has been saved yet.
    """

    def __init__(
        self, checkpoint_dir: str | os.PathLike[str], *, prefix: str = "state", after: int = 0, shown: int = 5
    ) -> None:
        self.checkpoint_dir, self.prefix, self.after, self.shown = checkpoint_dir, prefix, after, shown
        self.logger = logging.getLogger("monai_mimmx")

    def attach(self, engine: Engine) -> None:
        """Report the failure of ``engine``."""
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._report)

    def _report(self, engine: Engine, error: BaseException) -> None:
        if not isinstance(error, FloatingPointError | KeyboardInterrupt) or type(error.__cause__) is type(error):
            raise error  # Ignite comes here twice, the second time with what was raised the first time
        if isinstance(error, KeyboardInterrupt):
            epoch = self.after + engine.state.epoch
            at = f"in epoch {epoch} of the run. " if epoch else ""
            raise KeyboardInterrupt(at + self._last_checkpoint()) from error
        parts = [str(error)]
        if self.after:
            parts.append(f"That is epoch {self.after + engine.state.epoch} of the run.")
        if names := batch_files(engine.state.batch, getattr(engine.state.dataloader, "dataset", None)):
            self.logger.error("the images of the batch, the most extreme first:\n" + "\n".join(names))
            more = f", and {len(names) - self.shown} more in the log" if len(names) > self.shown else ""
            parts.append(f"Images of this batch, the most extreme first: {', '.join(names[: self.shown])}{more}.")
        raise FloatingPointError(" ".join([*parts, self._last_checkpoint()])) from error

    def _last_checkpoint(self) -> str:
        try:
            found, _ = newest_whole(self.checkpoint_dir, self.prefix)
        except ValueError:  # of several savers, none of which is this training's alone
            return f"Checkpoints are in {self.checkpoint_dir}."
        if found is None:
            return "No checkpoint has been saved yet."
        return f"The last checkpoint is {found}, from which --resume true goes on."


class EstimatorCheck:
    """
    Warn, once for each term, when an estimate of mutual information is beyond what its batches can show.

    From n product pairs a batch an estimate can tell no more than ln n nats: pairs that are rarer than one in n under
    the product of the marginals do not occur among them, and no lower bound that holds with confidence for any
    distribution exceeds the order of ln n. An estimate whose mean over an epoch lies above comes of an estimator that
    has learned its batches by heart, or diverges; one as far below 0, where a constant statistics network gives 0, of an
    encoder that runs away from it. The training goes on: the estimate can come back, and the selection of the model does
    not read it.

    Attach it AFTER the :class:`EpochRecorder`, whose means it reads, to a trainer whose ``dependence`` has
    ``resolvable_nats``, such as :class:`~monai_mimmx.losses.BlockMutualInformation`; with others it does nothing.

    Args:
        after: epochs that another engine trained before; those of this one are counted on from there.

    Example:
        >>> from monai_mimmx.losses import BlockMutualInformation
        >>> trainer = Engine(lambda engine, batch: {"label": torch.zeros(16, 2)})
        >>> trainer.dependence = BlockMutualInformation(8, factors=(0,), negatives=4)
        >>> check = EstimatorCheck()
        >>> check.attach(trainer)
        >>> _ = trainer.run([0], max_epochs=1)
        >>> check.limit(trainer)  # ln(16 * 4)
        4.15...

    Reference:
        McAllester and Stratos, Formal Limitations on the Measurement of Mutual Information, AISTATS 2020.
    """

    def __init__(self, *, after: int = 0) -> None:
        self.after = after
        self.logger = logging.getLogger("monai_mimmx")
        self._warned: set[str] = set()
        self._limit: float | None = None

    def attach(self, engine: Engine) -> None:
        """Look at the estimates at the end of every epoch of ``engine``."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._start_epoch)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._note_limit)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._check)

    def limit(self, engine: Engine) -> float | None:
        """The nats that one batch of ``engine`` can show; ``None`` where its term is no estimate."""
        resolvable = getattr(getattr(engine, "dependence", None), "resolvable_nats", None)
        if resolvable is None:
            return None
        output: Any = engine.state.output
        items = output if isinstance(output, list) else [output]  # one whole batch, or its samples
        label = items[0]["label"]
        samples = len(label) if label.ndim > 1 else len(items)
        return float(resolvable(samples * idist.get_world_size()))  # the estimate is that of the joint batch

    def _start_epoch(self, engine: Engine) -> None:
        self._limit = None

    def _note_limit(self, engine: Engine) -> None:
        limit = self.limit(engine)
        if limit is not None:  # that of the epoch is its largest batch's: the last one may be a small rest
            self._limit = limit if self._limit is None else max(limit, self._limit)

    def _check(self, engine: Engine) -> None:
        limit = self._limit
        for name in () if limit is None else getattr(engine, "term_names", ()):
            value = engine.state.metrics.get(f"mi_{name}", 0.0)
            if abs(value) > limit and name not in self._warned:  # type: ignore[operator]
                self._warned.add(name)
                self.logger.warning(
                    f"epoch {self.after + engine.state.epoch}: the estimate of the mutual information with {name} is "
                    f"{value:.1f} nats, beyond the {limit:.1f} that a batch can show: the estimator diverges. Lower "
                    "mine_learning_rate or lambda_mi, or raise n_b or batch_size; until it is back, mi in history.jsonl "
                    "says nothing, and neither does the term that the encoder minimises. This is said once."
                )
