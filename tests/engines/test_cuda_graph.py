# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
import copy

import pytest
import torch
from ignite.engine import Events

from monai_mimmx.engines import GraphedStep, MIMMXTrainer
from monai_mimmx.losses import BlockMutualInformation, MultiTaskCrossEntropy
from monai_mimmx.networks import FourConvEncoder, MIMMXNet

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


class Recorded(GraphedStep):
    """Tells what it does instead of recording."""

    def __init__(self, told, optimizer):
        super().__init__(lambda *inputs, **options: told.append("step"), optimizer)
        self.told = told

    def _record(self, inputs, options):
        self.told.append("record")
        self._inputs = tuple(value.clone() for value in inputs)
        self._graph = self

    def replay(self):
        self.told.append("replay")


def steps(graphed, count=120, size=3, **options):
    del graphed.told[:]
    for _ in range(count):
        graphed(torch.zeros(size), **options)
    return {kind: graphed.told.count(kind) for kind in ("step", "record", "replay")}


def optimizer_of(*parameters, **options):
    return torch.optim.Adam([*parameters], lr=0.1, fused=True, **options)


ANEW = {"step": 12, "record": 1, "replay": 108}
REPLAYED = {"step": 0, "record": 0, "replay": 120}


def test_is_recorded_after_a_dozen_steps_and_anew_when_something_has_changed():
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = optimizer_of(parameter)
    graphed = Recorded([], optimizer)
    assert steps(graphed) == ANEW
    assert steps(graphed) == REPLAYED
    assert steps(graphed, size=4) == ANEW
    assert steps(graphed, size=4, count_of="all") == ANEW
    optimizer.param_groups[0]["lr"] = 0.2
    assert steps(graphed, size=4, count_of="all") == ANEW
    before = parameter.data
    parameter.data = torch.ones_like(before)
    assert steps(graphed, size=4, count_of="all") == ANEW
    parameter.grad = torch.ones(2)
    optimizer.step()  # has a state now
    assert steps(graphed, size=4, count_of="all") == ANEW
    kept = optimizer.state_dict()
    optimizer.load_state_dict(copy.deepcopy(kept))
    assert steps(graphed, size=4, count_of="all") == ANEW
    parameter.requires_grad_(False)
    assert steps(graphed, size=4, count_of="all") == ANEW
    assert steps(graphed, size=4, count_of="all") == REPLAYED


def test_what_changes_at_every_batch_is_not_recorded():
    optimizer = optimizer_of(torch.nn.Parameter(torch.ones(2)))
    graphed = Recorded([], optimizer)
    for _ in range(10):
        optimizer.param_groups[0]["lr"] *= 0.9
        assert steps(graphed, count=6) == {"step": 6, "record": 0, "replay": 0}
    recorded = 0
    for _ in range(10):
        optimizer.param_groups[0]["lr"] *= 0.9
        recorded += steps(graphed, count=15)["record"]
    assert recorded == 1 and optimizer.state_dict()["state"] == {}
    for _ in range(10):  # at every epoch it pays
        optimizer.param_groups[0]["lr"] *= 0.9
        assert steps(graphed, count=150)["record"] == 1


def test_a_state_of_an_optimizer_that_counts_elsewhere_is_told():
    parameter = torch.nn.Parameter(torch.ones(2))
    graphed = Recorded([], optimizer_of(parameter))
    plain = torch.optim.Adam([parameter], lr=0.1).state_dict()
    graphed._optimizer.load_state_dict(plain)
    with pytest.raises(ValueError, match="must be capturable"):
        graphed(torch.zeros(2))


def test_its_inputs_are_those_of_the_call():
    graphed = Recorded([], optimizer_of(torch.nn.Parameter(torch.ones(2))))
    for value in range(20):
        graphed(torch.full((2,), value))
    assert graphed._inputs[0].tolist() == [19, 19]


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
def test_an_optimizer_that_counts_its_steps_elsewhere_is_refused(kind):
    with pytest.raises(ValueError, match=r"must be capturable.* or set cuda_graph to False, got (SGD|Adam)"):
        GraphedStep(print, kind([torch.nn.Parameter(torch.ones(2))], lr=0.1))


