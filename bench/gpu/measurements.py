"""What was measured, and what it means: medians, floors, shares, ratios; tables and JSON.

Pure arithmetic: nothing here needs a GPU.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

OURS = "hfcore"
OURS_GRAPHED = "hfcore, CUDA graph"
EAGER = "reference, eager"
GRAPHED = "reference, CUDA graph"


@dataclass(frozen=True)
class Ceilings:
    """What this GPU reached in this run: bytes a second of a copy, flops a second of a GEMM."""

    copy: float
    float32: float
    tf32: float


@dataclass(frozen=True)
class Work:
    """The least that an op must move and compute: bytes, float32 flops; and its serial steps."""

    bytes: float
    flops: float
    steps: int | None = None

    def floor(self, ceilings: Ceilings) -> float:
        """Seconds that no float32 implementation can go below on this GPU."""
        return max(self.bytes / ceilings.copy, self.flops / ceilings.float32)

    def bound_by(self, ceilings: Ceilings) -> str:
        """Which of the two ceilings is the floor."""
        return (
            "copy" if self.bytes / ceilings.copy > self.flops / ceilings.float32 else "float32 GEMM"
        )


@dataclass(frozen=True)
class Aim:
    """A line to reach: ``measure`` is a key of :meth:`Op.measures`; at most, or at least."""

    measure: str
    bound: float
    at_least: bool = False

    def met(self, value: float) -> bool:
        return value >= self.bound if self.at_least else value <= self.bound


@dataclass
class Op:
    """One op on one case: seconds of every round by contestant, ours first."""

    name: str
    case: str
    work: Work
    seconds: dict[str, list[float]]
    aims: Sequence[Aim] = ()
    absent: dict[str, str] = field(default_factory=dict)  # contestant -> why it did not run

    def rows(self, ceilings: Ceilings) -> list[dict[str, Any]]:
        """A row a contestant: median and quartiles in ms, µs a step, share of the floor."""
        return [self._row(name, times, ceilings) for name, times in self.seconds.items()]

    def _row(self, name: str, times: Sequence[float], ceilings: Ceilings) -> dict[str, Any]:
        median = statistics.median(times)
        low, high = quartiles(times)
        return {
            "contestant": name,
            "rounds": len(times),
            "median_ms": 1e3 * median,
            "low_ms": 1e3 * low,
            "high_ms": 1e3 * high,
            "us_per_step": None if self.work.steps is None else 1e6 * median / self.work.steps,
            "share_of_roofline": self.work.floor(ceilings) / median,
            "times_ours": median / statistics.median(self.seconds[OURS]),
        }

    def measures(self, ceilings: Ceilings) -> dict[str, float]:
        """The numbers that aims speak of; those whose contestant is absent are left out."""
        median = {name: statistics.median(times) for name, times in self.seconds.items()}
        # As CG and updates of nets run it.
        replayed = median.get(OURS_GRAPHED, median[OURS])
        found = {
            "ms": 1e3 * median[OURS],
            "times the floor": replayed / self.work.floor(ceilings),
        }
        if OURS_GRAPHED in median:
            found["ms, CUDA graph"] = 1e3 * replayed
        if self.work.steps is not None:
            found["µs a step"] = 1e6 * replayed / self.work.steps
        for name, ours in ((EAGER, median[OURS]), (GRAPHED, replayed)):
            if name in median:
                found[f"times faster than {name}"] = median[name] / ours
        return found

    def verdicts(self, ceilings: Ceilings) -> list[dict[str, Any]]:
        """Every aim with what was measured and whether it is met (None: not measured)."""
        found = self.measures(ceilings)
        verdicts = []
        for aim in self.aims:
            value = found.get(aim.measure)
            met = None if value is None else aim.met(value)
            verdicts.append({**asdict(aim), "measured": value, "met": met})
        return verdicts


def quartiles(times: Sequence[float]) -> tuple[float, float]:
    """First and third quartile; both the value itself where there is only one."""
    if len(times) < 2:
        return times[0], times[0]
    low, _, high = statistics.quantiles(times, n=4, method="inclusive")
    return low, high


def as_json(ops: Sequence[Op], ceilings: Ceilings, machine: dict[str, Any]) -> dict[str, Any]:
    """Everything, raw seconds included."""
    return {
        "machine": machine,
        "ceilings": asdict(ceilings),
        "ops": [
            {
                "op": op.name,
                "case": op.case,
                "work": asdict(op.work),
                "floor_ms": 1e3 * op.work.floor(ceilings),
                "bound_by": op.work.bound_by(ceilings),
                "rows": op.rows(ceilings),
                "aims": op.verdicts(ceilings),
                "absent": op.absent,
                "seconds": op.seconds,
            }
            for op in ops
        ],
    }


def table(result: dict[str, Any]) -> str:
    """The result of :func:`as_json` as Markdown."""
    c = result["ceilings"]
    lines = [
        f"{result['machine'].get('gpu', 'unknown GPU')}; measured in this run: copy "
        f"{c['copy'] / 1e12:.2f} TB/s, GEMM {c['float32'] / 1e12:.1f} TFLOP/s in float32, "
        f"{c['tf32'] / 1e12:.0f} in TF32.",
        "",
        "| op | case | contestant | median ms | quartiles | µs a step | of roofline | × ours |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for op in result["ops"]:
        for row in op["rows"]:
            step = "" if row["us_per_step"] is None else f"{row['us_per_step']:.2f}"
            lines.append(
                f"| {op['op']} | {op['case']} | {row['contestant']} | {row['median_ms']:.4f} | "
                f"{row['low_ms']:.4f}-{row['high_ms']:.4f} | {step} | "
                f"{100 * row['share_of_roofline']:.0f} % | {row['times_ours']:.2f} |"
            )
        for name, reason in op["absent"].items():
            lines.append(f"| {op['op']} | {op['case']} | {name} | not run: {reason} | | | | |")
    lines += ["", "| op | case | aim | measured | met |", "| --- | --- | --- | --- | --- |"]
    for op in result["ops"]:
        for aim in op["aims"]:
            sign = "≥" if aim["at_least"] else "≤"
            measured = "not measured" if aim["measured"] is None else f"{aim['measured']:.3g}"
            met = {True: "yes", False: "NO", None: ""}[aim["met"]]
            lines.append(
                f"| {op['op']} | {op['case']} | {aim['measure']} {sign} {aim['bound']:g} | "
                f"{measured} | {met} |"
            )
    return "\n".join(lines) + "\n"
