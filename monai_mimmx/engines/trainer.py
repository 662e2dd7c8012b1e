# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""The trainer of MIMM-X: encoder steps against a dependence estimate that is itself trained in between."""

from __future__ import annotations

import functools
import math
import os
import platform
import shutil
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import ignite.distributed as idist
import torch
import torch.distributed as dist
from ignite.engine import Events
from monai.data import MetaTensor
from monai.engines import SupervisedTrainer
from monai.engines.utils import IterationEvents
from monai.utils.enums import CommonKeys as Keys
from torch import Tensor, nn
from torch.optim import Optimizer

from monai_mimmx.engines.cuda_graph import GraphedStep
from monai_mimmx.options import require_options

__all__ = ["MIMMXTrainer"]

_MAX_SKIPPED = 20
"""Steps on end that a gradient scaler may skip; from its first scale, 65,536, it finds a fitting one in fewer."""


class _Gather(torch.autograd.Function):
    """The rows of all processes, in the order of their ranks; backward, the slopes of the rows of this one."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> Tensor:
        # Every process computes the same from the joint rows, hence knows the slopes of its own; the mean that
        # DistributedDataParallel takes of what the processes have is then the gradient of one joint batch.
        processes = dist.get_world_size()
        return slopes[0].chunk(processes)[dist.get_rank()] * processes


def _gather(*parts: Tensor) -> tuple[Tensor, ...]:
    """Each part with the rows of all processes, by one message: many small ones would cost more than the estimator."""
    if idist.get_world_size() == 1:
        return parts
    dtype = functools.reduce(torch.promote_types, (part.dtype for part in parts), torch.float32)
    flat = [part.flatten(1).to(dtype) for part in parts]
    joint: Tensor = _Gather.apply(torch.cat(flat, 1))
    columns = joint.split([part.shape[1] for part in flat], 1)
    return tuple(
        column.reshape(-1, *part.shape[1:]).to(dtype if part.is_floating_point() else part.dtype)
        for column, part in zip(columns, parts, strict=True)
    )


def _laid_out_as(parameter: Tensor, slope: Tensor | None) -> Tensor | None:
    """The slope with the parameter's order in memory, which fused optimizers take for granted, or refuse to do without."""
    if slope is None or slope.stride() == parameter.stride():
        return slope
    return torch.empty_like(parameter, requires_grad=False).copy_(slope)


def _plain(value: Any) -> Any:
    """Without MONAI's meta data, which every operation would carry on, into the checkpoints too."""
    return value.as_tensor() if isinstance(value, MetaTensor) else value


def _all_known(labels: Tensor) -> bool:
    """Whether no sample misses its primary label; a GPU is waited for."""
    return bool((labels[:, 0] >= 0).all())


def _require_compiler(device: str | torch.device, backend: Any) -> None:
    """Tell at once what PyTorch would tell at the first step on a processor, after the data have been read."""
    compiler = os.environ.get("CXX") or {"Darwin": "clang++", "Windows": "cl"}.get(platform.system(), "g++")
    if backend == "inductor" and torch.device(device).type == "cpu" and not shutil.which(compiler):
        raise ValueError(
            f"compile must be False without a C++ compiler: install {compiler}, or name another in the environment variable "
            "CXX, got True."
        )


def _require_iterable_twice(loader: Iterable) -> None:
    """Fresh batches come from a second iterator over the loader of the encoder's."""
    if isinstance(loader, Iterator) or getattr(loader, "persistent_workers", False):
        raise ValueError(
            "feature_batches=0 needs a train_data_loader that can be iterated twice at once, for encoder steps and "
            "estimator steps: give it a DataLoader with persistent_workers=False, or feature_batches of 1 or more."
        )


