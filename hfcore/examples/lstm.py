"""torch's own nn.LSTM by Hessian-free optimisation: remember the first symbol of a sequence.

Batches have their cases along axis 1, as nn.LSTM likes them (``batch_dim=1``); the mask says that
the last step alone has an output. Structural damping holds what the LSTM returns (Martens &
Sutskever 2011, section 3.2).

    python -m hfcore.examples.lstm
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import hfcore as hf

SYMBOLS, HIDDEN, LENGTH = 4, 12, 10


class Recaller(nn.Module):
    """Scores of the symbols ``[T,B,SYMBOLS]`` at every step, from one-hot symbols ``[T,B,…]``."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(SYMBOLS, HIDDEN)
        self.scores = nn.Linear(HIDDEN, SYMBOLS)
        with torch.no_grad():  # forget gates that start open
            self.lstm.get_parameter("bias_ih_l0")[HIDDEN : 2 * HIDDEN] = 2

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.lstm(x)
        scores: Tensor = self.scores(states)
        return scores


def sequences(count: int, generator: torch.Generator) -> hf.Batch:
    """Random symbols; the target at the last step is the first of them."""
    symbols = torch.randint(SYMBOLS, (LENGTH, count), generator=generator)
    x = nn.functional.one_hot(symbols, SYMBOLS).float()
    mask = torch.zeros(LENGTH, count, dtype=torch.bool)
    mask[-1] = True
    return hf.Batch(x, symbols[:1].expand(LENGTH, count), mask)


def main(steps: int = 13) -> list[float]:
    """Train; returns the loss at the start of every step."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    model = Recaller()
    opt = hf.HessianFree(
        model,
        hf.losses.SoftmaxCrossEntropy(),
        damping=0.1,
        structural={"lstm": ("identity", 0.03)},
        batch_dim=1,
        cg_max_iter=40,
    )
    data = [sequences(200, generator) for _ in range(2)]  # curvature on the first of them
    losses: list[float] = []
    for step in range(steps):
        stats = opt.step(data)
        losses.append(stats.loss)
        if step % 4 == 0:
            print(f"step {step}: loss {stats.loss:.4f}, CG {stats.cg_iterations}")
    return losses


if __name__ == "__main__":
    main()
