"""Whether kernels on tensor cores serve in the place of those in true float32: the one rule.

They serve where ``hf.set_matmul_precision("bf16x6")`` asks for them, the GPU is of an architecture
for which a gate compiled them without spills, and the install has their binaries. Clusters of
blocks, for nets of 129 to 512 units, need compute capability 9.0 and a GPU (or a slice of one) that
holds a cluster besides. Which net they serve then is in ``kernels/recurrence/gpu_choice.py``;
others have the other kernels all the same. No GPU has run them yet, so nothing chooses them by
itself.
"""

from __future__ import annotations

import functools
import logging

import torch

from hfcore.bindings import cuda
from hfcore.bindings.triton_backend import matmul_precision
from hfcore.kernels.recurrence import gpu_cluster, gpu_step, gpu_tensor
from hfcore.kernels.recurrence.gpu_launch import NO_TENSOR_CORES, TensorLaunch

logger = logging.getLogger("hfcore")

# Ops that have such kernels.
OPS = ("recurrence.rnn_forward", "recurrence.rnn_backward", "recurrence.rnn_gauss_newton")


def in_words(op: str, device: torch.device) -> str:
    """What ``hfcore info`` adds on ``op`` under ``"bf16x6"``; nothing under another precision."""
    if matmul_precision() != "bf16x6" or op not in OPS:
        return ""
    reason = _why_unable(device)
    if reason is not None:
        return f" in true float32: {reason}"
    reason = _why_no_clusters(device)
    if reason is None:
        return " on tensor cores"
    return f" on tensor cores, without clusters of blocks: {reason}"


def launchers(device: torch.device) -> TensorLaunch:
    """What launches the kernels on ``device``; without what the rule refuses, as the log tells."""
    if matmul_precision() != "bf16x6":
        return NO_TENSOR_CORES
    if device == torch.device("cuda"):  # whichever is current
        device = torch.device("cuda", torch.cuda.current_device())
    return _found(device)


@functools.cache  # asked by every op: the driver is asked once a device
def _found(device: torch.device) -> TensorLaunch:
    reason = _why_unable(device)
    if reason is not None:
        logger.info("recurrences are in true float32, not on tensor cores: %s", reason)
        return NO_TENSOR_CORES
    block, step = (
        cuda.launcher("recurrence", device, kernels.BINARY) for kernels in (gpu_tensor, gpu_step)
    )
    reason = _why_no_clusters(device)
    if reason is not None:
        logger.info("recurrences run without clusters of blocks: %s", reason)
        return TensorLaunch(block, None, step)
    return TensorLaunch(block, cuda.launcher("recurrence", device, gpu_cluster.BINARY), step)


def _why_unable(device: torch.device) -> str | None:
    """Why no kernel on tensor cores serves ``device``; None if those without clusters do."""
    reason = cuda.why_no_device()
    for kernels in (gpu_tensor, gpu_step):
        reason = reason or _why_unbuilt(device, kernels.CAPABILITIES)
        reason = reason or cuda.why_unavailable("recurrence", device, kernels.BINARY)
    return reason


def _why_no_clusters(device: torch.device) -> str | None:
    """Why those of a cluster do not serve a device that :func:`_why_unable` knows nothing of."""
    reason = _why_unbuilt(device, gpu_cluster.CAPABILITIES)
    reason = reason or cuda.why_unavailable("recurrence", device, gpu_cluster.BINARY)
    if reason is not None:
        return reason
    launch = cuda.launcher("recurrence", device, gpu_cluster.BINARY)
    if launch.multiprocessors < gpu_cluster.BLOCKS:
        return f"{launch.multiprocessors} multiprocessors, a cluster needs {gpu_cluster.BLOCKS}"
    if launch.shared_limit < gpu_cluster.MOST_SHARED:
        return (
            f"{launch.shared_limit:,} B of shared memory a block, clusters need up to "
            f"{gpu_cluster.MOST_SHARED:,} B"
        )
    return None


def _why_unbuilt(device: torch.device, capabilities: tuple[tuple[int, int], ...]) -> str | None:
    capability = torch.cuda.get_device_capability(device)
    if capability in capabilities:
        return None
    known = ", ".join(f"{a}.{b}" for a, b in capabilities)
    return f"compute capability {capability[0]}.{capability[1]} is none of {known}"
