"""``hfcore train``: one training run on a problem.

1. Of the problems of random length Hessian-free has a length for each sequence, as in 1997 and in
   the release of 2011, unless ``--one-length`` says otherwise; :mod:`hfcore.experiments.fig3` says
   why. Other optimisers, which draw a batch for every update, have one for all of a batch, and so
   have the problems of :mod:`hfcore.problems` themselves.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, get_args

import click
from click.core import ParameterSource

from hfcore import presets
from hfcore.cli.build import (
    ESN_OPTIONS,
    INITS,
    MOMENTUM,
    PRESETS,
    has_option,
    model_of,
    optimizer_of,
    problem_of,
    start_of,
)
from hfcore.cli.invocation import Invocation, run_options
from hfcore.cli.options import SEED, FiniteRange, folder_option
from hfcore.cli.processes import processes, processes_options
from hfcore.data import DataFileError
from hfcore.distributed.ranks import Ranks
from hfcore.extras import missing
from hfcore.minibatches import FullGradient
from hfcore.problems import FiniteProblem, Memorization5, Problem, Reconstruction, ZeroOne
from hfcore.problems.memorization import Layout
from hfcore.schedules import Final
from hfcore.sweeps.settings import SCHEDULES
from hfcore.training import Callback, Limits, Scheduled, TrainResult, train
from hfcore.training.steps import COST_UNIT

DEFAULT_MOMENTUM = 0.9
# Options of problems, each known to some of them.
PROBLEM_OPTIONS = (
    "length", "target", "layout", "scored", "centre", "mixed_lengths", "images", "folder",
)  # fmt: skip


@click.command("train")
@click.argument("problem", metavar="PROBLEM")
@click.option("--length", type=int, help="Sequence length T.  [default: the problem's]")
@click.option("--target", type=click.Choice(["mean", "sum"]), help="addition: (x+y)/2 or x+y.")
@click.option(
    "--layout",
    type=click.Choice(get_args(Layout)),
    help="memorization: T blanks before the cue, or T steps in all after the symbols.",
)
@click.option(
    "--scored",
    type=click.Choice(["all", "recall", "last"]),
    help="Steps in the loss. memorization: all or recall; random-permutation: last or all.",
)
@click.option("--centre", is_flag=True, default=None, help="Inputs and targets with mean zero.")
@click.option(
    "--mixed-lengths/--one-length",
    default=None,
    help="A length for each sequence, or one for all of a batch.  [default: hf for each, else one]",
)
@click.option("--images", type=click.IntRange(1), help="Only so many training images.")
@folder_option
@click.option(
    "--optimizer", default="hf", metavar="NAME", help="hf, nag, cm, ncg, or of torch.optim."
)
@click.option("--hidden", type=click.IntRange(1), default=100, help="Hidden units.")
@click.option("--nonlinearity", type=click.Choice(["tanh", "logistic", "relu"]), default="tanh")
@click.option("--dtype", type=click.Choice(["float32", "float64"]), default="float32")
@click.option(
    "--init",
    "init_name",
    type=click.Choice(list(INITS)),
    default="sparse",
    help="sparse: for hf; esn: spectral radius 1.1, for momentum.",
)
@click.option("--init-scale", type=float, default=1.0, help="Factor on the weights; not for esn.")
@click.option(
    "--sparse-inputs", is_flag=True, help="sparse, of an RNN: 15 of the inputs a unit as well."
)
@click.option("--input-scale", type=float, help="esn: of W_hx.  [default: the problem's]")
@click.option("--spectral-radius", type=float, help="esn: of W_hh.  [default: 1.1]")
@click.option("--seed", type=SEED, default=0, help="Of initial weights and data.")
@click.option(
    "--preset",
    type=click.Choice(PRESETS),
    help="hf: published settings; the hf options below override it.  "
    "[default: rnn2011, for images martens2010]",
)
@click.option("--damping", type=float, help="hf: first λ.  [default: 0.1 x sequence length]")
@click.option("--structural", type=float, help="hf: structural damping μ, 0 for none.")
@click.option("--l2", type=float, help="hf: weight decay in the objective.")
@click.option("--cg-max-iter", type=click.IntRange(1), help="hf: most CG iterations in a step.")
@click.option("--lr", type=float, help="First-order: learning rate.")
@click.option("--momentum", type=float, help="First-order, where it has one: momentum.")
@click.option(
    "--momentum-schedule",
    type=click.Choice(list(SCHEDULES)),
    default="constant",
    help="nag, cm: constant; delayed: 0.9 for 1000 updates, then --momentum; increasing: eq. 5 of "
    "Sutskever et al. 2013 up to --momentum.",
)
@click.option(
    "--final-updates", type=click.IntRange(0), default=0, help="nag, cm: at the end with μ ≤ 0.9."
)
@click.option("--nesterov", is_flag=True, default=None, help="First-order: Nesterov momentum.")
@click.option("--weight-decay", type=float, help="First-order: weight decay.")
@click.option(
    "--minibatches",
    type=FiniteRange(0, min_open=True),
    default=50_000,
    help="Budget of gradients and curvature products, each over 1000 sequences.",
)
@click.option(
    "--updates", type=click.IntRange(1), help="First-order: the budget as updates instead."
)
@click.option("--iterations", type=click.IntRange(1), help="At most so many.")
@click.option("--seconds", type=FiniteRange(0, min_open=True), help="Of data and steps, at most.")
@click.option(
    "--curvature-batches",
    type=click.IntRange(1),
    help="hf, images and memorization-5bit: the gradient on all of them, the curvature on one of "
    "so many batches in turns (Martens 2010: 4, for mnist 8, for faces 20).  "
    "[default: for memorization-5bit 1]",
)
@click.option(
    "--batch-size",
    type=click.IntRange(1),
    help="[default: 1000; 200 for images with a first-order optimiser]",
)
@click.option("--gradient-batches", type=click.IntRange(1), default=10, help="hf: per step.")
@click.option("--test-size", type=click.IntRange(1), default=10_000, help="Cases of the test set.")
@click.option("--solved-below", type=FiniteRange(0, 1), default=0.01, help="Share wrong.")
@click.option("--test-every", type=click.IntRange(1), help="Iterations.  [default: hf 1, else 100]")
@click.option(
    "--checkpoint-every", type=click.IntRange(1), help="Iterations.  [default: hf 1, else 100]"
)
@run_options(
    resume="Continue the run in --run-dir, bit for bit.", quiet="No progress, only the result."
)
@processes_options()
@click.option("--require-solved", is_flag=True, help="Exit with 1 unless solved.")
@click.pass_context
def train_command(
    context: click.Context,
    /,
    problem: str,
    optimizer: str,
    require_solved: bool,
    **options: Any,
) -> None:
    """Train a recurrent net or an autoencoder on PROBLEM.

    PROBLEM is addition, multiplication, xor, temporal-order-2bit, temporal-order-3bit,
    random-permutation, memorization-5bit, memorization-20bit, bouncing-balls, piano-rolls,
    spoken-digits, curves, mnist or faces. With several processes: torchrun --nproc-per-node 2 -m
    hfcore train PROBLEM …
    """
    with processes(context, options) as ranks:
        _train(context, problem, optimizer, options, ranks, require_solved=require_solved)


def _train(
    context: click.Context,
    problem: str,
    optimizer: str,
    options: dict[str, Any],
    ranks: Ranks,
    *,
    require_solved: bool,
) -> None:
    """The command in each of its processes."""
    given = {key: options[key] for key in PROBLEM_OPTIONS if options[key] is not None}
    if optimizer == "hf" and has_option(problem, "mixed_lengths"):
        given.setdefault("mixed_lengths", True)
    task = problem_of(problem, **given)
    length = f"-T{task.length}" if hasattr(task, "length") else ""
    name = f"{problem}{length}-{optimizer}-seed{options['seed']}"
    invocation = Invocation(name, options, ranks)
    if options["batch_size"] is None:
        options["batch_size"] = context.params["batch_size"] = _batch_size(task, optimizer)
    start = start_of(context, task)
    model = model_of(context, task, start)
    group = {"process_group": ranks.group, "reduction": options["reduction"]}
    chosen = optimizer_of(context, optimizer, model, task, group)
    callbacks: list[Callback] = []
    if optimizer in MOMENTUM:
        callbacks.append(Scheduled(momentum=_momentum(options)))
    with invocation.errors_shown():
        result = train(
            model,
            task,
            chosen,
            stop=Limits(options["iterations"], _minibatches(options), options["seconds"]),
            **_batches(context, task, optimizer),
            test_size=options["test_size"],
            solved_below=options["solved_below"],
            test_every=options["test_every"],
            checkpoint_every=options["checkpoint_every"],
            seed=options["seed"],
            run_dir=invocation.folder,
            resume=options["resume"],
            progress=not options["quiet"],
            callbacks=callbacks,
            notes=_notes(options, start),
            **group,
        )
    if ranks.first:
        _report(result, shares=isinstance(task, ZeroOne))
    invocation.end(context, interrupted=result.reason == "interrupted")
    if require_solved and not result.solved:
        context.exit(1)


def _batches(context: click.Context, problem: Problem, optimizer: str) -> dict[str, Any]:
    """Which cases an iteration sees, as keywords of ``train``."""
    options = context.params
    count = options["curvature_batches"]
    drawn = [
        name
        for name in ("batch_size", "gradient_batches")
        if context.get_parameter_source(name) is not ParameterSource.DEFAULT
    ]
    if count is None and isinstance(problem, Memorization5) and optimizer == "hf" and not drawn:
        count = 1  # Martens & Sutskever (2011): the batch is all 32 sequences
    if count is None:
        return {key: options[key] for key in ("batch_size", "gradient_batches")}
    if not isinstance(problem, FiniteProblem):
        raise click.UsageError(f"--curvature-batches has no meaning with {problem.name}")
    for name in drawn:
        flag = name.replace("_", "-")
        raise click.UsageError(f"--{flag} has no meaning with --curvature-batches")
    return {"batches": FullGradient(curvature_batches=count, seed=options["seed"])}


def _batch_size(problem: Problem, optimizer: str) -> int:
    """What the papers use, or all images where there are fewer."""
    if not isinstance(problem, Reconstruction):
        return 1000
    try:
        images = len(problem.images)
    except (DataFileError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    return min(1000 if optimizer == "hf" else presets.momentum2013["batch_size"], images)


def _notes(options: dict[str, Any], start: dict[str, Any]) -> dict[str, Any]:
    """What determines the run beside problem, model and optimiser."""
    notes: dict[str, Any] = {"init": options["init_name"]}
    if "scale" in start:
        notes["init_scale"] = start["scale"]
        if "sparse_inputs" in start:
            notes["sparse_inputs"] = start["sparse_inputs"]
    else:
        notes |= {key: start[key] for key in ESN_OPTIONS}
    if options["momentum_schedule"] != "constant" or options["final_updates"]:
        notes["momentum_schedule"] = repr(_momentum(options))
    return notes


def _minibatches(options: dict[str, Any]) -> float:
    """The budget in minibatches of 1000 cases."""
    if options["updates"] is None:
        return float(options["minibatches"])
    return float(options["updates"] * options["batch_size"] / COST_UNIT)


def _momentum(options: dict[str, Any]) -> Callable[[int], float]:
    """μ of every update."""
    mu = DEFAULT_MOMENTUM if options["momentum"] is None else options["momentum"]
    schedule = SCHEDULES[options["momentum_schedule"]](mu)
    if not options["final_updates"]:
        return schedule
    updates = math.ceil(_minibatches(options) * COST_UNIT / options["batch_size"])
    try:
        return Final(schedule, updates, updates=options["final_updates"])
    except ValueError as error:
        raise click.UsageError(f"--final-updates: {error}") from error


def _report(result: TrainResult, *, shares: bool) -> None:
    """``shares``: errors are shares of wrong cases, and the problem can be solved."""
    error = f"{100 * result.test_error:.2f}% of the test sequences are wrong"
    if not shares:
        error = f"{result.test_error:.6g}, the mean over the test cases"
    verdict = "not solved: " if shares else ""
    why = {
        "solved": "solved",
        "budget": f"{verdict}the budget of minibatches is spent",
        "interrupted": "interrupted: a checkpoint is written",
        "diverged": f"{verdict}the training loss is no longer finite",
        "iterations": f"{verdict}the iterations are spent",
        "seconds": f"{verdict}the seconds are spent",
        "converged": f"{verdict}no step leads down any more",
    }
    rows = [
        ("result", "solved" if result.solved else why.get(result.reason, result.reason)),
        ("test error", error),
        ("minibatches", f"{result.minibatches:,.6g}"),
        ("objective evaluations", f"{result.objective_evaluations:,.6g} (apart)"),
        ("iterations", f"{result.iterations:,}"),
        ("seconds of training", f"{result.seconds:.1f}"),
        ("run folder", str(result.run_dir)),
        *(("plot", str(path)) for path in result.plots),
        *(
            ("not written", sentence)
            for sentence in (
                None if result.plots else missing("matplotlib", "no plots"),
                missing("tensorboard", "no TensorBoard events"),
            )
            if sentence is not None
        ),
    ]
    for name, value in rows:
        click.echo(f"{name:22s}{value}")
