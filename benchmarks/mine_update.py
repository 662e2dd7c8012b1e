# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""
One update of the mutual information estimate, forward and backward, against the form that the literature describes.

That form concatenates all B x B pairs of the batch and passes them through a network of three layers of 400 units with
batch normalization; it is written here from that description. Ours pairs each sample with K others after a separable
first layer. Besides time and memory: what both estimate on correlated Gaussians, after as many updates.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.timing import interleaved, peak_megabytes
from monai_mimmx.losses import MINELoss
from monai_mimmx.losses.mine import donsker_varadhan

DIM = 16
"""Width of each of the two feature blocks."""


class AllPairs(nn.Module):
    """The literature's form: value in nats for x `(B, D)` and z `(B, D)`, from all B * B pairs."""

    def __init__(self, dim: int = DIM, width: int = 400) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs in (2 * dim, width, width):
            layers += [nn.Linear(inputs, width), nn.BatchNorm1d(width), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(width, 1))

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """The estimate; pairs of a sample with itself are the joint ones, all others the product."""
        batch = len(x)
        pairs = torch.cat([x.repeat_interleave(batch, 0), z.repeat(batch, 1)], 1)
        values = self.layers(pairs).view(batch, batch)
        return donsker_varadhan(values.diagonal(), values[~torch.eye(batch, dtype=torch.bool)])


FORMS: dict[str, Callable[[], nn.Module]] = {
    "ours": lambda: MINELoss(DIM, DIM, negatives=4),
    "literature": AllPairs,
}


def make_update(form: str, batch: int, correlation: float = 0.5) -> Callable[[], float]:
    """A function that makes one update on new Gaussians of one correlation per dimension, and returns the estimate."""
    torch.manual_seed(0)
    estimator = FORMS[form]()
    optimizer = torch.optim.Adam(estimator.parameters(), lr=1e-3)

    def update() -> float:
        x = torch.randn(batch, DIM)
        z = correlation * x + math.sqrt(1 - correlation**2) * torch.randn(batch, DIM)
        optimizer.zero_grad()
        estimate = estimator(x, z)
        (-estimate).backward()
        optimizer.step()
        return float(estimate.detach())

    return update


def measure_cost(batches: tuple[int, ...], repeats: int) -> list[dict[str, Any]]:
    """Seconds and megabytes of an update per batch size."""
    rows = []
    for batch in batches:
        seconds = interleaved({form: make_update(form, batch) for form in FORMS}, repeats)
        memory = {form: peak_megabytes(make_update, form, batch) for form in FORMS}
        rows.append(
            {
                "batch": batch,
                **{f"{form}_milliseconds": 1000 * seconds[form] for form in FORMS},
                "times_faster": seconds["literature"] / seconds["ours"],
                **{f"{form}_megabytes": memory[form] for form in FORMS},
            }
        )
    return rows


def measure_estimates(correlations: tuple[float, ...], batch: int, updates: int, seeds: int) -> list[dict[str, Any]]:
    """Bias and spread of the last fifth of the estimates, per true mutual information."""
    rows = []
    for correlation in correlations:
        truth = -DIM / 2 * math.log(1 - correlation**2)
        row: dict[str, Any] = {"true_nats": truth, "batch": batch, "updates": updates}
        for form in FORMS:
            errors, spreads = [], []
            for seed in range(seeds):
                update = make_update(form, batch, correlation)
                torch.manual_seed(1 + seed)
                last = [update() for _ in range(updates)][-updates // 5 :]
                errors.append(statistics.fmean(last) - truth)
                spreads.append(statistics.stdev(last))
            row |= {f"{form}_bias": statistics.fmean(errors), f"{form}_spread": statistics.fmean(spreads)}
        rows.append(row)
    return rows


def measure(quick: bool = False) -> dict[str, list[dict[str, Any]]]:
    """All rows; ``quick``: sizes that only show that it runs."""
    if quick:
        return {"cost": measure_cost((20,), 1), "estimates": measure_estimates((0.3,), 20, 10, 1)}
    return {
        "cost": measure_cost((50, 150, 300, 600, 1000), 5),
        "estimates": measure_estimates((0.0, 0.2, 0.4), 150, 300, 2),
    }
