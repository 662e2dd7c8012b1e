# Copyright (c) monai_mimmx contributors
# SPDX-License-Identifier: Apache-2.0
"""What the random transforms of whole batches share: a generator of their own, which checkpoints can hold."""

from __future__ import annotations

from typing import Any

import ignite.distributed as idist
import torch
from monai.transforms import Randomizable


class RandBatch(Randomizable):
    """A transform of a whole batch that draws from one CPU generator, so that a run repeats and resumes on any device.

    In a process group each process draws its own: the first as it would alone, the others from seeds of their own.

    Args:
        seed: of the generator; None: a random one.

    Example:
        >>> draw = RandBatch(seed=1)
        >>> state = draw.state_dict()
        >>> first = torch.rand(2, generator=draw.generator)
        >>> draw.load_state_dict(state)
        >>> torch.equal(torch.rand(2, generator=draw.generator), first)
        True
    """

    def __init__(self, seed: int | None = 0) -> None:
        self.generator = torch.Generator()
        self.set_random_state(seed=None if seed is None else seed + 1_000_003 * idist.get_rank())

    def set_random_state(self, seed: int | None = None, state: Any = None) -> RandBatch:
        """Start the generator anew from a seed, or from a state of its own; neither: from a random seed."""
        if state is not None:
            self.generator.set_state(state.cpu())
        elif seed is not None:
            self.generator.manual_seed(int(seed))  # a NumPy integer before MONAI 1.6
        else:
            self.generator.seed()
        return self

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The generator's state, for checkpoints."""
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state_dict: dict[str, torch.Tensor]) -> None:
        """Go on from a checkpoint."""
        self.set_random_state(state=state_dict["generator"])

    def randomize(self, data: Any = None) -> None:
        """Nothing to do: the draws depend on the batch and are made when it is seen."""
