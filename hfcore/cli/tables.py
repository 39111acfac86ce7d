"""What commands print: numbers, times and markdown tables."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

__all__ = ["clock", "markdown", "number"]


def number(value: float | None, digits: int = 4) -> str:
    """As short as ``digits`` allow, a dash for None."""
    if value is None:
        return "–"
    if isinstance(value, int) or not math.isfinite(value):
        return f"{value:,}" if isinstance(value, int) else str(value)
    return f"{value:,.{digits}g}" if abs(value) < 10**digits else f"{value:,.0f}"


def clock(seconds: float) -> str:
    """Hours, minutes and seconds, from the first that is not zero."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = [(hours, "h"), (minutes, "min"), (rest, "s")]
    while parts[0][0] == 0 and len(parts) > 1:
        parts.pop(0)
    return " ".join(f"{amount} {unit}" for amount, unit in parts)


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; the first column to the left, the others to the right."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rule, *rows))
