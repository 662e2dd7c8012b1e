# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from monai.engines import SupervisedTrainer
from torch import nn

from monai_mimmx.data import StoredImages
from monai_mimmx.engines import PrepareAugmentedBatch
from monai_mimmx.transforms import RandBatchAugment


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


def test_converts_the_images_after_it_moves_them():
    seen = []
    batch = {"image": torch.arange(4, dtype=torch.uint8).view(4, 1), "label": torch.arange(4)}
    prepare = PrepareAugmentedBatch(lambda image: seen.append(image) or image + 0.5, dtype=torch.float32)
    image, label = prepare(batch, "cpu")
    assert seen[0].dtype == torch.float32 and image[:, 0].tolist() == [0.5, 1.5, 2.5, 3.5]
    assert label.dtype == torch.int64 and batch["image"].dtype == torch.uint8


def test_an_augmentation_that_converts_gets_them_as_they_come():
    batch = {"image": torch.ones(4, 1, 8, 8, dtype=torch.float16), "label": torch.arange(4)}
    for own in (None, torch.float64):
        seen = []
        augment = RandBatchAugment(dtype=own)
        augment._draw = lambda image, count, draw=augment._draw, seen=seen: (
            seen.append(image.dtype) or draw(image, count)
        )
        image, _ = PrepareAugmentedBatch(augment, dtype=torch.float32)(batch, "cpu")
        assert (seen, image.dtype) == (([torch.float32], torch.float32) if own is None else ([torch.float16], own))


@pytest.mark.parametrize("dtype", [None, torch.float32])
@pytest.mark.parametrize("options", [{}, {"dtype": torch.float64}])
def test_stored_images_give_what_their_copy_gives(dtype, options):
    pixels, rows = torch.rand(5, 1, 8, 8).half(), torch.tensor([4, 0, 0, 2])
    label = torch.arange(4)
    prepared = []
    for image in (StoredImages(pixels, rows), pixels[rows]):
        prepare = PrepareAugmentedBatch(RandBatchAugment(seed=2, dtype=dtype), dtype=torch.float32)
        prepared.append(prepare({"image": image, "label": label}, "cpu", **options))
    (image, label), (expected, same) = prepared
    assert image.dtype == expected.dtype and torch.equal(image, expected) and torch.equal(label, same)


def test_an_augmentation_of_ones_own_gets_a_tensor_of_stored_images():
    batch = {"image": StoredImages(torch.eye(3).half(), torch.tensor([2, 2])), "label": torch.arange(2)}
    image, _ = PrepareAugmentedBatch(lambda image: 2 * image, dtype=torch.float32)(batch, "cpu")
    assert image.dtype == torch.float32 and image.tolist() == [[0.0, 0.0, 2.0]] * 2
    image, _ = PrepareAugmentedBatch(RandBatchAugment(dtype=torch.float32))(
        {"image": StoredImages(torch.zeros(3, 1, 8, 8), torch.tensor([2, 2])), "label": torch.arange(2)}, "meta"
    )
    assert image.device.type == "meta" and image.shape == (2, 1, 8, 8)


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
