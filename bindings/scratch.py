"""Buffers that an op keeps from call to call."""

from hfcore.kernels.scratch import Scratch

__all__ = ["Scratch"]
