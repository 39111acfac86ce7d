"""Random generators of a seed and what is counted beside it: draws that a resume repeats."""

from __future__ import annotations

import numpy as np
import torch


def generator_of(*numbers: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator for ``numbers``, none negative: a seed and, say, the number of a step.

    Mixed by NumPy, since torch's generator on the CPU looks at no more than 32 bits of its seed: a
    seed in the upper half of 64 bits would be none.
    """
    mixed = np.random.SeedSequence(numbers).generate_state(1, np.uint32)
    return torch.Generator(device).manual_seed(int(mixed[0]))
