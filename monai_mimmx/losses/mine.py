# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""The mutual information of two feature vectors, estimated by a neural network and usable as a loss (MINE)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from monai_mimmx.losses.dcor import within_squares

__all__ = ["MINELoss", "donsker_varadhan", "product_partners"]


def donsker_varadhan(joint: Tensor, product: Tensor, *, batch_dims: int = 0) -> Tensor:
    """
    The Donsker-Varadhan lower bound of mutual information: ``mean T(joint) - log mean exp T(product)``.

    One logarithm is taken over ALL product pairs; a mean of per-row logarithms would not be a lower bound.

    Args:
        joint: the statistics network's values on pairs drawn together, any shape.
        product: its values on pairs drawn from the product of the marginals, any shape.
        batch_dims: leading axes of both that count estimates; all others are one estimate's.

    Returns:
        the bounds in nats, with the first ``batch_dims`` axes; a scalar by default.

    Example:
        >>> donsker_varadhan(torch.tensor([2.0]), torch.tensor([2.0, 2.0]))
        tensor(0.)

    Reference:
        Belghazi et al., Mutual Information Neural Estimation, ICML 2018, equation (10).
    """
    joint, product = (values.reshape(*values.shape[:batch_dims], -1) for values in (joint, product))
    return joint.mean(-1) - (product.logsumexp(-1) - math.log(product.shape[-1]))


def product_partners(
    batch_size: int, negatives: int, *, condition: Tensor | None = None, device: torch.device | None = None
) -> tuple[Tensor, Tensor]:
    """
    For each sample, ``negatives`` other samples of the batch to pair it with (within its own class, if given).

    The partners of one negative are the batch, cyclically shifted by a random offset, so that every sample is used
    equally often and never meets itself. Randomness comes from PyTorch's global generator of the device.

    Args:
        batch_size: the number B of samples.
        negatives: the number K of partners per sample; at most B - 1 distinct ones exist.
        condition: class indices `(B,)`; partners then come from the same class. A sample alone in its class has none.
        device: where the indices are made; ignored when ``condition`` is given.

    Returns:
        ``keep`` `(M,)`, the samples that have a partner, and ``partners`` `(K, M)`, the partners of each of them;
        K is at most B - 1. With a condition a sample may have the same partner more than once.

    Example:
        >>> keep, partners = product_partners(4, 2)
        >>> bool((partners != keep).all())
        True
    """
    if condition is None:
        offsets = torch.randperm(batch_size - 1, device=device)[:negatives] + 1
        keep = torch.arange(batch_size if batch_size > 1 else 0, device=device)
        return keep, (keep + offsets[:, None]) % batch_size
    order, partners, paired = _partners_within(condition, negatives)
    return order[paired], partners[:, paired]


def _partners_within(condition: Tensor, negatives: int) -> tuple[Tensor, Tensor, Tensor]:
    """The samples by class `(B,)`, partners of each `(K, B)`, and which have one `(B,)`: to drop the others waits for a GPU."""
    ordered, order = condition.sort(stable=True)
    start = torch.searchsorted(ordered, ordered)
    size = torch.searchsorted(ordered, ordered, right=True) - start
    offsets = torch.randperm(len(condition) - 1, device=condition.device)[:negatives]
    place = torch.arange(len(condition), device=condition.device) - start
    shift = 1 + offsets[:, None] % (size - 1).clamp(min=1)
    # Compiled for a processor, sizes of 0 are among what fills up its registers: no division by them.
    return order, order[start + (place + shift) % size.clamp(min=1)], size > 1


def _bound_of_paired(joint: Tensor, product: Tensor, paired: Tensor) -> tuple[Tensor, Tensor]:
    """
    The Donsker-Varadhan bound `(blocks,)` of the samples that have partners, 0 for none of them; and their mean of T.

    Args:
        joint: `(blocks, B)`.
        product: `(blocks, K, B)`.
        paired: `(B,)`.
    """
    count = paired.sum().clamp(min=1)
    mean = joint.masked_fill(~paired, 0.0).sum(-1) / count
    lowest = torch.finfo(product.dtype).min  # whose exponential is 0, and whose gradient is not NaN
    log_sum = product.masked_fill(~paired, lowest).flatten(1).logsumexp(-1)
    return (mean - (log_sum - (count * product.shape[1]).to(product.dtype).log())) * paired.any(), mean