def _require_trained(
    dependence: nn.Module | None, optimizer: Optimizer | None, weighter: nn.Module | None, attend_features: bool
) -> None:
    """The dependence term and the weighter fit each other, and something trains them."""
    if _has_parameters(dependence) and optimizer is None:
        raise ValueError("a dependence term with parameters needs dependence_optimizer to train them.")
    if weighter is not None and attend_features:
        raise ValueError("attention weighs either the dependence terms (weighter) or the features, not both.")
    if weighter is not None and dependence is None:
        raise ValueError("weighter weighs dependence terms, but dependence is None; leave weighter out.")
    if weighter is not None and optimizer is None:
        raise ValueError("weighter needs dependence_optimizer to train it, next to a dependence term with parameters.")
    if optimizer is None:
        return
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for name, part in (("dependence", dependence), ("weighter", weighter)):
        if part is not None and any(p.requires_grad and id(p) not in held for p in part.parameters()):
            raise ValueError(f"dependence_optimizer must have the parameters of {name}: nothing else trains them.")


def _has_parameters(module: nn.Module | None) -> bool:
    return module is not None and any(True for _ in module.parameters())


class MIMMXTrainer(SupervisedTrainer):
    r"""
    A :class:`~monai.engines.SupervisedTrainer` that minimises

    .. math:: \gamma_0 L_0 + \sum_i \gamma_i L_i + \lambda \sum_i w_i \, I(f_y; f_{z_i})

    For every encoder batch: one forward pass; ``n_b`` ascent steps of the estimator on detached features; then one
    descent step of the network with the estimator frozen. The weights w_i are the batch means of the Confounder
    Attention Weighter (``weighter``) or uniform, and sum to 1; they are constants in the descent.

    The weighter in its "terms" reading must not win by looking away from the factor that leaks: it is trained with
    the estimator, to MAXIMISE sum_i w_i I_i plus ``attention_temperature`` times the entropy of its weights, which
    draws it to the factors with the highest estimate.

    In a process group wrap only the network in DistributedDataParallel. The dependence is estimated on the features of
    all processes together, whose batches must be equal in size, and its gradient is that of the joint batch. Every
    process trains the dependence term and the weighter on the joint features by the same draws, so that they stay equal
    without a message of their own; each epoch starts from those of the first process. With a weighter that is part of
    the network, DistributedDataParallel needs ``static_graph=True`` or ``find_unused_parameters=True``. Batch
    normalization sees one process's batch only, unless it is converted to :class:`torch.nn.SyncBatchNorm`.

    Args:
        device: where to train.
        max_epochs: number of epochs.
        train_data_loader: batches for ``prepare_batch``, of two samples or more (``drop_last=True`` for an odd rest).
        network: called through the inferer as ``network(image, return_features=True)``, giving logits, features
            `(B, 1 + N, D)` and attention `(B, N)`, such as :class:`~monai_mimmx.networks.MIMMXNet`.
        optimizer: of the network.
        loss_function: logits and labels to the tasks' losses `(1 + N,)`, such as
            :class:`~monai_mimmx.losses.MultiTaskCrossEntropy` with ``reduction="none"``.
        task_names: keys of the outputs (``loss_<name>`` ..), the primary task first.
        loss_scaling: the tasks' losses to their factors gamma, such as
            :class:`~monai_mimmx.handlers.DynamicLossScaling`; ``None`` for 1.
        dependence: f_y, f_z and labels to dependence terms, such as :class:`~monai_mimmx.losses.BlockMutualInformation`;
            ``None`` for none.
        dependence_optimizer: of the dependence term's parameters (and the weighter's, if given); ``None`` when it has
            none.
        weighter: f_y and f_z to weights `(B, N)` over the dependence terms; ``None`` for uniform ones.
        attend_features: the network multiplies f_z by its attention ("features" reading): the estimator sees f_z so
            weighted too, with the attention as a constant.
        lambda_mi: weight of the dependence term, 0 or more.
        lambda_warmup: epochs over which ``lambda_mi`` rises linearly from 0.
        n_b: estimator steps per encoder batch, 1 or more.
        feature_batches: estimator steps draw on the detached features of this many latest batches, and need no
            encoder pass. 0: each estimator step encodes a fresh batch, as the method is written in the literature.
        amp_fresh: the passes over fresh batches are in mixed precision, as ``amp_kwargs`` say, even without ``amp``: they
            need no gradient, and only train the estimator.
        detach_z: only f_y pays for the dependence; otherwise its gradient reaches f_z too.
        attention_temperature: weight of the entropy in the weighter's objective, in nats, above 0.
        max_grad_norm: the network's gradient norm is clipped to this; ``None`` for no clipping.
        cuda_graph: on a GPU estimator steps are recorded and replayed, with the same result (see
            :class:`~monai_mimmx.engines.GraphedStep`), where ``dependence.capturable``, as
            :class:`~monai_mimmx.losses.BlockMutualInformation` is, no primary label is missing, and there is no process group.
        kwargs: the other arguments of :class:`~monai.engines.SupervisedTrainer`; ``accumulation_steps`` must stay 1. With
            ``compile`` the network and a dependence term with parameters are called compiled; ``trainer.network`` and
            ``trainer.dependence`` stay as they were given, so that what is saved has the same names and evaluation needs
            no compiler.

    The output of an iteration holds image, label, pred and, as scalars, loss, ``loss_<task>``, ``gamma_<task>``, and
    with a dependence term ``mi`` (the weighted sum), ``mi_<factor>`` per term, ``lambda`` and ``attention_<factor>``.

    Raises:
        ValueError: for options out of range or that contradict each other, or a missing compiler.
        FloatingPointError: in training, when the loss or its gradient is not finite; the step is not taken.

    Example:
        >>> from monai_mimmx.losses import BlockMutualInformation, MultiTaskCrossEntropy
        >>> from monai_mimmx.networks import MIMMXNet
        >>> network = MIMMXNet(num_classes=(2, 2), feature_dim=8)
        >>> dependence = BlockMutualInformation(8, factors=(0,))
        >>> trainer = MIMMXTrainer(
        ...     "cpu",
        ...     max_epochs=1,
        ...     train_data_loader=[{"image": torch.randn(8, 1, 28, 28), "label": torch.randint(2, (8, 2))}],
        ...     network=network,
        ...     optimizer=torch.optim.Adam(network.parameters(), lr=3e-4),
        ...     loss_function=MultiTaskCrossEntropy((2, 2), reduction="none"),
        ...     task_names=("y", "sex"),
        ...     dependence=dependence,
        ...     dependence_optimizer=torch.optim.Adam(dependence.parameters(), lr=2e-3),
        ...     decollate=False,
        ... )
        >>> trainer.run()
        >>> "mi_sex" in trainer.state.output
        True

    Reference:
        Fay et al., MIMM-X: Disentangling Spurious Correlations for Medical Image Analysis, 2025.
    """

    def __init__(
        self,
        device: str | torch.device,
        max_epochs: int,
        train_data_loader: Iterable,
        network: nn.Module,
        optimizer: Optimizer,
        loss_function: Callable[[Tensor, Tensor], Tensor],
        *,
        task_names: Sequence[str],
        loss_scaling: Callable[[Tensor], Tensor] | None = None,
        dependence: nn.Module | None = None,
        dependence_optimizer: Optimizer | None = None,
        weighter: nn.Module | None = None,
        attend_features: bool = False,
        lambda_mi: float = 1.0,
        lambda_warmup: int = 5,
        n_b: int = 6,
        feature_batches: int = 2,
        amp_fresh: bool = False,
        detach_z: bool = True,
        attention_temperature: float = 0.5,
        max_grad_norm: float | None = 1.0,
        cuda_graph: bool = False,
        **kwargs: Any,
    ) -> None:
        require_options(lambda_mi=lambda_mi, n_b=n_b, lambda_warmup=lambda_warmup, feature_batches=feature_batches)
        if attention_temperature <= 0:
            raise ValueError(f"attention_temperature must be above 0, got {attention_temperature}.")
        if kwargs.get("accumulation_steps", 1) != 1:
            raise ValueError("accumulation_steps must be 1: the estimator is trained between encoder steps.")
        compile_kwargs = kwargs.get("compile_kwargs") or {}
        if kwargs.get("compile"):
            _require_compiler(device, compile_kwargs.get("backend", "inductor"))
        if feature_batches == 0:
            _require_iterable_twice(train_data_loader)
        _require_trained(dependence, dependence_optimizer, weighter, attend_features)
        self.task_names = tuple(task_names)
        factors = self.task_names[1:]
        if dependence is not None:
            groups = getattr(dependence, "groups", [(i,) for i in getattr(dependence, "factors", range(len(factors)))])
            if (last := max((i for group in groups for i in group), default=0)) >= len(factors):
                raise ValueError(
                    f"dependence must have factors among the {len(factors)} of task_names, {list(factors)}, got the factor "
                    f"{last} (0 is the first)."
                )
            self.term_names = tuple("+".join(factors[i] for i in group) for group in groups)
            if weighter is not None and self.term_names != factors:
                raise ValueError(
                    f"attention over the dependence terms needs one term per factor {list(factors)}, got "
                    f"{list(self.term_names)}; use estimator 'per_factor', or caw 'features' or false."
                )
        else:
            self.term_names = ()
        self.loss_scaling = loss_scaling
        self.dependence, self.dependence_optimizer = dependence, dependence_optimizer
        self.weighter, self.attend_features = weighter, attend_features
        self.lambda_mi, self.lambda_warmup, self.n_b = lambda_mi, lambda_warmup, n_b
        self.detach_z, self.attention_temperature, self.max_grad_norm = detach_z, attention_temperature, max_grad_norm
        self.feature_batches, self.amp_fresh = feature_batches, amp_fresh
        self._skipped = 0
        self._scaler_state: Mapping[str, Any] = {}
        self._features: deque[tuple[Tensor, Tensor, Tensor]] = deque(maxlen=max(feature_batches, 1))
        self._fresh_batches: Iterator | None = None
        with warnings.catch_warnings():  # MONAI makes the gradient scaler of CUDA on every device
            warnings.filterwarnings("ignore", message=".*GradScaler")
            super().__init__(device, max_epochs, train_data_loader, network, optimizer, loss_function, **kwargs)
        # MONAI puts the compiled network in the place of the other; its state has other names, which no other run could
        # load. Both share their weights.
        self._called_network, self.network = self.network, network
        self._called_dependence: Any = dependence
        if self.compile and _has_parameters(dependence):
            # Its steps are many and small: on a GPU it takes longer to start their operations than to compute them.
            self._called_dependence = torch.compile(dependence, **compile_kwargs)
        self._graphed = None
        capturable = getattr(dependence, "capturable", False) and dependence_optimizer is not None
        if cuda_graph and capturable and self.state.device.type == "cuda" and idist.backend() is None:
            self._graphed = GraphedStep(self._ascend, dependence_optimizer)  # type: ignore[arg-type]
        # Before handlers that load a checkpoint at the start, whose state counts.
        self.add_event_handler(Events.STARTED, self._load_scaler)
        # An iterator that outlived its epoch could not be restored when a training is resumed.
        self.add_event_handler(Events.EPOCH_STARTED, lambda: setattr(self, "_fresh_batches", None))
        if idist.get_world_size() > 1:
            seed = torch.tensor(torch.initial_seed() % 2**32, device=self.state.device)
            dist.broadcast(seed, src=0)
            self._seed = int(seed)
            self.add_event_handler(Events.EPOCH_STARTED, self._start_alike)

    def run(self) -> None:  # type: ignore[override]
        """Train for the epochs that remain."""
        with warnings.catch_warnings():  # here MONAI makes it anew
            warnings.filterwarnings("ignore", message=".*GradScaler")
            super().run()

    def state_dict(self) -> Mapping[str, Any]:  # type: ignore[override]
        """The engine's state, with what is kept from one iteration to the next: latest features, gradient scale."""
        scaler = None if self.scaler is None else self.scaler.state_dict()
        return {**super().state_dict(), "features": list(self._features), "scaler": scaler}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave."""
        super().load_state_dict({k: v for k, v in state_dict.items() if k not in ("features", "scaler")})
        self._features.clear()
        for parts in state_dict["features"]:
            self._features.append(tuple(part.to(self.state.device) for part in parts))
        self._scaler_state = state_dict["scaler"] or {}
        self._load_scaler()

    def _load_scaler(self) -> None:
        """Restore the gradient scaler, which is there once the training runs."""
        if self.scaler is not None and self._scaler_state:
            self.scaler.load_state_dict(dict(self._scaler_state))
            self._scaler_state = {}

    def current_lambda(self) -> float:
        """The weight of the dependence term in the current epoch."""
        if self.lambda_warmup == 0:
            return self.lambda_mi
        return self.lambda_mi * min(1.0, max(0, self.state.epoch - 1) / self.lambda_warmup)

    @torch.no_grad()
    def _start_alike(self) -> None:
        """The dependence term and the weighter of the first process, in every process."""
        parts = [part for part in (self.dependence, self.weighter) if part is not None]
        for tensor in (tensor for part in parts for tensor in part.state_dict().values()):
            dist.broadcast(tensor, src=0)

    @contextmanager
    def _same_draws(self, index: int) -> Iterator[None]:
        """What is drawn inside is the same in all processes: the ``index``-th draws of this iteration."""
        if idist.get_world_size() == 1:
            yield
            return
        device, draws = torch.device(self.state.device), torch.default_generator
        if device.type == "cuda":
            draws = torch.cuda.default_generators[torch.cuda.current_device() if device.index is None else device.index]
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            # torch.manual_seed would turn to every device, which costs more than an estimator step.
            draws.manual_seed(self._seed + (self.n_b + 1) * self.state.iteration + index)
            yield

    def _blocks(self, features: Tensor, attention: Tensor) -> tuple[Tensor, Tensor]:
        """f_y `(B, D)` and f_z `(B, N, D)` as the estimator sees them."""
        f_y, f_z = features[:, 0], features[:, 1:]
        if self.attend_features:
            f_z = f_z * (attention.detach() * attention.shape[1]).unsqueeze(-1)
        return f_y, f_z

    def _terms(self, features: Tensor, attention: Tensor, labels: Tensor, detach_z: bool, all_known: bool) -> Tensor:
        """The dependence terms of the samples whose primary label is known; 0 for fewer than two of them."""
        f_y, f_z = self._blocks(features.float(), attention.float())
        if not all_known:
            known = labels[:, 0] >= 0
            f_y, f_z, labels = f_y[known], f_z[known], labels[known]
        if len(labels) < 2:
            return f_y.new_zeros(len(self.term_names))
        terms = self._called_dependence(f_y, f_z.detach() if detach_z else f_z, labels)
        if terms.shape != (len(self.term_names),):
            raise ValueError(
                f"dependence must return one term for each of {list(self.term_names)}, shape ({len(self.term_names)},), got "
                f"shape {tuple(terms.shape)}; name others by its attribute factors or groups."
            )
        return terms  # type: ignore[no-any-return]

    def _attention(self, features: Tensor) -> Tensor:
        """The weighter's weights `(B, N)` over the dependence terms."""
        dtype = next((parameter.dtype for parameter in self.weighter.parameters()), features.dtype)  # type: ignore[union-attr]
        return self.weighter(features[:, 0].to(dtype), features[:, 1:].to(dtype)).float()  # type: ignore[misc, no-any-return]

    def _next_fresh(self) -> tuple[Tensor, Tensor, Tensor]:
        """Detached features of a batch that the encoder has not seen in this iteration."""
        batch = None
        while batch is None:
            if self._fresh_batches is None:
                self._fresh_batches = iter(self.data_loader)  # type: ignore[arg-type]
            batch = next(self._fresh_batches, None)
            if batch is None:
                self._fresh_batches = None
        inputs, labels, args, kwargs = self._prepare(batch)
        inputs, labels = _plain(inputs), _plain(labels)
        with torch.no_grad():
            _, features, attention = self._infer(inputs, args, kwargs, self.amp or self.amp_fresh)
        return features.float(), attention.float(), labels

    def _infer(self, inputs: Any, args: tuple, kwargs: dict, amp: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, features and attention of a batch, in mixed precision or not."""
        try:
            with torch.autocast(self.state.device.type, enabled=amp, **self.amp_kwargs):
                return self.inferer(inputs, self._called_network, *args, return_features=True, **kwargs)  # type: ignore[no-any-return]
        except ValueError as error:
            if len(inputs) == 1 and "more than 1 value per channel" in str(error):
                raise ValueError(
                    "batch normalization needs two samples or more, got a batch of one: give train_data_loader drop_last=True"
                ) from error
            raise

    def _update_estimator(self, index: int, recent: tuple[Tensor, Tensor, Tensor], all_known: bool) -> None:
        """The ``index``-th ascent step of the estimator in this iteration, and of the weighter with it."""
        batch: Any = recent
        count = len(self._features[-1][2])
        if self.feature_batches == 0:
            batch = _gather(*self._next_fresh())
            count, all_known = len(batch[2]), _all_known(batch[2])
        ascend = self._ascend if self._graphed is None or not all_known else self._graphed
        with self._same_draws(index):
            ascend(*batch, count=count, all_known=all_known)

    def _ascend(self, features: Tensor, attention: Tensor, labels: Tensor, *, count: int, all_known: bool) -> None:
        """Train the estimator, and the weighter, on ``count`` of the samples."""
        if count < len(labels):
            chosen = torch.randperm(len(labels), device=labels.device)[:count]
            features, attention, labels = features[chosen], attention[chosen], labels[chosen]
        terms = self._terms(features, attention, labels, True, all_known)
        objective = terms.sum()
        if self.weighter is not None:
            weights = self._attention(features)
            entropy = -(weights * weights.clamp(min=1e-8).log()).sum(1).mean()
            objective = objective + (weights.mean(0) * terms.detach()).sum() + self.attention_temperature * entropy
        # Gradients are asked for rather than accumulated: the weighter is part of the network too, whose optimizer,
        # gradient norm and DistributedDataParallel must not see them.
        optimizer: Optimizer = self.dependence_optimizer  # type: ignore[assignment]
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
        slopes: Sequence[Tensor | None] = [None] * len(parameters)
        if objective.requires_grad:
            slopes = torch.autograd.grad(-objective, parameters, allow_unused=True)
        for parameter, slope in zip(parameters, slopes, strict=True):
            parameter.grad = _laid_out_as(parameter, slope)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def _prepare(self, batchdata: Any) -> tuple[Any, Tensor, tuple, dict]:
        batch = self.prepare_batch(batchdata, self.state.device, self.non_blocking, **self.to_kwargs)
        return (*batch, (), {}) if len(batch) == 2 else batch  # type: ignore[return-value]

    def _iteration(self, engine: MIMMXTrainer, batchdata: Any) -> Any:  # type: ignore[override]
        """One encoder step with its estimator steps; see the class for the output."""
        if batchdata is None:
            raise ValueError("Must provide batch data for current iteration.")
        inputs, labels, args, kwargs = self._prepare(batchdata)
        output: dict[str, Tensor] = {Keys.IMAGE: inputs, Keys.LABEL: labels}
        engine.state.output = output
        inputs, labels = _plain(inputs), _plain(labels)
        self.network.train()
        self.optimizer.zero_grad(set_to_none=self.optim_set_to_none)

        logits, features, attention = self._infer(inputs, args, kwargs, self.amp)
        output[Keys.PRED] = logits
        engine.fire_event(IterationEvents.FORWARD_COMPLETED)
        losses = self.loss_function(logits, labels)
        if losses.shape != (len(self.task_names),):
            raise ValueError(
                f"loss_function must return one loss per task ({len(self.task_names)},), such as MultiTaskCrossEntropy "
                f'with reduction="none", got shape {tuple(losses.shape)}.'
            )
        gammas = torch.ones_like(losses) if self.loss_scaling is None else self.loss_scaling(losses)
        loss = (gammas * losses).sum()
        for i, name in enumerate(self.task_names):
            output[f"loss_{name}"], output[f"gamma_{name}"] = losses[i].detach(), gammas[i].detach()
        if self.dependence is not None:
            self._require_finite("loss", loss.detach())  # before it spoils the estimator
            loss = loss + self._dependence_loss(features, attention, labels, output)
        for i, name in enumerate(self.task_names[1:]):
            output.setdefault(f"attention_{name}", attention[:, i].detach().mean())
        output[Keys.LOSS] = loss
        engine.fire_event(IterationEvents.LOSS_COMPLETED)
        self._require_finite("loss", loss.detach())

        if self.scaler is not None:
            self.scaler.scale(loss).backward()
            self.scaler.unscale_(self.optimizer)
        else:
            loss.backward()
        limit = math.inf if self.max_grad_norm is None else self.max_grad_norm
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), limit)
        if self.scaler is None or not self.scaler.is_enabled():  # which would leave out the step itself
            self._require_finite("gradient's norm", norm)
        engine.fire_event(IterationEvents.BACKWARD_COMPLETED)
        if self.scaler is not None:
            scale = self.scaler.get_scale()
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self._skipped = self._skipped + 1 if self.scaler.get_scale() < scale else 0
            if self._skipped == _MAX_SKIPPED:
                self._stop(f"gradient was not finite in {_MAX_SKIPPED} steps on end, the last")
        else:
            self.optimizer.step()
        output[Keys.LOSS] = loss.detach()
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return engine.state.output  # post-processing may have replaced it

    def _require_finite(self, what: str, value: Tensor) -> None:
        """Stop before a step that could only spoil the weights."""
        if not bool(torch.isfinite(value)):
            self._stop(f"{what} is {value.item()}")

    def _stop(self, told: str) -> None:
        raise FloatingPointError(
            f"the {told} in epoch {self.state.epoch}, iteration {self.state.iteration}; training stops before this step. "
            "Look for extreme images in the table, or train anew with a lower learning_rate or lambda_mi."
        )

    def _dependence_loss(
        self, features: Tensor, attention: Tensor, labels: Tensor, output: dict[str, Tensor]
    ) -> Tensor:
        """Train the estimator, then return lambda times the weighted dependence terms, with the estimator frozen."""
        features, attention, labels = _gather(features, attention, labels)
        all_known = False
        if self.dependence_optimizer is not None:
            self._features.append((features.detach().float(), attention.detach().float(), labels))
            recent: Any = tuple(torch.cat(parts) for parts in zip(*self._features, strict=True))
            all_known = _all_known(recent[2])
            for index in range(self.n_b):
                self.fire_event(IterationEvents.INNER_ITERATION_STARTED)
                self._update_estimator(index, recent, all_known)
                self.fire_event(IterationEvents.INNER_ITERATION_COMPLETED)
        trained = [p for p in self.dependence.parameters() if p.requires_grad]  # type: ignore[union-attr]
        for parameter in trained:
            parameter.requires_grad_(False)
        try:
            with self._same_draws(self.n_b):
                terms = self._terms(features, attention, labels, self.detach_z, all_known or _all_known(labels))
        finally:
            for parameter in trained:
                parameter.requires_grad_(True)
        if self.weighter is None:
            weights = torch.full_like(terms, 1.0 / len(terms))
        else:
            with torch.no_grad():
                weights = self._attention(features).mean(0)
            for i, name in enumerate(self.task_names[1:]):
                output[f"attention_{name}"] = weights[i]
        dependence = (weights * terms).sum()
        current_lambda = self.current_lambda()
        for i, name in enumerate(self.term_names):
            output[f"mi_{name}"] = terms[i].detach()
        output["mi"], output["lambda"] = dependence.detach(), torch.tensor(current_lambda)
        return current_lambda * dependence
