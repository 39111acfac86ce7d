"""Options and shared functions of the commands that choose learning rates by a search."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import click

from hfcore.cli.executors import executor_options, part_given
from hfcore.cli.invocation import Invocation, run_options
from hfcore.cli.options import Decorator, decorated_by, names, numbers, seeds_of
from hfcore.experiments.commands.jobs import pace_of
from hfcore.experiments.pace import Pace
from hfcore.experiments.tuning import CHOOSE_BY, Procedure, Tuned, column_settings

T = TypeVar("T")


def tuned_options(
    updates: int,
    batch_size: int,
    *,
    seeds: str = "4",
    test_every: int = 500,
    search_share: int = 1,
) -> Decorator:
    """The options of a tuned table with its defaults.

    The search of ε has one part in ``search_share`` of the updates.
    """
    search = "as many as --updates" if search_share == 1 else f"--updates / {search_share}"
    options: list[Decorator] = [
        click.option(
            "--rates",
            multiple=True,
            metavar="[WHERE=]A,B,…",
            help="Learning rates ε to search: for all, or WHERE is a problem, a column or "
            "problem/column. May be repeated.  [default: a grid in half decades]",
        ),
        click.option("--updates", type=click.IntRange(1), default=updates, help="Of every run."),
        click.option(
            "--search-updates",
            type=click.IntRange(1),
            help=f"Of the runs that choose ε.  [default: {search}]",
        ),
        click.option(
            "--choose-by",
            type=click.Choice(CHOOSE_BY),
            default=CHOOSE_BY[0],
            help="What decides on ε: the average over all seeds, as in the paper, or the first "
            "seed alone, after which the others follow at its ε.",
        ),
        click.option("--seeds", default=seeds, metavar="N|A,B,…", help="How many, or which."),
        click.option("--batch-size", type=click.IntRange(1), default=batch_size),
        click.option("--test-every", type=click.IntRange(1), default=test_every, help="Updates."),
        executor_options(),
        run_options(
            resume="Continue the runs in --run-dir, to more --updates perhaps.",
            quiet="Only the table at the end.",
        ),
    ]
    return decorated_by(options)


def columns_option(columns: Sequence[str]) -> Decorator:
    """``--columns`` with its default."""
    example = columns[-1].removesuffix("M")
    return click.option(
        "--columns",
        default=",".join(columns),
        help=f"Separated by commas: 0 is SGD, {example}N Nesterov's and {example}M classical "
        f"momentum up to {example}.",
    )


def columns_given(text: str) -> list[str]:
    """``--columns``; BadParameter for one that is none."""
    chosen = names(text, "--columns")
    for name in chosen:
        parsed(column_settings, name, "--columns")
    return chosen


def parsed(parse: Callable[[str], T], text: str, option: str) -> T:
    """``parse(text)``; its ValueError as BadParameter."""
    try:
        return parse(text)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint=option) from error


def rates_of(given: tuple[str, ...], known: set[str]) -> dict[str, tuple[float, ...]]:
    """``--rates`` by its WHERE, "" for all; BadParameter for one that is not ``known``."""
    rates: dict[str, tuple[float, ...]] = {}
    for text in given:
        where, equals, values = text.rpartition("=")
        if equals and where not in known:
            raise click.BadParameter(
                f"got {text!r}, need a problem, a column or problem/column of this table "
                "before the =",
                param_hint="--rates",
            )
        if where in rates:
            raise click.BadParameter(f"got {where or 'all'!r} twice", param_hint="--rates")
        rates[where] = numbers(values, "--rates")
        if min(rates[where]) <= 0:
            raise click.BadParameter(f"got {text!r}, need positive numbers", param_hint="--rates")
    return rates


def procedure_of(
    invocation: Invocation, *, search_share: int = 1, **sweep_options: Any
) -> Procedure:
    """How the runs of a call are made; ``sweep_options`` join those of the command line."""
    options = invocation.options
    search_updates = options["search_updates"] or max(1, options["updates"] // search_share)
    return Procedure(
        seeds_of(options["seeds"]),
        options["updates"],
        search_updates,
        resume=options["resume"],
        options={
            "batch_size": options["batch_size"],
            "test_every": options["test_every"],
            "device": invocation.device,
            "progress": not options["quiet"],
            **sweep_options,
        },
        final_updates=options.get("final_updates", 0),
        report=(lambda line: None) if options["quiet"] else click.echo,
        choose_by=options["choose_by"],
    )


def pace_of_sweeps(invocation: Invocation, operations: Mapping[Hashable, float]) -> Pace:
    """How long all sweeps of a call take, of --cohort its part of each."""
    part = part_given(invocation.options["cohort"])
    parts = 1 if part is None else part[1]
    shares = {at: whole / parts for at, whole in operations.items()}
    return pace_of(invocation, shares, what="sweep")


def is_part(invocation: Invocation, results: Iterable[Tuned]) -> bool:
    """Whether the call was one part of --cohort, which has come to its end; says so."""
    interrupted = not all(tuned.finished or tuned.waits for tuned in results)
    if invocation.options["cohort"] is None or interrupted:
        return False
    invocation.end_part()
    return True


def settings_of(procedure: Procedure, **more: Any) -> Mapping[str, Any]:
    """What table and file of results say of the procedure."""
    return {
        "seeds": list(procedure.seeds),
        "updates": procedure.updates,
        "search_updates": procedure.search_updates,
        "choose_by": procedure.choose_by,
        "batch_size": procedure.options["batch_size"],
        **more,
    }
