"""What to expect of ten million parameters: an LSTM on plain text, by Hessian-free and by Adam.

    python -P bench/character_model.py               # about ten minutes of one core
    python -P bench/character_model.py --costs-only  # what one gradient, product, update takes
    python -P bench/character_model.py --print-only  # the tables of what was run

Each method has a process of its own, of which the peak of memory is taken. Hessian-free goes first,
for ``--steps`` steps; Adam then has as many seconds. A run's seconds are those that its one thread
had of a core: others on the machine do not count, batches do, tests do not. What a gradient, a
product and an update take is the least of some by the clock.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor, nn

# Last on the path: an installed hfcore must win over the checkout that holds bench/.
sys.path.append(str(Path(__file__).resolve().parent.parent))

import hfcore as hf
from bench.process_memory import megabytes
from hfcore.cli.tables import markdown
from hfcore.experiments.machine import machine_name

BENCH = Path(__file__).resolve().parent
FILE = Path("text") / "tinyshakespeare.txt"
NAME = "character_model"
HF, ADAM = "Hessian-free", "Adam"
NATS_A_BIT = 0.6931471805599453


@dataclass(frozen=True)
class Sizes:
    """Of the net, in ``hidden``; the data of a step; Adam's batches; the test's sequences."""

    hidden: int = 1536
    length: int = 50
    sequences: int = 40
    gradient_batches: int = 4
    cg_max_iter: int = 30
    adam_sequences: int = 20
    test_sequences: int = 100
    test_every: int = 25
    steps: int = 4
    seed: int = 0


class Text:
    """Characters as numbers: nine tenths to train on, the last tenth to test on."""

    def __init__(self, path: Path) -> None:
        text = path.read_text()
        self.symbols = len(known := {c: i for i, c in enumerate(sorted(set(text)))})
        whole = torch.tensor([known[c] for c in text])
        cut = len(whole) * 9 // 10
        self.train, self.test = whole[:cut], whole[cut:]

    def batch(self, of: Tensor, count: int, length: int, generator: torch.Generator) -> hf.Batch:
        """One-hot characters ``[T,B,n]`` and the next ones ``[T,B]``."""
        starts = torch.randint(len(of) - length, (count,), generator=generator)
        windows = of.unfold(0, length + 1, 1)[starts].T
        inputs = nn.functional.one_hot(windows[:-1], self.symbols).float()
        return hf.Batch(inputs, windows[1:].contiguous())


class Run:
    """One method on the text; its lines are what is known after a step or some updates."""

    def __init__(self, method: str, path: Path, sizes: Sizes) -> None:
        torch.set_num_threads(1)
        self.sizes, self.text = sizes, Text(path)
        start = torch.Generator().manual_seed(sizes.seed)
        self.model = hf.LSTM(self.text.symbols, sizes.hidden, self.text.symbols, generator=start)
        self.loss = hf.losses.SoftmaxCrossEntropy()
        self.generator = torch.Generator().manual_seed(sizes.seed + 1)
        test = torch.Generator().manual_seed(sizes.seed + 2)
        size = sizes.test_sequences, sizes.length
        self._test = self.text.batch(self.text.test, *size, test)
        self._advance = {HF: self._hessian_free, ADAM: self._adam}[method]
        self.seconds, self.characters = 0.0, 0

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.model.parameters())

    def lines(self) -> Iterator[dict[str, Any]]:
        """The untrained net, then one step or ``test_every`` updates after the other."""
        yield {"seconds": 0.0, "characters": 0, "bits": self.bits()}
        advance = self._advance()
        while True:
            began = time.process_time()
            more = next(advance)
            self.seconds += time.process_time() - began
            yield {"seconds": self.seconds, "characters": self.characters, **more,
                   "bits": self.bits()}  # fmt: skip

    @torch.no_grad()
    def bits(self) -> float:
        """A character of the test."""
        logits = self.model(self._test.inputs).flatten(0, 1)
        nats = nn.functional.cross_entropy(logits, self._test.targets.flatten())
        return float(nats) / NATS_A_BIT

    def _batch(self, sequences: int) -> hf.Batch:
        return self.text.batch(self.text.train, sequences, self.sizes.length, self.generator)

    def _hessian_free(self) -> Iterator[dict[str, Any]]:
        options = {**hf.presets.rnn2011, "structural": 0.0, "cg_max_iter": self.sizes.cg_max_iter}
        opt = hf.HessianFree(self.model, self.loss, **options)
        while True:
            parts = [self._batch(self.sizes.sequences) for _ in range(self.sizes.gradient_batches)]
            stats = opt.step(hf.Batches(gradient=parts, curvature=parts[0]))
            cases = self.sizes.sequences * self.sizes.length
            self.characters += stats.minibatches * cases
            yield {
                "products": stats.products,
                "evaluations": stats.objective_evaluations,
                "damping": stats.damping,
                "rho": stats.rho,
            }

    def _adam(self) -> Iterator[dict[str, Any]]:
        opt = torch.optim.Adam(self.model.parameters(), lr=2e-3)
        while True:
            for _ in range(self.sizes.test_every):
                self._update(opt)
                self.characters += self.sizes.adam_sequences * self.sizes.length
            yield {"updates": self.sizes.test_every}

    def _update(self, opt: torch.optim.Optimizer) -> None:
        x, y, _ = self._batch(self.sizes.adam_sequences)
        opt.zero_grad()
        nn.functional.cross_entropy(self.model(x).flatten(0, 1), y.flatten()).backward()
        opt.step()

    def costs(self, repetitions: int = 3) -> dict[str, float]:
        """Seconds of a gradient, a curvature product and an update of Adam: the least of some."""
        batch = self._batch(self.sizes.sequences)
        objective = hf.objective_for(self.model, self.loss)
        data = objective.prepare(batch)
        theta = nn.utils.parameters_to_vector(self.model.parameters()).detach()
        G = hf.GaussNewton(self.model, self.loss, batch.inputs, batch.targets)
        opt = torch.optim.Adam(self.model.parameters(), lr=1e-6)
        v = torch.ones_like(theta)
        calls: dict[str, Callable[[], object]] = {
            "gradient": lambda: objective.gradient(data, theta),
            "product": lambda: G @ v,
            "update": lambda: self._update(opt),
        }
        return {name: _least(call, repetitions) for name, call in calls.items()}


def _least(call: Callable[[], object], repetitions: int) -> float:
    """Seconds; the first call does not count."""
    call()
    least = float("inf")
    for _ in range(repetitions):
        began = time.perf_counter()
        call()
        least = min(least, time.perf_counter() - began)
    return least


def costs(path: Path, sizes: Sizes) -> dict[str, float]:
    """See :meth:`Run.costs`; in a process of its own."""
    return Run(ADAM, path, sizes).costs()


def run(method: str, path: Path, sizes: Sizes, seconds: float | None) -> dict[str, Any]:
    """In a process of its own: its lines, until so many seconds or all steps are done."""
    training, lines = Run(method, path, sizes), []
    for line in training.lines():
        lines.append(line)
        spent, done = line["seconds"], len(lines) - 1
        whole = seconds if seconds is not None else spent * sizes.steps / max(1, done)
        text = f"{method}: {line['bits']:.2f} bits a character after {spent:.0f} s"
        print(f"{text}, about {max(0.0, whole - spent) / 60:.1f} min more", flush=True)
        if (seconds is None and done == sizes.steps) or (seconds is not None and spent >= seconds):
            break
    return {"parameters": training.parameters, "peak_mb": megabytes("VmHWM"), "lines": lines}


def tables(results: dict[str, Any]) -> str:
    """What a step costs, and how far both come."""
    sizes, newton, adam = Sizes(**results["sizes"]), results[HF], results[ADAM]
    took = results["costs"]
    cases, small = sizes.sequences * sizes.length, sizes.adam_sequences * sizes.length
    costs = [
        [f"one gradient over {cases:,} characters", f"{took['gradient']:.1f} s"],
        [f"one curvature product over {cases:,} characters", f"{took['product']:.1f} s"],
        [f"one update of Adam, over {small:,} characters", f"{took['update']:.2f} s"],
        ["most memory, Hessian-free", f"{newton['peak_mb']:,.0f} MB"],
        ["most memory, Adam", f"{adam['peak_mb']:,.0f} MB"],
    ]
    rows, before = [], 0.0
    for step, line in enumerate(newton["lines"]):
        known = [other for other in adam["lines"] if other["seconds"] <= line["seconds"]]
        cells = [str(step), str(line.get("products", 0)), f"{line['seconds'] - before:.0f}"]
        cells += [f"{line['seconds']:.0f}", f"{line['bits']:.2f}"]
        updates = sum(other.get("updates", 0) for other in known)
        rows.append([*cells, f"{updates:,}", f"{known[-1]['bits']:.2f}"])
        before = line["seconds"]
    header = ["Hessian-free step", "products", "its seconds", "seconds in all",
              "bits a character", "updates of Adam until then", "its bits a character"]  # fmt: skip
    return "\n".join(
        [
            f"{newton['parameters']:,} parameters; {results['machine']}, one thread, a machine "
            "that others share",
            "",
            markdown(["what", "takes"], costs),
            "",
            markdown(header, rows),
        ]
    )


def show(results: dict[str, Any], out: Path) -> None:
    """Print the tables, and write them with the numbers."""
    text = tables(results)
    click.echo(text)
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{NAME}.json").write_text(json.dumps(results, indent=1) + "\n")
    (out / f"{NAME}.md").write_text(text + "\n")


def alone(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function returns in a process of its own."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as one:
        return one.submit(function, *arguments).result()


@click.command()
@click.option("--hidden", default=Sizes.hidden, show_default=True, help="Of the LSTM.")
@click.option("--steps", default=Sizes.steps, show_default=True, help="Of Hessian-free.")
@click.option("--out", type=click.Path(path_type=Path), default=BENCH / "results")
@click.option("--costs-only", is_flag=True, help="Measure these again, beside the runs there are.")
@click.option("--print-only", is_flag=True)
def main(hidden: int, steps: int, out: Path, costs_only: bool, print_only: bool) -> None:
    """Train by both methods, print the tables and write them."""
    stored = out / f"{NAME}.json"
    if print_only:
        click.echo(tables(json.loads(stored.read_text())))
        return
    path = Path(os.environ.get("HFCORE_DATA", ".")) / FILE
    if not path.exists():
        raise click.ClickException(f"{path}: there is no such file; HFCORE_DATA names its folder")
    if costs_only:
        results = json.loads(stored.read_text())
        show({**results, "costs": alone(costs, path, Sizes(**results["sizes"]))}, out)
        return
    sizes = Sizes(hidden=hidden, steps=steps)
    machine = machine_name(torch.device("cpu"))
    results = {"sizes": asdict(sizes), "machine": machine, "text": path.name}
    results["costs"] = alone(costs, path, sizes)
    results[HF] = alone(run, HF, path, sizes, None)
    seconds = results[HF]["lines"][-1]["seconds"]
    results[ADAM] = alone(run, ADAM, path, sizes, seconds)
    show(results, out)


if __name__ == "__main__":
    main()
