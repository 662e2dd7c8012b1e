# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from monai_mimmx.data import EncodedBatches, keep_batch


def prepare(batch, device, non_blocking):
    return batch["image"].to(device), batch["label"].to(device)


def loader_of(count, batch_size=4, **more):
    images = torch.arange(count * 6.0).view(count, 1, 2, 3)
    items = [{"image": image, "label": torch.tensor([i, -i])} for i, image in enumerate(images)]
    return DataLoader(items, batch_size, drop_last=True, **more)


def encoded_of(loader, encoder=None, **more):
    return EncodedBatches(loader, encoder or nn.Flatten(), prepare_batch=prepare, device="cpu", **more)


def test_items_are_the_encoders_outputs_of_the_loaders_batches():
    encoded = encoded_of(loader_of(10), passes=2)
    assert len(encoded) == 16  # two whole batches of 4, twice; 2 of the 10 are left over
    for index in (0, 5, 13):
        assert encoded[index]["image"].tolist() == [6.0 * (index % 8) + i for i in range(6)]
        assert encoded[index]["label"].tolist() == [index % 8, -(index % 8)]
    batch = next(iter(DataLoader(encoded, 16, collate_fn=keep_batch)))
    assert batch["image"].shape == (16, 6) and batch["image"].dtype == torch.float32


def test_the_encoder_runs_once_with_its_weights_of_the_first_use():
    calls = []
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(6, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))
    encoder.register_forward_hook(lambda module, inputs, output: calls.append(len(output)))
    loader = loader_of(8)
    encoded = encoded_of(loader, encoder)
    nn.init.zeros_(encoder[1].weight)  # after the construction, before the first use
    nn.init.constant_(encoder[1].bias, 2.0)
    encoder[2].eps = 0.0
    first = encoded[0]["image"]
    assert torch.equal(first, torch.full((3,), 2.0)), "running statistics, no dropout"
    nn.init.zeros_(encoder[1].bias)
    assert torch.equal(encoded[7]["image"], first) and calls == [4, 4]
    assert encoder.training and not first.requires_grad


def test_every_pass_draws_and_augments_anew():
    torch.manual_seed(0)
    augmented = []

    def augment(batch, device, non_blocking):
        augmented.append(torch.rand(1))
        return batch["image"] + augmented[-1], batch["label"]

    encoded = EncodedBatches(loader_of(8, shuffle=True), nn.Flatten(), prepare_batch=augment, device="cpu", passes=2)
    labels = [int(encoded[i]["label"][0]) for i in range(16)]
    assert sorted(labels[:8]) == sorted(labels[8:]) == list(range(8)) and labels[:8] != labels[8:]
    assert len(set(augmented)) == 4


def test_under_autocast_the_outputs_are_nearly_the_same():
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(6, 3))
    plain, mixed = (encoded_of(loader_of(8), encoder, amp=amp).__getitems__(range(8))["image"] for amp in (False, True))
    assert not torch.equal(plain, mixed)
    torch.testing.assert_close(mixed, plain, rtol=0.02, atol=0.02 * float(plain.abs().max()))


def test_the_encoder_has_its_modes_again():
    encoder = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(6), nn.BatchNorm1d(6))
    encoder[1].eval()  # frozen
    encoded_of(loader_of(8), encoder).__getitems__([0])
    assert [module.training for module in encoder] == [True, False, True]


def test_bad_options():
    with pytest.raises(ValueError, match="passes, the epochs of the loader to encode, must be 1 or more, got 0"):
        encoded_of(loader_of(8), passes=0)
    with pytest.raises(ValueError, match="drop_last=True"):
        encoded_of(DataLoader([1, 2, 3], 2))
