# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy

import pytest
import torch
import torch.distributed as dist
from ignite.engine import Engine
from monai.engines import default_prepare_batch
from torch import nn

from monai_mimmx.handlers import WeightAveraging


def make_network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def make_batches(count=5, size=16):
    generator = torch.Generator().manual_seed(1)
    return [
        {"image": 2 + torch.randn(size, 3, generator=generator), "label": torch.zeros(size, dtype=torch.long)}
        for _ in range(count)
    ]


def make_averaging(network, batches, **options):
    return WeightAveraging(network, batches, prepare_batch=default_prepare_batch, device="cpu", **options)


def train(averaging, network, batches, epochs=1, drift=0.1):
    """Let the weights drift, one step per batch, and return each state of the first weight."""
    seen = []

    def step(engine, batch):
        network.train()(batch["image"])
        with torch.no_grad():
            for parameter in network.parameters():
                parameter += drift * torch.randn_like(parameter)
        seen.append(network[0].weight.detach().clone())

    engine = Engine(step)
    averaging.attach(engine)
    engine.run(batches, max_epochs=epochs)
    return seen


def test_decay_zero_is_a_copy():
    network, batches = make_network(), make_batches()
    averaging = make_averaging(network, batches, decay=0.0)
    train(averaging, network, batches, epochs=2)
    assert averaging.averaged is not network
    for average, current in zip(averaging.averaged.parameters(), network.parameters()):
        assert torch.equal(average, current)


@pytest.mark.parametrize("decay", [0.5, 0.998])
def test_average_by_hand(decay):
    network, batches = make_network(), make_batches()
    averaging = make_averaging(network, batches, decay=decay)
    seen = train(averaging, network, batches, epochs=2)
    expected = seen[0].double()  # the first update copies
    for updates, weight in enumerate(seen[1:], start=1):
        rate = min(decay, (1 + updates) / (5 + updates))
        expected = rate * expected + (1 - rate) * weight.double()
    torch.testing.assert_close(averaging.averaged[0].weight.double(), expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(averaging.averaged[0].weight, network[0].weight, atol=1e-3)


def test_statistics_are_those_of_a_full_pass():
    network, batches = make_network(), make_batches()
    averaging = make_averaging(network, batches, decay=0.9, num_batches=5)
    train(averaging, network, batches)
    average = averaging.averaged
    with torch.no_grad():
        hidden = [average[0](batch["image"]) for batch in batches]
    torch.testing.assert_close(average[1].running_mean, torch.cat(hidden).mean(0))
    torch.testing.assert_close(average[1].running_var, torch.stack([h.var(0) for h in hidden]).mean(0))
    assert average[1].momentum == 0.1 and not average.training
    output = average[:2](torch.cat([batch["image"] for batch in batches]))
    torch.testing.assert_close(output.mean(0), average[1].bias, atol=1e-4, rtol=0)


def test_statistics_do_not_see_dropout():
    torch.manual_seed(0)
    network, batches = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(3)), make_batches()
    averaging = make_averaging(network, batches, num_batches=5)
    averaging.update_statistics()
    images = [batch["image"] for batch in batches]
    torch.testing.assert_close(averaging.averaged[1].running_var, torch.stack([x.var(0) for x in images]).mean(0))
    assert not any(layer.training for layer in averaging.averaged.modules())
    assert all(layer.training for layer in network.modules())


def test_number_of_batches():
    network, batches = make_network(), make_batches()
    averaging = make_averaging(network, batches, decay=0.0, num_batches=2)
    averaging.update_statistics()
    with torch.no_grad():
        hidden = [averaging.averaged[0](batch["image"]) for batch in batches[:2]]
    torch.testing.assert_close(averaging.averaged[1].running_mean, torch.cat(hidden).mean(0))


def test_training_network_is_untouched():
    network, batches = make_network(), make_batches()
    averaging = make_averaging(network, batches)
    train(averaging, network, batches)
    before, mode = copy.deepcopy(network.state_dict()), network.training
    averaging.update_statistics()
    averaging.averaged[0].weight.data.add_(1.0)
    assert network.training is mode
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


