# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose

from monai_mimmx.transforms.batch_augment import RandBatchAugment, _at_once, _one_by_one, shift_image


def _shifted(image, shift):
    out = np.full_like(image, np.nan)
    shift_image(image, shift, out)
    return out


@pytest.mark.parametrize("spatial", [(7,), (6, 7), (4, 5, 6)])
def test_shift_replicates_the_edge(spatial):
    image = np.random.RandomState(0).rand(2, *spatial)
    for shift in itertools.product((-3, 0, 1, 3), repeat=len(spatial)):
        expected = image
        for axis, (step, size) in enumerate(zip(shift, spatial), start=1):
            expected = expected.take(np.clip(np.arange(size) - step, 0, size - 1), axis=axis)
        np.testing.assert_array_equal(_shifted(image, shift), expected)


@pytest.mark.parametrize("spatial", [(12, 10), (8, 9, 10)])
def test_each_sample_is_one_of_the_possible_shifts(spatial):
    batch = torch.rand(60, 2, *spatial)
    out = RandBatchAugment(max_shift=1, noise_std=0, seed=0)(batch)
    steps = list(itertools.product((-1, 0, 1), repeat=len(spatial)))
    found = set()
    for before, after in zip(batch.numpy(), out.numpy()):
        matching = [step for step in steps if np.array_equal(_shifted(before, step), after)]
        assert len(matching) == 1
        found.add(matching[0])
    assert len(found) > 0.6 * len(steps)


@pytest.mark.parametrize("count", [50, 100])  # a number of its own per value, and noise cut out of a shared field
def test_noise_has_its_size_and_differs(count):
    out = RandBatchAugment(max_shift=0, noise_std=0.3, seed=0)(torch.zeros(count, 1, 64, 64))
    assert out.std().item() == pytest.approx(0.3, rel=0.03)
    assert out.mean().item() == pytest.approx(0, abs=0.02)
    assert torch.corrcoef(out.flatten(1)).fill_diagonal_(0).abs().max() < 0.2
    neighbours = (out[..., 1:] * out[..., :-1]).mean() / out.var()
    assert abs(neighbours.item()) < 0.02


def test_flips_and_gains():
    batch = torch.rand(400, 1, 4, 5) + 0.5
    flip = RandBatchAugment(max_shift=0, noise_std=0, flip_prob=0.25, flip_axis=1, seed=0)(batch)
    is_flipped = torch.tensor([torch.equal(new, old.flip(2)) for old, new in zip(batch, flip)])
    is_same = torch.tensor([torch.equal(new, old) for old, new in zip(batch, flip)])
    assert (is_flipped ^ is_same).all()
    assert is_flipped.float().mean().item() == pytest.approx(0.25, abs=0.07)
    ratio = RandBatchAugment(max_shift=0, noise_std=0, intensity=0.2, seed=0)(batch) / batch
    gain = ratio.flatten(1).mean(1)
    torch.testing.assert_close(ratio, gain.view(-1, 1, 1, 1).expand_as(ratio))
    assert 0.8 <= gain.min() < 0.82 < 1.18 < gain.max() <= 1.2


@pytest.mark.parametrize("options", [{}, {"flip_prob": 0.5, "intensity": 0.2}, {"noise_std": 0, "flip_prob": 0.5}])
@pytest.mark.parametrize(
    ("shape", "flip_axis"),
    [((9, 2, 40), 0), ((9, 2, 12, 10), 1), ((9, 1, 8, 9, 10), 1), ((2, 3, 400, 400), 0), ((0, 1, 8, 8), 0)],
)
def test_both_ways_to_go_about_it_agree(shape, flip_axis, options):
    batch = torch.rand(shape)
    augment = RandBatchAugment(flip_axis=flip_axis, seed=3, **options)
    for rows in (torch.arange(len(batch)), torch.arange(len(batch)).repeat(2).flip(0)):
        draws = augment._draw(batch, len(rows))
        for dtype in (torch.float32, torch.float64):
            torch.testing.assert_close(
                _at_once(batch, rows, draws, flip_axis, dtype), _one_by_one(batch, rows, draws, flip_axis, dtype)
            )


