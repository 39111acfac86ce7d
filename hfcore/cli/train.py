"""``hfcore train``: one training run on a problem."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch
from click.core import ParameterSource

from hfcore import init, presets
from hfcore.cli.options import INTERRUPTED, check_resume, device_of, new_run_dir
from hfcore.models.rnn import RNN
from hfcore.optimisers.hessian_free import HessianFree
from hfcore.problems import SEQUENCES, SequenceProblem, create
from hfcore.training import RunFolderError, TrainResult, train

FIRST_ORDER = {
    name.lower(): value
    for name, value in vars(torch.optim).items()
    if isinstance(value, type)
    and issubclass(value, torch.optim.Optimizer)
    and value is not torch.optim.Optimizer
}

PRESETS = {"rnn2011": presets.rnn2011, "rnn2011_release": presets.rnn2011_release}
DEFAULT_PRESET = "rnn2011"

# Options that speak to one kind of optimiser, and the keyword each becomes there.
HF_OPTIONS = {
    "damping": "damping",
    "structural": "structural",
    "l2": "l2",
    "cg_max_iter": "cg_max_iter",
}
# Options of problems, each known to some of them.
PROBLEM_OPTIONS = ("target", "scored", "centre")
INITS: dict[str, Callable[..., None]] = {
    "sparse": init.sparse_,
    "gaussian": init.gaussian_,
    "glorot": init.glorot_,
}
ESN_OPTIONS = ("input_scale", "spectral_radius")
FIRST_ORDER_OPTIONS = {
    "lr": "lr",
    "momentum": "momentum",
    "nesterov": "nesterov",
    "weight_decay": "weight_decay",
}


@click.command("train")
@click.argument("problem", metavar="PROBLEM")
@click.option("--length", type=int, default=50, help="Sequence length T of the problem.")
@click.option("--target", type=click.Choice(["mean", "sum"]), help="addition: (x+y)/2 or x+y.")
@click.option("--scored", type=click.Choice(["all", "recall"]), help="memorization: steps scored.")
@click.option("--centre", is_flag=True, default=None, help="Inputs and targets with mean zero.")
@click.option("--optimizer", default="hf", metavar="NAME", help="hf, or one of torch.optim.")
@click.option("--hidden", type=click.IntRange(1), default=100, help="Hidden units.")
@click.option("--nonlinearity", type=click.Choice(["tanh", "logistic", "relu"]), default="tanh")
@click.option("--dtype", type=click.Choice(["float32", "float64"]), default="float32")
@click.option("--device", default="cpu", metavar="NAME", help="cpu, cuda, or cuda:1 and so on.")
@click.option(
    "--init",
    "init_name",
    type=click.Choice([*INITS, "esn"]),
    default="sparse",
    help="sparse: for hf; esn: spectral radius 1.1, for momentum.",
)
@click.option("--init-scale", type=float, default=1.0, help="Factor on the weights; not for esn.")
@click.option("--input-scale", type=float, help="esn: of W_hx.  [default: the problem's]")
@click.option("--spectral-radius", type=float, help="esn: of W_hh.  [default: 1.1]")
@click.option("--seed", type=click.IntRange(0), default=0, help="Of initial weights and data.")
@click.option(
    "--preset",
    type=click.Choice(sorted(PRESETS)),
    help=f"hf: published settings; the hf options below override it.  [default: {DEFAULT_PRESET}]",
)
@click.option("--damping", type=float, help="hf: first λ.  [default: 0.1 x sequence length]")
@click.option("--structural", type=float, help="hf: structural damping μ, 0 for none.")
@click.option("--l2", type=float, help="hf: weight decay in the objective.")
@click.option("--cg-max-iter", type=click.IntRange(1), help="hf: most CG iterations in a step.")
@click.option("--lr", type=float, help="First-order: learning rate.")
@click.option("--momentum", type=float, help="First-order, where it has one: momentum.")
@click.option("--nesterov", is_flag=True, default=None, help="First-order: Nesterov momentum.")
@click.option("--weight-decay", type=float, help="First-order: weight decay.")
@click.option(
    "--minibatches",
    type=click.FloatRange(0, min_open=True),
    default=50_000,
    help="Budget of gradients and curvature products, each over 1000 sequences.",
)
@click.option("--batch-size", type=click.IntRange(1), default=1000)
@click.option("--gradient-batches", type=click.IntRange(1), default=10, help="hf: per step.")
@click.option("--test-size", type=click.IntRange(1), default=10_000, help="Test sequences.")
@click.option("--solved-below", type=click.FloatRange(0, 1), default=0.01, help="Share wrong.")
@click.option("--test-every", type=click.IntRange(1), help="Iterations.  [default: hf 1, else 100]")
@click.option(
    "--checkpoint-every", type=click.IntRange(1), help="Iterations.  [default: hf 1, else 100]"
)
@click.option("--run-dir", type=click.Path(path_type=Path), help="[default: a new one in runs/]")
@click.option("--resume", is_flag=True, help="Continue the run in --run-dir, bit for bit.")
@click.option("--threads", type=click.IntRange(1), help="Compute threads.  [default: torch's]")
@click.option("--quiet", is_flag=True, help="No progress, only the result.")
@click.option("--require-solved", is_flag=True, help="Exit with 1 unless solved.")
@click.pass_context
def train_command(
    context: click.Context,
    /,
    problem: str,
    length: int,
    optimizer: str,
    run_dir: Path | None,
    resume: bool,
    threads: int | None,
    quiet: bool,
    require_solved: bool,
    **options: Any,
) -> None:
    """Train a recurrent net on PROBLEM.

    PROBLEM is addition, multiplication, memorization-5bit or memorization-20bit.
    """
    check_resume(resume, run_dir)
    if threads is not None:
        torch.set_num_threads(threads)
    task = _problem(problem, length, options)
    start = _start(context, task, options)
    model = _model(task, options, start)
    chosen = _optimizer(context, optimizer, model, task)
    if run_dir is None:
        run_dir = new_run_dir(f"{problem}-T{length}-{optimizer}-seed{options['seed']}")
    try:
        result = train(
            model,
            task,
            chosen,
            minibatches=options["minibatches"],
            batch_size=options["batch_size"],
            gradient_batches=options["gradient_batches"],
            test_size=options["test_size"],
            solved_below=options["solved_below"],
            test_every=options["test_every"],
            checkpoint_every=options["checkpoint_every"],
            seed=options["seed"],
            run_dir=run_dir,
            resume=resume,
            progress=not quiet,
            notes={"init": options["init_name"], **_scales(start)},
        )
    except (RunFolderError, ValueError) as error:  # ValueError: another config, a loss of NaN
        raise click.ClickException(str(error)) from error
    except KeyboardInterrupt:
        click.echo(f"aborted; the last checkpoint is in {run_dir}", err=True)
        context.exit(INTERRUPTED)
    _report(result)
    if result.reason == "interrupted":
        click.echo(f"continue with the same command and: --run-dir {run_dir} --resume")
        context.exit(INTERRUPTED)
    if require_solved and not result.solved:
        context.exit(1)


def _problem(name: str, length: int, options: dict[str, Any]) -> SequenceProblem:
    if name not in SEQUENCES:
        known = ", ".join(sorted(SEQUENCES))
        raise click.BadParameter(f"got {name!r}, need one of {known}", param_hint="PROBLEM")
    given = {key: options[key] for key in PROBLEM_OPTIONS if options[key] is not None}
    try:
        problem = create(name, length=length, **given)
    except (ValueError, TypeError) as error:
        raise click.UsageError(str(error)) from error
    assert isinstance(problem, SequenceProblem)  # as all of SEQUENCES are
    return problem


def _start(
    context: click.Context, problem: SequenceProblem, options: dict[str, Any]
) -> dict[str, Any]:
    """Keywords of the initialisation; an option of another one is an error."""
    name = options["init_name"]
    for other in ["init_scale"] if name == "esn" else ESN_OPTIONS:
        if context.get_parameter_source(other) is not ParameterSource.DEFAULT:
            flag = "--" + other.replace("_", "-")
            raise click.UsageError(f"{flag} has no meaning with --init {name}")
    if name != "esn":
        return {"scale": options["init_scale"]}
    given = {key: options[key] for key in ESN_OPTIONS if options[key] is not None}
    return {**presets.esn2013(problem), **given}


def _scales(start: dict[str, Any]) -> dict[str, Any]:
    """What a run's notes say of the initialisation beside its name."""
    if "scale" in start:
        return {"init_scale": start["scale"]}
    return {key: start[key] for key in ESN_OPTIONS}


