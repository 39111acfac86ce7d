"""What a check of a curvature found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    """One comparison: its relative error and what it must not exceed."""

    name: str
    error: float
    limit: float

    @property
    def right(self) -> bool:
        return self.error <= self.limit  # False for NaN


@dataclass(frozen=True)
class CurvatureReport:
    """The checks of one model; ``right`` if all are."""

    checks: Sequence[Check]

    @property
    def right(self) -> bool:
        return all(check.right for check in self.checks)

    def __str__(self) -> str:
        width = max(len(check.name) for check in self.checks)
        lines = [f"{'check':{width}s}  relative error     limit"]
        for check in self.checks:
            verdict = "right" if check.right else "WRONG"
            lines.append(
                f"{check.name:{width}s}  {check.error:14.1e}  {check.limit:8.0e}  {verdict}"
            )
        return "\n".join(lines)
