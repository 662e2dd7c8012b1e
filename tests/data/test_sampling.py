# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import ignite.distributed as idist
import numpy as np
import pytest
import torch.distributed as dist

from monai_mimmx.data import make_sampler

LABELS = np.array([[0, 0]] * 900 + [[0, 1]] * 100 + [[1, 0]] * 90 + [[1, 1]] * 910)


def test_correlated_draws_every_row_once_in_random_order():
    rows = list(make_sampler(LABELS, (2, 2), "correlated"))
    assert rows != sorted(rows) and sorted(rows) == list(range(2000))


def test_balanced_draws_every_cell_alike():
    sampler = make_sampler(LABELS, (2, 2), "balanced")
    drawn = LABELS[[row for _ in range(10) for row in sampler]]
    assert len(drawn) == 10 * len(sampler) == 20_000
    counts = np.bincount(drawn[:, 0] * 2 + drawn[:, 1])
    # Four standard deviations of a binomial count with n = 20,000 and p = 1 / 4.
    assert np.abs(counts - 5000).max() < 4 * np.sqrt(20_000 * 0.25 * 0.75)


def test_balanced_leaves_out_rows_that_miss_a_label_and_says_so(caplog):
    labels = np.concatenate([LABELS, [[0, -1]] * 500])
    assert max(make_sampler(labels, (2, 2), "balanced")) < 2000
    assert caplog.messages == ["500 of 2500 training rows miss a label: balanced sampling never draws them"]


@pytest.mark.parametrize("sampling", ["correlated", "balanced"])
def test_the_seed_decides_and_epochs_differ(sampling):
    first, second, other = (make_sampler(LABELS, (2, 2), sampling, seed=seed) for seed in (3, 3, 4))
    epochs = [list(first), list(first)]
    assert epochs == [list(second), list(second)]
    assert epochs[0] != epochs[1] and epochs[0] != list(other)


@pytest.mark.parametrize("sampling", ["correlated", "balanced"])
def test_processes_share_an_epoch(monkeypatch, sampling):
    monkeypatch.setattr(idist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "get_world_size", lambda *_: 2)
    shares = []
    for rank in (0, 1):
        monkeypatch.setattr(idist, "get_rank", lambda rank=rank: rank)
        monkeypatch.setattr(dist, "get_rank", lambda *_, rank=rank: rank)
        monkeypatch.setattr(dist, "is_available", lambda: True)
        sampler = make_sampler(LABELS, (2, 2), sampling)
        shares.append(list(sampler))
        again = list(sampler)  # for fresh batches of the estimator, in the same epoch
        assert again != shares[-1] and (sampling == "balanced" or sorted(again) == sorted(shares[-1]))
    assert [len(share) for share in shares] == [1000, 1000] and shares[0] != shares[1]
    if sampling == "correlated":
        assert sorted(shares[0] + shares[1]) == list(range(2000))
    else:
        for share in shares:
            counts = np.bincount(LABELS[share] @ [2, 1])
            assert np.abs(counts - 250).max() < 4 * np.sqrt(1000 * 0.25 * 0.75)


def test_refusals():
    with pytest.raises(ValueError, match="sampling must be 'correlated' or 'balanced', got 'uniform'"):
        make_sampler(LABELS, (2, 2), "uniform")
    with pytest.raises(ValueError, match=r"rows in every cell, but 2 of 4 have none: \(y=0, sex=1\), \(y=1, sex=0\)"):
        make_sampler(np.array([[0, 0], [1, 1]]), (2, 2), "balanced", task_names=("y", "sex"))
