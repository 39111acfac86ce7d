"""Hessian-free optimisation of a model that DistributedDataParallel wraps, on several processes.

The closure is that of any optimiser: it computes the loss on this process's cases, and its
``backward()`` averages the gradients. ``curvature="hessian_fd"`` takes products from two such
gradients, so whatever wraps the model goes on doing what it does.

    torchrun --nproc-per-node 2 -m hfcore.examples.with_ddp
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import hfcore as hf
from hfcore.examples import cnn

CASES = 120


def main(steps: int = 4) -> list[float]:
    """Train; returns the loss at the start of every step, the same on any number of processes up to
    rounding."""
    with hf.distributed.started_group() as group:
        torch.manual_seed(0)
        model = cnn.make_model()
        images, classes = share(CASES, group)
        called = model if group is None else DistributedDataParallel(model)

        def closure() -> Tensor:
            loss = nn.functional.cross_entropy(called(images), classes)
            loss.backward()
            return loss

        opt = hf.HessianFree(
            called, curvature="hessian_fd", damping=1.0, cg_max_iter=10, process_group=group
        )
        losses = [opt.step(closure).loss for _ in range(steps)]
        if group is None or dist.get_rank() == 0:
            print(f"loss {losses[0]:.6f}, at the last step {losses[-1]:.6f}")
        return losses


def share(cases: int, group: object) -> tuple[Tensor, Tensor]:
    """This process's images ``[B,1,SIZE,SIZE]`` and classes ``[B]`` of all of them."""
    bars = cnn.bars(cases, torch.Generator().manual_seed(0))
    images, classes = bars.tensors
    if group is None:
        return images, classes
    mine = slice(dist.get_rank(), None, dist.get_world_size())
    return images[mine], classes[mine]


if __name__ == "__main__":
    main()
