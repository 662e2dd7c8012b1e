# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""What a GPU gives is what a processor gives. `MIMMX_TEST_DEVICE=cuda python -m pytest tests/bundles` runs the bundles on it."""

import copy
import json

import pytest
import torch
from runs import options, results, torchrun, train, workflow

from monai_mimmx.data import StoredImages
from monai_mimmx.engines import PrepareAugmentedBatch
from monai_mimmx.handlers import read_history
from monai_mimmx.losses import MINELoss, MultiTaskCrossEntropy, distance_correlation, make_dependence
from monai_mimmx.networks import MIMMXNet
from monai_mimmx.transforms import RandBatchAffine, RandBatchAugment

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
LABELS = torch.randint(2, (40, 3), generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def exact(monkeypatch):
    """Convolutions in float32, as on a processor."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def on_both(function, *tensors, module=None):
    """A function's value, and its gradient by the tensors, on the processor and on the GPU."""
    found = []
    for device in ("cpu", "cuda"):
        inputs = [tensor.detach().to(device).requires_grad_() for tensor in tensors]
        part = () if module is None else (copy.deepcopy(module).to(device),)
        value = function(*part, *inputs)
        assert value.device.type == device
        slopes = torch.autograd.grad(value.sum(), inputs, allow_unused=True)
        found.append([value.detach().cpu(), *(slope.cpu() for slope in slopes if slope is not None)])
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("conditional", [False, True])
def test_mine(conditional):
    torch.manual_seed(0)
    # All other samples are partners: nothing is left to chance but the order of a sum.
    mine = MINELoss(3, 2, negatives=len(LABELS) - 1, conditional=conditional)
    condition = (torch.arange(len(LABELS)) % 2,) if conditional else ()
    x, z = torch.randn(40, 3), torch.randn(40, 2)
    on_both(lambda part, x, z: part(x, z, *(given.to(x.device) for given in condition)), x, z, module=mine)


@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("method", ["dcor", "mmd", "adversarial"])
def test_other_dependences(method, conditional):
    torch.manual_seed(0)
    term = make_dependence(method, 3, (2, 2, 2), conditional=conditional)
    f_y, f_z = torch.randn(40, 3), torch.randn(40, 2, 3)
    on_both(lambda part, f_y, f_z: part(f_y, f_z, LABELS.to(f_y.device)), f_y, f_z, module=term)


def test_distance_correlation_of_a_constant():
    on_both(distance_correlation, torch.zeros(20, 3), torch.randn(20, 2))


@pytest.mark.parametrize("encoder", ["densenet121", "four_conv"])
def test_the_network(encoder):
    torch.manual_seed(0)
    network = MIMMXNet(num_classes=(2, 2, 2), feature_dim=4, encoder=encoder).eval()
    loss = MultiTaskCrossEntropy((2, 2, 2), reduction="none")
    on_both(
        lambda part, image: loss(part(image), LABELS[:6].to(image.device)), torch.randn(6, 1, 64, 64), module=network
    )


def test_augmentation():
    batch = torch.rand(150, 1, 64, 64)
    for augment in (
        lambda: RandBatchAugment(max_shift=5, noise_std=0.1, flip_prob=0.5, intensity=0.2, seed=1),
        lambda: RandBatchAffine(max_rotation=10, max_scale=0.1, max_shear=0.1, seed=1),
    ):
        torch.testing.assert_close(augment()(batch.cuda()).cpu(), augment()(batch), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16])
def test_stored_images(dtype):
    stored = StoredImages((torch.rand(9, 1, 32, 32) * 255).to(dtype), torch.tensor([7, 0, 7, 3]))
    batch = {"image": stored, "label": LABELS[:4]}
    found = []
    for device in ("cpu", "cuda"):
        augment = RandBatchAugment(max_shift=5, noise_std=0.1, flip_prob=0.5, dtype=torch.float32, seed=1)
        image, label = PrepareAugmentedBatch(augment)(batch, device)
        assert (image.device.type, label.device.type, image.dtype) == (device, device, torch.float32)
        found.append(image.cpu())
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-3)


@pytest.fixture(scope="module")
def plain(folders, tmp_path_factory):
    """Output folder and history of a training on the GPU without any switch."""
    output = tmp_path_factory.mktemp("plain")
    train("brain_age", folders, output, device="cuda", batch_size=48)
    return output, read_history(output / "history.jsonl")


@pytest.mark.parametrize(
    "switches",
    [
        {"amp": True, "amp_dtype": "float16"},
        {"amp": True, "amp_dtype": "bfloat16"},
        {"channels_last": True},
        {"compile": True},
        {"cuda_graph": False},
        {"amp": True, "channels_last": True, "compile": True},
    ],
    ids=lambda switches: "+".join(map(str, switches)) + str(switches.get("amp_dtype", "")),
)
def test_switches_for_speed_give_the_same(switches, plain, folders, tmp_path):
    train("brain_age", folders, tmp_path, device="cuda", batch_size=48, **switches)
    for row, expected in zip(read_history(tmp_path / "history.jsonl"), plain[1], strict=True):
        assert row["loss_y"] == pytest.approx(expected["loss_y"], rel=0.05)


def test_fresh_batches_in_mixed_precision_give_the_same(folders, tmp_path):
    for fresh in (False, True):
        given = {"device": "cuda", "batch_size": 48, "feature_batches": 0, "amp_fresh": fresh}
        train("brain_age", folders, tmp_path / str(fresh), **given)
    mixed, plain = (read_history(tmp_path / str(fresh) / "history.jsonl") for fresh in (True, False))
    for row, expected in zip(mixed, plain, strict=True):
        assert row["loss_y"] == pytest.approx(expected["loss_y"], rel=0.05)
        assert row["mi_sex"] == pytest.approx(expected["mi_sex"], abs=0.02)
    assert mixed[-1]["mi_sex"] != plain[-1]["mi_sex"]


@pytest.mark.parametrize("bundle", ["brain_age", "pleural_effusion_natural"])
def test_a_run_repeats(bundle, folders, tmp_path):
    for name in ("first", "second"):
        train(bundle, folders, tmp_path / name, device="cuda")
    assert results(tmp_path / "first") == results(tmp_path / "second")


def test_a_checkpoint_of_the_gpu_is_evaluated_on_the_processor(plain, folders, tmp_path):
    more = options("brain_age", folders, tmp_path, device="cpu", ckpt=str(plain[0] / "models/model.pt"))
    workflow("brain_age", "train", "evaluate", **more).run()
    here, there = (json.loads((folder / "metrics.json").read_text()) for folder in (tmp_path, plain[0]))
    for subset, accuracies in here["accuracy"].items():
        for task, accuracy in accuracies.items():
            assert accuracy == pytest.approx(there["accuracy"][subset][task], abs=0.02)


def test_a_process_group_of_gpus(folders, tmp_path):
    given = options("brain_age", folders, tmp_path)
    del given["device"]
    torchrun("brain_age", 1, given)
    assert json.loads((tmp_path / "metrics.json").read_text())["epochs"] == given["epochs"]
