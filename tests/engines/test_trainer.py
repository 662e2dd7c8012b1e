# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy
import itertools
import os
import warnings

import pytest
import torch
import torch.distributed as dist
from ignite.engine import Engine, Events
from ignite.metrics import Average
from monai.data import MetaTensor
from monai.engines import SupervisedTrainer
from monai.engines.utils import IterationEvents
from monai.handlers import CheckpointLoader, CheckpointSaver, from_engine
from monai.transforms import Lambdad
from torch import nn

from monai_mimmx.engines import MIMMXTrainer
from monai_mimmx.handlers import DynamicLossScaling
from monai_mimmx.losses import (
    BlockDistanceCorrelation,
    BlockMutualInformation,
    GroupDROCrossEntropy,
    MultiTaskCrossEntropy,
)
from monai_mimmx.networks import ConfounderAttentionWeighter, FourConvEncoder, MIMMXNet

NAMES = ("y", "sex", "site")
CLASSES = (2, 2, 3)
WIDTH = 4


def make_batches(count=3, size=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for _ in range(count):
        label = torch.stack([torch.randint(c, (size,), generator=generator) for c in CLASSES], dim=1)
        image = torch.randn(size, 1, 16, 16, generator=generator) + label[:, 0].view(-1, 1, 1, 1)
        batches.append({"image": image, "label": label})
    return batches


def make_network(caw=False):
    encoder = FourConvEncoder(2, 1, channels=(8, 8, 8, 8), grid=2)
    return MIMMXNet(num_classes=CLASSES, feature_dim=WIDTH, encoder=encoder, caw=caw)


def make_trainer(*, caw=False, epochs=1, batches=None, seed=0, method="mine", kind=MIMMXTrainer, **options):
    """A tiny training; `method` is "mine", "joint", "dcor" or None."""
    torch.manual_seed(seed)
    network = make_network(caw)
    if method == "dcor":
        dependence = BlockDistanceCorrelation(factors=(0, 1))
    elif method is None:
        dependence = None
    else:
        estimator = "joint" if method == "joint" else "per_factor"
        dependence = BlockMutualInformation(WIDTH, factors=(0, 1), estimator=estimator)
    weighter = network.caw if caw == "terms" else None
    dependence_optimizer = None
    if isinstance(dependence, BlockMutualInformation):
        parameters = [*dependence.parameters(), *([] if weighter is None else weighter.parameters())]
        dependence_optimizer = torch.optim.Adam(parameters, lr=2e-3)
    defaults = {
        "device": "cpu",
        "max_epochs": epochs,
        "train_data_loader": make_batches() if batches is None else batches,
        "network": network,
        "optimizer": torch.optim.Adam(network.parameters(), lr=1e-3),
        "loss_function": MultiTaskCrossEntropy(CLASSES, reduction="none"),
        "task_names": NAMES,
        "dependence": dependence,
        "dependence_optimizer": dependence_optimizer,
        "weighter": weighter,
        "attend_features": caw == "features",
        "lambda_warmup": 0,
        "n_b": 2,
        "decollate": False,
    }
    return kind(**(defaults | options))


def weights(module):
    return [p.detach().clone() for p in module.parameters()]


def equal(first, second):
    return len(first) == len(second) and all(torch.equal(a, b) for a, b in zip(first, second))


def no_loss(logits, labels):
    """Task losses of 0, so that only the dependence term has a gradient."""
    return 0 * logits.sum() * torch.ones(len(NAMES))


def projection_slopes(**options):
    """The largest gradient of the projection's rows of each feature block, with all task losses 0."""
    trainer = make_trainer(loss_function=no_loss, max_grad_norm=None, **options)
    seen = []

    @trainer.on(IterationEvents.BACKWARD_COMPLETED)
    def note(engine):
        seen.append(engine.network.projection.weight.grad.view(len(NAMES), -1).abs().amax(1))

    trainer.run()
    return torch.stack(seen).amax(0)


class TestIteration:
    @pytest.mark.parametrize(
        ("method", "caw"),
        [("mine", "terms"), *itertools.product(["mine", "joint", "dcor", None], [False, "features"])],
    )
    def test_runs_with_plain_tensors(self, method, caw):
        trainer = make_trainer(method=method, caw=caw, loss_scaling=DynamicLossScaling())
        before = weights(trainer.network)
        trainer.run()
        assert not equal(before, weights(trainer.network))
        output = trainer.state.output
        scalars = {key for key, value in output.items() if isinstance(value, torch.Tensor) and value.ndim == 0}
        expected = {"loss"} | {f"{key}_{name}" for key in ("loss", "gamma") for name in NAMES}
        expected |= {f"attention_{name}" for name in NAMES[1:]}
        if method is not None:
            expected |= {"mi", "lambda"}
            expected |= {"mi_sex+site"} if method == "joint" else {"mi_sex", "mi_site"}
        assert scalars == expected and set(output) - scalars == {"image", "label", "pred"}
        assert not any(output[key].requires_grad for key in scalars)

    def test_loss_is_the_documented_sum(self):
        scaling = DynamicLossScaling()
        trainer = make_trainer(lambda_mi=1.5, loss_scaling=scaling)
        trainer.run()
        output = trainer.state.output
        losses = torch.stack([output[f"loss_{name}"] for name in NAMES])
        gammas = torch.stack([output[f"gamma_{name}"] for name in NAMES])
        torch.testing.assert_close(gammas, scaling(losses))
        torch.testing.assert_close(output["mi"], (output["mi_sex"] + output["mi_site"]) / 2)
        torch.testing.assert_close(output["loss"], (gammas * losses).sum() + 1.5 * output["mi"])

    @pytest.mark.parametrize("n_b", [1, 3])
    def test_order_of_events(self, n_b):
        trainer = make_trainer(n_b=n_b, batches=make_batches(2))
        fired = []
        for event in IterationEvents:
            trainer.add_event_handler(event, lambda engine, event: fired.append(event.name), event)
        trainer.run()
        inner = ["INNER_ITERATION_STARTED", "INNER_ITERATION_COMPLETED"] * n_b
        once = ["FORWARD_COMPLETED", *inner, "LOSS_COMPLETED", "BACKWARD_COMPLETED", "MODEL_COMPLETED"]
        assert fired == once * 2

    @pytest.mark.parametrize("feature_batches", [0, 2])
    @pytest.mark.parametrize("caw", [False, "terms"])
    def test_each_step_changes_its_own_side_only(self, caw, feature_batches):
        trainer = make_trainer(caw=caw, feature_batches=feature_batches)
        encoder = [p for name, p in trainer.network.named_parameters() if not name.startswith("caw")]
        rest = [*trainer.dependence.parameters(), *(trainer.network.caw.parameters() if caw else [])]
        estimator = len(list(trainer.dependence.parameters()))
        saved = {}

        def copies(parameters):
            return [p.detach().clone() for p in parameters]

        @trainer.on(IterationEvents.INNER_ITERATION_STARTED)
        def begin(engine):
            saved["encoder"], saved["rest"] = copies(encoder), copies(rest)

        @trainer.on(IterationEvents.INNER_ITERATION_COMPLETED)
        def inner(engine):
            assert equal(saved["encoder"], copies(encoder))
            # As a whole: a weight whose slope is hardly above 0, such as a query of the weighter, may stay where it is.
            assert not equal(saved["rest"][:estimator], copies(rest)[:estimator])
            assert not caw or not equal(saved["rest"][estimator:], copies(rest)[estimator:])
            saved["rest"] = copies(rest)

        @trainer.on(IterationEvents.MODEL_COMPLETED)
        def end(engine):
            assert equal(saved["rest"], copies(rest))
            assert not any(torch.equal(a, b) for a, b in zip(saved["encoder"], copies(encoder)))
            assert all(p.requires_grad for p in rest)
            saved["checked"] = True

        trainer.run()
        assert saved["checked"]

    @pytest.mark.parametrize(("feature_batches", "calls"), [(0, 1 + 3), (1, 1), (2, 1)])
    def test_fresh_batches_cost_encoder_passes(self, feature_batches, calls):
        trainer = make_trainer(feature_batches=feature_batches, n_b=3)
        count = []
        trainer.network.encoder.register_forward_hook(lambda *args: count.append(1))
        trainer.run()
        assert len(count) == 3 * calls

    def test_estimator_sees_the_latest_batches(self):
        seen = []
        trainer = make_trainer(feature_batches=2, n_b=1, batches=make_batches(4))
        terms = trainer._terms

        def spy(features, *others):
            seen.append((features.detach().clone(), features.requires_grad))
            return terms(features, *others)

        trainer._terms = spy
        trainer.run()
        estimator = [features for features, graph in seen if not graph]
        encoder = [features for features, graph in seen if graph]
        rows = [{tuple(row.flatten().tolist()) for row in features} for features in encoder]
        for step, features in enumerate(estimator):
            drawn = {tuple(row.flatten().tolist()) for row in features}
            assert len(drawn) == 12 and drawn <= rows[step] | rows[max(step - 1, 0)]
            assert step == 0 or drawn & rows[step - 1]

    def test_gradient_is_clipped(self):
        norms = {}
        for limit in (None, 0.01):
            trainer = make_trainer(max_grad_norm=limit)

            @trainer.on(IterationEvents.BACKWARD_COMPLETED)
            def note(engine, limit=limit):
                norms[limit] = torch.cat([p.grad.flatten() for p in engine.network.parameters()]).norm().item()

            trainer.run()
        assert norms[None] > 0.1 and norms[0.01] == pytest.approx(0.01, rel=1e-3)


class TestDependenceGradient:
    @pytest.mark.parametrize("method", ["mine", "joint", "dcor"])
    def test_detached_only_the_primary_block_pays(self, method):
        slopes = projection_slopes(method=method, detach_z=True)
        assert slopes[0] > 0 and bool((slopes[1:] == 0).all())

    @pytest.mark.parametrize("method", ["mine", "joint", "dcor"])
    def test_otherwise_every_block_pays(self, method):
        assert bool((projection_slopes(method=method, detach_z=False) > 0).all())

    def test_attention_gets_none_in_the_encoder_step(self):
        for caw in ("features", "terms"):
            trainer = make_trainer(loss_function=no_loss, caw=caw, detach_z=False)
            slopes = []

            @trainer.on(IterationEvents.BACKWARD_COMPLETED)
            def note(engine, slopes=slopes):
                slopes.extend(p.grad for p in engine.network.caw.parameters())

            trainer.run()
            assert slopes and all(slope is None or bool((slope == 0).all()) for slope in slopes)

    def test_features_reading_weighs_what_the_estimator_sees(self):
        seen = {}

        class Spy(BlockMutualInformation):
            def forward(self, f_y, f_z, y):
                seen["f_y"], seen["f_z"] = f_y.detach(), f_z.detach()
                return super().forward(f_y, f_z, y)

        dependence = Spy(WIDTH, factors=(0, 1))
        optimizer = torch.optim.SGD(dependence.parameters(), lr=0.1)
        trainer = make_trainer(caw="features", dependence=dependence, dependence_optimizer=optimizer)
        forward = {}
        trainer.network.register_forward_hook(lambda module, args, output: forward.update(output=output))
        trainer.run()
        _, features, attention = forward["output"]
        torch.testing.assert_close(seen["f_y"], features[:, 0].detach())
        torch.testing.assert_close(seen["f_z"], (features[:, 1:] * 2 * attention.unsqueeze(-1)).detach())

    @pytest.mark.parametrize("known", [12, 5, 2, 1, 0])
    @pytest.mark.parametrize("method", ["mine", "dcor"])
    def test_samples_without_a_primary_label_are_left_out(self, method, known):
        batches = make_batches(1)
        batches[0]["label"][known:, 0] = -1
        sizes = []
        trainer = make_trainer(method=method, batches=batches, feature_batches=1)
        trainer.dependence.register_forward_pre_hook(lambda module, args: sizes.append({len(arg) for arg in args}))
        trainer.run()
        assert bool(torch.isfinite(trainer.state.output["loss"]))
        # Fewer than two samples have no dependence to speak of.
        assert sizes == ([{known}] * (3 if method == "mine" else 1) if known > 1 else [])
        if known < 2:
            assert trainer.state.output["mi"] == 0

    def test_lonely_classes_in_the_conditional_form(self):
        batches = make_batches(1, size=2)
        batches[0]["label"][:, 0] = torch.tensor([0, 1])
        dependence = BlockMutualInformation(WIDTH, factors=(0, 1), conditional=True)
        optimizer = torch.optim.Adam(dependence.parameters())
        trainer = make_trainer(batches=batches, dependence=dependence, dependence_optimizer=optimizer)
        trainer.run()
        assert trainer.state.output["mi"] == 0


class Turned(nn.Module):
    """A dependence term whose slopes come in another order in memory than what they are for."""

    factors = (0, 1)

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.arange(8.0).view(2, WIDTH) / 8)

    def forward(self, f_y, f_z, labels):
        return (f_y @ self.weight.t().contiguous()).tanh().mean(0)