def _model(problem: SequenceProblem, options: dict[str, Any], start: dict[str, Any]) -> RNN:
    model = RNN(
        problem.input_size,
        options["hidden"],
        problem.output_size,
        nonlinearity=options["nonlinearity"],
        dtype=getattr(torch, options["dtype"]),
    )
    # Drawn on the CPU, so that a seed is the same net on every device.
    generator = torch.Generator().manual_seed(options["seed"])
    initialise = {**INITS, "esn": init.esn_}[options["init_name"]]
    try:
        initialise(model, generator, **start)
    except ValueError as error:
        flag = "--init-scale" if "scale" in start else "--init esn"
        raise click.UsageError(f"{flag}: {error}") from error
    return model.to(device_of(options["device"]))


def _optimizer(
    context: click.Context, name: str, model: RNN, problem: SequenceProblem
) -> torch.optim.Optimizer:
    if name == "hf":
        given = _given(context, name, HF_OPTIONS, FIRST_ORDER_OPTIONS)
        preset = PRESETS[context.params["preset"] or DEFAULT_PRESET]
        try:
            return HessianFree(model, problem.loss, **{**preset, **given})
        except (ValueError, TypeError) as error:
            raise click.UsageError(f"--optimizer hf: {error}") from error
    if name not in FIRST_ORDER:
        known = ", ".join(["hf", *sorted(FIRST_ORDER)])
        raise click.BadParameter(f"got {name!r}, need one of {known}", param_hint="--optimizer")
    given = _given(context, name, FIRST_ORDER_OPTIONS, HF_OPTIONS)
    try:
        return FIRST_ORDER[name](model.parameters(), **given)
    except (ValueError, TypeError, RuntimeError) as error:
        raise click.UsageError(f"--optimizer {name}: {error}") from error


