"""Spoken digits: a recurrent classifier.

Clips of the Free Spoken Digit Dataset become sequences of speech features, of unequal length, and
an RNN names the digit at the last frame of each. Four speakers train it, two it has not heard test
it. Hessian-free steps on all clips stand beside Adam on small batches, the same net from the same
start, in the same seconds of one core. Adam is sooner at its least error, and then fits the
speakers it knows: with a validation part that says when to stop, such data need no second-order
method.
"""

import argparse
import os
import time
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

import hfcore as hf

FILE, FRAME = Path("fsdd") / "fsdd_8khz.npz", 3  # every third frame, 30 ms


def clips(limit: int) -> tuple[list[Tensor], Tensor, Tensor]:
    """Features ``[T_i,39]``, digits and speakers, of at most so many clips."""
    arrays = np.load(Path(os.environ.get("HFCORE_DATA", ".")) / FILE)
    pcm, offsets = arrays["pcm"], arrays["offsets"]
    chosen = np.random.default_rng(0).permutation(len(offsets) - 1)[:limit]
    features = [
        hf.data.speech_features(pcm[offsets[i] : offsets[i + 1]], int(arrays["sample_rate"]))
        for i in chosen
    ]
    together = np.concatenate(features)
    mean, deviation = together.mean(0), together.std(0)
    scaled = [torch.from_numpy((f[::FRAME] - mean) / deviation).float() for f in features]
    digits, speakers = (torch.from_numpy(arrays[k][chosen]).long() for k in ("digit", "speaker"))
    return scaled, digits, speakers


def padded(features: list[Tensor], digits: Tensor) -> hf.Batch:
    """Inputs ``[T,B,39]``, classes ``[T,B]``, and a mask that is 1 at the last frame of each."""
    inputs = torch.nn.utils.rnn.pad_sequence(features)
    mask = torch.zeros(inputs.shape[:2], dtype=torch.bool)
    mask[torch.tensor([len(f) - 1 for f in features]), torch.arange(len(features))] = True
    return hf.Batch(inputs, digits.expand(len(inputs), -1).contiguous(), mask)


@torch.no_grad()
def error(model: hf.RNN, batch: hf.Batch) -> float:
    answers = model(batch.inputs).argmax(-1)
    return float((answers != batch.targets)[batch.mask].float().mean())


def train(name: str, hidden: int, batch: hf.Batch, test: hf.Batch, seconds: float) -> tuple:
    """Seconds and test errors."""
    model = hf.RNN(39, hidden, 10)
    hf.init.sparse_(model, torch.Generator().manual_seed(0))
    loss, generator = hf.losses.SoftmaxCrossEntropy(), torch.Generator().manual_seed(0)
    if name == "Hessian-free":
        options = {**hf.presets.rnn2011, "l2": 1e-3}
        opt = hf.HessianFree(model, loss, **options)
    else:
        opt = torch.optim.Adam(model.parameters(), lr=3e-3)
    times, errors, began = [0.0], [error(model, test)], time.thread_time()
    while times[-1] < seconds:
        if name == "Hessian-free":
            opt.step(batch)
        for _ in range(0 if name == "Hessian-free" else 20):
            part = torch.randperm(batch.inputs.shape[1], generator=generator)[:50]
            s = model(batch.inputs[:, part])[batch.mask[:, part]]
            opt.zero_grad()
            classes = batch.targets[:, part][batch.mask[:, part]]
            torch.nn.functional.cross_entropy(s, classes).backward()
            opt.step()
        times.append(time.thread_time() - began)
        errors.append(error(model, test))
    return times, errors


def main(out: Path, quick: bool = False) -> None:
    hidden, limit, seconds = (8, 60, 0.1) if quick else (64, 1200, 15.0)
    try:
        features, digits, speakers = clips(limit)
    except FileNotFoundError:
        print(f"no {FILE} in HFCORE_DATA; hf.data.spoken_digits() says what to put where")
        return
    known = speakers < 4
    batch, test = (
        padded([f for f, chosen in zip(features, part, strict=True) if chosen], digits[part])
        for part in (known, ~known)
    )
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    ax = figure.add_subplot(
        xlabel="seconds of one core", ylabel="wrong digits of speakers not heard before"
    )
    for name in ("Hessian-free", "Adam"):
        times, errors = train(name, hidden, batch, test, seconds)
        ax.plot(times, errors, label=name, marker=".")
        for at, word in ((-1, "after"), (errors.index(min(errors)), "at the least, after")):
            print(f"{name}: {100 * errors[at]:.1f} % of the digits wrong {word} {times[at]:.1f} s")
    ax.set_ylim(0, 1)
    ax.grid(alpha=0.3)
    ax.legend(fontsize="small")
    figure.savefig(out / "spoken_digits.png", dpi=120)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(), help="folder of the picture")
    parser.add_argument("--quick", action="store_true", help="tiny settings, to see that it runs")
    torch.set_num_threads(1)  # so that others on the machine count less
    main(**vars(parser.parse_args()))