def test_a_fused_optimizer_of_the_estimator_does_what_another_does():
    found = []
    for fused in (False, True):
        term = Turned()
        (slope,) = torch.autograd.grad(term(torch.ones(3, WIDTH), None, None).sum(), [term.weight])
        assert slope.stride() != term.weight.stride()
        optimizer = torch.optim.Adam(term.parameters(), lr=0.1, fused=fused)
        make_trainer(dependence=term, dependence_optimizer=optimizer, lambda_mi=0.0).run()
        found.append(term.weight.detach())
    torch.testing.assert_close(*found)


class PassThrough(nn.Module):
    """Feature blocks that are given as the image."""

    def __init__(self):
        super().__init__()
        self.heads = nn.Linear(WIDTH * len(NAMES), sum(CLASSES))
        self.caw = ConfounderAttentionWeighter(WIDTH)

    def forward(self, x, return_features=False):
        return self.heads(x.flatten(1)), x, self.caw(x[:, 0], x[:, 1:])


def test_weighter_moves_to_the_factor_that_leaks():
    generator = torch.Generator().manual_seed(0)
    batches = []
    for _ in range(40):
        f_y = torch.randn(64, WIDTH, generator=generator)
        noise = torch.randn(64, 2, WIDTH, generator=generator)
        features = torch.stack([f_y, noise[:, 0], f_y + 0.5 * noise[:, 1]], dim=1)  # f_z2 tells f_y, f_z1 does not
        batches.append({"image": features, "label": torch.zeros(64, 3, dtype=torch.long)})
    torch.manual_seed(0)
    network = PassThrough()
    dependence = BlockMutualInformation(WIDTH, factors=(0, 1))
    optimizer = torch.optim.Adam([*dependence.parameters(), *network.caw.parameters()], lr=3e-3)
    trainer = make_trainer(
        batches=batches,
        epochs=2,
        network=network,
        optimizer=torch.optim.Adam(network.heads.parameters()),
        dependence=dependence,
        dependence_optimizer=optimizer,
        weighter=network.caw,
        n_b=3,
    )
    seen = []
    trainer.add_event_handler(IterationEvents.MODEL_COMPLETED, lambda engine: seen.append(dict(engine.state.output)))
    trainer.run()
    assert seen[0]["attention_site"] < 0.6 and seen[-1]["attention_site"] > 0.8
    assert seen[-1]["mi_site"] > seen[-1]["mi_sex"] + 0.5
    last = seen[-1]
    expected = last["attention_sex"] * last["mi_sex"] + last["attention_site"] * last["mi_site"]
    torch.testing.assert_close(last["mi"], expected)


