# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""A failure names the images and the checkpoint; an estimate that means nothing is told."""

import logging
import math

import pandas as pd
import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor
from torch.utils.data import DataLoader

from monai_mimmx.data import CachedImages, EncodedBatches, keep_batch, select_subset
from monai_mimmx.handlers import EpochRecorder, EstimatorCheck, FailureReport
from monai_mimmx.handlers.faults import batch_files
from monai_mimmx.losses import BlockDistanceCorrelation, BlockMutualInformation


@pytest.fixture
def images(tmp_path):
    """Eight images, numbered by brightness."""
    paths = [tmp_path / f"{i}.png" for i in range(8)]
    for path in paths:
        path.touch()
    frame = pd.DataFrame({"image": map(str, paths), "sick": [0, 1] * 4, "sex": [0] * 4 + [1] * 4})

    def read(item):
        number = int(item["image"][-5])
        return {"image": torch.tensor([[[1.0, -1.0 - number]]])}

    return CachedImages(frame, ["sick", "sex"], read, cache_dir=None, transform_key="", progress=False)


def message_of(loader, checkpoint_dir, *, fail_at=2, epochs=1, **options):
    def step(engine, batch):
        if engine.state.iteration == fail_at:
            raise FloatingPointError("the loss is nan.")

    trainer = Engine(step)
    FailureReport(checkpoint_dir, **options).attach(trainer)
    with pytest.raises(FloatingPointError) as caught:
        trainer.run(loader, max_epochs=epochs)
    return str(caught.value)


