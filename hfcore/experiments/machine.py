"""The machine that results were found on."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch


def processor() -> str:
    """The name of this machine's processor, and how many cores of it there are."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        name = models[0] if models else name
    return f"{name}, {os.cpu_count()} cores"


def machine_name(device: torch.device) -> str:
    """What computes on a device: the GPU by its name, else the processor."""
    return processor() if device.type != "cuda" else str(torch.cuda.get_device_name(device))