class TestAgainstSupervisedTrainer:
    @pytest.mark.parametrize(
        "options", [{"method": None}, {"lambda_mi": 0.0}, {"lambda_mi": 0.0, "method": "dcor"}, {"lambda_warmup": 9}]
    )
    def test_same_weights_without_the_term(self, options):
        trainer = make_trainer(epochs=1, max_grad_norm=None, **options)
        trainer.run()
        torch.manual_seed(0)
        network = make_network()
        supervised = SupervisedTrainer(
            device="cpu",
            max_epochs=1,
            train_data_loader=make_batches(),
            network=network,
            optimizer=torch.optim.Adam(network.parameters(), lr=1e-3),
            loss_function=MultiTaskCrossEntropy(CLASSES),
            decollate=False,
        )
        supervised.run()
        assert equal(weights(trainer.network), weights(network))
        assert trainer.state.output["loss"].item() == pytest.approx(supervised.state.output["loss"].item(), abs=1e-6)

    def test_with_the_term_they_differ(self):
        plain, penalised = make_trainer(method=None), make_trainer()
        plain.run()
        penalised.run()
        assert not equal(weights(plain.network), weights(penalised.network))


class TestMonaiOptions:
    def test_prepare_batch_of_four_values(self):
        seen = []

        class Network(nn.Module):
            def __init__(self):
                super().__init__()
                self.inner = make_network()

            def forward(self, x, shift, return_features=False, *, scale):
                seen.append((float(shift), scale))
                return self.inner(scale * x + shift, return_features=return_features)

        def prepare(batch, device=None, non_blocking=False, **kwargs):
            return batch["image"], batch["label"], (torch.tensor(2.0),), {"scale": 3.0}

        network = Network()
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        trainer = make_trainer(
            network=network, optimizer=optimizer, prepare_batch=prepare, feature_batches=0, batches=make_batches(1)
        )
        trainer.run()
        assert seen == [(2.0, 3.0)] * 3

    def test_inferer_and_iteration_update(self):
        called = []

        def inferer(inputs, network, *args, **kwargs):
            called.append(kwargs)
            return network(inputs, *args, **kwargs)

        make_trainer(inferer=inferer, batches=make_batches(1)).run()
        assert called == [{"return_features": True}]
        trainer = make_trainer(iteration_update=lambda engine, batch: called.append("mine"), batches=make_batches(1))
        trainer.run()
        assert called[-1] == "mine"

    @pytest.mark.parametrize("decollate", [False, True])
    def test_postprocessing_and_train_metric(self, decollate):
        # What post-processing makes of the output is what metrics and handlers see, as in MONAI's own trainers.
        trainer = make_trainer(
            decollate=decollate,
            postprocessing=Lambdad("pred", lambda pred: 0 * pred + 7),
            key_train_metric={"mean": Average(output_transform=lambda output: seen(output).mean())},
        )

        def seen(output):
            return torch.stack(from_engine("pred")(output)) if decollate else output["pred"]

        trainer.run()
        assert trainer.state.metrics["mean"] == pytest.approx(7.0)
        assert isinstance(trainer.state.output, list) is decollate

    @pytest.mark.parametrize("caw", [False, "features", "terms"])
    def test_autocast(self, caw):
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # MONAI's own, which a user could do nothing about
            warnings.simplefilter("error", FutureWarning)
            trainer = make_trainer(amp=True, amp_kwargs={"dtype": torch.bfloat16}, caw=caw, feature_batches=0)
            trainer.run()
        output = trainer.state.output
        assert output["pred"].dtype == torch.bfloat16 and output["mi"].dtype == torch.float32
        assert bool(torch.isfinite(output["loss"]))
        assert all(bool(torch.isfinite(p).all()) and p.dtype == torch.float32 for p in trainer.network.parameters())

    def test_a_batch_that_is_none(self):
        with pytest.raises(ValueError, match="Must provide batch data for current iteration"):
            make_trainer()._iteration(make_trainer(), None)


