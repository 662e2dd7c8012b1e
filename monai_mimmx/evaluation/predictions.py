# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""What a trained network says about one subset of images, as plain arrays that every score is computed from."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from monai.inferers import Inferer, SimpleInferer
from monai.utils import convert_to_tensor
from scipy.special import softmax
from torch.utils.data import RandomSampler, SubsetRandomSampler, WeightedRandomSampler

from monai_mimmx.networks.modes import evaluated

__all__ = ["Predictions", "collect_predictions"]

PER_ROW = ("logits", "labels", "features", "attention", "subjects")


@dataclass
class Predictions:
    """
    The outputs of one network on one subset, row by row.

    Args:
        logits: all heads' logits side by side, primary first, shape `(n, sum C)`.
        labels: class index per task, primary first, -1 where missing, shape `(n, 1 + N)`.
        features: feature block per task, shape `(n, 1 + N, D)`.
        attention: weight per spurious factor, shape `(n, N)`.
        task_names: name per task, primary first. The primary task's key in every table is "y", whatever its name.
        num_classes: number of classes C per task, each 2 or more.
        subjects: subject of each row, shape `(n,)`, kept as str.

    Raises:
        ValueError: where shapes do not belong together, a label is no class index, or a factor is named "y".

    Example:
        >>> p = Predictions([[2., 0., 0., 1.]], [[0, 1]], np.zeros((1, 2, 3)), [[1.]], ["age", "sex"], [2, 2], ["s1"])
        >>> p.keys, p.predicted(1).tolist()
        (['y', 'sex'], [1])
    """

    logits: np.ndarray
    labels: np.ndarray
    features: np.ndarray
    attention: np.ndarray
    task_names: list[str]
    num_classes: list[int]
    subjects: np.ndarray

    def __post_init__(self) -> None:
        self.logits = np.asarray(self.logits)
        labels = np.asarray(self.labels)
        self.labels = labels.astype(np.int64)
        if not np.array_equal(self.labels, labels):
            raise ValueError(f"labels must be class indices, whole numbers; got {labels.dtype} with fractions.")
        self.features = np.asarray(self.features)
        self.attention = np.asarray(self.attention)
        self.task_names = [str(name) for name in self.task_names]
        self.num_classes = [int(c) for c in self.num_classes]
        self.subjects = np.asarray([str(subject) for subject in self.subjects], dtype=np.str_)
        n, tasks = len(self.logits), len(self.task_names)
        if len(set(self.keys)) != tasks:
            raise ValueError(
                f'task_names must differ, and no spurious factor may be named "y" (the primary task\'s key); '
                f"got {self.task_names}."
            )
        if len(self.num_classes) != tasks or min(self.num_classes, default=0) < 2:
            raise ValueError(
                f"num_classes must hold {tasks} counts of 2 or more, one per task; got {self.num_classes}."
            )
        for name, expected in (
            ("logits", (n, sum(self.num_classes))),
            ("labels", (n, tasks)),
            ("features", (n, tasks, self.features.shape[-1] if self.features.ndim == 3 else "D")),
            ("attention", (n, tasks - 1)),
            ("subjects", (n,)),
        ):
            if getattr(self, name).shape != expected:
                raise ValueError(f"{name} must have shape {expected}; got {getattr(self, name).shape}.")
        for i, name in enumerate(self.task_names):
            wrong = (self.labels[:, i] < -1) | (self.labels[:, i] >= self.num_classes[i])
            if wrong.any():
                row = int(wrong.argmax())
                raise ValueError(
                    f"labels of task '{name}' must lie in [0, {self.num_classes[i]}) or be -1 (missing); "
                    f"got {self.labels[row, i]} in row {row}."
                )

    def __len__(self) -> int:
        return len(self.logits)

    @property
    def keys(self) -> list[str]:
        """The tasks' keys in every table: "y", then the spurious factors' names."""
        return ["y", *self.task_names[1:]]

    def head_logits(self, task: int) -> np.ndarray:
        """Logits of one head, shape `(n, C)`."""
        start = sum(self.num_classes[:task])
        return self.logits[:, start : start + self.num_classes[task]]

    def probabilities(self, task: int) -> np.ndarray:
        """Class probabilities of one head in float64, shape `(n, C)`."""
        return softmax(self.head_logits(task).astype(np.float64), axis=1)

    def predicted(self, task: int) -> np.ndarray:
        """Predicted class index of one head, shape `(n,)`."""
        return self.head_logits(task).argmax(axis=1)

    def take(self, rows: np.ndarray) -> Predictions:
        """The rows of an index array or a boolean mask, in that order, repeats allowed."""
        return replace(self, **{name: getattr(self, name)[rows] for name in PER_ROW})

    def join(self, other: Predictions) -> Predictions:
        """The rows of both, this one's first; they have the same tasks."""
        parts: dict[str, Any] = {name: np.concatenate([getattr(self, name), getattr(other, name)]) for name in PER_ROW}
        return replace(self, **parts)

    def save(self, path: str | os.PathLike) -> None:
        """Write everything to one compressed `.npz` file, under exactly the name given."""
        with open(path, "wb") as file:
            np.savez_compressed(file, **vars(self))

    @classmethod
    def load(cls, path: str | os.PathLike) -> Predictions:
        """Read what `save` wrote. Nothing in the file is executed (no pickle)."""
        with np.load(path, allow_pickle=False) as stored:
            missing = [name for name in cls.__dataclass_fields__ if name not in stored]
            if missing:
                raise ValueError(f"{os.fspath(path)} is not a file of Predictions: it lacks {missing}.")
            return cls(**{name: stored[name] for name in cls.__dataclass_fields__})


