"""Which kernels on tensor cores a net runs on, where they serve: the one rule.

``bindings/tensor_cores.py`` says where they serve at all, which is not unless asked for. Then, by
the units H of the net and its B sequences:

1. ``"block"`` up to 128 units: one block takes 8 sequences through time (``gpu_tensor.py``);
2. ``"cluster"`` up to 512 units: a cluster of 8 blocks does (``gpu_cluster.py``), where there are
   few enough sequences that the chain is what takes the time. A wave is 16 clusters on a GPU of
   132 multiprocessors, and waves are one after the other; a product a step, which any larger
   number of sequences fills the chip with, is as fast from B·H² = 2·10⁸ on. In true float32 one
   block holds the weights of up to 220 units and 8 sequences of its own, so that there clusters
   serve up to two waves only. Both limits are by a count of cycles: no GPU has been asked;
3. ``"step"`` above 220 units, where no cluster serves: one kernel a step (``gpu_step.py``), in the
   place of a GEMM and an epilogue;
4. None: true float32, by the rule of ``gpu.plan``.

The size of the group is no part of it, so that a net gets the same bits alone as in a group.
"""

from __future__ import annotations

from typing import Literal

from hfcore.kernels.recurrence import gpu_cluster, gpu_tensor
from hfcore.kernels.recurrence.gpu_launch import Run

MOST_CLUSTER_WORK = 2 * 10**8  # B·H²
MOST_UNITS_OF_A_BLOCK = 220  # in true float32, with 232,448 bytes of shared memory
TWO_WAVES = 2 * 16 * gpu_tensor.SEQUENCES

TensorForm = Literal["block", "cluster", "step"]


def tensor_form(
    run: Run, B: int, H: int, n: int, *, with_gradient: bool = False
) -> TensorForm | None:
    """The form for B sequences of a net of H units and n inputs.

    ``with_gradient``: of backpropagation, where one block sums the weights' gradient as well.
    """
    if run.tensor.block is not None and gpu_tensor.holds(B, H, n, with_gradient=with_gradient):
        return "block"
    large = H > MOST_UNITS_OF_A_BLOCK
    few = B * H**2 <= MOST_CLUSTER_WORK and (large or B <= TWO_WAVES)
    held = gpu_tensor.MOST_UNITS < H <= gpu_cluster.MOST_UNITS
    if run.tensor.cluster is not None and held and few:
        return "cluster"
    return "step" if run.tensor.step is not None and large else None
