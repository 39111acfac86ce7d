"""How much memory this process has; Linux only."""

from __future__ import annotations

from pathlib import Path


def megabytes(field: str) -> float:
    """A memory field of /proc/self/status in MB, such as VmRSS, or VmHWM for the most there was."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return float(line.split()[1]) * 1024 / 1e6
    raise OSError(f"/proc/self/status: has no {field}, need Linux")
