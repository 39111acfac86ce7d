"""What every CUDA op of the recurrence shares: how kernels start, and what is of which net."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from hfcore.kernels.gpu_launch import Launch
from hfcore.kernels.scratch import Scratch

ELEMENTWISE_THREADS = 256


class TensorLaunch(NamedTuple):
    """What starts kernels on tensor cores, each None where it does not serve.

    ``block`` those of ``gpu_tensor.cu``, ``cluster`` of ``gpu_cluster.cu``, ``step`` of
    ``gpu_step.cu``.
    """

    block: Launch | None = None
    cluster: Launch | None = None
    step: Launch | None = None


NO_TENSOR_CORES = TensorLaunch()


class Run(NamedTuple):
    """How one op runs: what starts a kernel, the stop flag, a block's shared memory, buffers.

    ``stop`` is int32 ``[1]`` on the device, or None; ``shared_limit`` is in bytes. ``tensor``
    starts the kernels on tensor cores. Parameters of G nets lie ``net_stride`` elements from net to
    net (``in_rows``).
    """

    launch: Launch
    stop: Tensor | None
    shared_limit: int
    scratch: Scratch
    tensor: TensorLaunch = NO_TENSOR_CORES
    net_stride: int = 0


def distinct(
    *,
    carry: Tensor | None = None,
    hidden: Tensor | None = None,
    input_weights: Tensor | None = None,
    bias: Tensor | None = None,
    initial_bias: Tensor | None = None,
    input: Tensor | None = None,
    added: Tensor | None = None,
    factor: Tensor | None = None,
    structural: Tensor | None = None,
) -> int:
    """Bit mask of the arrays ``[G,...]`` with G > 1, in the order of gpu_scan.cuh."""
    order = (carry, hidden, input_weights, bias, initial_bias, input, added, factor, structural)
    return sum(1 << bit for bit, a in enumerate(order) if a is not None and a.shape[0] > 1)


def group_of(*arrays: Tensor | None) -> int:
    """Nets in the group: the longest first axis of arrays ``[1 or G,...]``."""
    return max(a.shape[0] for a in arrays if a is not None)


def at_steps(steps: Tensor | None, y: Tensor) -> Tensor:
    """The chosen steps of ``y [G,T,B,i]``."""
    return y if steps is None else y.index_select(1, steps)