def collect_predictions(
    network: torch.nn.Module,
    loader: Iterable[Mapping[str, Any]],
    *,
    device: str | torch.device,
    task_names: Sequence[str],
    num_classes: Sequence[int],
    subjects: Sequence[Any] | None = None,
    inferer: Inferer | None = None,
    amp: bool = False,
) -> Predictions:
    """
    Run a network once over a loader, in evaluation mode and without gradients. The network's mode is restored.

    Args:
        network: called as `network(image, return_features=True)`, through the inferer, it returns
            `(logits (B, sum C), features (B, 1 + N, D), attention (B, N))`.
        loader: batches of `{"image": (B, channels, *spatial), "label": (B, 1 + N)}`.
        device: where the network stands.
        task_names: name per task, primary first.
        num_classes: number of classes per task.
        subjects: subject of each row in the loader's order, which must then not be shuffled. None: each row is its
            own subject.
        inferer: default `SimpleInferer()`.
        amp: run the network under autocast. What is returned is float32 either way.

    Raises:
        ValueError: for no batches, logits that are not finite, or `subjects` that do not match the rows.

    Example:
        >>> tasks = {"task_names": ["age", "sex"], "num_classes": [2, 2]}
        >>> val = collect_predictions(network, val_loader, device="cpu", **tasks)  # doctest: +SKIP
    """
    sampler = getattr(getattr(loader, "batch_sampler", None), "sampler", getattr(loader, "sampler", None))
    if subjects is not None and isinstance(sampler, RandomSampler | SubsetRandomSampler | WeightedRandomSampler):
        raise ValueError("subjects are given in row order, but the loader shuffles: build it with shuffle=False.")
    device = torch.device(device)
    inferer = inferer or SimpleInferer()
    outputs: list[tuple[torch.Tensor, ...]] = []
    labels = []
    with evaluated(network), torch.autocast(device.type, enabled=amp):
        for batch in loader:
            image = convert_to_tensor(batch["image"], track_meta=False).to(device, non_blocking=True)
            # Results stay on the device until the end, so that no batch waits for a copy.
            outputs.append(tuple(part.float() for part in inferer(image, network, return_features=True)))
            labels.append(convert_to_tensor(batch["label"], track_meta=False).cpu())
    if not outputs:
        raise ValueError("the loader gave no batch: expected one or more batches of images to evaluate.")
    logits, features, attention = (torch.cat(parts).cpu().numpy() for parts in zip(*outputs))
    finite = np.isfinite(logits).all(axis=1)
    if not finite.all():
        raise ValueError(
            f"the network's logits are not finite for {int((~finite).sum())} of {len(finite)} images (first: row "
            f"{int(finite.argmin())}): training diverged or an image holds NaN. Lower the learning rate or check it."
        )
    if subjects is not None and len(subjects) != len(logits):
        raise ValueError(f"subjects must name one subject per image: expected {len(logits)}, got {len(subjects)}.")
    return Predictions(
        logits=logits,
        labels=torch.cat(labels).numpy(),
        features=features,
        attention=attention,
        task_names=list(task_names),
        num_classes=list(num_classes),
        subjects=np.arange(len(logits)) if subjects is None else np.asarray(subjects),
    )
