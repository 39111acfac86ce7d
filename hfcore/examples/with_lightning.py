"""Hessian-free optimisation under Lightning, by manual and by automatic optimisation.

By hand a step takes a closure that returns (loss, outputs), and the curvature is the Gauss-Newton
matrix. Lightning's own closure returns the loss alone and calls ``backward()``: that is what
``curvature="hessian_fd"`` works with, at two calls of ``training_step`` a product.

    python -m hfcore.examples.with_lightning
"""

from __future__ import annotations

from typing import Any

import lightning
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import hfcore as hf
from hfcore.examples import cnn


class Classifier(lightning.LightningModule):  # type: ignore[misc, unused-ignore]
    """Scores of bars; ``losses`` are those at the start of every step."""

    def __init__(self, *, automatic: bool) -> None:
        super().__init__()
        self.net = cnn.make_model()
        self.automatic_optimization = automatic
        self.losses: list[float] = []

    def configure_optimizers(self) -> torch.optim.Optimizer:
        if self.automatic_optimization:
            return hf.HessianFree(self.net, curvature="hessian_fd", damping=1.0, cg_max_iter=20)
        return hf.HessianFree(self.net, damping=1.0, cg_max_iter=20)

    def training_step(self, batch: list[Tensor], index: int) -> Tensor | None:
        """The loss of images ``[B,1,SIZE,SIZE]`` and classes ``[B]``, or a step on them."""
        x, y = batch

        def closure() -> tuple[Tensor, Tensor]:
            outputs = self.net(x)
            return nn.functional.cross_entropy(outputs, y), outputs

        if self.automatic_optimization:
            return closure()[0]
        optimizer: Any = self.optimizers()
        optimizer.step(closure)
        return None

    def on_train_batch_end(self, *_: object) -> None:
        optimizer: Any = self.optimizers(use_pl_optimizer=False)
        self.losses.append(optimizer.last_stats.loss)


def main(epochs: int = 4, *, automatic: bool = False) -> list[float]:
    """Train; returns the loss at the start of every step."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    model = Classifier(automatic=automatic)
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, DataLoader(cnn.bars(200, generator), batch_size=100))
    print(f"loss {model.losses[0]:.4f}, at the last step {model.losses[-1]:.4f}")
    return model.losses


if __name__ == "__main__":
    main()
    main(automatic=True)
