"""Which strategy serves a curvature, and whether what it computes is a curvature at all.

``"auto"`` goes by structure: the traced product where the ops can be written down, else of the
double vjp and the jvp the one with less to do in a product, counted in ops and their sizes; so the
same model and shapes are served alike in every run. ``"measure"`` takes the time of each instead.
Whatever is taken must be symmetric: autograd gives wrong numbers without a word where a backward
pass of somebody's own cannot be differentiated.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hfcore.autograd.double_vjp import Jacobian, Strategy
from hfcore.autograd.graph import Gradients, Graph, Like, Parts, sample
from hfcore.autograd.strategies import RECOMPUTING, Rebuilt, make_strategy
from hfcore.autograd.trace import filled, trace
from hfcore.autograd.traced import Traced

logger = logging.getLogger("hfcore")

# torch.func.linearize traces some 1000 ops a second: what cannot pay is not tried.
LINEARIZE_SECONDS_PER_NODE = 1e-3

# A strategy is timed on this many products, on fewer where they take long.
TIMED_PRODUCTS, TIMED_SECONDS = 5, 0.2

# What an op is taken to cost beside its arithmetic, and its numbers beside it, in flops.
OP_FLOPS, NUMBER_FLOPS = 2e5, 10.0

# Numbers that are widened to float64 at once.
PIECE = 1 << 16

# What torch raises where it cannot do something with a model.
DECLINED = (RuntimeError, NotImplementedError, TypeError, ValueError)


@dataclass
class Choice:
    """The strategy that is taken, with what was counted or measured.

    ``work`` holds the flops of a product as they were counted, ``seconds`` (setup, one product) as
    they were measured; ``declined`` why others were not or could not be; ``asked`` what the
    objective's strategy was.
    """

    name: str
    asked: str = ""
    seconds: dict[str, tuple[float, float]] = field(default_factory=dict)
    work: dict[str, float] = field(default_factory=dict)
    declined: dict[str, str] = field(default_factory=dict)


def freed(strategy: Strategy) -> Strategy:
    """The strategy without what only its making and its check needed."""
    if isinstance(strategy, Traced):
        strategy.free()
    return strategy


class NotACurvature(ValueError):
    """Products that are none of a curvature: not symmetric, or not finite.

    ``equation`` does not hold: by ``error`` of its size (NaN: not finite), where ``limit`` would be
    rounding.
    """

    def __init__(self, message: str, equation: str, error: float, limit: float) -> None:
        super().__init__(message)
        self.equation = equation
        self.error = error
        self.limit = limit

    @property
    def finite(self) -> bool:
        return math.isfinite(self.error)

    def said(self, message: str) -> NotACurvature:
        """The same in other words."""
        return NotACurvature(message, self.equation, self.error, self.limit)


class Chooser:
    """Tries strategies on one piece; what is taken is checked, unless ``checked`` is False."""

    def __init__(
        self, build: Callable[[], Graph], like: Like, *, recompute: bool, checked: bool = True
    ) -> None:
        self._build = build
        self._like = like
        self._recompute = recompute
        self._checked = checked
        self._declined: dict[str, str] = {}
        # By the double vjp, the one that should work: the caller's where nothing else does.
        self._refused: Exception | None = None

    def one(self, name: str) -> tuple[Choice, Strategy]:
        """The strategy of that name. Raises NotACurvature, or what torch raises."""
        strategy = self._make(name, self._graph())
        self._check(strategy)
        return Choice(name), strategy

    def by_structure(self) -> tuple[Choice, Strategy]:
        """The traced product if there is one, else what has least to do."""
        graph, found = self._graph(), dict[str, Strategy]()
        for name in RECOMPUTING if self._recompute else ("trace", *RECOMPUTING):
            if name == "jvp" and self._like.hessian and found:
                continue  # forward mode over a gradient ends the process for some losses
            strategy = self._tried(name, graph)
            if strategy is not None:
                found[name] = strategy
            if "trace" in found:
                break
        self._check_any(found)
        work = {n: _work(s, self._like) for n, s in found.items()} if len(found) > 1 else {}
        name = min(found, key=lambda name: work.get(name, 0.0))
        choice = Choice(name, work=work, declined=self._declined)
        logger.info("curvature products by %s: %s", name, choice)
        return choice, found[name]

    def by_time(self, products: int) -> tuple[Choice, Strategy]:
        """What is fastest for so many products, with the time that it takes to set up."""
        # What torch imports at its first recording.
        trace(lambda v: [2 * v[0]], [torch.ones(1, device="cpu")])
        graph, found = self._graph(), dict[str, Strategy]()
        seconds: dict[str, tuple[float, float]] = {}

        def cost(name: str) -> float:
            setup, product = seconds[name]
            return setup + products * product

        def time(name: str) -> None:
            start = _now(self._like.parameters)
            strategy = self._tried(name, graph)
            if strategy is not None:
                setup = _now(self._like.parameters) - start
                found[name], seconds[name] = strategy, (setup, self._seconds(strategy, graph))

        for name in RECOMPUTING if self._recompute else ("double_vjp", "trace", "jvp"):
            if not (name == "jvp" and self._like.hessian and found):  # see by_structure
                time(name)
        if graph is not None and "trace" in self._declined:
            expected = LINEARIZE_SECONDS_PER_NODE * _count_nodes(graph)
            if not found or expected < min(map(cost, found)):
                time("linearize")
            else:
                self._declined["linearize"] = f"tracing would take about {expected:.1f} s"
        self._check_any(found)
        name = min(found, key=cost)
        choice = Choice(name, seconds=seconds, declined=self._declined)
        logger.info("curvature products by %s: %s", name, seconds)
        return choice, found[name]

    def _graph(self) -> Graph | None:
        """What the strategies share, unless each product builds its own."""
        return None if self._recompute else self._build()

    def _make(self, name: str, graph: Graph | None) -> Strategy:
        if graph is not None:
            return make_strategy(name, graph)
        if name not in RECOMPUTING:
            raise ValueError(
                f"strategy: {name!r} keeps what chunk_size is there to free; need one of "
                f"{', '.join(map(repr, RECOMPUTING))} or 'auto'"
            )
        return Rebuilt(self._build, name)

    def _tried(self, name: str, graph: Graph | None) -> Strategy | None:
        """The strategy, checked; None where it was declined."""
        try:
            strategy = self._make(name, graph)
            self._check(strategy)
        except DECLINED as error:
            if name == "double_vjp":
                if self._like.hessian and not isinstance(error, NotACurvature):
                    raise  # forward mode over a gradient ends the process for some losses
                self._refused = error.with_traceback(None)  # which holds the graph
            self._declined[name] = str(error).splitlines()[0] if str(error) else repr(error)
            return None
        return strategy

    def _check(self, strategy: Strategy) -> None:
        if self._checked:
            check_curvature(strategy, self._like)

    def _check_any(self, found: dict[str, Strategy]) -> None:
        if not found:
            assert self._refused is not None
            raise self._refused

    def _seconds(self, strategy: Strategy, graph: Graph | None) -> float:
        """Seconds of the fastest of a few products: what another process takes is not a cost."""
        v = [torch.ones_like(p) for p in self._like.parameters]
        structural = 1.0 if graph is not None and graph.held else 0.0
        strategy.apply(v, structural)  # first calls allocate
        seconds: list[float] = []
        while len(seconds) < TIMED_PRODUCTS and sum(seconds) < TIMED_SECONDS:
            start = _now(v)
            strategy.apply(v, structural)
            seconds.append(_now(v) - start)
        return min(seconds)


def _work(strategy: Strategy, like: Like) -> float:
    counter = _Counter()
    with counter:
        strategy.apply([torch.ones_like(p) for p in like.parameters], 0.0)
    return counter.flops


class _Counter(TorchDispatchMode):
    """Counts what ops cost: each by itself, by the numbers it gives, and by its arithmetic."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        from torch.utils.flop_counter import flop_registry  # imports Triton, which is slow

        self.flops = 0.0
        self._formulas = flop_registry

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        args = tuple(map(filled, args))
        result = func(*args, **kwargs)
        if not func.is_view:
            numbers = sum(t.numel() for t in tree_leaves(result) if isinstance(t, Tensor))
            self.flops += OP_FLOPS + NUMBER_FLOPS * numbers
            count = self._formulas.get(func._overloadpacket)
            if count is not None:
                self.flops += count(*args, **kwargs, out_val=result)
        return result


