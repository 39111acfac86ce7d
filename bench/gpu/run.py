"""``make bench-gpu``: time every op on the GPU, print the table, write JSON and a roofline PNG.

python -P bench/gpu/run.py [--rounds 50] [--no-compile] [--sweep-updates 1000] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from pathlib import Path
from typing import Any

# Last on the path: an installed hfcore must win over the checkout that holds bench/.
sys.path.append(str(Path(__file__).resolve().parents[2]))

import torch

from bench import machine
from bench.gpu.measurements import Op, as_json, table
from hfcore.bindings import cuda, dispatch

RESULTS = Path(__file__).resolve().parents[1] / "results"


def why_not() -> str | None:
    """Why nothing can be timed here, in one sentence, or None."""
    if (reason := cuda.why_no_device()) is not None:
        return f"bench-gpu needs a CUDA device: {reason}."
    for op in dispatch.OPS:
        backend, reason = dispatch.explain(op, "cuda")
        if backend != "cuda":
            return f"bench-gpu needs every CUDA kernel, but {op} is served by {backend}: {reason}."
    return None


def describe() -> dict[str, Any]:
    """The machine and its libraries, GPU first."""
    return {
        "gpu": torch.cuda.get_device_name(),
        "device": cuda.describe(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "triton": machine.version_of("triton"),
        "cupy": machine.version_of("cupy-cuda13x"),
        **machine.describe(),
    }


def run(rounds: int, *, compiled: bool) -> dict[str, Any]:
    """Time everything; what :func:`bench.gpu.measurements.as_json` gives, kernels added."""
    from bench.gpu import gated, jax_peer, ops, timing

    torch.backends.cuda.matmul.fp32_precision = "ieee"
    torch.backends.cudnn.rnn.fp32_precision = "ieee"  # type: ignore[attr-defined]
    ceilings = timing.measure_ceilings(rounds)
    nets = [ops.Net(B=1000, T=200, H=100), ops.Net(B=1000, T=100, H=128)]
    nets += [ops.Net(B=100, T=30, H=300, n=225, k=225), ops.Net(B=100, T=20, H=1024, n=64, k=64)]
    benches = []
    for net in nets:
        benches += ops.recurrence_ops(net, compiled=compiled)
        benches[-1].make.update(jax_peer.products(net))
    for cell in ("lstm", "gru"):
        for size in ((1000, 200, 100), (1000, 100, 128), (100, 30, 300)):
            benches += gated.gated_ops(gated.Layer(cell, *size), compiled=compiled)
    benches += ops.dense_ops(compiled=compiled)
    benches += ops.loss_ops(compiled=compiled)
    benches += ops.cg_ops()
    done = []
    for bench in benches:
        print(f"{bench.name} {bench.case}", file=sys.stderr, flush=True)
        seconds = timing.time_interleaved(bench.contestants(), rounds)
        done.append(Op(bench.name, bench.case, bench.work, seconds, bench.aims, bench.absent))
        torch.cuda.empty_cache()
    result = as_json(done, ceilings, describe())
    result["kernels_of_a_product"] = {net.case: of_kernels(net, rounds) for net in nets}
    return result


def kernel_table(result: dict[str, Any]) -> str:
    """Time of each kernel inside a whole product, and a step of it."""
    lines = [
        "| case | kernel of a product | launches | median µs in all | µs a step | aim |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for case, kernels in result["kernels_of_a_product"].items():
        for name, k in kernels.items():
            per_step = k["median_us"] / k["steps"]
            aim = k.get("aim_us_a_step")
            verdict = "" if aim is None else f"{aim} {'met' if per_step <= aim else 'missed'}"
            lines.append(
                f"| {case} | `{name}` | {k['launches']} | {k['median_us']:.1f} | {per_step:.2f} | "
                f"{verdict} |"
            )
    return "\n".join(lines) + "\n"


def of_kernels(net: Any, rounds: int) -> dict[str, dict[str, float]]:
    """What :func:`kernel_table` shows of one net; aims are the addition net's alone."""
    from bench.gpu import ops

    shown: dict[str, dict[str, float]] = {}
    for name, (launches, times) in ops.kernels_of_a_product(net, rounds).items():
        median = 1e6 * statistics.median(times)
        shown[name] = {"launches": launches, "median_us": median, "steps": net.T}
        if (net.B, net.H) == (1000, 100) and name in ops.KERNEL_AIMS:
            shown[name]["aim_us_a_step"] = ops.KERNEL_AIMS[name]
    return shown


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument(
        "--sweep-updates", type=int, default=1000, help="measured of each sweep; 0 leaves them out"
    )
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    reason = why_not()
    if reason is not None:
        print(reason, file=sys.stderr)
        return 2
    from bench.gpu.plot import draw_roofline
    from bench.gpu.sweeps import projection_table, projections

    result = run(options.rounds, compiled=not options.no_compile)
    print(table(result))
    print(kernel_table(result))
    if options.sweep_updates:
        found = projections(options.sweep_updates)
        result["sweeps"] = [projection.row() for projection in found]
        print(projection_table(found))
    name = "gpu-" + re.sub(r"[^a-z0-9]+", "-", result["machine"]["gpu"].lower()).strip("-")
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    print(f"{options.out / name}.json, {draw_roofline(result, options.out / f'{name}.png')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