@on_gpu
def test_a_graph_does_what_its_step_does():
    found = []
    for make in (lambda step, optimizer: step, GraphedStep):
        weight = torch.nn.Parameter(torch.ones(50, device="cuda"))
        optimizer = optimizer_of(weight)
        torch.manual_seed(0)

        def step(target, power, weight=weight, optimizer=optimizer):
            loss = (weight[torch.randperm(50, device="cuda")] - target).abs().pow(power).sum()
            (weight.grad,) = torch.autograd.grad(loss, [weight])
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        taken = make(step, optimizer)
        for turn in range(80):  # 12 steps before one is recorded, and 24 where the last record served few
            taken(torch.arange(50.0, device="cuda") + turn, power=2 if turn < 40 else 3)
        assert not optimizer.param_groups[0]["capturable"]
        found.append((weight.detach(), torch.rand(3, device="cuda")))
    assert taken._graph is not None
    for graphed, plain in zip(found[1], found[0], strict=True):
        assert torch.equal(graphed, plain)


def train(
    cuda_graph,
    *,
    caw=False,
    estimator="per_factor",
    missing=False,
    schedule=False,
    negatives=4,
    conditional=False,
    **options,
):
    torch.manual_seed(0)
    labels = torch.randint(2, (8, 24, 3))
    images = torch.randn(8, 24, 1, 32, 32) + labels[..., :1, None, None]
    if missing:
        labels[3, 5, 0] = -1
    encoder = FourConvEncoder(2, 1, channels=(8, 8, 8, 8), grid=2)
    network = MIMMXNet(num_classes=(2, 2, 2), feature_dim=4, encoder=encoder, caw=caw).cuda()
    dependence = BlockMutualInformation(
        4, factors=(0, 1), estimator=estimator, negatives=negatives, conditional=conditional
    ).cuda()
    weighter = network.caw if caw == "terms" else None
    trained = [*dependence.parameters(), *(weighter.parameters() if weighter else [])]
    trainer = MIMMXTrainer(
        "cuda",
        4,
        [{"image": image, "label": label} for image, label in zip(images, labels, strict=True)],
        network,
        torch.optim.Adam(network.parameters(), lr=1e-3),
        MultiTaskCrossEntropy((2, 2, 2), reduction="none"),
        task_names=("y", "sex", "site"),
        dependence=dependence,
        dependence_optimizer=torch.optim.Adam(trained, lr=2e-3, fused=True),
        weighter=weighter,
        attend_features=caw == "features",
        lambda_warmup=0,
        decollate=False,
        cuda_graph=cuda_graph,
        **options,
    )
    if schedule:
        scheduler = torch.optim.lr_scheduler.StepLR(trainer.dependence_optimizer, 2, 0.5)
        trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: scheduler.step())
    terms = []
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: terms.append(engine.state.output["mi"]))
    trainer.run()
    assert (trainer._graphed is not None and trainer._graphed._graph is not None) is cuda_graph
    return [
        torch.stack(terms),
        torch.rand(3, device="cuda"),
        *(part.clone() for module in (network, dependence) for part in module.state_dict().values()),
    ]


@on_gpu
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"caw": "terms"},
        {"caw": "features", "estimator": "joint"},
        {"conditional": True},
        {"conditional": True, "feature_batches": 0, "negatives": 30},
        {"detach_z": False, "negatives": 23},
        {"feature_batches": 0},
        {"missing": True},
        {"schedule": True},
        {"amp": True, "amp_kwargs": {"dtype": torch.bfloat16}},
    ],
    ids=str,
)
def test_training_with_a_graph_gives_the_same(options, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    plain, graphed = train(False, **options), train(True, **options)
    for value, expected in zip(graphed, plain, strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5, equal_nan=True)  # an average not used


def test_a_processor_records_nothing():
    dependence = BlockMutualInformation(4, factors=(0,))
    network = MIMMXNet(num_classes=(2, 2), feature_dim=4)
    trainer = MIMMXTrainer(
        "cpu",
        1,
        [],
        network,
        torch.optim.Adam(network.parameters()),
        MultiTaskCrossEntropy((2, 2), reduction="none"),
        task_names=("y", "sex"),
        dependence=dependence,
        dependence_optimizer=torch.optim.Adam(dependence.parameters()),
        cuda_graph=True,
    )
    assert trainer._graphed is None
