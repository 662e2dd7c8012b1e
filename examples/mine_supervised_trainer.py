# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""MINELoss in a plain MONAI SupervisedTrainer: the gap from Val to Inv on plain batches, balanced ones, and with it.

python examples/mine_supervised_trainer.py
"""

from __future__ import annotations

import torch
from monai.engines import SupervisedTrainer
from monai.networks.nets import DenseNet
from monai.utils import set_determinism
from torch import Tensor, nn
from torch.nn import functional as F
from toy_images import accuracies, toy_loader

from monai_mimmx.losses import MINELoss

DIM = 2  # of each feature block


class TwoBlocks(nn.Module):
    """A MONAI DenseNet with a feature block for y and one for z; logits and features side by side, `(B, 4 + 2 * DIM)`."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = DenseNet(2, 1, 2 * DIM, init_features=16, growth_rate=8, block_config=(2, 2))
        self.norm, self.y, self.z = nn.BatchNorm1d(2 * DIM, affine=False), nn.Linear(DIM, 2), nn.Linear(DIM, 2)

    def forward(self, image: Tensor) -> Tensor:
        features = self.norm(self.encoder(image))
        return torch.cat([self.y(features[:, :DIM]), self.z(features[:, DIM:]), features], dim=1)


def train(weight: float, balanced: bool = True, epochs: int = 15, seed: int = 0) -> tuple[float, float]:
    """Train with that weight of the mutual information; accuracy of y on images like those of training, and inverted ones."""
    set_determinism(seed)
    network, mi = TwoBlocks(), MINELoss(DIM, DIM, conditional=True)
    mi_optimizer = torch.optim.Adam(mi.parameters(), lr=2e-3)

    def loss(output: Tensor, label: Tensor) -> Tensor:
        y, z, f_y, f_z = output.split([2, 2, DIM, DIM], dim=1)
        for _ in range(5 if weight else 0):
            mi.update_estimator(mi_optimizer, f_y, f_z, label[:, 0])
        tasks = F.cross_entropy(y, label[:, 0]) + F.cross_entropy(z, label[:, 1])
        return tasks + weight * mi(f_y, f_z.detach(), label[:, 0])

    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    loader = toy_loader(2000, 0.9, seed, balanced=balanced)
    SupervisedTrainer("cpu", epochs, loader, network, optimizer, loss, decollate=False).run()
    val, inv = (accuracies(network, toy_loader(2000, a, 1000 + seed), ["y", "z"])[0] for a in (0.9, 0.1))
    return val, inv


if __name__ == "__main__":
    for balanced, weight in ((False, 0.0), (True, 0.0), (True, 1.0)):
        val, inv = train(weight, balanced)
        row = f"{'balanced' if balanced else 'plain'} batches, lambda {weight:g}"
        print(f"{row}: Val {100 * val:.1f} %, Inv {100 * inv:.1f} %, gap {100 * (val - inv):+.1f}")
