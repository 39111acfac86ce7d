"""``--workers``, ``--slurm``, ``--cohort``: where the parts of a sweep are computed."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import click
import torch

from hfcore.cli.options import Decorator, decorated_by

__all__ = ["check_where", "executor_of", "executor_options", "part_given"]

# Options of submitit that are the same with every scheduler, and of its executor itself.
COMMON = (
    "timeout_min",
    "mem_gb",
    "cpus_per_task",
    "gpus_per_node",
    "nodes",
    "tasks_per_node",
    "name",
)
CLUSTER = "cluster"


def executor_options() -> Decorator:
    """``--workers``, ``--slurm`` and ``--cohort``."""
    return decorated_by(
        [
            click.option(
                "--workers",
                type=click.IntRange(1),
                help="Processes on this machine that share the sweep.",
            ),
            click.option(
                "--slurm",
                metavar="KEY=VALUE,…",
                help="Submit the parts of the sweep to Slurm by submitit, with options such as "
                "timeout_min=240,partition=long; cluster=local runs them here.",
            ),
            click.option(
                "--cohort",
                metavar="I/N",
                help="The I-th of N parts alone, in --run-dir, begun or continued: for array jobs.",
            ),
        ]
    )


@contextmanager
def executor_of(options: Mapping[str, Any], folder: Path) -> Iterator[dict[str, Any]]:
    """Keywords of ``hf.sweep`` for the options that were given; its workers end afterwards."""
    check_where(options)
    if options["cohort"] is not None:
        yield {"part": part_given(options["cohort"])}
        return
    if options["workers"] is not None:
        with _Pool(options["workers"], options["threads"]) as pool:
            yield {"executor": pool, "cohorts": options["workers"]}
        return
    yield {} if options["slurm"] is None else {"executor": _submitit(options["slurm"], folder)}


class _Pool(ProcessPoolExecutor):
    """Processes that stop at a signal, as their parent does."""

    def __init__(self, workers: int, threads: int | None) -> None:
        each = threads or max(1, (os.cpu_count() or 1) // workers)
        super().__init__(
            workers,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=torch.set_num_threads,
            initargs=(each,),
        )

    def stop_workers(self) -> None:
        """Tell all that run to end with a checkpoint."""
        for child in multiprocessing.active_children():
            with suppress(ProcessLookupError, TypeError):
                os.kill(child.pid, signal.SIGTERM)  # type: ignore[arg-type]


def _submitit(text: str, folder: Path) -> Any:
    try:
        import submitit
    except ImportError as error:
        raise click.UsageError("--slurm needs submitit: pip install hfcore[cluster]") from error
    given = _pairs(text)
    # Beside the run folder, which a sweep wants empty.
    jobs = folder.with_name(f"{folder.name}-jobs")
    executor = submitit.AutoExecutor(folder=jobs, cluster=given.pop(CLUSTER, None))
    executor.update_parameters(
        **{key if key in COMMON else f"slurm_{key}": value for key, value in given.items()}
    )
    return executor


def _pairs(text: str) -> dict[str, Any]:
    """``a=1,b=two`` with numbers as such. BadParameter for other text."""
    pairs: dict[str, Any] = {}
    for item in text.split(","):
        key, equals, value = item.partition("=")
        if not (key and equals and value):
            raise click.BadParameter(
                f"got {item!r}, need KEY=VALUE separated by commas", param_hint="--slurm"
            )
        pairs[key.strip()] = int(value) if value.isdigit() else value
    return pairs


def check_where(options: Mapping[str, Any]) -> None:
    """Raise UsageError for options that exclude one another, and for a part without a folder."""
    given = [f"--{name}" for name in ("workers", "slurm", "cohort") if options[name] is not None]
    if len(given) > 1:
        raise click.UsageError(f"{given[0]} and {given[1]} exclude one another")
    part = part_given(options["cohort"])
    if part is not None and options["run_dir"] is None:
        raise click.UsageError("--cohort needs --run-dir, the folder of all parts")


def part_given(text: str | None) -> tuple[int, int] | None:
    """``3/16`` of ``--cohort``. BadParameter for other text."""
    if text is None:
        return None
    number, slash, count = text.partition("/")
    if not (slash and number.isdigit() and count.isdigit() and 1 <= int(number) <= int(count)):
        raise click.BadParameter(
            f"got {text!r}, need I/N such as 3/16 with I from 1 to N", param_hint="--cohort"
        )
    return int(number), int(count)