def losses_of(**options):
    """The loss of each of nine steps, and the trainer."""
    trainer = make_trainer(epochs=3, n_b=1, **options)
    seen = []
    event = IterationEvents.MODEL_COMPLETED
    trainer.add_event_handler(event, lambda engine: seen.append(engine.state.output["loss"].item()))
    trainer.run()
    return torch.tensor(seen), trainer


COMPILERS = os.environ.get("MIMMX_COMPILE", "").split()
"""Compilers to try beside one that generates no code, such as "inductor", which takes a minute and gcc."""


class TestSpeedSwitches:
    """What makes a training faster changes its losses by no more than is stated here, over nine steps."""

    def compare(self, tolerance, exact=False, **options):
        expected, plain = losses_of()
        losses, trainer = losses_of(**options)
        assert exact or not torch.equal(losses, expected)  # the switch does something
        torch.testing.assert_close(losses, expected, rtol=tolerance, atol=tolerance)
        assert trainer.network.state_dict().keys() == plain.network.state_dict().keys()
        return trainer

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_mixed_precision(self, dtype):
        self.compare(0.03, amp=True, amp_kwargs={"dtype": dtype})

    def test_mixed_precision_of_fresh_batches_only(self):
        options = {"feature_batches": 0, "lambda_warmup": 1}
        precise, _ = losses_of(**options)
        losses, trainer = losses_of(**options, amp_fresh=True, amp_kwargs={"dtype": torch.bfloat16})
        assert losses[:3].equal(precise[:3])  # the first epoch's weight of the estimate is 0
        assert not losses[3:].equal(precise[3:])
        torch.testing.assert_close(losses, precise, rtol=1e-3, atol=1e-3)
        assert trainer.state.output["pred"].dtype == torch.float32
        assert all(p.dtype == torch.float32 for p in trainer.network.parameters())
        # Kept features are of the training's own precision.
        assert losses_of(amp_fresh=True, amp_kwargs={"dtype": torch.bfloat16})[0].equal(losses_of()[0])

    def test_channels_last(self):
        torch.manual_seed(0)
        network = make_network().to(memory_format=torch.channels_last)
        assert all(p.is_contiguous(memory_format=torch.channels_last) for p in network.parameters() if p.ndim == 4)
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
        self.compare(1e-4, network=network, optimizer=optimizer)

    @pytest.mark.parametrize("compiler", [None, *COMPILERS])
    @pytest.mark.parametrize("conditional", [False, True])
    def test_compile_the_dependence(self, conditional, compiler):
        torch.compiler.reset()
        torch.manual_seed(0)
        term = BlockMutualInformation(4, factors=(0, 1), conditional=conditional)
        expected = copy.deepcopy(term)
        f_y, f_z, labels = torch.randn(30, 4), torch.randn(30, 2, 4), torch.randint(2, (30, 3))
        compiled = torch.compile(term, backend=compiler or "eager")
        for rows in (30, 29, 21):  # as where some samples miss y; no multiples of a register
            for call in (compiled, expected):
                torch.manual_seed(rows)
                call(f_y[:rows], f_z[:rows], labels[:rows]).sum().backward()
        for parameter, other in zip(term.parameters(), expected.parameters(), strict=True):
            torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("compiler", [None, *COMPILERS])
    def test_compile(self, tmp_path, compiler):
        torch.compiler.reset()
        graphs = []

        def keep(graph, inputs):
            graphs.append(graph)
            return graph.forward

        trainer = self.compare(1e-3, compiler is None, compile=True, compile_kwargs={"backend": compiler or keep})
        if compiler is None:
            # One, whole, of the network for all steps; of the estimator one where it learns and one where it is frozen.
            assert len(graphs) == 3
        assert isinstance(trainer.dependence, BlockMutualInformation)  # as it was given
        CheckpointSaver(str(tmp_path), {"model": trainer.network}, save_final=True).attach(trainer)
        trainer.state.max_epochs = 4
        trainer.run()
        (saved,) = tmp_path.glob("*.pt")
        network = make_network()
        network.load_state_dict(torch.load(saved, weights_only=True))  # as by a run that does not compile
        assert equal(weights(network), weights(trainer.network))


