# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""Dynamic Loss Scaling in a multi-task MONAI pipeline: the accuracy of a hard and an easy task, without and with it.

python examples/loss_scaling_multi_task.py
"""

from __future__ import annotations

import torch
from monai.engines import SupervisedTrainer
from monai.networks.nets import DenseNet
from monai.utils import set_determinism
from toy_images import accuracies, toy_loader

from monai_mimmx.handlers import DynamicLossScaling
from monai_mimmx.losses import MultiTaskCrossEntropy

TASKS = ["stripes", "corner"]  # a hard task and an easy one


def train(alpha: float, epochs: int = 7, seed: int = 0) -> dict[str, float]:
    """Train with that exponent for both tasks (0: no scaling); the accuracy of each on other images."""
    set_determinism(seed)
    network = DenseNet(2, 1, out_channels=4, init_features=16, growth_rate=8, block_config=(2, 2))
    scaling = DynamicLossScaling(alpha_y=alpha, alpha_z=alpha, beta_y=0.0)
    loss = MultiTaskCrossEntropy((2, 2), scaling=scaling)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    trainer = SupervisedTrainer(
        "cpu", epochs, toy_loader(1000, 0.5, seed), network, optimizer, loss, train_handlers=[scaling], decollate=False
    )
    trainer.run()
    return dict(zip(TASKS, accuracies(network, toy_loader(1000, 0.5, 1000 + seed), TASKS), strict=True))


if __name__ == "__main__":
    for alpha in (0.0, 2.0):
        accuracy = train(alpha)
        print(f"alpha {alpha:g}: " + ", ".join(f"{task} {100 * value:.1f} %" for task, value in accuracy.items()))
