"""Nets that wait for their initialisation, and the draws that it is made of."""

from __future__ import annotations

import torch

import hfcore as hf


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def net(n: int, H: int, k: int, dtype: torch.dtype = torch.float64) -> hf.RNN:
    """A net full of NaN, so that whatever an initialisation forgets is seen."""
    model = hf.RNN(n, H, k, dtype=dtype)
    for p in model.parameters():
        torch.nn.init.constant_(p, float("nan"))
    return model