@pytest.mark.parametrize(("interval", "epochs"), [(1, [1, 2, 3, 4, 5]), (2, [2, 4, 5]), (9, [5])])
def test_interval_and_last_epoch(interval, epochs):
    network, batches = make_network(), make_batches(2)
    averaging = make_averaging(network, batches, interval=interval)
    called = []
    engine = Engine(lambda engine, batch: None)
    averaging.update_statistics = lambda: called.append(engine.state.epoch)
    averaging.attach(engine)
    engine.run(batches, max_epochs=5)
    assert called == epochs


def test_state_continues_the_average():
    network, batches = make_network(), make_batches()
    averaging = make_averaging(network, batches)
    train(averaging, network, batches)
    resumed_network = copy.deepcopy(network)
    resumed = make_averaging(resumed_network, batches)
    resumed.load_state_dict(copy.deepcopy(averaging.state_dict()))
    for item, current in ((averaging, network), (resumed, resumed_network)):
        torch.manual_seed(5)
        train(item, current, batches)
    first, second = averaging.state_dict(), resumed.state_dict()
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
    assert int(first["n_averaged"]) == 10


def test_network_without_batch_normalization():
    network = nn.Sequential(nn.Linear(3, 2))
    averaging = make_averaging(network, make_batches(), decay=0.0)
    averaging.update_statistics()
    assert not averaging.averaged.training


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decay": 1.0}, "decay must be at least 0 and below 1, got 1.0"),
        ({"decay": -0.1}, "decay must be at least 0 and below 1, got -0.1"),
        ({"num_batches": 0}, "num_batches must be 1 or more, got 0"),
        ({"interval": 0}, "interval must be 1 or more, got 0"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        make_averaging(make_network(), make_batches(), **options)


def statistics_in_process_group(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    averaging = make_averaging(make_network(), make_batches(6)[rank::2], num_batches=3)
    averaging.update_statistics()
    torch.save(averaging.averaged.state_dict(), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_available(), reason="PyTorch was built without torch.distributed")
def test_two_processes_share_the_statistics_of_all_batches(tmp_path):
    torch.multiprocessing.start_processes(statistics_in_process_group, (str(tmp_path),), 2, start_method="forkserver")
    alone = make_averaging(make_network(), make_batches(6), num_batches=6)
    alone.update_statistics()
    for rank in (0, 1):
        together = torch.load(tmp_path / f"{rank}.pt")
        for name in ("1.running_mean", "1.running_var"):
            torch.testing.assert_close(together[name], alone.averaged.state_dict()[name])


def test_a_loader_that_is_used_up_is_refused():
    network = nn.Sequential(nn.BatchNorm1d(2))
    batches = iter([{"image": torch.randn(4, 2), "label": torch.zeros(4)}])
    averaging = WeightAveraging(network, batches, prepare_batch=default_prepare_batch, device="cpu")
    averaging.update_statistics()
    before = averaging.averaged[0].running_mean.clone()
    with pytest.raises(ValueError, match="gave no batch"):
        averaging.update_statistics()
    assert torch.equal(averaging.averaged[0].running_mean, before)


class Scaled(nn.Module):
    """A network that needs more than an image."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x, scale, *, shift):
        return self.norm(scale * x + shift)


def test_a_network_with_more_inputs_than_an_image():
    network, batches = Scaled(), make_batches()
    averaging = WeightAveraging(
        network,
        batches,
        prepare_batch=lambda batch, device, non_blocking: (batch["image"], batch["label"], (2.0,), {"shift": 1.0}),
        device="cpu",
    )
    averaging.update_statistics()
    expected = 2.0 * torch.cat([batch["image"] for batch in batches]) + 1.0
    torch.testing.assert_close(averaging.averaged.norm.running_mean, expected.mean(0))