def _now(like: Parts) -> float:
    if like[0].is_cuda:
        torch.cuda.synchronize(like[0].device)
    return perf_counter()


def _count_nodes(graph: Graph) -> int:
    """Ops in the graph of the loss and the splits."""
    stack: list[Any] = [split.edge.node for split in graph.splits(True)]
    if graph.loss.grad_fn is not None:
        stack.append(graph.loss.grad_fn)
    seen: set[Any] = set(stack)
    while stack:
        for following, _ in stack.pop().next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                stack.append(following)
    return len(seen)


# -------------------------------------------------------------------------------- symmetry


def check_curvature(strategy: Strategy, like: Like) -> None:
    """Raise :class:`NotACurvature` where products are not finite, where J v and Jᵀw do not belong
    to one J, or where uᵀGv ≠ vᵀGu.

    The second does not follow from the third: Jᵀ D J with a wrong J' = D J is symmetric, too.
    """
    jacobian = strategy.jacobian()
    if jacobian is not None:
        error = adjoint_error(jacobian, like)
        _refuse(error, like, "⟨w, J v⟩ = ⟨Jᵀw, v⟩", "J v and Jᵀw belong to two matrices")
        del jacobian
    _refuse(asymmetry(strategy, like), like, "uᵀGv = vᵀGu", "uᵀGv and vᵀGu differ")


