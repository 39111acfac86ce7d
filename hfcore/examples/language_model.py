"""A causal language model in the manner of ``transformers``, by Hessian-free optimisation.

Batches are mappings that go to ``forward`` as keywords, less the labels; what it returns has the
scores by name. ``outputs`` says by which. Labels of −100 are ignored, as by torch's loss.

    python -m hfcore.examples.language_model
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

import hfcore as hf

SYMBOLS, WIDTH, LENGTH, IGNORED = 4, 8, 6, -100


@dataclass
class ModelOutput:
    """``logits [B,T,SYMBOLS]``, and the loss if labels were given."""

    logits: Tensor
    loss: Tensor | None = None


class CausalModel(nn.Module):
    """One block of masked attention."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(SYMBOLS, WIDTH)
        self.positions = nn.Parameter(0.1 * torch.randn(LENGTH, WIDTH))
        self.block = nn.TransformerEncoderLayer(WIDTH, 2, 16, dropout=0.0, batch_first=True)
        self.scores = nn.Linear(WIDTH, SYMBOLS)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None
    ) -> ModelOutput:
        """Scores of the next symbol for ``input_ids [B,T]``; ``attention_mask [B,T]`` is 0 where a
        sequence has ended, ``labels [B,T]`` give the loss."""
        T = input_ids.shape[1]
        causal = nn.Transformer.generate_square_subsequent_mask(T)
        padding = None if attention_mask is None else (attention_mask == 0).float() * -1e9
        x = self.embed(input_ids) + self.positions[:T]
        logits = self.scores(self.block(x, src_mask=causal, src_key_padding_mask=padding))
        loss = None
        if labels is not None:
            loss = nn.functional.cross_entropy(logits.transpose(1, 2), labels)
        return ModelOutput(logits, loss)


def sequences(count: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Numbers that rise by one or two modulo SYMBOLS; the label of a symbol is the next one.

    Every sequence ends at a length of its own. All three are ``[count,LENGTH]``.
    """
    start = torch.randint(SYMBOLS, (count, 1), generator=generator)
    rise = torch.randint(1, 3, (count, 1), generator=generator)
    ids = (start + rise * torch.arange(LENGTH + 1)) % SYMBOLS
    lengths = torch.randint(3, LENGTH + 1, (count, 1), generator=generator)
    mask = torch.arange(LENGTH) < lengths
    return {
        "input_ids": ids[:, :-1].where(mask, 0),
        "attention_mask": mask.long(),
        "labels": ids[:, 1:].where(mask, IGNORED),
    }


def main(steps: int = 5) -> list[float]:
    """Train; returns the loss at the start of every step."""
    torch.manual_seed(0)
    batch = sequences(60, torch.Generator().manual_seed(0))
    model = CausalModel()
    loss = hf.losses.SoftmaxCrossEntropy(ignore_index=IGNORED, mean="weights")
    opt = hf.HessianFree(model, loss, outputs="logits", damping=0.3, cg_max_iter=15)
    losses: list[float] = []
    for step in range(steps):
        stats = opt.step(batch)
        losses.append(stats.loss)
        if step % 2 == 0:
            print(f"step {step}: loss {stats.loss:.4f}, λ {stats.damping:.3g}")
    return losses


if __name__ == "__main__":
    main()
