"""Temporal order: Hessian-free beside Adam.

A net reads thirty symbols, two of which matter, and names the order in which they came: the error
has to reach back over most of the sequence. All runs start at the same net. Hessian-free
optimisation has the settings of its paper and needs no rate; Adam has eight seconds at each of
three rates. Both solve the task, and the picture shows how soon. Thirty steps are a length at which
Hessian-free is the sooner of the two here; set ``length`` to 60, and Adam at its lowest rate is.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from matplotlib.figure import Figure

import hfcore as hf


def train(
    task: hf.problems.TemporalOrder2, hidden: int, rate: float | None, seconds: float, test: int
) -> tuple[list[float], list[float]]:
    """Seconds and test errors of Hessian-free (no rate) or Adam, from the same initial net."""
    model = hf.RNN(task.input_size, hidden, task.output_size)
    hf.init.sparse_(model, torch.Generator().manual_seed(0))
    if rate is None:
        optimizer = hf.HessianFree(model, task.loss, **hf.presets.rnn2011)
    else:
        optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        hf.train(
            model,
            task,
            optimizer,
            batch_size=100,
            stop=hf.training.Limits(seconds=seconds),
            test_untrained=True,
            test_every=1 if rate is None else 100,
            test_size=test,
            run_dir=run,
            progress=False,
        )
        lines = hf.training.read_metrics(run / "metrics.jsonl")
    tested = [line for line in lines if line.get("test_error") is not None]
    return [line["training_seconds"] for line in tested], [line["test_error"] for line in tested]


def main(out: Path, quick: bool = False) -> None:
    length, hidden, seconds, test = (12, 8, 0.3, 100) if quick else (30, 30, 8.0, 1000)
    task = hf.problems.TemporalOrder2(length)
    curves = {"Hessian-free": train(task, hidden, None, seconds, test)}
    for rate in (1e-2, 3e-3, 1e-3):
        curves[f"Adam, rate {rate:g}"] = train(task, hidden, rate, seconds, test)
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    ax = figure.add_subplot(xlabel="seconds", ylabel="share of wrong answers")
    for name, (times, errors) in curves.items():
        ax.plot(times, errors, label=name, marker=".")
        print(f"{name}: {100 * errors[-1]:.1f} % of the answers wrong after {times[-1]:.1f} s")
    ax.axhline(0.75, color="0.6", linestyle="--", label="a guess")
    ax.grid(alpha=0.3)
    ax.legend(fontsize="small")
    figure.savefig(out / "temporal_order.png", dpi=120)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(), help="folder of the picture")
    parser.add_argument("--quick", action="store_true", help="tiny settings, to see that it runs")
    main(**vars(parser.parse_args()))
