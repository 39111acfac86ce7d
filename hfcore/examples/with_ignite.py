"""Hessian-free optimisation in an Ignite engine.

python -m hfcore.examples.with_ignite
"""

from __future__ import annotations

import torch
from ignite.engine import Engine, Events
from torch import nn
from torch.utils.data import DataLoader

import hfcore as hf
from hfcore.examples import cnn


def main(epochs: int = 4) -> list[float]:
    """Train; returns the loss at the start of every step."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    loader = DataLoader(cnn.bars(200, generator), batch_size=100)
    opt = hf.HessianFree(cnn.make_model(), nn.CrossEntropyLoss(), damping=1.0, cg_max_iter=20)
    losses: list[float] = []
    trainer = Engine(lambda engine, batch: opt.step(batch).loss)
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda engine: losses.append(engine.state.output)
    )
    trainer.run(loader, max_epochs=epochs)
    print(f"loss {losses[0]:.4f}, at the last step {losses[-1]:.4f}")
    return losses


if __name__ == "__main__":
    main()