@pytest.mark.parametrize("stored", [torch.uint8, torch.float16, torch.float64])
@pytest.mark.parametrize("options", [{}, {"flip_prob": 0.5, "intensity": 0.2}])
def test_what_is_stored_in_fewer_bytes_gives_what_its_conversion_gives(stored, options):
    batch = (100 * torch.rand(9, 2, 12, 10)).to(stored)
    out = RandBatchAugment(seed=3, dtype=torch.float32, **options)(batch)
    assert torch.equal(out, RandBatchAugment(seed=3, **options)(batch.float()))


@pytest.mark.parametrize("size", [(2, 12, 10), (1, 400, 400)])
def test_rows_of_a_batch_are_augmented_as_if_they_were_gathered_first(size):
    batch, rows = (100 * torch.rand(7, *size)).to(torch.float16), torch.tensor([6, 0, 0, 3, 5, 6, 1, 0, 2])
    options = {"flip_prob": 0.5, "intensity": 0.2, "dtype": torch.float32, "seed": 3}
    before = batch.clone()
    assert torch.equal(RandBatchAugment(**options)(batch, rows), RandBatchAugment(**options)(batch[rows]))
    assert torch.equal(batch, before)
    assert RandBatchAugment(**options)(batch, rows[:0]).shape == (0, *size)


def test_nothing_to_do_is_the_identity():
    batch = torch.rand(3, 1, 4, 4)
    out = RandBatchAugment(max_shift=0, noise_std=0)(batch)
    assert torch.equal(out, batch)
    assert out.data_ptr() != batch.data_ptr()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_keeps_dtype_and_input(dtype):
    batch = torch.rand(3, 2, 9, 9).to(dtype)
    before = batch.clone()
    out = RandBatchAugment(flip_prob=0.5, intensity=0.1, seed=0)(batch)
    assert out.dtype == dtype
    assert not torch.equal(out, before)
    assert torch.equal(batch, before)
    for same in (batch.to(memory_format=torch.channels_last), MetaTensor(batch), batch.clone().requires_grad_()):
        again = RandBatchAugment(flip_prob=0.5, intensity=0.1, seed=0)(same)
        assert torch.equal(torch.as_tensor(again), out)
        assert not again.requires_grad


def test_empty_batch():
    assert RandBatchAugment()(torch.zeros(0, 1, 9, 9)).shape == (0, 1, 9, 9)


def test_unseeded_runs_differ_and_compose_seeds():
    batch = torch.zeros(2, 1, 8, 8)
    augment = RandBatchAugment(seed=None)
    assert not torch.equal(augment(batch), RandBatchAugment(seed=None)(batch))
    pipeline = Compose([augment])
    first = pipeline.set_random_state(seed=5)(batch)
    augment(batch)
    assert torch.equal(pipeline.set_random_state(seed=5)(batch), first)


def test_global_generator_is_untouched():
    state = torch.get_rng_state()
    RandBatchAugment(flip_prob=0.5)(torch.zeros(2, 1, 8, 8))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"max_shift": -1}, "max_shift"),
        ({"max_shift": 1.5}, "max_shift"),
        ({"noise_std": -0.1}, "noise_std"),
        ({"noise_std": float("nan")}, "noise_std"),
        ({"flip_prob": 1.1}, "flip_prob"),
        ({"flip_axis": -1}, "flip_axis"),
        ({"intensity": 1.0}, "intensity"),
    ],
)
def test_option_errors(options, match):
    with pytest.raises(ValueError, match=f"expected {match} to be .*, got"):
        RandBatchAugment(**options)


def test_batch_errors():
    with pytest.raises(TypeError, match="floating-point tensor, got torch.uint8"):
        RandBatchAugment()(torch.zeros(1, 1, 8, 8, dtype=torch.uint8))
    with pytest.raises(TypeError, match="got ndarray"):
        RandBatchAugment()(np.zeros((1, 1, 8, 8)))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"above max_shift=4 .* got shape \(1, 1, 4, 8\)"):
        RandBatchAugment()(torch.zeros(1, 1, 4, 8))
    with pytest.raises(ValueError, match="flip_axis=2"):
        RandBatchAugment(flip_axis=2)(torch.zeros(1, 1, 8, 8))
