"""The runs of figure 3 as rows of a table, and what several seeds come to."""

from __future__ import annotations

import itertools
import json
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hfcore.experiments.fig3 import PROBLEMS, Case, Settings

Row = dict[str, Any]  # one run: its case, how it ended, what it cost

UNFINISHED = "unfinished"  # the reason of a run that is not done

# What a row has beside its case and its settings, and what of a run that took a step.
ENDED = ("minibatches", "iterations", "machine", "reason", "solved")
STEPPED = (
    "objective_evaluations", "minibatches_1997", "test_error", "least_test_error", "loss",
    "seconds", "damping_first", "damping_last", "damping_range", "rho_median", "rho_not_finite",
    "cg_iterations_median", "cg_stops", "rejected",
)  # fmt: skip


def is_done(row: Mapping[str, Any], limit: float) -> bool:
    """Whether a run would not go on with this limit."""
    spent = row["reason"] != "budget" or row["minibatches"] >= limit
    return bool(spent and row["reason"] != UNFINISHED)


def is_solved(row: Mapping[str, Any], limit: float) -> bool:
    """Whether a run was solved by so many minibatches; it may have had another limit."""
    return bool(row["solved"] and row["minibatches"] <= limit)


def summary(lines: Sequence[Mapping[str, Any]], scale: float) -> Row:
    """Figures of a run from the lines of its log, which count in 1000 sequences: a minibatch is
    1/``scale`` of that."""
    if not lines:
        return {"minibatches": 0, "iterations": 0}
    last = lines[-1]
    rhos = [line["rho"] for line in lines]
    finite = [rho for rho in rhos if abs(rho) < float("inf")]
    lambdas = [line["damping"] for line in lines]
    met = (line["minibatches"] for line in lines if line.get("solved_1997"))
    at_1997 = next(met, None)
    tested = [line["test_error"] for line in lines if line["test_error"] is not None]
    return {
        "minibatches": round(last["minibatches"] * scale),
        "objective_evaluations": round(last["objective_evaluations_total"] * scale),
        "minibatches_1997": None if at_1997 is None else round(at_1997 * scale),
        "iterations": last["iteration"],
        "test_error": tested[-1] if tested else None,
        "least_test_error": min(tested, default=None),
        "loss": last["loss"],
        "seconds": last["training_seconds"],
        "damping_first": lambdas[0],
        "damping_last": lambdas[-1],
        "damping_range": [min(lambdas), max(lambdas)],
        "rho_median": statistics.median(finite) if finite else None,
        "rho_not_finite": len(rhos) - len(finite),
        "cg_iterations_median": statistics.median(line["cg_iterations"] for line in lines),
        "cg_stops": dict(Counter(line["cg_stop"] for line in lines).most_common()),
        "rejected": sum(not line["accepted"] for line in lines),
    }


@dataclass(frozen=True)
class Group:
    """The runs of one problem, T and variant, over seeds, as they are at ``limit`` minibatches."""

    problem: str
    length: int
    variant: str
    rows: tuple[Row, ...]
    limit: float

    @property
    def solved(self) -> list[float]:
        """Minibatches of the runs that were."""
        return [row["minibatches"] for row in self.rows if is_solved(row, self.limit)]

    @property
    def unfinished(self) -> int:
        """Those that would go on."""
        return sum(not is_done(row, self.limit) for row in self.rows)

    @property
    def failed(self) -> int:
        return len(self.rows) - len(self.solved) - self.unfinished


def groups_of(rows: Iterable[Row], limit: float) -> list[Group]:
    """Rows by problem, T and variant, in the order of the figure."""
    found: dict[tuple[str, int, str], list[Row]] = {}
    for row in rows:
        case = Case.of(row)
        found.setdefault((case.problem, case.length, case.variant), []).append(row)
    names = list(PROBLEMS)
    order = sorted(found, key=lambda key: (names.index(key[0]), key[1], key[2]))
    return [Group(*key, tuple(found[key]), limit) for key in order]


def read_rows(paths: Iterable[Path], settings: Settings) -> list[Row]:
    """The runs in files of results.

    Raises ValueError naming the file that is none, or whose runs had other settings.
    """
    rows: list[Row] = []
    for path in paths:
        try:
            found = [_whole(row) for row in _json(path)["runs"]]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: holds no results of this figure ({error})") from error
        for row in found:
            check_settings(path, row, settings)
        rows += found
    return rows


def read_row(path: Path, case: Case, settings: Settings) -> Row:
    """The row of a run's own file.

    Raises ValueError naming the file that holds none, or that of a run of another case or settings.
    """
    try:
        row = _whole(_json(path))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: holds no row of this figure ({error}); without this file --resume makes it "
            "anew from the run's log"
        ) from error
    if Case.of(row) != case:
        raise ValueError(f"{path}: is of {Case.of(row).folder}, need {case.folder}")
    check_settings(path, row, settings)
    return row


def _json(path: Path) -> Any:
    return json.loads(path.read_bytes())


def _whole(row: Any) -> Row:
    """The row. Raises KeyError naming what it lacks, TypeError where it is none."""
    Case.of(row)
    for name in (*ENDED, *(STEPPED if row["iterations"] else ())):
        row[name]
    return dict(row)


def read_settings(path: Path) -> dict[str, Any]:
    """What the configuration of a run says of the settings; of the 5 bits no batch size.

    Raises ValueError naming the file that is none.
    """
    try:
        config = _json(path)
        data, hidden = config["data"], config["model"]["arguments"]["hidden_size"]
        found = {key: data[key] for key in ("batch_size", "test_size") if key in data}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: is not the configuration of a run ({error})") from error
    return {"hidden": hidden, **found}


def check_settings(path: Path, row: Mapping[str, Any], settings: Settings) -> None:
    """Raise ValueError naming the setting of a row that is not the one here."""
    for name, here in settings.identity.items():
        if row.get(name) != here:
            raise ValueError(
                f"{path}: {Case.of(row).folder} had {name} {row.get(name)}, need {here} like here"
            )


def joined(*tables: Iterable[Row]) -> list[Row]:
    """The rows of all tables, one a case: the last that is done, or else the last."""
    found: dict[Case, Row] = {}
    for row in itertools.chain(*tables):
        case = Case.of(row)
        if row["reason"] != UNFINISHED or found.get(case, row)["reason"] == UNFINISHED:
            found[case] = row
    return list(found.values())