def _given(
    context: click.Context, optimizer: str, mine: dict[str, str], others: dict[str, str]
) -> dict[str, Any]:
    """Keywords from the options on the command line; an option of the other kind is an error."""
    for name in [*others, *([] if optimizer == "hf" else ["preset", "gradient_batches"])]:
        if context.get_parameter_source(name) is not ParameterSource.DEFAULT:
            flag = "--" + name.replace("_", "-")
            raise click.UsageError(f"{flag} has no meaning with --optimizer {optimizer}")
    values = {keyword: context.params[name] for name, keyword in mine.items()}
    return {keyword: value for keyword, value in values.items() if value is not None}


def _report(result: TrainResult) -> None:
    why = {
        "solved": "solved",
        "budget": "not solved: the budget of minibatches is spent",
        "interrupted": "interrupted: a checkpoint is written",
        "diverged": "not solved: the training loss is no longer finite",
        "callback": "stopped by a callback",
    }
    rows = [
        ("result", "solved" if result.solved else why[result.reason]),
        ("test error", f"{100 * result.test_error:.2f}% of the test sequences are wrong"),
        ("minibatches", f"{result.minibatches:,.6g}"),
        ("objective evaluations", f"{result.objective_evaluations:,.6g} (apart)"),
        ("iterations", f"{result.iterations:,}"),
        ("seconds of training", f"{result.seconds:.1f}"),
        ("run folder", str(result.run_dir)),
        *(("plot", str(path)) for path in result.plots),
    ]
    for name, value in rows:
        click.echo(f"{name:22s}{value}")
