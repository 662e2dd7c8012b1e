# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""MINELoss in a bare PyTorch loop: what plain batches, balanced ones and those with it leave of a shortcut.

python examples/mine_pytorch.py
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import RandomSampler, WeightedRandomSampler
from toy_images import toy_images

from monai_mimmx.data import balanced_weights
from monai_mimmx.losses import MINELoss

DIM = 2  # of each feature block


def train(weight: float, balanced: bool = True, epochs: int = 12, seed: int = 0) -> tuple[float, float]:
    """Train with that weight of the mutual information; accuracy of y on images like those of training, and inverted ones."""
    torch.manual_seed(seed)
    images, labels = toy_images(2000, agreement=0.9, seed=seed)
    cells = balanced_weights(labels.numpy(), (2, 2)).tolist()  # under which every (y, z) is equally likely
    sampler = WeightedRandomSampler(cells, len(images)) if balanced else RandomSampler(images)
    encoder = nn.Sequential(
        *(nn.Conv2d(1, 16, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 16, 5, padding=2), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(256, 2 * DIM), nn.BatchNorm1d(2 * DIM, affine=False)),
    )
    head_y, head_z = nn.Linear(DIM, 2), nn.Linear(DIM, 2)
    mi = MINELoss(DIM, DIM, conditional=True)  # I(f_y; f_z | y): what they share beyond the label
    parameters = [*encoder.parameters(), *head_y.parameters(), *head_z.parameters()]
    optimizer, mi_optimizer = torch.optim.Adam(parameters, lr=2e-3), torch.optim.Adam(mi.parameters(), lr=2e-3)
    for epoch in range(epochs):
        for rows in torch.tensor(list(sampler)).split(100):
            f_y, f_z = encoder(images[rows]).chunk(2, dim=1)
            y, z = labels[rows].T
            for _ in range(5 if weight else 0):
                mi.update_estimator(mi_optimizer, f_y, f_z, y)
            loss = F.cross_entropy(head_y(f_y), y) + F.cross_entropy(head_z(f_z), z)
            loss = loss + weight * min(1.0, epoch / 5) * mi(f_y, f_z.detach(), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    encoder.eval()
    scores = []
    with torch.no_grad():
        for agreement in (0.9, 0.1):
            test, truth = toy_images(2000, agreement, seed=1000 + seed)
            scores.append((head_y(encoder(test)[:, :DIM]).argmax(1) == truth[:, 0]).float().mean().item())
    return scores[0], scores[1]


if __name__ == "__main__":
    for balanced, weight in ((False, 0.0), (True, 0.0), (True, 1.0)):
        val, inv = train(weight, balanced)
        row = f"{'balanced' if balanced else 'plain'} batches, lambda {weight:g}"
        print(f"{row}: Val {100 * val:.1f} %, Inv {100 * inv:.1f} %, gap {100 * (val - inv):+.1f}")
