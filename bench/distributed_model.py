"""The cost model of docs/distributed.md: a product, and a Hessian-free step, on 1 to 1,024 ranks.

    python -P bench/distributed_model.py                 # GPUs, as assumed below
    python -P bench/distributed_model.py --measure       # and 1 and 2 processes here, beside it

A product on R ranks takes t₁/R for its share of the cases, but never less than one case's chain of
T steps, and one reduction: 2(R−1)α + 2(R−1)/R · 4N/β for a ring all-reduce ("fast"), (R−1)(α +
4Nk/β) for the all-gather of "exact", where every rank hands out k ≤ 3 vectors. A step has C
products and g gradients of as much.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

ROUNDS = 15
RANKS = [2**i for i in range(11)]
# A rank more pays as long as doubling takes off at least a quarter of the time.
WORTH = 0.75


@dataclass(frozen=True)
class Net:
    """A problem: N parameters, and the seconds of a product over all of its cases on one rank.

    ``least`` are those of a single case: the steps of a sequence wait for one another.
    """

    name: str
    parameters: int
    product: float
    least: float
    products: int = 100
    gradients: float = 10.0


@dataclass(frozen=True)
class Link:
    """What a message costs: α seconds, and β bytes a second."""

    name: str
    latency: float
    bytes_per_second: float
    gathers: bool = False
    """Whether "fast" is one all-gather, as on gloo between a few ranks."""

    def fast(self, ranks: int, parameters: int) -> float:
        if ranks == 1:
            return 0.0
        if self.gathers:
            return (ranks - 1) * (self.latency + 4 * parameters / self.bytes_per_second)
        size = 4 * parameters / self.bytes_per_second
        return 2 * (ranks - 1) * self.latency + 2 * (ranks - 1) / ranks * size

    def exact(self, ranks: int, parameters: int) -> float:
        vectors = 1 if ranks in (1, 2, 4) else 3
        size = 4 * parameters * vectors / self.bytes_per_second
        return (ranks - 1) * (self.latency + size)


# 8H²BT = 8·2048²·10,000·100 flops for a product at an assumed 40 TFLOP/s in float32; a step of a
# sequence is two kernels forward and two back of 3 µs.
WIDE = Net("RNN, H = 2048, T = 100, 10,000 sequences", 4_500_000, 0.84, 100 * 4 * 3e-6)
# 2·4·N·B flops: six layers' weights, forward tangent and back, 60,000 images.
MNIST = Net("MNIST autoencoder, 60,000 images", 2_800_000, 0.034, 12 * 3e-6)
NVLINK = Link("8 GPUs on NVLink, 400 Gb/s between machines", 8e-6, 40e9)


def product_seconds(net: Net, link: Link, ranks: int, reduction: str) -> float:
    compute = max(net.product / ranks, net.least)
    return compute + getattr(link, reduction)(ranks, net.parameters)


def rows(net: Net, link: Link) -> list[tuple[str, ...]]:
    found = []
    for ranks in RANKS:
        fast = product_seconds(net, link, ranks, "fast")
        step = fast * (net.products + net.gradients)
        exact = product_seconds(net, link, ranks, "exact")
        moved = 8 * net.parameters * (ranks - 1) / ranks / 1e6
        found.append(
            (
                f"{ranks:,}",
                f"{moved:.1f}",
                f"{1e3 * fast:.2f}",
                f"{net.product / fast:.1f}",
                f"{1e3 * exact:.2f}" if ranks <= 16 else "",
                f"{step:.2f}",
            )
        )
    return found


def stops_paying(net: Net, link: Link) -> int:
    """The largest number of ranks whose last doubling was worth it."""
    best = 1
    for ranks in RANKS[1:]:
        now = product_seconds(net, link, ranks, "fast")
        if now > WORTH * product_seconds(net, link, ranks // 2, "fast"):
            break
        best = ranks
    return best


def table(net: Net, link: Link) -> str:
    header = ("ranks", "MB moved", "product ms", "speed-up", "exact ms", "step s")
    lines = [header, ("---:",) * len(header), *rows(net, link)]
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return (
        f"{net.name}; {link.name}\n\n{text}\n\nDoubling stops paying after "
        f"{stops_paying(net, link)} ranks.\n"
    )


# ------------------------------------------------------------------------- measured, beside it


def measured() -> str:
    """A product of B1000-T100-H100 on one process with a thread, and on two, beside the model."""
    from bench.cases import ADDITION

    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-P", str(Path(__file__).resolve()), "--rank"]
        both = [
            subprocess.Popen([*command, str(rank), folder], stdout=subprocess.PIPE, text=True)
            for rank in (0, 1)
        ]
        out, _ = both[0].communicate()
        both[1].communicate()
    found = json.loads(out.splitlines()[-1])
    N = ADDITION.make().v.numel()
    link = Link("here", found["small"], 4 * found["numbers"] / found["large"], gathers=True)
    net = Net(ADDITION.name, N, found["one"], 0.0)
    lines = ["| | model ms | measured ms |", "| --- | ---: | ---: |"]
    lines.append(f"| one process, one thread | | {1e3 * found['one']:.2f} |")
    for reduction in ("exact", "fast"):
        model = product_seconds(net, link, 2, reduction)
        lines.append(f"| two, {reduction} | {1e3 * model:.2f} | {1e3 * found[reduction]:.2f} |")
    link_text = f"α = {1e6 * link.latency:.0f} µs, β = {link.bytes_per_second / 1e9:.2f} GB/s"
    return f"{net.name}, N = {N:,}; gloo on this machine: {link_text}\n\n" + "\n".join(lines)


def rank(number: int, folder: str) -> None:
    """One of the two processes that are measured."""
    import torch
    import torch.distributed as dist

    from bench.partner import join, on_core
    from bench.two_ranks import products
    from hfcore.distributed.ranks import Ranks

    torch.set_num_threads(1)
    join(f"{folder}/store", number)
    ranks = Ranks(dist.group.WORLD)
    numbers = 4_000_000
    small, large = torch.zeros(2), torch.zeros(numbers)
    (plain,) = products().values()
    calls: dict[str, Callable[[], object]] = {
        "one": plain if number == 0 else lambda: None,
        **products(dist.group.WORLD),
        "small": lambda: ranks.all_gather(small),
        "large": lambda: ranks.all_gather(large),
    }
    found: dict[str, float] = dict.fromkeys(calls, float("inf"))
    for _ in range(ROUNDS):  # interleaved: machines are shared, and clocks drift
        for name, call in calls.items():
            with on_core(number):
                call()  # caches are those of the call before
                dist.barrier()
                began = perf_counter()
                call()
                found[name] = min(found[name], perf_counter() - began)
    if number == 0:
        print(json.dumps({**found, "numbers": numbers}))
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--measure", action="store_true", help="also 1 and 2 processes here")
    parser.add_argument("--rank", nargs=2, metavar=("N", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    sys.path.append(str(Path(__file__).resolve().parents[1]))
    if arguments.rank:
        rank(int(arguments.rank[0]), arguments.rank[1])
        return
    for net in (WIDE, MNIST):
        print(table(net, NVLINK))
    if arguments.measure:
        print(measured())


if __name__ == "__main__":
    main()
