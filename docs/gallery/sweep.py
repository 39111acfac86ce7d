"""A sweep of 64 nets in one batch.

Learning rates × momenta × seeds of recurrent nets that learn to add, all of them trained at once:
nets of one shape lie side by side on an axis of the kernels. The map shows where training works,
which is at large momentum (Sutskever et al. 2013). Its rates were chosen after a look at results,
and the best net is the best on the very cases that the map shows. Beside it, ``torch.nn.RNN`` with
torch's own optimiser, of which one net is timed, on one thread and on all of them.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn

import hfcore as hf

RATES, MOMENTA = (1e-1, 3e-2, 1e-2, 3e-3), (0.0, 0.8, 0.9, 0.98)


def one_by_one(task: hf.problems.Addition, hidden: int, updates: int, batch: int) -> float:
    """Seconds of an update of one net in plain torch, on one thread or on all: the faster."""
    threads, each = torch.get_num_threads(), []
    for count in sorted({1, threads}):
        torch.set_num_threads(count)
        each.append(_one_by_one(task, hidden, updates, batch))
    torch.set_num_threads(threads)
    return min(each)


def _one_by_one(task: hf.problems.Addition, hidden: int, updates: int, batch: int) -> float:
    began, generator = time.perf_counter(), np.random.default_rng(0)
    rnn, head = nn.RNN(2, hidden), nn.Linear(hidden, 1)
    parameters = [*rnn.parameters(), *head.parameters()]
    opt = torch.optim.SGD(parameters, lr=1e-3, momentum=0.9, nesterov=True)
    for _ in range(updates):
        data = task.batch(batch, generator)
        opt.zero_grad()
        s = head(rnn(data.inputs)[0])
        ((s - data.targets).square() * data.mask.unsqueeze(-1)).sum().div(batch).backward()
        opt.step()
    return (time.perf_counter() - began) / updates


def main(out: Path, quick: bool = False) -> None:
    length, hidden, updates, batch, seeds = (5, 4, 5, 4, 1) if quick else (10, 20, 2000, 50, 4)
    task = hf.problems.Addition(length, centre=True)
    result = hf.sweep(
        task,
        {"learning_rate": RATES, "momentum": MOMENTA, "method": ["nag"]},
        seeds=seeds,
        updates=updates,
        batch_size=batch,
        start=hf.RnnStart(hidden_size=hidden),
        schedule="constant",
        test_every=updates,
        test_size=50 if quick else 500,
        progress=False,
    )
    count = len(result.runs)
    print(f"hfcore: {count} nets, {updates} updates each, in {result.seconds:.1f} s together")
    each = one_by_one(task, hidden, 5 if quick else 300, batch)
    alone = count * updates * each
    print(f"torch.nn.RNN: {1e3 * each:.2f} ms an update, so {alone:.0f} s one by one")
    best = result.best()
    print(
        f"best: learning rate {best['learning_rate']:g}, momentum {best['momentum']:g}, "
        f"{100 * best['error']:.0f} % of the answers wrong"
    )
    errors = np.full((len(RATES), len(MOMENTA)), np.nan)
    for i, rate in enumerate(RATES):
        for j, momentum in enumerate(MOMENTA):
            found = [
                row["error"]
                for row in result.rows()
                if (row["learning_rate"], row["momentum"]) == (rate, momentum)
                and row["outcome"] != "diverged"
            ]
            if found:
                errors[i, j] = np.median(found)
    figure = Figure(figsize=(5.2, 3.8), layout="constrained")
    ax = figure.add_subplot(xlabel="momentum", ylabel="learning rate")
    image = ax.imshow(errors, vmin=0, vmax=1, cmap="viridis_r")
    ax.set_xticks(range(len(MOMENTA)), [f"{m:g}" for m in MOMENTA])
    ax.set_yticks(range(len(RATES)), [f"{r:g}" for r in RATES])
    for (i, j), value in np.ndenumerate(errors):
        text = "diverged" if np.isnan(value) else f"{value:.2f}"
        colour = "white" if value > 0.5 else "black"
        ax.text(j, i, text, ha="center", va="center", fontsize="small", color=colour)
    figure.colorbar(image, label=f"wrong answers, median of {seeds} seeds")
    figure.savefig(out / "sweep.png", dpi=120)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(), help="folder of the picture")
    parser.add_argument("--quick", action="store_true", help="tiny settings, to see that it runs")
    main(**vars(parser.parse_args()))