class TestSchedule:
    def test_lambda_rises_from_zero(self):
        trainer = make_trainer(epochs=5, lambda_mi=2.0, lambda_warmup=3, batches=make_batches(1))
        seen = []
        trainer.add_event_handler(
            IterationEvents.MODEL_COMPLETED, lambda engine: seen.append(engine.state.output["lambda"].item())
        )
        assert trainer.current_lambda() == 0
        trainer.run()
        assert seen == pytest.approx([0, 2 / 3, 4 / 3, 2, 2])

    def test_no_warmup(self):
        trainer = make_trainer(lambda_mi=0.7, lambda_warmup=0)
        trainer.run()
        assert trainer.state.output["lambda"].item() == pytest.approx(0.7)


class TestReproducibility:
    @pytest.mark.parametrize("feature_batches", [0, 2])
    def test_same_seed_same_bits(self, feature_batches):
        runs = []
        for seed in (0, 0, 1):
            trainer = make_trainer(caw="terms", epochs=2, seed=seed, feature_batches=feature_batches)
            trainer.run()
            runs.append(weights(trainer.network) + weights(trainer.dependence))
        assert equal(runs[0], runs[1]) and not equal(runs[0], runs[2])

    def test_checkpoint(self, tmp_path):
        def objects(trainer):
            return {
                "network": trainer.network,
                "optimizer": trainer.optimizer,
                "dependence": trainer.dependence,
                "dependence_optimizer": trainer.dependence_optimizer,
                "loss_scaling": trainer.loss_scaling,
                "trainer": trainer,
            }

        first = make_trainer(epochs=2, loss_scaling=DynamicLossScaling(0.3, 0.8, 0.5))
        first.loss_scaling.attach(first)
        CheckpointSaver(str(tmp_path), objects(first), save_final=True, final_filename="last.pt").attach(first)
        first.run()
        saved = copy.deepcopy(first.network.state_dict())

        second = make_trainer(epochs=4, seed=1, loss_scaling=DynamicLossScaling(0.3, 0.8, 0.5))
        CheckpointLoader(str(tmp_path / "last.pt"), objects(second)).attach(second)
        loaded = {}

        @second.on(IterationEvents.FORWARD_COMPLETED)
        def note(engine):
            if not loaded:
                loaded.update(epoch=engine.state.epoch, alpha=engine.loss_scaling.alpha_y)
                loaded["weights"] = weights(engine.network)
                loaded["dependence"] = weights(engine.dependence)

        second.run()
        assert loaded["epoch"] == 3 and second.state.epoch == 4
        assert loaded["alpha"] == pytest.approx(0.8)
        assert equal(loaded["weights"], [saved[name] for name, _ in first.network.named_parameters()])
        assert equal(loaded["dependence"], weights(first.dependence))


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"lambda_mi": -1.0}, "lambda_mi must be 0 or more, got -1.0"),
            ({"lambda_mi": float("nan")}, "lambda_mi must be 0 or more, got nan"),
            ({"n_b": 0}, "n_b, the estimator steps per encoder batch, must be 1 or more, got 0"),
            ({"lambda_warmup": -1}, "lambda_warmup must be 0 or more, got -1"),
            ({"feature_batches": -1}, "feature_batches must be 0 or more, got -1"),
            ({"attention_temperature": 0.0}, "attention_temperature must be above 0, got 0.0"),
            ({"accumulation_steps": 2}, "accumulation_steps must be 1: the estimator is trained between"),
            ({"dependence_optimizer": None}, "a dependence term with parameters needs dependence_optimizer"),
            ({"caw": "terms", "attend_features": True}, r"either the dependence terms \(weighter\) or the features"),
            ({"caw": "terms", "method": "joint"}, r"needs one term per factor \['sex', 'site'\], got \['sex\+site'\]"),
            ({"caw": "terms", "method": None}, "weighter weighs dependence terms, but dependence is None"),
            ({"caw": "terms", "method": "dcor"}, "weighter needs dependence_optimizer to train it"),
        ],
    )
    def test_options(self, options, message):
        with pytest.raises(ValueError, match=message):
            make_trainer(**options)

    def test_loss_function_of_one_value(self):
        trainer = make_trainer(loss_function=MultiTaskCrossEntropy(CLASSES))
        with pytest.raises(ValueError, match=r"one loss per task \(3,\).*reduction=\"none\".*got shape \(\)"):
            trainer.run()

    @pytest.mark.parametrize("method", ["mine", None])
    def test_loss_that_is_not_finite(self, method):
        batches = make_batches(2)
        batches[1]["image"][0, 0, 0, 0] = float("nan")
        trainer = make_trainer(batches=batches, epochs=3, method=method)
        before = []
        trainer.add_event_handler(IterationEvents.MODEL_COMPLETED, lambda: before.append(weights(trainer.network)))
        with pytest.raises(FloatingPointError, match="the loss is nan in epoch 1, iteration 2; training stops before"):
            trainer.run()
        assert len(before) == 1 and equal(before[0], weights(trainer.network))

    @pytest.mark.parametrize("scaled", [False, True])
    def test_gradient_that_is_not_finite(self, scaled):
        trainer = make_trainer(batches=make_batches(30), epochs=2)
        next(trainer.network.parameters()).register_hook(lambda slope: slope * float("nan"))
        if scaled:
            scaler = torch.amp.GradScaler("cpu")
            trainer.add_event_handler(Events.STARTED, lambda: setattr(trainer, "scaler", scaler))
        before = weights(trainer.network)
        told = (
            "gradient was not finite in 20 steps on end, the last in epoch 1, iteration 20" if scaled else "norm is nan"
        )
        with pytest.raises(FloatingPointError, match=told):
            trainer.run()
        assert equal(before, weights(trainer.network))

    def test_an_estimator_or_weighter_that_nothing_trains(self):
        network, mine = make_network("terms"), BlockMutualInformation(WIDTH, factors=(0, 1))
        given = {"network": network, "dependence": mine, "weighter": network.caw}
        for parts, name in (((mine,), "weighter"), ((network.caw,), "dependence")):
            optimizer = torch.optim.Adam([p for part in parts for p in part.parameters()])
            with pytest.raises(ValueError, match=f"must have the parameters of {name}: nothing else trains them"):
                make_trainer(caw="terms", **given, dependence_optimizer=optimizer)


