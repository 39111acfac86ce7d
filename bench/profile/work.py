"""One piece of work for a profiler: products of the addition net, fused or by the reference.

    python -P bench/profile/work.py {fused,reference} [--products 20] [--step]

``--step`` runs a whole Hessian-free step. Warms up first, then brackets the work with
cudaProfilerStart and Stop, so that ``--capture-range=cudaProfilerApi`` records nothing else.
"""

from __future__ import annotations

import argparse
import sys

import torch

import hfcore as hf
from hfcore.bindings import cuda
from hfcore.bindings.nvtx import annotate

B, T, H = 1000, 200, 100


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", choices=["fused", "reference"])
    parser.add_argument("--products", type=int, default=20)
    parser.add_argument("--step", action="store_true", help="a whole Hessian-free step instead")
    options = parser.parse_args()
    if (reason := cuda.why_no_device()) is not None:
        print(f"profiling needs a CUDA device: {reason}.", file=sys.stderr)
        return 2
    draw = torch.Generator().manual_seed(0)
    model = hf.RNN(2, H, 1, generator=draw).to("cuda")
    x, y = (torch.rand(T, B, k, generator=draw).to("cuda") for k in (2, 1))
    mask = torch.zeros(T, B, dtype=torch.bool, device="cuda")
    mask[-1] = True
    loss = hf.losses.SquaredError()
    with hf.use_backend("cuda" if options.path == "fused" else "reference"):
        opt = hf.HessianFree(model, loss, damping=1.0, structural=0.03, cg_max_iter=20)
        G = hf.GaussNewton(model, loss, x, y, mask=mask, damping=1.0, structural=0.03)
        v = torch.randn(G.shape[0], generator=draw).to("cuda")
        out = torch.empty_like(v)

        def work(count: int) -> None:
            if options.step:
                opt.step((x, y, mask))
                return
            for _ in range(count):
                with annotate("product"):
                    G.matvec(v, out=out)

        work(3)
        torch.cuda.synchronize()
        torch.cuda.profiler.start()
        work(options.products)
        torch.cuda.synchronize()
        torch.cuda.profiler.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
