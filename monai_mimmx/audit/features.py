# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""The logits and features of any classifier."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.data import DataLoader, Dataset
from monai.networks.utils import eval_mode
from monai.utils import convert_to_tensor
from torch import Tensor, nn
from tqdm import tqdm

__all__ = ["extract_features"]


def extract_features(
    network: nn.Module,
    images: Sequence[str],
    preprocessing: Any,
    *,
    num_classes: int,
    device: str | torch.device,
    layer: str | None = None,
    batch_size: int = 32,
    num_workers: int = 0,
    progress: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """
    Logits of a classifier and the features that they are computed from, for a list of image files.

    Args:
        network: from an image batch `(B, C, *spatial)` to logits `(B, K)`, or to a tuple, list or mapping whose first
            entry they are; of K columns the first `num_classes` are taken. A network with
            ``forward(image, return_features=True)``, such as :class:`~monai_mimmx.networks.MIMMXNet`, gives its own
            features, of which the first block is taken.
        images: the files.
        preprocessing: dictionary transform of `{"image": file}`.
        num_classes: classes of the label.
        device: where to run.
        layer: name of the module whose output is taken as features, averaged over its spatial dimensions; by default
            the input of the last linear layer that was run.
        batch_size: images per forward pass.
        num_workers: of the data loader.
        progress: show a progress bar.

    Returns:
        logits `(n, num_classes)` and features `(n, F)`, float32.

    Raises:
        ValueError: for an unknown `layer`, fewer logits than classes, a network without a linear layer, or outputs that
            are not finite (names the file).
    """
    modules = dict(network.named_modules())
    if layer is not None and layer not in modules:
        raise ValueError(f"the network has no module {layer!r}; it has {', '.join(name for name in modules if name)}")
    own = layer is None and _returns_features(network)
    seen: dict[str, Tensor] = {}

    def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen["features"] = inputs[0] if layer is None else output

    watched = [modules[layer]] if layer is not None else [m for m in modules.values() if isinstance(m, nn.Linear)]
    hooks = [] if own else [module.register_forward_hook(keep) for module in watched]
    data = Dataset([{"image": image} for image in images], preprocessing)
    loader = DataLoader(data, batch_size=batch_size, num_workers=num_workers)
    network = network.to(device)
    logits, features = [], []
    try:
        with eval_mode(network), torch.inference_mode():
            for batch in tqdm(loader, desc="predicting", unit="batch", disable=not progress):
                image = convert_to_tensor(batch["image"], track_meta=False).to(device)
                output = network(image, return_features=True) if own else network(image)
                if own:
                    seen["features"] = output[1][:, 0]
                logits.append(_first(output).float().cpu().numpy())
                if "features" not in seen:
                    raise ValueError("the network ran no linear layer: name the module that gives its features (layer)")
                features.append(_flat(seen["features"]).float().cpu().numpy())
                _check(images, len(logits[0]) * (len(logits) - 1), logits[-1], features[-1], num_classes)
    finally:
        for hook in hooks:
            hook.remove()
    return np.concatenate(logits)[:, :num_classes], np.concatenate(features)


def _returns_features(network: nn.Module) -> bool:
    return "return_features" in inspect.signature(network.forward).parameters


def _first(output: Any) -> Tensor:
    while not isinstance(output, Tensor):
        output = next(iter(output.values())) if isinstance(output, Mapping) else output[0]
    return output


def _flat(features: Tensor) -> Tensor:
    """`(B, F)`: tokens or positions averaged."""
    if features.ndim == 3:  # (B, tokens, F) of a transformer
        return features.mean(dim=1)
    return features.flatten(2).mean(dim=2) if features.ndim > 3 else features.flatten(1)


def _check(images: Sequence[str], start: int, logits: np.ndarray, features: np.ndarray, num_classes: int) -> None:
    if logits.ndim != 2 or logits.shape[1] < num_classes:
        raise ValueError(
            f"expected logits of {num_classes} classes or more, (B, {num_classes}), got shape {logits.shape}; a network "
            "with one output for two classes must be wrapped to give two logits"
        )
    wrong = ~(np.isfinite(logits).all(axis=1) & np.isfinite(features).all(axis=1))
    if wrong.any():
        raise ValueError(f"{images[start + int(wrong.argmax())]}: the network's output for it is not finite")
