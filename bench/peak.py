"""Peak memory of one product in a process of its own; run by ``test_memory.py``.

    python -P bench/peak.py CONTESTANT '{"B": 1000, ...}'

Prints one line of JSON in MB: what the one-off work (cached activations, a trace, a graph) left
resident and its peak, then how far the first product rose above that. Linux only: the kernel's
high-water mark is reset before each part.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

# Last on the path: an installed hfcore must win over the checkout that holds bench/.
sys.path.append(str(Path(__file__).resolve().parent.parent))

from bench import peers
from bench.cases import Case
from bench.process_memory import megabytes

Result = TypeVar("Result")


def measure(call: Callable[[], Result]) -> tuple[Result, float, float]:
    """(result, MB by which the resident set peaked over its start, MB it kept)."""
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    start = megabytes("VmRSS")
    result = call()
    return result, megabytes("VmHWM") - start, megabytes("VmRSS") - start


def main(name: str, case: Case) -> None:
    make = peers.PEERS.get(name, peers.make_hfcore)
    # Libraries load and threads start on a net too small to leave anything behind.
    make(replace(case, B=8, T=3, H=8).make()).product()
    load = case.make()
    peer, setup_peak, setup_kept = measure(lambda: make(load))
    result, peak, _ = measure(peer.product)
    print(
        json.dumps(
            {
                "setup_peak_mb": setup_peak,
                "setup_kept_mb": setup_kept,
                "product_peak_mb": peak,
                "result_mb": 4e-6 * peer.flat(result).numel(),
            }
        )
    )


if __name__ == "__main__":
    main(sys.argv[1], Case(**json.loads(sys.argv[2])))
