"""A character model: where Hessian-free is not the first choice.

A recurrent net of a million parameters reads plain text. A Hessian-free step costs as much as some
dozens of gradients over all of its data and has to make as much of them; on text, where small
batches say almost as much as large ones, Adam does more with the same seconds of one core. The
script prints how many steps and updates that were; "Choosing a method" has ten million parameters.
"""

import argparse
import os
import time
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import hfcore as hf

FILE = Path("text") / "tinyshakespeare.txt"


def characters() -> tuple[Tensor, int]:
    """The text as numbers of its characters; without the file, this script in its place."""
    path = Path(os.environ.get("HFCORE_DATA", ".")) / FILE
    text = (path if path.exists() else Path(__file__)).read_text()
    print(f"text: {path.name if path.exists() else Path(__file__).name}")
    known = {c: i for i, c in enumerate(sorted(set(text)))}
    return torch.tensor([known[c] for c in text]), len(known)


def batch(text: Tensor, symbols: int, count: int, length: int, generator: torch.Generator) -> tuple:
    """One-hot inputs ``[T,B,n]`` and the next characters ``[T,B]``."""
    at = torch.randint(len(text) - length - 1, (count,), generator=generator)
    windows = torch.stack([text[i : i + length + 1] for i in at.tolist()], 1)
    return nn.functional.one_hot(windows[:-1], symbols).float(), windows[1:].contiguous()


def train(
    name: str, text: Tensor, symbols: int, hidden: int, length: int, count: int, seconds: float
) -> tuple[list[float], list[float]]:
    """Seconds and bits a character on batches not seen before."""
    model = hf.RNN(symbols, hidden, symbols)
    hf.init.sparse_(model, torch.Generator().manual_seed(0))
    loss, generator = hf.losses.SoftmaxCrossEntropy(), torch.Generator().manual_seed(1)
    test = batch(text[-len(text) // 10 :], symbols, 50, length, torch.Generator().manual_seed(2))
    text = text[: -len(text) // 10]
    if name == "Hessian-free":
        opt = hf.HessianFree(model, loss, **{**hf.presets.rnn2011, "cg_max_iter": 30})
    else:
        opt = torch.optim.Adam(model.parameters(), lr=2e-3)
    times, bits, steps, began = [0.0], [bits_of(model, *test)], 0, time.thread_time()
    while times[-1] < seconds:
        if name == "Hessian-free":
            opt.step(batch(text, symbols, count, length, generator))
        for _ in range(0 if name == "Hessian-free" else 10):
            x, y = batch(text, symbols, 20, length, generator)
            opt.zero_grad()
            nn.functional.cross_entropy(model(x).flatten(0, 1), y.flatten()).backward()
            opt.step()
        steps += 1 if name == "Hessian-free" else 10
        times.append(time.thread_time() - began)
        bits.append(bits_of(model, *test))
    print(f"{name}: {bits[-1]:.2f} bits a character after {times[-1]:.0f} s, {steps} updates of "
          f"{times[-1] / steps:.2g} s")  # fmt: skip
    return times, bits


@torch.no_grad()
def bits_of(model: nn.Module, x: Tensor, y: Tensor) -> float:
    return float(nn.functional.cross_entropy(model(x).flatten(0, 1), y.flatten())) / 0.6931


def main(out: Path, quick: bool = False) -> None:
    hidden, length, count, seconds = (10, 5, 10, 0.2) if quick else (1000, 50, 50, 15.0)
    text, symbols = characters()
    size = hidden * (hidden + 2 * symbols + 1) + symbols
    print(f"{size:,} parameters; {count} sequences of {length} characters a Hessian-free step")
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    ax = figure.add_subplot(xlabel="seconds of one core", ylabel="bits a character, text not seen")
    for name in ("Hessian-free", "Adam"):
        times, bits = train(name, text, symbols, hidden, length, count, seconds)
        ax.plot(times, bits, label=name, marker=".")
    ax.grid(alpha=0.3)
    ax.legend(fontsize="small")
    figure.savefig(out / "character_model.png", dpi=120)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(), help="folder of the picture")
    parser.add_argument("--quick", action="store_true", help="tiny settings, to see that it runs")
    torch.set_num_threads(1)  # so that others on the machine count less
    main(**vars(parser.parse_args()))
