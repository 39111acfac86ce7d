"""metrics.jsonl: one JSON object a line, each with the CRC-32 of its other columns.

A line that was torn or altered is so known as lost; what is lost is counted and said.
"""

from __future__ import annotations

import json
import logging
import math
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from hfcore.training.atomic import write_atomic
from hfcore.training.errors import RunFolderError

logger = logging.getLogger("hfcore")

CHECKSUM = "crc32"


def sealed_line(line: Mapping[str, Any]) -> str:
    """``line`` with its checksum, as the text that is appended to the log."""
    return json.dumps({**line, CHECKSUM: _checksum(line)}, allow_nan=False) + "\n"


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl, numbers as numbers, without their checksums.

    Damaged lines are left out with a warning that says how many; a last line that has no end is
    that of a process that was killed, and passed over in silence.
    """
    good, bad = _parsed(path)
    _warn(path, bad)
    return [{k: _number(v) for k, v in line.items()} for _, line in good]


def cut_metrics(path: Path, after: int) -> int:
    """Cut the log back to iteration ``after``, from which it goes on; gives the lines left.

    Later lines will be written again; damaged ones go with a warning that says how many.
    """
    if not path.exists():
        if after > 0:
            logger.warning("%s: is missing, the log starts at iteration %d", path, after + 1)
        return 0
    good, bad = _parsed(path)
    _warn(path, bad)
    kept = [text for text, line in good if line["iteration"] <= after]
    if "".join(kept).encode() != path.read_bytes():
        write_atomic(path, "".join(kept).encode())
    return len(kept)


def plain(value: Any) -> Any:
    """JSON without NaN and Infinity, which the format does not know."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return repr(float(value))
    return value


def as_python(value: Any) -> Any:
    """A number of NumPy or torch as one of Python, other things as they are."""
    if isinstance(value, np.generic) or (isinstance(value, Tensor) and value.ndim == 0):
        return value.item()
    return value


def _parsed(path: Path) -> tuple[list[tuple[str, dict[str, Any]]], list[int]]:
    """The good lines as text and content, and the numbers of the damaged ones, from 1."""
    if not path.is_file():
        raise RunFolderError(f"{path}: cannot be read: it is no regular file")
    good, bad = [], []
    texts = path.read_text(encoding="utf-8", errors="replace").split("\n")
    for number, text in enumerate(texts[:-1], 1):  # behind the last line's end is nothing
        line = _line(text)
        if line is None:
            bad.append(number)
        else:
            good.append((text + "\n", line))
    return good, bad


def _line(text: str) -> dict[str, Any] | None:
    try:
        line = json.loads(text)
        checksum = line.pop(CHECKSUM)
        whole = checksum == _checksum(line) and type(line["iteration"]) is int
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return line if whole else None


def _checksum(line: Mapping[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(line, allow_nan=False).encode()):08x}"


def _warn(path: Path, bad: list[int]) -> None:
    if bad:
        more = " and others" if len(bad) > 3 else ""
        logger.warning(
            "%s: %d damaged line%s left out (line %s%s)",
            path,
            len(bad),
            "" if len(bad) == 1 else "s",
            ", ".join(map(str, bad[:3])),
            more,
        )


def _number(value: Any) -> Any:
    return float(value) if value in ("nan", "inf", "-inf") else value
