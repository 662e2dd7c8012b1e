# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import torch
from monai.engines import SupervisedTrainer
from torch import nn

from monai_mimmx.engines import PrepareAugmentedBatch


def test_augments_the_image_only():
    batch = {"image": torch.ones(2, 1, 4, 4), "label": torch.tensor([[0, 1], [1, 0]])}
    image, label = PrepareAugmentedBatch(lambda image: image * 3)(batch, "cpu")
    assert torch.equal(image, torch.full((2, 1, 4, 4), 3.0)) and torch.equal(label, batch["label"])
    assert bool((batch["image"] == 1).all())


def test_moves_before_it_augments():
    seen = []
    batch = {"image": torch.ones(2, 1), "label": torch.zeros(2)}
    image, label = PrepareAugmentedBatch(lambda image: seen.append(image) or image)(batch, "meta", dtype=torch.float64)
    assert seen[0].device.type == label.device.type == "meta" and image.dtype == torch.float64


def test_in_monais_trainer():
    network = nn.Linear(2, 1)
    losses = []
    trainer = SupervisedTrainer(
        device="cpu",
        max_epochs=1,
        train_data_loader=[{"image": torch.ones(4, 2), "label": torch.zeros(4, 1)}],
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.0),
        loss_function=lambda pred, label: losses.append(pred.detach()) or ((pred - label) ** 2).mean(),
        prepare_batch=PrepareAugmentedBatch(torch.zeros_like),
    )
    trainer.run()
    torch.testing.assert_close(losses[0], network.bias.detach().expand(4, 1))
