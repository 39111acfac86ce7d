"""Seconds on the device by CUDA events, contestants interleaved; and the ceilings of the chip."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from bench.gpu.measurements import Ceilings

Call = Callable[[], object]

# A CUDA event resolves half a microsecond: shorter calls are repeated between two of them.
SPAN = 2e-4
WARM_UP = 3


def time_interleaved(calls: Mapping[str, Call], rounds: int) -> dict[str, list[float]]:
    """Seconds a call of every contestant in every round; all take a turn in each, order rotating.

    The host waits once, after the last round.
    """
    names = list(calls)
    repeats = {name: _repeats(calls[name]) for name in names}
    pairs: dict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = {n: [] for n in names}
    for at in range(rounds):
        for name in names[at % len(names) :] + names[: at % len(names)]:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            for _ in range(repeats[name]):
                calls[name]()
            end.record()
            pairs[name].append((start, end))
    torch.cuda.synchronize()
    return {
        name: [1e-3 * start.elapsed_time(end) / repeats[name] for start, end in pairs[name]]
        for name in names
    }


def _repeats(call: Call) -> int:
    for _ in range(WARM_UP):
        call()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    torch.cuda.synchronize()
    seconds: float = 1e-3 * start.elapsed_time(end)
    return max(1, round(SPAN / seconds))


def graphed(call: Call) -> Call:
    """``call`` captured in a CUDA graph; calling the result replays it.

    Warmed up and captured on a side stream: the default stream cannot be captured.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = call()

    def replay(graph: torch.cuda.CUDAGraph = graph, kept: object = kept) -> object:
        graph.replay()
        return kept

    return replay


def measure_ceilings(rounds: int, *, gigabytes: float = 1.0, gemm: int = 8192) -> Ceilings:
    """Copy bandwidth (read and write counted) and the GEMM rate in float32 and TF32."""
    source = torch.empty(int(gigabytes * 2**28), device="cuda")
    target = torch.empty_like(source)
    a, b = (torch.randn(gemm, gemm, device="cuda") for _ in range(2))
    out = torch.empty_like(a)

    def product(precision: str) -> Call:
        def call() -> object:
            before = torch.backends.cuda.matmul.fp32_precision
            torch.backends.cuda.matmul.fp32_precision = precision
            try:
                return torch.mm(a, b, out=out)
            finally:
                torch.backends.cuda.matmul.fp32_precision = before

        return call

    seconds = time_interleaved(
        {
            "copy": lambda: target.copy_(source),
            "float32": product("ieee"),
            "tf32": product("tf32"),
        },
        rounds,
    )
    best = {name: min(times) for name, times in seconds.items()}
    flops = 2.0 * gemm**3
    return Ceilings(
        copy=2.0 * source.numel() * 4 / best["copy"],
        float32=flops / best["float32"],
        tf32=flops / best["tf32"],
    )
