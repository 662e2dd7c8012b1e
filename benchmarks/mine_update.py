# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""
One update of the mutual information estimate, forward and backward, against the form that the literature describes.

That form concatenates all B x B pairs of the batch and passes them through a network of three layers of 400 units
with batch normalization; it is written here from that description. Ours pairs each sample with K others after a
separable first layer: 4 in the bundles, 16 by default; 64 behind a narrower second layer are measured too, whose
estimates spread within 5 % of what the literature's do. First time and peak memory by batch size and by number of
factors, each with an estimator of its own, on a processor from B = 600 on in two turns without a warm-up; then what
all estimate on correlated Gaussians, after as many updates at one learning rate on the same data: mean error and
standard deviation of the last fifth of the estimates, averaged over the seeds, and the standard error of the mean
over the seeds of the difference to the literature's error.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.timing import FRESH, interleaved, peak_megabytes
from monai_mimmx.data.cache import available_memory
from monai_mimmx.engines import reuse_freed_memory
from monai_mimmx.losses import MINELoss
from monai_mimmx.losses.mine import donsker_varadhan

DIM = 16
"""Width of each of the two feature blocks where cost is measured."""

GAUSSIAN_DIM = 2
"""Width of each of the two Gaussians."""


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
        return donsker_varadhan(values.diagonal(), values[~torch.eye(batch, dtype=torch.bool, device=values.device)])


class AllPairsPerFactor(nn.ModuleList):
    """The literature's form for several z `(B, factors, D)`, an estimator for each: their values."""

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        return torch.stack([estimator(x, part) for estimator, part in zip(self, z.unbind(1), strict=True)])


FORMS: dict[str, Callable[[int, int], nn.Module]] = {
    "bundles": lambda dim, factors: MINELoss(dim, dim, negatives=4, num_blocks=factors),
    "default": lambda dim, factors: MINELoss(dim, dim, num_blocks=factors),
    "many": lambda dim, factors: MINELoss(dim, dim, hidden=(64, 32), negatives=64, num_blocks=factors),
    "literature": lambda dim, factors: AllPairsPerFactor(AllPairs(dim) for _ in range(factors)),
}


def make_update(
    form: str,
    batch: int,
    correlation: float = 0.5,
    *,
    dim: int = DIM,
    factors: int = 1,
    seed: int = 0,
    learning_rate: float = 1e-3,
    device: str = "cpu",
) -> Callable[[], float]:
    """
    A function that makes one update on new Gaussians of one correlation per dimension, and returns the estimate.

    With several factors there is an estimate of each, and their sum is returned. The data follow from the seed alone.
    """
    torch.manual_seed(seed)
    estimator = FORMS[form](dim, factors).to(device)
    optimizer = torch.optim.Adam(estimator.parameters(), lr=learning_rate)
    generator = torch.Generator(device).manual_seed(seed)

    def update() -> float:
        x = torch.randn(batch, dim, generator=generator, device=device)
        noise = torch.randn(batch, factors, dim, generator=generator, device=device)
        optimizer.zero_grad()
        z = correlation * x[:, None] + math.sqrt(1 - correlation**2) * noise
        estimate = estimator(x, z).sum()
        (-estimate).backward()
        optimizer.step()
        return float(estimate.detach())

    return update


def _bytes(batch: int, width: int = 400) -> int:
    """What the literature's form keeps of three layers for the backward pass, with a gradient beside it."""
    return 11 * batch * batch * width * 4


def _repeat(function: Callable[[], Any], times: int) -> None:
    for _ in range(times):
        function()


def _time(batch: int, factors: int, forms: Sequence[str], repeats: int, threads: int, device: str) -> dict[str, float]:
    """Seconds of an update in each form."""
    torch.set_num_threads(threads)
    reuse_freed_memory()
    # Of a cheap form many updates are one measurement; of a dear one, few are enough.
    updates = {form: 1 if form == "literature" else 20 for form in forms}
    dear = device == "cpu" and batch * batch * factors > 150_000
    seconds = interleaved(
        {
            form: partial(_repeat, make_update(form, batch, factors=factors, device=device), updates[form])
            for form in forms
        },
        2 if dear else repeats,
        warm_up=0 if dear else 1,
    )
    return {form: value / updates[form] for form, value in seconds.items()}


