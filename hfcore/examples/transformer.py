"""A small transformer encoder by Hessian-free optimisation: which symbol is the most frequent?

Dropout is 0: in train mode it would draw a new mask at every evaluation of a step, which
``hf.HessianFree`` refuses. The closure, () → (loss, outputs), is the form for losses that need more
than outputs and targets.

    python -m hfcore.examples.transformer
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import hfcore as hf

SYMBOLS, WIDTH, LENGTH = 3, 8, 9


class Counter(nn.Module):
    """Scores ``[B,SYMBOLS]`` for sequences of symbols ``[B,T]``."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(SYMBOLS, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, 2, 16, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.scores = nn.Linear(WIDTH, SYMBOLS)

    def forward(self, symbols: Tensor) -> Tensor:
        scores: Tensor = self.scores(self.encoder(self.embed(symbols)).mean(1))
        return scores


def sequences(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Symbols ``[B,T]`` and the most frequent one, the first of those equally frequent."""
    x = torch.randint(SYMBOLS, (count, LENGTH), generator=generator)
    return x, nn.functional.one_hot(x, SYMBOLS).sum(1).argmax(1)


def main(steps: int = 9) -> list[float]:
    """Train; returns the loss at the start of every step."""
    torch.manual_seed(0)
    x, y = sequences(300, torch.Generator().manual_seed(0))
    model = Counter()
    opt = hf.HessianFree(model, damping=0.3, l2=1e-4, cg_max_iter=30)

    def closure() -> tuple[Tensor, Tensor]:
        outputs = model(x)
        return nn.functional.cross_entropy(outputs, y), outputs

    losses: list[float] = []
    for step in range(steps):
        stats = opt.step(closure)
        losses.append(stats.loss)
        if step % 2 == 0:
            print(f"step {step}: loss {stats.loss:.4f}, ρ {stats.rho:.2f}")
    return losses


if __name__ == "__main__":
    main()