@pytest.mark.parametrize("gather", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_images_of_the_batch_are_named_the_most_extreme_first(images, tmp_path, caplog, workers, gather):
    dataset = select_subset({"train": images}, "train", as_stored=True, gather=gather)
    loader = DataLoader(dataset, 4, collate_fn=keep_batch, num_workers=workers)
    message = message_of(loader, tmp_path, shown=3)
    expected = [str(tmp_path / f"{i}.png") for i in (7, 6, 5, 4)]
    named = f"most extreme first: {', '.join(expected[:3])}, and 1 more in the log."
    assert message == f"the loss is nan. Images of this batch, the {named} No checkpoint has been saved yet."
    assert "the most extreme first:\n" + "\n".join(expected) in caplog.text


@pytest.mark.parametrize("saved", [False, True])
def test_an_interrupt_tells_where_it_goes_on(tmp_path, saved):
    def step(engine, batch):
        if engine.state.epoch == 2:
            raise KeyboardInterrupt

    if saved:
        torch.save({}, tmp_path / "state_epoch=1.pt")
    trainer = Engine(step)
    FailureReport(tmp_path, after=30).attach(trainer)
    with pytest.raises(KeyboardInterrupt) as caught:
        trainer.run([0], max_epochs=3)
    last = f"The last checkpoint is {tmp_path}/state_epoch=1.pt, from which --resume true goes on."
    assert str(caught.value) == f"in epoch 32 of the run. {last if saved else 'No checkpoint has been saved yet.'}"


@pytest.mark.parametrize("kind", [FloatingPointError, KeyboardInterrupt])
def test_checkpoints_of_several_savers_do_not_hide_the_failure(tmp_path, kind):
    def step(engine, batch):
        raise kind("it went wrong.")

    for name in ("state_net", "state_ema_net"):
        torch.save({}, tmp_path / f"{name}_epoch=1.pt")
    trainer = Engine(step)
    FailureReport(tmp_path).attach(trainer)
    with pytest.raises(kind, match=f"Checkpoints are in {tmp_path}"):
        trainer.run([0])


def test_a_pixel_that_is_not_a_number_is_the_most_extreme(images):
    batch = images.__getitems__([1, 7, 0])
    batch["image"][2, 0, 0, 1] = float("nan")
    assert [path[-5] for path in batch_files(batch, images)] == ["0", "7", "1"]


def test_images_behind_encoded_batches(images, tmp_path):
    prepare = lambda batch, device, non_blocking: (batch["image"], batch["label"])  # noqa: E731
    loader = DataLoader(images.subset([5, 2, 3, 4]), 2, collate_fn=keep_batch, drop_last=True)
    encoded = EncodedBatches(loader, torch.nn.Flatten(), prepare_batch=prepare, device="cpu", passes=2)
    encoded[0]
    assert [path[-5] for path in encoded.files(range(8))] == list("52345234")
    message = message_of(DataLoader(encoded, 2, collate_fn=keep_batch), tmp_path, fail_at=2, after=5)
    assert (
        f"That is epoch 6 of the run. Images of this batch, the most extreme first: {tmp_path / '4.png'}, " in message
    )


def test_images_of_monais_own_batches(tmp_path):
    image = MetaTensor(torch.tensor([[1.0], [3.0]]), meta={"filename_or_obj": ["a.nii", "b.nii"]})
    assert "first: b.nii, a.nii." in message_of([{"image": image}], tmp_path, fail_at=1)


@pytest.mark.parametrize("batch", [3, {"image": 1}, {"image": torch.zeros(2, 1)}, {"image": torch.zeros(2), "row": 1}])
def test_batches_that_tell_nothing(batch, tmp_path):
    assert message_of([batch], tmp_path, fail_at=1) == "the loss is nan. No checkpoint has been saved yet."


def test_the_last_whole_checkpoint_is_named(tmp_path):
    torch.save({}, tmp_path / "state_1.pt")
    (tmp_path / "state_2.pt").touch()
    assert message_of([1], tmp_path, fail_at=1).endswith(
        f"The last checkpoint is {tmp_path / 'state_1.pt'}, from which --resume true goes on."
    )


def test_other_errors_pass_as_they_are(tmp_path):
    error = KeyError("other")

    def step(engine, batch):
        raise error

    trainer = Engine(step)
    FailureReport(tmp_path).attach(trainer)
    with pytest.raises(KeyError) as caught:
        trainer.run([0])
    assert caught.value is error


class TestEstimatorCheck:
    def run(self, values, dependence, *, after=0, names=("sex", "site")):
        """An engine whose estimates in each epoch are the values, for a batch of 16."""

        def step(engine, batch):
            mi = {f"mi_{name}": torch.tensor(values[engine.state.epoch - 1][i]) for i, name in enumerate(names)}
            return {"loss_y": torch.tensor(0.0), "label": torch.zeros(16, 3), **mi}

        trainer = Engine(step)
        trainer.dependence, trainer.term_names = dependence, names
        EpochRecorder(None, task_names=("y",)).attach(trainer)
        EstimatorCheck(after=after).attach(trainer)
        trainer.run([0], max_epochs=len(values))

    def test_the_limit_is_the_logarithm_of_the_product_pairs(self):
        for batch, negatives, pairs in ((16, 4, 64), (3, 4, 6), (2, 1, 2)):
            dependence = BlockMutualInformation(8, factors=(0,), negatives=negatives)
            assert dependence.resolvable_nats(batch) == pytest.approx(math.log(pairs))
        assert dependence.resolvable_nats(1) == 0

    def test_each_term_is_told_once_with_its_epoch(self, caplog):
        dependence = BlockMutualInformation(8, factors=(0, 1), negatives=4)  # ln 64 = 4.16
        with caplog.at_level(logging.WARNING, logger="monai_mimmx"):
            self.run([[4.1, -4.1], [4.2, 0.0], [50.0, -1e9], [4.0, 1e9]], dependence, after=2)
        first, second = caplog.messages
        assert first.startswith("epoch 4: the estimate of the mutual information with sex is 4.2 nats, beyond the 4.2 ")
        assert second.startswith("epoch 5: the estimate of the mutual information with site is -1000000000.0 nats")
        assert all(
            "Lower mine_learning_rate or lambda_mi, or raise n_b or batch_size" in line for line in (first, second)
        )

    def test_a_small_last_batch_does_not_lower_the_limit(self, caplog):
        """Batches of 16, 16 and 3: an estimate of 3 nats is beyond ln 6 = 1.8 of the last, not beyond the others' 4.2."""

        def step(engine, batch):
            return {"loss_y": torch.tensor(0.0), "label": torch.zeros(batch, 2), "mi_sex": torch.tensor(self.value)}

        trainer = Engine(step)
        trainer.dependence, trainer.term_names = BlockMutualInformation(8, factors=(0,), negatives=4), ("sex",)
        EpochRecorder(None, task_names=("y",)).attach(trainer)
        EstimatorCheck().attach(trainer)
        for self.value, told in ((3.0, 0), (4.5, 1)):
            with caplog.at_level(logging.WARNING, logger="monai_mimmx"):
                trainer.run([16, 16, 3], max_epochs=1)
            assert len(caplog.messages) == told

    def test_terms_that_are_no_estimates_are_left_alone(self, caplog):
        with caplog.at_level(logging.WARNING, logger="monai_mimmx"):
            self.run([[100.0, 100.0]], BlockDistanceCorrelation(factors=(0, 1)))
            self.run([[100.0, 100.0]], None)
        assert not caplog.messages

    def test_an_estimator_that_learns_its_batch_by_heart_is_told(self, caplog):
        """Independent features, the same sixteen each time, and a large statistics network: above what they can show."""
        torch.manual_seed(0)
        dependence = BlockMutualInformation(8, factors=(0,), negatives=1, hidden=(256, 256))
        optimizer = torch.optim.Adam(dependence.parameters(), lr=1e-2)
        f_y, f_z, labels = torch.randn(16, 8), torch.randn(16, 1, 8), torch.zeros(16, 2, dtype=torch.long)

        def step(engine, batch):
            for _ in range(20):
                optimizer.zero_grad()
                value = dependence(f_y, f_z, labels)[0]
                (-value).backward()
                optimizer.step()
            return {"loss_y": torch.tensor(0.0), "label": labels, "mi_sex": value.detach()}

        trainer = Engine(step)
        trainer.dependence, trainer.term_names = dependence, ("sex",)
        EpochRecorder(None, task_names=("y",)).attach(trainer)
        EstimatorCheck().attach(trainer)
        with caplog.at_level(logging.WARNING, logger="monai_mimmx"):
            trainer.run([0] * 5, max_epochs=6)
        assert len(caplog.messages) == 1 and "the estimator diverges" in caplog.messages[0]