def _refuse(error: float, like: Like, equation: str, instead: str) -> None:
    limit = error_limit(like)
    if error <= limit:
        return
    message = "products with the curvature are not finite"
    if math.isfinite(error):
        message = (
            f"products with the curvature are not symmetric: {instead}, by {error:.2g} of their "
            "size"
        )
    raise NotACurvature(message, equation, error, limit)


def error_limit(like: Like) -> float:
    """Far above the rounding of a product's coarsest ops, far below an error that matters."""
    p = like.parameters[0]
    eps = max(torch.finfo(p.dtype).eps, like.precision)
    if p.is_cuda and p.dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32:
        eps = max(eps, 2.0**-10)
    return float(eps**0.25)


def adjoint_error(jacobian: Jacobian, like: Like) -> float:
    """|⟨w, J v⟩ − ⟨Jᵀw, v⟩| against the size it has for v and w without relation."""
    return _largest([_adjoint_error(jacobian, like, seed) for seed in (1, 2)])


def _adjoint_error(jacobian: Jacobian, like: Like, seed: int) -> float:
    push, pull, tensors = jacobian
    v = sample(like.parameters, False, seed + 2)
    pulled = _filled(pull(sample(tensors, False, seed)), v)
    scales = _balance(v, pulled, error_limit(like))
    scaled = [d * t for d, t in zip(scales, v, strict=True)]
    pushed = push(scaled)  # beside which w is not held: outputs may be most of what there is
    w = sample(tensors, False, seed)
    difference = _dot(w, _filled(pushed, w)) - _dot(pulled, scaled)
    return _relative(difference, _norm(pulled, scales))


def asymmetry(strategy: Strategy, like: Like) -> float:
    """|uᵀGv − vᵀGu| against the size of uᵀGv for u = D r and v = D q without relation.

    D is scaled by parameter, ‖(Gw)_p‖ to the power −½, so that a small one is not lost.
    """
    first, u, v = (sample(like.parameters, False, seed) for seed in (5, 6, 7))
    sizes = _balance(first, _filled(strategy.apply(first, 0.0), first), error_limit(like) ** 2)
    scales = [math.sqrt(d) for d in sizes]
    u, v = ([d * t for d, t in zip(scales, x, strict=True)] for x in (u, v))
    Gu, Gv = (_filled(strategy.apply(x, 0.0), x) for x in (u, v))
    size = max(_norm(Gu, scales), _norm(Gv, scales))
    return _largest([_relative(_dot(u, Gv) - _dot(v, Gu), size), _norm(Gu, scales) * 0])


def _balance(v: Parts, product: Parts, floor: float) -> list[float]:
    """‖v_p‖ / ‖product_p‖ of every parameter p.

    What is nothing but rounding, below ``floor`` of the largest, is not raised to their size.
    """
    sizes = [_length(g) / (_length(t) or 1.0) for t, g in zip(v, product, strict=True)]
    least = max(sizes) * floor
    if not (math.isfinite(least) and least > 0):
        return [1.0] * len(sizes)
    return [1.0 / max(size, least) for size in sizes]


def _relative(difference: float, size: float) -> float:
    return abs(difference) / size if size != 0 else abs(difference)


def _largest(errors: list[float]) -> float:
    return max(errors) if all(map(math.isfinite, errors)) else math.nan


def _norm(parts: Parts, scales: list[float]) -> float:
    """‖D parts‖."""
    terms = zip(scales, parts, strict=True)
    return math.sqrt(sum((d * _length(t)) ** 2 for d, t in terms))


def _length(t: Tensor) -> float:
    """‖t‖ in float64."""
    return math.sqrt(sum(float(piece.double().square().sum()) for piece in _pieces(t)))


def _dot(a: Parts, b: Parts) -> float:
    """In float64, a piece at a time."""
    pairs = (zip(_pieces(x), _pieces(y), strict=True) for x, y in zip(a, b, strict=True))
    return sum(float((x.double() * y.double()).sum()) for pair in pairs for x, y in pair)


def _pieces(t: Tensor) -> tuple[Tensor, ...]:
    pieces: tuple[Tensor, ...] = t.reshape(-1).split(PIECE)
    return pieces


def _filled(product: Gradients, like: Parts) -> Parts:
    return [torch.zeros_like(t) if g is None else g for g, t in zip(product, like, strict=True)]
