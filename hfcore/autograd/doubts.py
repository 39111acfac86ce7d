"""What is told of a curvature that is none, that is zero, or that may not be the loss's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction
from torch.utils._pytree import tree_leaves

from hfcore.autograd.choice import NotACurvature, adjoint_error, asymmetry, error_limit
from hfcore.autograd.data import BatchPart, Closure
from hfcore.autograd.double_vjp import DoubleVjp, Strategy
from hfcore.autograd.evaluation import flatten
from hfcore.autograd.graph import Graph, Parts, Split, sample
from hfcore.bindings.conjugate_gradient import dot

if TYPE_CHECKING:
    from hfcore.autograd.curvature import Graphs
    from hfcore.autograd.objective import ModuleObjective

ZERO_CURVATURE = (
    "loss: L'' is zero at these outputs, so that the Gauss-Newton matrix is zero and a step is a "
    "long gradient step. Split before what bends: outputs before the log-softmax, which then "
    "belongs to the loss (nn.CrossEntropyLoss, hf.losses.SoftmaxCrossEntropy); a loss of absolute "
    "values or hinges needs a smooth one (Huber) or curvature='fisher'"
)
# Differences of gradients agree with products up to this where nothing is wrong.
DIFFERENCES = 0.02


def explain(error: NotACurvature, graphs: Graphs, piece: Closure | BatchPart) -> str:
    """The refusal of products that are none of a curvature, with the module's name if found."""
    name = _first_wrong(graphs, piece, graphs.kind) if error.finite else None
    where = "" if name is None else f" from module {name} on"
    return (
        f"model: {error}{where}. Its backward pass cannot be differentiated (a custom autograd "
        "function that leaves torch, detaches or is once_differentiable?), or the strategy's "
        "forward mode does not see torch.no_grad; take curvature='hessian_fd' "
        "(hf.Hessian(..., method='finite_difference')), which needs gradients alone"
    )


def _first_wrong(graphs: Graphs, piece: Closure | BatchPart, kind: str) -> str | None:
    """The first module, in the order in which they finish, whose J is not one."""
    module = graphs.module
    if module is None:
        return None
    found: list[tuple[str, Tensor]] = []
    hooks = [
        part.register_forward_hook(_collect(f"{name!r} ({type(part).__name__})", found))
        for name, part in module.named_modules()
        if name
    ]
    try:
        leaves = graphs.leaves(piece)
    finally:
        for hook in hooks:
            hook.remove()
    for name, z in found:
        if leaves is not None and z.requires_grad and not _is_right(z, leaves, kind):
            return name
    return None


def _collect(name: str, found: list[tuple[str, Tensor]]) -> Any:
    def hook(module: nn.Module, args: Any, output: Any) -> None:
        found.extend((name, t) for t in tree_leaves(output) if isinstance(t, Tensor))

    return hook


def _is_right(z: Tensor, leaves: Parts, kind: str) -> bool:
    """Whether autograd's Jv and Jᵀw at z belong to one J; for ∇² also that of a sum of z."""
    split = Split(z, lambda R: R)
    jacobian = DoubleVjp(Graph(leaves, z, [split], [], False, None, None)).jacobian()
    (weights,) = sample([z], False, 1)
    graph = Graph(leaves, (z * weights).sum(), [], [], True, None, None)
    assert jacobian is not None
    limit = error_limit(graph.like)
    try:
        if not adjoint_error(jacobian, graph.like) <= limit:
            return False
        return kind != "hessian" or asymmetry(DoubleVjp(graph), graph.like) <= limit
    except (RuntimeError, ValueError):  # a part of the model that cannot be asked
        return True


class Look:
    """What the user should know of a curvature that is used all the same, seen on its graph."""

    def __init__(self, graph: Graph, kind: str) -> None:
        self._zero = kind == "ggn" and _is_zero(graph.main[0])
        self._functions = _custom_functions(graph.loss) if kind == "hessian" else []

    def doubts(
        self,
        objective: ModuleObjective,
        piece: Closure | BatchPart,
        theta: Tensor,
        strategy: Strategy,
    ) -> Iterator[str]:
        """The messages on the curvature at ``theta [N]`` on a piece of the data."""
        if self._zero:
            yield ZERO_CURVATURE
        if self._functions:
            yield from _against_differences(objective, piece, theta, strategy, self._functions)


def _is_zero(split: Split) -> bool:
    (R,) = sample([split.like], False, 1)
    return not bool(split.second(R).any())


def _custom_functions(loss: Tensor) -> list[str]:
    """Names of the autograd functions of somebody's own above the loss."""
    names: dict[str, None] = {}
    stack: list[Any] = [] if loss.grad_fn is None else [loss.grad_fn]
    seen: set[Any] = set(stack)
    while stack:
        node = stack.pop()
        if isinstance(node, BackwardCFunction):
            names[type(node).__name__.removesuffix("Backward")] = None
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                stack.append(following)
    return list(names)


def _against_differences(
    objective: ModuleObjective,
    piece: Closure | BatchPart,
    theta: Tensor,
    strategy: Strategy,
    functions: list[str],
) -> Iterator[str]:
    """A backward pass that reads detached values has a derivative, symmetric and wrong.

    Only where the gradient is the loss's: a model that stops gradients means no other Hessian.
    """
    data: Any = piece if callable(piece) else [piece]
    parts = sample(objective.parameters.split(theta), False, 7)
    v = flatten(parts, parts)
    step = torch.finfo(theta.dtype).eps ** (1 / 3) * float(1 + theta.norm()) / float(v.norm())
    (up, ahead), (down, behind) = (
        objective.gradient(data, theta + sign * step * v) for sign in (1, -1)
    )
    slope, along = (up - down) / (2 * step), 0.5 * dot(ahead + behind, v)
    if abs(slope - along) > DIFFERENCES * max(abs(slope), abs(along)):
        return
    product = flatten(strategy.apply(objective.parameters.split(v), 0.0), parts)
    share = sum(share for _, share in objective.pieces(data))  # of the mean over cases
    product = product.mul(share).add(v, alpha=objective.l2)
    difference = (ahead - behind) / (2 * step)
    error = float((product - difference).norm() / difference.norm())
    if error > DIFFERENCES:
        yield (
            f"model: Hessian products differ by {error:.1%} from differences of the gradient; the "
            f"backward of {', '.join(functions)} may read detached values, so that its derivative "
            "is not whole; curvature='hessian_fd' needs gradients alone"
        )
