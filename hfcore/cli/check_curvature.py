"""``hfcore check-curvature``: finite differences against the products that training uses."""

from __future__ import annotations

import click

from hfcore.cli.models import problem_of
from hfcore.cli.options import SEED
from hfcore.losses import NAMED
from hfcore.verify import check_curvature


@click.command("check-curvature")
@click.argument("model", metavar="MODEL")
@click.option("--loss", type=click.Choice(sorted(NAMED)), default="squared", help="rnn, mlp.")
@click.option(
    "--nonlinearity",
    type=click.Choice(["tanh", "logistic", "relu"]),
    default="tanh",
    help="rnn, mlp: of the hidden units.",
)
@click.option("--coordinates", type=click.IntRange(1), default=2, help="Of each parameter.")
@click.option("--seed", type=SEED, default=0)
@click.pass_context
def check_command(
    context: click.Context,
    /,
    model: str,
    loss: str,
    nonlinearity: str,
    coordinates: int,
    seed: int,
) -> None:
    """Check gradient, R-op, Gauss-Newton and Hessian products of MODEL by finite differences.

    MODEL is rnn, mlp, or package.module:function of your own, a function without arguments that
    returns (model, loss, inputs, targets), or a mask as fifth. Everything is computed in float64.
    Exits with 1 when a check is wrong.
    """
    problem = problem_of(model, loss=loss, nonlinearity=nonlinearity, seed=seed)
    net, loss_function, inputs, targets, *mask = problem
    try:
        report = check_curvature(
            net,
            loss_function,
            inputs,
            targets,
            mask=mask[0] if mask else None,
            coordinates=coordinates,
            seed=seed,
        )
    except (TypeError, ValueError, RuntimeError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(str(report))
    if not report.right:
        context.exit(1)