def measure_cost(sizes: tuple[tuple[int, int], ...], repeats: int = 5, device: str = "cpu") -> list[dict[str, Any]]:
    """Seconds and megabytes of an update per batch size and number of factors, each in a process of its own."""
    rows = []
    for batch, factors in sizes:
        available = available_memory() if device == "cpu" else torch.cuda.mem_get_info()[0]
        fits = available is None or factors * _bytes(batch) < 0.9 * available
        forms = [form for form in FORMS if fits or form != "literature"]
        # The literature's form takes most of the memory there is: what one size leaves in pieces the next would lack.
        with ProcessPoolExecutor(1, FRESH) as pool:
            each = pool.submit(_time, batch, factors, forms, repeats, torch.get_num_threads(), device).result()
        row: dict[str, Any] = {"batch": batch, "factors": factors}
        row |= {f"{form}_milliseconds": 1000 * value for form, value in each.items()}
        for form in forms[:-1] if fits else ():
            row[f"{form}_times_cheaper"] = each["literature"] / each[form]
        for form in ("bundles", "literature") if fits else ("bundles",):
            row[f"{form}_megabytes"] = peak_megabytes(make_update, form, batch, factors=factors, device=device)
        rows.append(row)
    return rows


def _estimate(form: str, correlation: float, batch: int, updates: int, rate: float, seed: int) -> tuple[float, float]:
    """Mean and standard deviation of the last fifth of the estimates of one training, on one thread."""
    torch.set_num_threads(1)
    reuse_freed_memory()
    update = make_update(form, batch, correlation, dim=GAUSSIAN_DIM, seed=seed, learning_rate=rate)
    last = [update() for _ in range(updates)][-updates // 5 :]
    return statistics.fmean(last), statistics.stdev(last)


def measure_estimates(
    correlations: tuple[float, ...], batch: int, updates: int, seeds: int, rates: tuple[float, ...] = (2e-3,)
) -> list[dict[str, Any]]:
    """Bias and spread of the last fifth of the estimates, per true mutual information and learning rate."""
    rows = []
    for correlation, rate in itertools.product(correlations, rates):
        truth = -GAUSSIAN_DIM / 2 * math.log(1 - correlation**2)
        row: dict[str, Any] = {"true_nats": truth, "batch": batch, "updates": updates}
        row |= {"learning_rate": rate, "seeds": seeds}
        means = {}
        for form in reversed(FORMS):
            # One at a time: of the literature's form two would take each other's memory bandwidth.
            with ProcessPoolExecutor(1, FRESH) as pool:
                run = partial(_estimate, form, correlation, batch, updates, rate)
                means[form], spreads = zip(*pool.map(run, range(seeds)), strict=True)
            row |= {f"{form}_bias": statistics.fmean(means[form]) - truth, f"{form}_spread": statistics.fmean(spreads)}
            if form != "literature" and seeds > 1:
                apart = [ours - theirs for ours, theirs in zip(means[form], means["literature"], strict=True)]
                row[f"{form}_standard_error"] = statistics.stdev(apart) / math.sqrt(seeds)
        rows.append(row)
    return rows


def measure(quick: bool = False, device: str = "cpu") -> dict[str, list[dict[str, Any]]]:
    """All rows, on a GPU those of the cost; ``quick``: sizes that only show that it runs."""
    if quick:
        return {"cost": measure_cost(((10, 2),), 1, device), "estimates": measure_estimates((0.3,), 20, 10, 2)}
    if device != "cpu":
        return {"cost": measure_cost(((150, 1), (1000, 1)), device=device)}
    cost = measure_cost(((50, 1), (50, 2), (50, 4), (50, 8), (150, 1), (300, 1), (600, 1), (1000, 1)))
    estimates = measure_estimates((0.5, 0.9, 0.99), 50, 500, 2)
    # Seeds differ by as much as forms do; of the literature's each takes minutes.
    estimates += measure_estimates((0.5,), 150, 300, 1) + measure_estimates((0.9,), 150, 300, 5, (1e-3, 2e-3))
    return {"cost": cost, "estimates": estimates}