class _LinearPerBlock(nn.Module):
    """
    Linear layers side by side, from `(blocks, M, inputs)` to `(blocks, M, outputs)`.

    They start as nn.Linear does, the weights times ``gain``.
    """

    def __init__(self, blocks: int, inputs: int, outputs: int, *, bias: bool = True, gain: float = 1.0) -> None:
        super().__init__()
        bound = 1 / math.sqrt(inputs)
        self.weight = nn.Parameter(torch.empty(blocks, inputs, outputs).uniform_(-gain * bound, gain * bound))
        self.bias = nn.Parameter(torch.empty(blocks, 1, outputs).uniform_(-bound, bound)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight if self.bias is None else torch.baddbmm(self.bias, x, self.weight)


class MINELoss(nn.Module):
    r"""
    Mutual Information Neural Estimation: a lower bound of I(x; z) or I(x; z | y), in nats, as a term to minimise.

    .. math:: I(x; z) \ge \frac{1}{B} \sum_b T(x_b, z_b) - \log \frac{1}{B K} \sum_{b,k} \exp T(x_b, z_{\pi_k(b)})

    The value is a term to ADD, times a weight, to any PyTorch loss: its gradient reaches ``x`` and ``z``. Its own
    parameters (the statistics network T) are trained on the negative of the same value: :meth:`update_estimator`
    makes one such step on detached inputs and belongs before, and more often than, each step of the encoder. Keep the
    module outside the network, or its parameters out of the encoder's optimizer, which would train T to find less. Pass
    ``z.detach()`` where only x should pay.

    The marginal form asks for batches in which the label that x serves and what z stands for are independent (every
    combination equally likely: :func:`~monai_mimmx.data.balanced_weights`): where they go together, x and z cannot be
    independent without loss for the task, and the penalty can over-correct. The conditional form has no such conflict,
    but leaves more of a shortcut on correlated batches; on balanced ones both serve.

    The value is that of the batch it is given. In a process group each process would train an estimator of its own on its
    own batch: use :class:`~monai_mimmx.engines.MIMMXTrainer`, or gather the features of all processes first.

    T's first layer is linear in (x, z), so it is applied to the B rows of each once and the product pairs cost one
    addition each: time and memory grow with B * negatives, never with B * B * (x_dim + z_dim). Several z against one x
    are estimated at once by ``num_blocks``, in fewer and larger steps than by one loss for each.

    Args:
        x_dim: width of x.
        z_dim: width of z.
        hidden: widths of T's hidden layers.
        negatives: product pairs per sample, K. More lower the estimate's variance and its bias at high MI; all
            B - 1 others are used when the batch holds no more than that.
        conditional: estimate I(x; z | y): product pairs are drawn within each class of ``condition``, and T sees the
            class. Zero where x and z agree only because both follow y.
        num_classes: the number of classes of ``condition``; used when ``conditional``.
        standardize: bring x and z to mean 0 and variance 1 over the batch first. MI is unchanged by it, and an
            encoder cannot then lower the value by shrinking its features. 1e-5 is added to the variance, so that the
            gradient of a constant feature stays finite: one whose deviation is not well above 0.003 stays below 1.
        ema_rate: weight in (0, 1] of the current batch in the moving average of ``mean exp T`` that replaces the
            batch's own in the gradient (MINE's bias correction); 0 turns it off. Above 0.1 it is unstable.
        num_blocks: the number N of z that are estimated at once, each by a statistics network of its own, with the
            same product partners: z is then `(B, N, z_dim)` and the value `(N,)`.

    Raises:
        ValueError: for a width, count or rate out of range.

    Example:
        >>> mi = MINELoss(8, 8)
        >>> optimizer = torch.optim.Adam(mi.parameters(), lr=1e-3)
        >>> x, z = torch.randn(32, 8, requires_grad=True), torch.randn(32, 8)
        >>> _ = mi.update_estimator(optimizer, x, z)
        >>> (0.5 * mi(x, z)).backward()

    Reference:
        Belghazi et al., Mutual Information Neural Estimation, ICML 2018, algorithm 1 and section 3.2.
    """

    log_average: Tensor

    def __init__(
        self,
        x_dim: int,
        z_dim: int,
        *,
        hidden: Sequence[int] = (64, 64),
        negatives: int = 16,
        conditional: bool = False,
        num_classes: int = 2,
        standardize: bool = True,
        ema_rate: float = 0.0,
        num_blocks: int | None = None,
    ) -> None:
        super().__init__()
        counts = {"x_dim": x_dim, "z_dim": z_dim, "negatives": negatives, "num_classes": num_classes}
        for name, value in (counts | ({} if num_blocks is None else {"num_blocks": num_blocks})).items():
            if value < 1:
                raise ValueError(f"{name} must be 1 or more, got {value}.")
        if not hidden or min(hidden) < 1:
            raise ValueError(f"hidden must name at least one layer of width 1 or more, got {tuple(hidden)}.")
        if not 0 <= ema_rate <= 1:
            raise ValueError(f"ema_rate must lie in [0, 1], got {ema_rate}.")
        self.x_dim, self.z_dim, self.num_classes = x_dim, z_dim, num_classes
        self.negatives, self.conditional = negatives, conditional
        self.standardize, self.ema_rate = standardize, ema_rate
        self.num_blocks = num_blocks
        blocks = num_blocks or 1
        # Next to weights of full size the biases would leave most kinks near the mean of x and z, and T learns slower.
        self.x_layer = _LinearPerBlock(blocks, x_dim, hidden[0], gain=0.5)
        self.z_layer = _LinearPerBlock(blocks, z_dim, hidden[0], bias=False, gain=0.5)
        self.class_layer = nn.Embedding(num_classes, blocks * hidden[0]) if conditional else None
        if self.class_layer is not None:  # as the biases: offsets of size 1 would hold most units on or off
            nn.init.uniform_(self.class_layer.weight, -1 / math.sqrt(x_dim), 1 / math.sqrt(x_dim))
        layers: list[nn.Module] = []
        for width, next_width in zip(hidden, [*hidden[1:], 1], strict=True):
            layers += [nn.ReLU(), _LinearPerBlock(blocks, width, next_width)]
        self.layers = nn.Sequential(*layers)
        self.register_buffer("log_average", torch.full((blocks,), float("nan")))

    def _check(self, x: Tensor, z: Tensor, condition: Tensor | None) -> None:
        batch = x.shape[0]
        shapes = (batch, self.x_dim), (batch, *([self.num_blocks] if self.num_blocks else []), self.z_dim)
        for name, value, shape in zip("xz", (x, z), shapes, strict=True):
            if value.shape != shape:
                raise ValueError(f"{name} must have shape {shape}, got {tuple(value.shape)}.")
        if batch < 2:
            raise ValueError(f"MINE needs a batch of 2 or more samples to form product pairs, got {batch}.")
        if self.conditional:
            if condition is None:
                raise ValueError("a conditional MINELoss needs `condition`, the class indices of the batch.")
            if condition.shape != (batch,) or condition.is_floating_point():
                raise ValueError(
                    f"condition must hold {batch} integer class indices, got {condition.dtype} {tuple(condition.shape)}."
                )
            # Within a CUDA graph nothing can be told, and a compiler would cut its graph here, too. The trainer looks for
            # missing labels before it; a class beyond the last ends in the error of its embedding.
            unseen = torch.compiler.is_compiling() or (condition.is_cuda and torch.cuda.is_current_stream_capturing())
            if not unseen and (int(condition.min()) < 0 or int(condition.max()) >= self.num_classes):
                raise ValueError(
                    f"condition must lie in [0, {self.num_classes - 1}], got values from {int(condition.min())} to "
                    f"{int(condition.max())}; leave out samples without a label, and give num_classes the number of classes."
                )
        elif condition is not None:
            raise ValueError("condition was given, but conditional=False would ignore it.")

    def forward(self, x: Tensor, z: Tensor, condition: Tensor | None = None) -> Tensor:
        """
        Args:
            x: features `(B, x_dim)`, B of 2 or more.
            z: features `(B, z_dim)`, or `(B, N, z_dim)` with ``num_blocks``.
            condition: class indices `(B,)`, only when ``conditional``. A class that is absent does not contribute; a
                sample that is alone in its class has no product pair and is left out.

        Returns:
            the estimate in nats (0 when no sample has a pair), a scalar, or `(N,)` with ``num_blocks``. It may be
            slightly negative.

        Raises:
            ValueError: for a wrong shape, a batch of one, or a missing, surplus or out-of-range ``condition``.
        """
        self._check(x, z, condition)
        condition = None if condition is None else condition.long()
        with torch.autocast(x.device.type, enabled=False):
            dtype, blocks = self.x_layer.weight.dtype, self.num_blocks or 1
            x, z = x.to(dtype), z.to(dtype).flatten(1)
            if self.standardize:
                x, z = (F.batch_norm(within_squares(part, (0,)), None, None, training=True) for part in (x, z))
            paired = None
            if condition is None:
                keep, partners = product_partners(x.shape[0], self.negatives, device=x.device)
            else:
                keep, partners, paired = _partners_within(condition, self.negatives)
            hidden_x = self.x_layer(x.expand(blocks, *x.shape))
            hidden_z = self.z_layer(z.unflatten(1, (blocks, self.z_dim)).transpose(0, 1))
            if self.class_layer is not None:
                of_class = self.class_layer(condition).unflatten(1, (blocks, -1)).transpose(0, 1)
                hidden_x = (hidden_x + of_class)[:, keep]
            pairs = torch.cat([keep[None], partners])  # (1 + K, M): the joint pairs first
            # Rows of hidden_z repeat. The backward of an index on several threads adds them in an order that changes from
            # run to run; that of an embedding does not.
            rows = pairs + torch.arange(0, hidden_z[..., 0].numel(), len(x), device=x.device)[:, None, None]
            hidden = hidden_x[:, None] + F.embedding(rows, hidden_z.flatten(0, 1))
            values = self.layers(hidden.flatten(1, 2)).view(blocks, *pairs.shape)
            joint, product = values[:, 0], values[:, 1:]
            if paired is None:
                estimates, mean = donsker_varadhan(joint, product, batch_dims=1), joint.mean(1)
            else:
                estimates, mean = _bound_of_paired(joint, product, paired)
            if self.ema_rate and self.training and (paired is None or bool(paired.any())):
                estimates = self._correct(estimates, mean)
            return estimates if self.num_blocks else estimates[0]

    def _correct(self, estimate: Tensor, joint: Tensor) -> Tensor:
        """Keep the value, but let the gradient of the logarithm divide by the moving average of ``mean exp T``."""
        log_mean = joint - estimate
        with torch.no_grad():
            before = torch.where(self.log_average.isnan(), log_mean, self.log_average)
            rate = torch.as_tensor(self.ema_rate, dtype=log_mean.dtype, device=log_mean.device)
            self.log_average.copy_(torch.logaddexp(torch.log1p(-rate) + before, torch.log(rate) + log_mean))
            scale = torch.exp(log_mean - self.log_average)  # at most 1 / ema_rate
        surrogate = joint - scale * log_mean
        return surrogate + (estimate - surrogate).detach()

    def update_estimator(
        self, optimizer: torch.optim.Optimizer, x: Tensor, z: Tensor, condition: Tensor | None = None
    ) -> Tensor:
        """
        One ascent step of T on detached ``x`` and ``z``.

        Args:
            optimizer: an optimizer of this module's parameters.
            x: features `(B, x_dim)`; no gradient reaches them.
            z: features `(B, z_dim)`, or `(B, N, z_dim)` with ``num_blocks``.
            condition: class indices `(B,)`, only when ``conditional``.

        Returns:
            the estimate in nats before the step, detached: a scalar, or `(N,)` with ``num_blocks``.
        """
        optimizer.zero_grad(set_to_none=True)
        with torch.enable_grad():
            estimate = self(x.detach(), z.detach(), condition)
            (-estimate.sum()).backward()
        optimizer.step()
        return estimate.detach()
