"""Inside Lightning and Accelerate.

Hessian-free steps under two frameworks that bring their own loops: a small convolutional net that
tells bars in noisy images apart. In Lightning the step is taken by hand, with a closure that
returns (loss, outputs); under Accelerate the prepared optimiser takes the batch. Beside them AdamW
in the same Lightning loop, which is done sooner on data as easy as these: this is how it is done,
not when it pays.
"""

import argparse
import logging
import time
import warnings
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import hfcore as hf
from hfcore.examples.cnn import bars, make_model

Curve = tuple[list[float], list[float]]


def with_lightning(data: TensorDataset, passes: int, hessian_free: bool) -> Curve:
    """Seconds and losses at the start of every step."""
    import lightning

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")

    class Classifier(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.automatic_optimization = make_model(), False
            self.times, self.losses, self.began = [], [], time.perf_counter()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            if hessian_free:
                return hf.HessianFree(self.net, damping=1.0, cg_max_iter=20)
            return torch.optim.AdamW(self.net.parameters(), lr=1e-2)

        def training_step(self, batch: list[Tensor], index: int) -> None:
            x, y = batch

            def closure() -> tuple[Tensor, Tensor]:
                outputs = self.net(x)
                return nn.functional.cross_entropy(outputs, y), outputs

            opt = self.optimizers()
            self.times.append(time.perf_counter() - self.began)
            if hessian_free:
                opt.step(closure)
                self.losses.append(self.optimizers(use_pl_optimizer=False).last_stats.loss)
                return
            loss, _ = closure()
            opt.zero_grad()
            self.manual_backward(loss)
            opt.step()
            self.losses.append(float(loss.detach()))

    torch.manual_seed(0)
    model = Classifier()
    trainer = lightning.Trainer(
        max_epochs=passes, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(model, DataLoader(data, batch_size=100))
    return model.times, model.losses


def with_accelerate(data: TensorDataset, passes: int) -> Curve:
    from accelerate import Accelerator

    torch.manual_seed(0)
    net = make_model()
    own = hf.HessianFree(net, nn.CrossEntropyLoss(), damping=1.0, cg_max_iter=20)
    _, opt, loader = Accelerator(cpu=True).prepare(net, own, DataLoader(data, batch_size=100))
    times, losses, began = [], [], time.perf_counter()
    for _ in range(passes):
        for batch in loader:
            times.append(time.perf_counter() - began)
            opt.step(tuple(batch))
            losses.append(own.last_stats.loss)
    return times, losses


def main(out: Path, quick: bool = False) -> None:
    data = bars(100 if quick else 400, torch.Generator().manual_seed(0))
    passes = 1 if quick else 6
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    ax = figure.add_subplot(xlabel="seconds", ylabel="loss", yscale="log")
    runs = {
        "HessianFree in Lightning": lambda: with_lightning(data, passes, True),
        "HessianFree under Accelerate": lambda: with_accelerate(data, passes),
        "AdamW in Lightning": lambda: with_lightning(data, 8 * passes, False),
    }
    for name, run in runs.items():
        try:
            times, losses = run()
        except ImportError as error:
            print(f"{name}: {error}; pip install '.[frameworks]'")
            continue
        ax.plot(times, losses, label=name, marker=".")
        print(f"{name}: loss {losses[-1]:.2g} after {len(losses)} steps, {times[-1]:.1f} s")
    ax.grid(alpha=0.3)
    ax.legend(fontsize="small")
    figure.savefig(out / "frameworks.png", dpi=120)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(), help="folder of the picture")
    parser.add_argument("--quick", action="store_true", help="tiny settings, to see that it runs")
    main(**vars(parser.parse_args()))
