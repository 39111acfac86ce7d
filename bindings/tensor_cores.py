"""Whether kernels on tensor cores serve in the place of those in true float32: the one rule.

They serve where ``hf.set_matmul_precision("bf16x6")`` asks for them, the GPU is of an architecture
for which a gate compiled them without spills, and the install has their binary; a net that they do
not hold (``kernels/recurrence/gpu_tensor.py``) has the other kernels all the same. No GPU has run
them yet, so nothing chooses them unasked.
"""

from __future__ import annotations

import logging

import torch

from hfcore.bindings import cuda
from hfcore.bindings.triton_backend import matmul_precision
from hfcore.kernels.recurrence import gpu_tensor

logger = logging.getLogger("hfcore")

# Ops that have such kernels.
OPS = ("recurrence.rnn_forward", "recurrence.rnn_backward", "recurrence.rnn_gauss_newton")

_already_logged: set[str] = set()


def in_words(op: str, device: torch.device) -> str:
    """What ``hfcore info`` adds on ``op`` under ``"bf16x6"``; nothing under another precision."""
    if matmul_precision() != "bf16x6" or op not in OPS:
        return ""
    reason = _why_unable(device)
    return " on tensor cores" if reason is None else f" in true float32: {reason}"


def launcher(device: torch.device) -> cuda.Launcher | None:
    """What launches ``gpu_tensor.cu`` on ``device``; None by the rule, of which the log tells."""
    if matmul_precision() != "bf16x6":
        return None
    reason = _why_unable(device)
    if reason is None:
        return cuda.launcher("recurrence", device, gpu_tensor.BINARY)
    if reason not in _already_logged:
        _already_logged.add(reason)
        logger.info("recurrences are in true float32, not on tensor cores: %s", reason)
    return None


def _why_unable(device: torch.device) -> str | None:
    reason = cuda.why_no_device()
    if reason is not None:
        return reason
    capability = torch.cuda.get_device_capability(device)
    if capability not in gpu_tensor.CAPABILITIES:
        known = ", ".join(f"{a}.{b}" for a, b in gpu_tensor.CAPABILITIES)
        return f"compute capability {capability[0]}.{capability[1]} is none of {known}"
    return cuda.why_unavailable("recurrence", device, gpu_tensor.BINARY)