def test_what_is_frozen_in_the_estimator_stays_frozen():
    trainer = make_trainer(batches=make_batches(3))
    frozen = next(trainer.dependence.parameters()).requires_grad_(False)
    before = frozen.clone()
    trainer.run()
    assert torch.equal(frozen, before) and not frozen.requires_grad


def train_in_process_group(rank, folder):
    """One of two processes: different batches, and different initial weights, which DDP and the trainer make equal."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    trainer = make_trainer(
        caw="terms", seed=rank, batches=make_batches(2, seed=rank), loss_scaling=DynamicLossScaling(), kind=InGroup
    )
    trainer.run()
    state = {"network": weights(trainer.network), "dependence": weights(trainer.dependence)}
    state["gamma"] = trainer.state.output["gamma_y"]
    state["mi"] = trainer.state.output["mi"]
    state["next draw"] = torch.rand(1)
    torch.save(state, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


class InGroup(MIMMXTrainer):
    """The trainer with its network wrapped for two processes."""

    def __init__(self, *, network, **options):
        wrapped = nn.parallel.DistributedDataParallel(network, static_graph=True)
        super().__init__(network=wrapped, **options)


@pytest.mark.skipif(not dist.is_available(), reason="PyTorch was built without torch.distributed")
def test_two_processes_keep_the_same_weights(tmp_path):
    torch.multiprocessing.start_processes(train_in_process_group, (str(tmp_path),), 2, start_method="forkserver")
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert equal(first["network"], second["network"]) and equal(first["dependence"], second["dependence"])
    assert torch.equal(first["gamma"], second["gamma"]) and torch.equal(first["mi"], second["mi"])
    assert first["next draw"] != second["next draw"]  # only what the estimator draws is common
    alone = make_trainer(caw="terms", batches=make_batches(2), loss_scaling=DynamicLossScaling())
    alone.run()
    assert not equal(first["network"], weights(alone.network))
    assert not equal(first["dependence"], weights(alone.dependence))


class Blocks(nn.Module):
    """A network without batch normalization, whose features depend on one image only."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 12)
        self.head = nn.Linear(12, 6)

    def forward(self, x, return_features=False):
        features = torch.tanh(self.layer(x.flatten(1)[:, :4])).view(-1, 3, 4)
        logits = self.head(features.flatten(1))
        return (logits, features, features.new_full((len(x), 2), 0.5)) if return_features else logits


