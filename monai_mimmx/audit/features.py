# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""The logits and features of any classifier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.data import DataLoader
from torch import Tensor, nn
from tqdm import tqdm

from monai_mimmx.data import ImageFileDataset
from monai_mimmx.networks import MIMMXNet
from monai_mimmx.networks.modes import evaluated

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
        network: from an image batch `(B, C, *spatial)` to logits or probabilities `(B, num_classes)`, or `(B, 1)` or
            `(B,)` where there are two classes; or to a tuple, list or mapping whose first entry they are. A
            :class:`~monai_mimmx.networks.MIMMXNet` gives its primary task's logits and feature block.
        images: the files.
        preprocessing: dictionary transform of `{"image": file}`.
        num_classes: classes of the label.
        device: where to run.
        layer: name of the module whose output is taken as features, averaged over tokens `(B, T, F)` or positions
            `(B, F, *spatial)`; by default the input of the last linear layer that was run.
        batch_size: images per forward pass.
        num_workers: of the data loader.
        progress: show a progress bar.

    Returns:
        logits `(n, num_classes)` and features `(n, F)`, float32. One logit becomes two: 0 and itself. Outputs that are
        probabilities of all images, i.e. not below 0 and of sum 1, or a single one from 0 to 1, become their logarithms.

    Raises:
        ValueError: for an unknown `layer`, another number of logits than classes, a network without a linear layer, or
            outputs that are not finite (names the file).
        RuntimeError: the preprocessing fails on an image (names the file), or the network on a batch.
    """
    modules = dict(network.named_modules())
    if layer is not None and layer not in modules:
        raise ValueError(f"the network has no module {layer!r}; it has {', '.join(name for name in modules if name)}")
    seen: dict[str, Tensor] = {}

    def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        seen["features"] = _first([*args, *kwargs.values()]) if layer is None else _first(output)

    watched = [modules[layer]] if layer is not None else [m for m in modules.values() if isinstance(m, nn.Linear)]
    hooks = [module.register_forward_hook(keep, with_kwargs=True) for module in watched]
    data = ImageFileDataset([{"image": image} for image in images], preprocessing)
    loader = DataLoader(data, batch_size=batch_size, num_workers=num_workers)
    network = network.to(device)
    logits, features = [], []
    try:
        with evaluated(network), torch.inference_mode():
            for batch in tqdm(loader, desc="predicting", unit="batch", disable=not progress):
                image = batch["image"].to(device)
                if isinstance(network, MIMMXNet):
                    output, blocks, _ = network(image, return_features=True)
                    output = output[:, : network.num_classes[0]]
                    seen = {"features": blocks[:, 0]} if layer is None else seen
                else:
                    output = _first(network(image))
                if "features" not in seen:
                    raise ValueError("the network ran no linear layer: name the module that gives its features (layer)")
                logits.append(_checked(output.float(), num_classes).cpu().numpy())
                features.append(_flat(seen["features"]).float().cpu().numpy())
                wrong = ~(np.isfinite(logits[-1]).all(axis=1) & np.isfinite(features[-1]).all(axis=1))
                if wrong.any():
                    image_file = images[sum(map(len, logits[:-1])) + int(wrong.argmax())]
                    raise ValueError(f"{image_file}: the network's output for it is not finite")
    finally:
        for hook in hooks:
            hook.remove()
    return _as_logits(np.concatenate(logits)), np.concatenate(features)


def _first(output: Any) -> Tensor:
    while not isinstance(output, Tensor):
        output = next(iter(output.values())) if isinstance(output, Mapping) else output[0]
    return output


def _flat(features: Tensor) -> Tensor:
    """`(B, F)`: tokens or positions averaged."""
    if features.ndim == 3:
        return features.mean(dim=1)
    return features.flatten(2).mean(dim=2) if features.ndim > 3 else features.flatten(1)


def _checked(output: Tensor, num_classes: int) -> Tensor:
    """The outputs `(B, num_classes)`, or `(B, 1)` for two classes."""
    if output.ndim == 1:
        output = output[:, None]
    if output.ndim != 2 or (output.shape[1] != num_classes and not (num_classes == 2 and output.shape[1] == 1)):
        raise ValueError(
            f"the label has {num_classes} classes, but the network gives outputs of shape {tuple(output.shape)}: give the "
            "label as a task with a rule for each output (--label as JSON), or audit a network for this label"
        )
    return output


def _as_logits(outputs: np.ndarray) -> np.ndarray:
    """Logits `(n, classes)` of outputs that are logits or probabilities; a single one stands against the other class."""
    alone = outputs.shape[1] == 1
    if outputs.min() >= 0 and (outputs.max() <= 1 if alone else np.allclose(outputs.sum(axis=1), 1, atol=1e-3)):
        whole = np.hstack([1 - outputs, outputs]) if alone else outputs
        return np.log(np.maximum(whole, np.finfo(np.float32).tiny))
    return np.hstack([np.zeros_like(outputs), outputs]) if alone else outputs
