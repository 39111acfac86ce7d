"""Hessian-free optimisation under Accelerate, with a state that is saved and taken up.

The prepared optimiser returns nothing from its step: what it did is in ``last_stats``.

    python -m hfcore.examples.with_accelerate
"""

from __future__ import annotations

import tempfile

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader

import hfcore as hf
from hfcore.examples import cnn


def main(epochs: int = 4) -> list[float]:
    """Train; returns the loss at the start of every step. The last epoch is trained twice, from
    the same saved state, to the same losses."""
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True)
    generator = torch.Generator().manual_seed(0)
    model = cnn.make_model()
    own = hf.HessianFree(model, nn.CrossEntropyLoss(), damping=1.0, cg_max_iter=20)
    model, opt, loader = accelerator.prepare(
        model, own, DataLoader(cnn.bars(200, generator), batch_size=100)
    )

    def epoch() -> list[float]:
        losses = []
        for batch in loader:
            opt.step(tuple(batch))
            assert own.last_stats is not None
            losses.append(own.last_stats.loss)
        return losses

    losses = [loss for _ in range(epochs - 1) for loss in epoch()]
    with tempfile.TemporaryDirectory() as folder:
        accelerator.save_state(folder)
        last = epoch()
        accelerator.load_state(folder)
        again = epoch()
    print(f"loss {losses[0]:.4f}, in the last epoch {last}, and again {again}")
    return losses + again if last == again else []


if __name__ == "__main__":
    main()