def train_blocks(batches, *, wrap, rate=0.0, epochs=1):
    """What a training ends with that uses all product pairs, and the latest batch only, so that nothing is drawn."""
    torch.manual_seed(0)
    network = Blocks().double()
    dependence = BlockMutualInformation(4, factors=(0, 1), negatives=99).double()
    optimizer = torch.optim.SGD(dependence.parameters(), lr=0.1)
    wrapped = nn.parallel.DistributedDataParallel(network) if wrap else network
    trainer = MIMMXTrainer(
        "cpu",
        epochs,
        batches,
        wrapped,
        torch.optim.SGD(network.parameters(), lr=rate),
        MultiTaskCrossEntropy((2, 2, 2), reduction="none"),
        task_names=("y", "a", "b"),
        dependence=dependence,
        dependence_optimizer=optimizer,
        loss_scaling=DynamicLossScaling(0.3, 0.8) if rate else None,
        lambda_mi=5.0 if not rate else 0.5,
        lambda_warmup=0,
        feature_batches=1,
        max_grad_norm=None,
        decollate=False,
    )
    trainer.run()
    return {
        "gradients": [p.grad.clone() for p in network.parameters()],
        "network": weights(network),
        "dependence": weights(dependence),
        "mi": trainer.state.output["mi"],
    }


def joint_batches(count=1):
    generator = torch.Generator().manual_seed(3)
    batches = []
    for _ in range(count):
        image = torch.randn(16, 1, 2, 2, generator=generator, dtype=torch.float64)
        batches.append({"image": image, "label": torch.randint(2, (16, 3), generator=generator)})
    return batches


TRAININGS = {"step": {"count": 1}, "training": {"count": 4, "rate": 0.1, "epochs": 4}}


