# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""Tests of the predictions of a network on one subset."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from monai.data import Dataset, MetaTensor
from monai.inferers import Inferer
from torch.utils.data import DataLoader

from monai_mimmx.data import make_sampler
from monai_mimmx.evaluation.predictions import Predictions, collect_predictions

NAMES, CLASSES = ["age", "sex", "site"], [2, 2, 3]


def make(n: int = 6, **changes) -> Predictions:
    rng = np.random.default_rng(0)
    values = {
        "logits": rng.normal(size=(n, 7)),
        "labels": np.stack([rng.integers(c, size=n) for c in CLASSES], axis=1),
        "features": rng.normal(size=(n, 3, 4)),
        "attention": rng.random((n, 2)),
        "task_names": NAMES,
        "num_classes": CLASSES,
        "subjects": [f"s{i}" for i in range(n)],
    }
    return Predictions(**{**values, **changes})


class Network(torch.nn.Module):
    """Logits that are plain functions of the image's mean, so that every row can be checked by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(1))
        self.dropout = torch.nn.Dropout(0.5)
        self.seen: list[tuple[bool, bool, type]] = []

    def forward(self, image, return_features: bool = False):
        self.seen.append((self.training, torch.is_grad_enabled(), type(image)))
        mean = self.dropout(image.flatten(1).mean(1, keepdim=True)) * self.scale
        logits = mean * torch.arange(1.0, 8.0)
        return (logits, mean[:, :, None].expand(-1, 3, 4), mean.expand(-1, 2)) if return_features else logits


def batches(n: int, size: int = 2, meta: bool = False):
    images = torch.arange(float(n))[:, None, None, None].expand(n, 1, 3, 3)
    rows = [
        {"image": MetaTensor(image) if meta else image, "label": torch.tensor([i % 2, 1, 2])}
        for i, image in enumerate(images)
    ]
    return DataLoader(Dataset(rows), batch_size=size)


def test_heads_are_slices_in_task_order():
    p = make(2, logits=[[0, 1, 3, 2, 9, 8, 7], [5, 4, 0, 1, 0, 1, 2]])
    assert p.head_logits(2).tolist() == [[9, 8, 7], [0, 1, 2]]
    assert [p.predicted(i).tolist() for i in range(3)] == [[1, 0], [0, 1], [0, 2]]
    np.testing.assert_allclose(p.probabilities(0)[0], [1 / (1 + np.e), np.e / (1 + np.e)])
    np.testing.assert_allclose(p.probabilities(2).sum(axis=1), 1)
    assert p.keys == ["y", "sex", "site"]
    assert len(p) == 2


def test_probabilities_of_huge_float16_logits_are_finite():
    p = make(1, logits=np.array([[6e4, -6e4, 0, 0, 0, 0, 0]], dtype=np.float16))
    assert p.probabilities(0).tolist() == [[1.0, 0.0]]


def test_take_repeats_and_reorders_every_field():
    p = make()
    q = p.take(np.array([3, 3, 0]))
    assert q.subjects.tolist() == ["s3", "s3", "s0"]
    for name in ("logits", "labels", "features", "attention"):
        np.testing.assert_array_equal(getattr(q, name), getattr(p, name)[[3, 3, 0]])


def test_join_is_undone_by_take():
    p = make()
    both = p.take(np.array([2, 0])).join(p)
    assert len(both) == 2 + len(p) and both.subjects[0] == p.subjects[2]
    np.testing.assert_array_equal(both.take(np.arange(2, len(both))).logits, p.logits)


def test_save_and_load_give_the_same_under_the_same_name(tmp_path):
    p = make()
    path = tmp_path / "val.predictions"
    p.save(path)
    q = Predictions.load(path)
    assert [file.name for file in tmp_path.iterdir()] == ["val.predictions"]
    for name in ("logits", "labels", "features", "attention", "subjects"):
        stored = getattr(q, name)
        assert stored.dtype == getattr(p, name).dtype
        np.testing.assert_array_equal(stored, getattr(p, name))
    assert (q.task_names, q.num_classes) == (NAMES, CLASSES)


def test_load_names_what_a_foreign_file_lacks(tmp_path):
    np.savez(tmp_path / "other.npz", logits=np.zeros(1))
    with pytest.raises(ValueError, match=r"other.npz is not a file of Predictions: it lacks \['labels'"):
        Predictions.load(tmp_path / "other.npz")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": np.zeros((5, 3))}, r"labels must have shape \(6, 3\); got \(5, 3\)"),
        ({"logits": np.zeros((6, 6))}, r"logits must have shape \(6, 7\); got \(6, 6\)"),
        ({"features": np.zeros((6, 12))}, r"features must have shape \(6, 3, 'D'\); got \(6, 12\)"),
        ({"attention": np.zeros((6, 3))}, r"attention must have shape \(6, 2\)"),
        ({"subjects": ["a"]}, r"subjects must have shape \(6,\)"),
        ({"labels": np.full((6, 3), 2)}, r"labels of task 'age' must lie in \[0, 2\).*got 2 in row 0"),
        ({"labels": np.full((6, 3), -2)}, r"or be -1 \(missing\); got -2 in row 0"),
        ({"task_names": ["age", "y", "site"]}, 'no spurious factor may be named "y"'),
        ({"task_names": ["age", "sex", "sex"]}, "task_names must differ"),
        ({"num_classes": [2, 2]}, r"num_classes must hold 3 counts of 2 or more"),
        ({"num_classes": [2, 1, 4]}, r"got \[2, 1, 4\]"),
    ],
)
def test_shapes_and_labels_are_checked(changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)


@pytest.mark.parametrize("meta", [False, True])
def test_collect_keeps_row_order_and_restores_the_mode(meta):
    network = Network().train()
    p = collect_predictions(network, batches(5, meta=meta), device="cpu", task_names=NAMES, num_classes=CLASSES)
    np.testing.assert_allclose(p.logits, np.arange(5.0)[:, None] * np.arange(1.0, 8.0))
    np.testing.assert_allclose(p.features, np.broadcast_to(np.arange(5.0)[:, None, None], (5, 3, 4)))
    np.testing.assert_allclose(p.attention, np.broadcast_to(np.arange(5.0)[:, None], (5, 2)))
    assert p.labels.tolist() == [[i % 2, 1, 2] for i in range(5)]
    assert p.subjects.tolist() == list("01234")
    assert network.seen == [(False, False, torch.Tensor)] * 3
    assert network.training


def test_collect_uses_subjects_and_leaves_a_network_in_eval_mode_there():
    network = Network().eval()
    p = collect_predictions(
        network, batches(3), device="cpu", task_names=NAMES, num_classes=CLASSES, subjects=["b", "b", "a"]
    )
    assert p.subjects.tolist() == ["b", "b", "a"]
    assert not network.training


def test_collect_goes_through_the_inferer():
    class Doubling(Inferer):
        def __call__(self, inputs, network, *args, **kwargs):
            return network(2 * inputs, *args, **kwargs)

    p = collect_predictions(
        Network(), batches(3), device="cpu", task_names=NAMES, num_classes=CLASSES, inferer=Doubling()
    )
    np.testing.assert_allclose(p.logits[:, 0], [0, 2, 4])


def test_collect_under_amp_computes_in_low_precision_and_returns_float32():
    class Half(Network):
        def forward(self, image, return_features=False):
            self.dtype = torch.nn.functional.linear(image.flatten(1), torch.ones(1, 9)).dtype
            return super().forward(image, return_features)

    network = Half()
    p = collect_predictions(network, batches(3), device="cpu", task_names=NAMES, num_classes=CLASSES, amp=True)
    assert network.dtype == torch.bfloat16
    assert p.logits.dtype == p.features.dtype == np.float32


def test_collect_refuses_logits_that_are_not_finite_and_restores_the_mode():
    network = Network().train()
    loader = [{"image": torch.tensor([0.0, np.nan, np.inf])[:, None], "label": torch.zeros(3, 3, dtype=torch.int64)}]
    with pytest.raises(ValueError, match=r"not finite for 2 of 3 images \(first: row 1\)"):
        collect_predictions(network, loader, device="cpu", task_names=NAMES, num_classes=CLASSES)
    assert network.training


def test_collect_refuses_an_empty_loader_and_wrong_subjects():
    options: dict[str, Any] = {"device": "cpu", "task_names": NAMES, "num_classes": CLASSES}
    with pytest.raises(ValueError, match="the loader gave no batch"):
        collect_predictions(Network(), [], **options)
    with pytest.raises(ValueError, match="expected 3, got 2"):
        collect_predictions(Network(), batches(3), subjects=["a", "b"], **options)
    shuffled = DataLoader(batches(3).dataset, shuffle=True)
    with pytest.raises(ValueError, match="the loader shuffles"):
        collect_predictions(Network(), shuffled, subjects=["a", "b", "c"], **options)


def test_labels_are_whole_numbers():
    parts = {"logits": np.zeros((1, 4)), "features": np.zeros((1, 2, 3)), "attention": np.ones((1, 1))}
    more = {"task_names": ["y", "sex"], "num_classes": [2, 2], "subjects": [0]}
    assert Predictions(labels=[[0.0, 1.0]], **parts, **more).labels.dtype == np.int64
    with pytest.raises(ValueError, match="labels must be class indices"):
        Predictions(labels=[[0.7, 1.9]], **parts, **more)


@pytest.mark.parametrize("kind", ["correlated", "balanced"])
def test_no_sampler_that_shuffles_goes_with_subjects(kind):
    labels = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    data = [{"image": torch.zeros(1, 8, 8), "label": torch.tensor(label)} for label in labels]
    loader = DataLoader(data, sampler=make_sampler(labels, (2, 2), kind))
    with pytest.raises(ValueError, match="the loader shuffles"):
        collect_predictions(
            None, loader, device="cpu", task_names=["y", "z"], num_classes=[2, 2], subjects=list("abcd")
        )


def test_a_frozen_part_is_frozen_after_it():
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.frozen, self.free = torch.nn.BatchNorm2d(1), torch.nn.Dropout()

        def forward(self, x, return_features):
            assert not any(module.training for module in self.modules())
            return self.free(self.frozen(x)).flatten(1)[:, :4], x.flatten(1)[:, :6].view(-1, 2, 3), x.flatten(1)[:, :1]

    network = Net()
    network.frozen.eval()
    loader = DataLoader([{"image": torch.randn(1, 8, 8), "label": torch.tensor([0, 1])}])
    collect_predictions(network, loader, device="cpu", task_names=["y", "z"], num_classes=[2, 2])
    assert network.training and network.free.training and not network.frozen.training
