"""Seconds that ``import hfcore`` takes above torch's own import, the least of several.

    python -P bench/import_time.py

Each is a process of its own; the first one may compile byte code and is left out.
"""

from __future__ import annotations

import subprocess
import sys

CODE = """
import time, torch
began = time.perf_counter()
import hfcore
print(time.perf_counter() - began)
"""


def main(times: int = 5) -> float:
    seconds = [
        float(subprocess.check_output([sys.executable, "-P", "-c", CODE])) for _ in range(times + 1)
    ]
    least = min(seconds[1:])
    print(f"import hfcore, after torch: {least:.2f} s, the least of {times}")
    return least


if __name__ == "__main__":
    main()