def steps_in_process_group(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    for name, options in TRAININGS.items():
        batches = joint_batches(options["count"])
        halves = [{key: value[8 * rank : 8 * rank + 8] for key, value in batch.items()} for batch in batches]
        more = {key: value for key, value in options.items() if key != "count"}
        torch.save(train_blocks(halves, wrap=True, **more), f"{folder}/{name}{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_available(), reason="PyTorch was built without torch.distributed")
def test_two_processes_train_as_one_does_on_the_joint_batch(tmp_path):
    """
    The gradients of a step agree to 1e-5, and so do weights, estimator and MI after 16 steps with Dynamic Loss Scaling,
    whose factors follow from the losses averaged over the processes.

    In double precision: in single precision a rounding can put a sample beyond a kink of the estimator's network, where
    its slopes are others.
    """
    torch.multiprocessing.start_processes(steps_in_process_group, (str(tmp_path),), 2, start_method="forkserver")
    for name, options in TRAININGS.items():
        more = {key: value for key, value in options.items() if key != "count"}
        alone = train_blocks(joint_batches(options["count"]), wrap=False, **more)
        for rank in (0, 1):
            together = torch.load(tmp_path / f"{name}{rank}.pt")
            for key, expected in alone.items():
                where = f"{key} of process {rank} after the {name}: "
                torch.testing.assert_close(
                    together[key], expected, rtol=1e-5, atol=1e-7, msg=lambda told, where=where: where + told
                )


def test_is_a_supervised_trainer():
    assert isinstance(make_trainer(), SupervisedTrainer) and isinstance(make_trainer(), Engine)


@pytest.mark.parametrize("loader", [iter(make_batches()), "persistent"])
def test_fresh_batches_need_a_loader_to_iterate_twice(loader):
    if loader == "persistent":
        data = [{"image": torch.zeros(1, 16, 16), "label": torch.zeros(3)}] * 4
        loader = torch.utils.data.DataLoader(data, num_workers=1, persistent_workers=True)
    with pytest.raises(ValueError, match="feature_batches=0 needs a train_data_loader that can be iterated twice"):
        make_trainer(batches=loader, feature_batches=0)
    make_trainer(batches=loader)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_weighter_has_the_network_s_type(dtype):
    batches = [{**batch, "image": batch["image"].to(dtype)} for batch in make_batches()]
    trainer = make_trainer(caw="terms", batches=batches)
    trainer.network.to(dtype)
    before = weights(trainer.network)
    trainer.run()
    assert not equal(before, weights(trainer.network))
    assert float(trainer.state.output["attention_sex"] + trainer.state.output["attention_site"]) == pytest.approx(1)


@pytest.mark.parametrize(("terms", "shape"), [(torch.tensor(0.5), r"\(\)"), (torch.ones(3), r"\(3,\)")])
def test_a_dependence_term_of_another_shape_is_refused(terms, shape):
    class Own(nn.Module):
        def forward(self, f_y, f_z, labels):
            return terms

    trainer = make_trainer(dependence=Own(), dependence_optimizer=None)
    with pytest.raises(ValueError, match=rf"one term for each of \['sex', 'site'\], shape \(2,\), got shape {shape}"):
        trainer.run()


def test_a_dependence_of_more_factors_than_named_is_refused():
    dependence = BlockMutualInformation(WIDTH, factors=(0, 2))
    with pytest.raises(ValueError, match=r"factors among the 2 of task_names, \['sex', 'site'\], got the factor 2"):
        make_trainer(dependence=dependence, dependence_optimizer=torch.optim.Adam(dependence.parameters()))


def test_the_terms_of_uniform_weights_are_averaged():
    trainer = make_trainer(lambda_mi=0.7, loss_function=no_loss)
    trainer.run()
    output = trainer.state.output
    mean = (output["mi_sex"] + output["mi_site"]) / 2
    torch.testing.assert_close(output["mi"], mean)
    torch.testing.assert_close(output["loss"], 0.7 * mean)


@pytest.mark.parametrize("feature_batches", [0, 1])
def test_a_batch_of_one_is_told_what_to_do(feature_batches):
    trainer = make_trainer(batches=[*make_batches(1), *make_batches(1, size=1)], feature_batches=feature_batches)
    with pytest.raises(ValueError, match="got a batch of one: give train_data_loader drop_last=True"):
        trainer.run()


def test_a_batch_that_is_not_finite_leaves_the_estimator_as_it_was():
    batches = make_batches(1)
    batches[0]["image"][3] = float("nan")
    trainer = make_trainer(batches=batches)
    before = weights(trainer.dependence)
    with pytest.raises(FloatingPointError, match="the loss is nan in epoch 1, iteration 1"):
        trainer.run()
    assert equal(before, weights(trainer.dependence))


def test_the_gradient_scaler_is_restored_before_and_while_it_runs(monkeypatch):
    scales = []

    class Scaler(torch.amp.GradScaler):
        def __init__(self):
            super().__init__("cpu", init_scale=1024.0)

    monkeypatch.setattr("monai.engines.trainer.torch.cuda.amp.GradScaler", Scaler)
    trainer = make_trainer(amp=True, epochs=2)
    trainer.add_event_handler(Events.STARTED, lambda engine: scales.append(engine.scaler.get_scale()))
    state = {**trainer.state_dict(), "iteration": 0, "epoch_length": 3, "max_epochs": 2}
    state["scaler"] = {**Scaler().state_dict(), "scale": 4096.0}
    trainer.load_state_dict(state)
    trainer.run()
    assert scales == [4096.0]


@pytest.mark.parametrize("method", ["mine", "dcor", None])
@pytest.mark.parametrize("feature_batches", [0, 1])
def test_images_and_labels_with_meta_data_train_and_are_saved_as_those_without(method, feature_batches, tmp_path):
    """MONAI's own transforms give them; what is saved must load with ``weights_only=True``."""
    dressed = [{key: MetaTensor(value, meta={"row": 1}) for key, value in batch.items()} for batch in make_batches()]
    options = {"method": method, "feature_batches": feature_batches}
    if method is None:
        options["loss_function"] = GroupDROCrossEntropy(CLASSES)
    plain = make_trainer(**options)
    plain.run()
    if method is None:
        options["loss_function"] = GroupDROCrossEntropy(CLASSES)
    trainer = make_trainer(batches=dressed, **options)
    trainer.run()
    assert equal(weights(trainer.network), weights(plain.network))
    assert isinstance(trainer.state.output["image"], MetaTensor)  # for handlers of the user's
    loss = trainer.loss_function.state_dict() if method is None else {}
    torch.save({"trainer": trainer.state_dict(), "loss": loss}, tmp_path / "state.pt")
    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    assert not any(isinstance(part, MetaTensor) for parts in saved["trainer"]["features"] for part in parts)
