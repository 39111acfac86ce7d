"""Objective and curvature of any torch module, through autograd and torch.func."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from hfcore.autograd.cases import CaseSquares
from hfcore.autograd.checks import check_repeatable, differentiable_kernels, reaches
from hfcore.autograd.data import BatchPart, Closure, call_closure, check_part
from hfcore.autograd.losses import MeanLoss, second_of, split_loss
from hfcore.autograd.strategies import (
    NO_DEPENDENCE,
    RECOMPUTING,
    STRATEGIES,
    Choice,
    Gradients,
    Graph,
    Measurement,
    Parts,
    Rebuilt,
    Split,
    Strategy,
    Traced,
    make_strategy,
)
from hfcore.autograd.structural import Held, Term, structural_terms
from hfcore.batches import Batch
from hfcore.bindings.checks import check_choice
from hfcore.bindings.conjugate_gradient import dot
from hfcore.flat import FlatParameters
from hfcore.losses import Loss
from hfcore.objective import DAMPING_START

__all__ = ["Closure", "ModuleCurvature", "ModuleObjective", "call_closure"]

logger = logging.getLogger("hfcore")

KINDS = ("ggn", "hessian", "fisher")

# Curvature products in a step for which "auto" chooses: CG takes tens to a few hundred.
EXPECTED_PRODUCTS = 50

ModuleData = Closure | Sequence[BatchPart]


class Evaluation(NamedTuple):
    """The model at some parameters: mean loss (a scalar), outputs, outputs of held submodules
    and the structural term of each."""

    loss: Tensor
    outputs: Tensor
    held: list[Tensor]
    terms: list[Term]


class ModuleObjective:
    """Mean loss of any module over cases, + ½ l2 ‖θ‖², by autograd.

    Data is a closure () → (loss, outputs), or what :meth:`prepare` makes of batches ``(inputs,
    targets[, mask])``, whose mean weighted by their number of cases is the objective.

    Parameters
    ----------
    model : a module, or an iterable of parameters (closures only, at the parameters' own values)
    loss : for batches: a loss of ``hf.losses`` on outputs ``[…,k]`` before their nonlinearity,
        summed over a case's outputs (probabilities cannot always be told from them); or any
        callable (outputs, targets) → scalar mean over cases
    structural : ``{"submodule": D or (D, μ)}``: structural damping of what the submodule returns
        (its first tensor), at every call; D is ``"identity"`` or the matching nonlinearity that
        follows, ``"tanh"``, ``"logistic"`` or ``"softmax"``; μ is 1 if left out
    batch_dim : axis of cases in inputs, outputs and targets, or (of inputs, of outputs and targets)
    strategy : of :mod:`hfcore.autograd.strategies`; ``"auto"`` measures at the first
        curvature of a kind and keeps the cheapest for ``expected_products`` products. Results agree
        up to rounding; name one where runs must repeat bit for bit
    chunk_size : most cases whose activations are held at once; None holds all. With more cases than
        that every product runs the forward pass again, chunk by chunk

    Parameters that do not affect the loss are legal: their rows of the curvature are zero. Of a
    ``torch.compile``'d module the eager one inside is run, whose parameters are the same. Refused
    (ValueError): dropout and batch normalisation in train mode, see ``autograd/checks.py``.
    """

    supports_stop = False

    def __init__(
        self,
        model: nn.Module | Iterable[nn.Parameter],
        loss: Loss | MeanLoss | None = None,
        *,
        l2: float = 0.0,
        structural: Mapping[str, Any] | None = None,
        batch_dim: int | tuple[int, int] = 0,
        strategy: str = "auto",
        expected_products: int = EXPECTED_PRODUCTS,
        chunk_size: int | None = None,
    ) -> None:
        check_choice("strategy", strategy, ("auto", *STRATEGIES))
        for name, value in (("chunk_size", chunk_size), ("expected_products", expected_products)):
            if value is not None and value < 1:
                raise ValueError(f"{name}: got {value}, need at least 1")
        # The eager module inside a compiled one: compiled graphs are differentiated once only.
        self.module: nn.Module | None = None
        if isinstance(model, nn.Module):
            self.module = getattr(model, "_orig_mod", model)
        self.parameters = FlatParameters(model if self.module is None else self.module)
        self._input_dim, self.case_dim = (
            batch_dim if isinstance(batch_dim, tuple) else (batch_dim, batch_dim)
        )
        self.loss_function = None if loss is None else split_loss(loss, self.case_dim)
        self._loss_kind = loss.kind if isinstance(loss, Loss) else None
        self.l2 = l2
        self.terms = structural_terms(self.module, structural)
        self.supports_structural = bool(self.terms)
        self.strategy = strategy
        self.expected_products = expected_products
        self.chunk_size = chunk_size
        # What "auto" chose, by kind of curvature.
        self.choices: dict[str, Choice] = {}
        self._squares: CaseSquares | None = None
        self._rows_by_vmap = True
        # What the next curvature is to tell the user.
        self._news: list[str] = []

    # -------------------------------------------------------------------------------- data

    def prepare(self, data: Any) -> ModuleData:
        """Check a batch or a list of batches; a closure passes through."""
        if callable(data):
            closure: Closure = data
            return closure
        if self.loss_function is None or self.module is None:
            what = "loss" if self.module is not None else "module"
            raise TypeError(f"data: batches need a {what}; without one give a closure")
        if _is_one_batch(data):
            data = [data]
        parts = [batch if isinstance(batch, BatchPart) else self._check(batch) for batch in data]
        if not parts:
            raise ValueError("data: got no batch, need at least one")
        return parts

    def _check(self, batch: Any) -> BatchPart:
        return check_part(
            batch,
            like=self.parameters.tensors[0],
            input_dim=self._input_dim,
            target_dim=self.case_dim,
            loss_kind=self._loss_kind,
        )

    def minibatches(self, data: ModuleData) -> int:
        return 1 if callable(data) else len(data)

    def damping_start(self, data: ModuleData) -> float:
        """λ₀: the model's own ``damping_start(inputs)`` on batches, where it has one."""
        own = getattr(self.module, "damping_start", None)
        if own is None or callable(data):
            return DAMPING_START
        return float(own(data[0].inputs))

    def pieces(self, data: ModuleData) -> Iterator[tuple[Closure | BatchPart, float]]:
        """What is evaluated at once, with its share of the cases."""
        if callable(data):
            if self.chunk_size is not None:
                raise ValueError("chunk_size: a closure cannot be cut; give batches")
            yield data, 1.0
            return
        cases = sum(part.count for part in data)
        for part in data:
            for chunk in part.chunks(self.chunk_size or part.count):
                yield chunk, chunk.count / cases

    def tell(self, message: str) -> None:
        """Log what the user should know; the next curvature holds it in ``messages``."""
        logger.warning("%s", message)
        self._news.append(message)

    def take_news(self) -> tuple[str, ...]:
        """What was told since the last time."""
        news, self._news = tuple(self._news), []
        return news

    # -------------------------------------------------------------------------- evaluation

    def evaluate(self, piece: Closure | BatchPart, parameters: Parts | None = None) -> Evaluation:
        """The model on a piece of the data, at ``parameters`` or at its own."""
        with self._kernels(), self._holding_outputs() as held:
            if callable(piece):
                loss, outputs = self._call(lambda: call_closure(piece), parameters)
            else:
                outputs = self.outputs(piece, parameters)
                assert self.loss_function is not None
                loss = self.loss_function.mean(outputs, piece)
        return Evaluation(loss, outputs, held.tensors(), held.terms())

    def outputs(self, part: BatchPart, parameters: Parts | None = None) -> Tensor:
        """The model's outputs on a batch, checked against the targets."""
        module, loss = self.module, self.loss_function
        assert module is not None
        assert loss is not None
        outputs = self._call(lambda: module(part.inputs), parameters)
        if not isinstance(outputs, Tensor):
            raise TypeError(
                f"outputs: the model returned {type(outputs).__name__}, need one tensor; wrap it "
                "in a module that returns what the loss is computed from"
            )
        if outputs.ndim <= self.case_dim or outputs.shape[self.case_dim] != part.count:
            raise ValueError(
                f"outputs: got shape {list(outputs.shape)}, need {part.count} cases along axis "
                f"{self.case_dim}; batch_dim says where they are"
            )
        loss.check(outputs, part)
        return outputs

    def _call(self, function: Callable[[], Any], parameters: Parts | None) -> Any:
        if parameters is None:
            return function()
        assert self.module is not None
        named = dict(zip(self.parameters.names, parameters, strict=True))
        caller = _Caller(self.module, function)
        return functional_call(caller, {f"module.{name}": p for name, p in named.items()}, ())

    @contextmanager
    def _kernels(self) -> Iterator[None]:
        if self.module is not None:
            check_repeatable(self.module)
        with differentiable_kernels(self.module):
            yield

    @contextmanager
    def _holding_outputs(self) -> Iterator[Held]:
        held = Held(self.terms)
        with held if self.terms else nullcontext():
            yield held

    def regulariser(self, theta: Tensor) -> float:
        return 0.5 * self.l2 * dot(theta, theta) if self.l2 else 0.0

    def value(self, piece: Closure | BatchPart, evaluation: Evaluation) -> float:
        """The mean loss of a piece as a float."""
        if callable(piece) or self.loss_function is None:
            return float(evaluation.loss.detach())
        with torch.no_grad():
            return self.loss_function.value(evaluation.outputs.detach(), piece)

    def loss(self, data: ModuleData, theta: Tensor) -> float:
        total = 0.0
        with self.parameters.holding(theta), torch.no_grad():
            for piece, share in self.pieces(data):
                total += share * self.value(piece, self.evaluate(piece))
        return total + self.regulariser(theta)

    def gradient(self, data: ModuleData, theta: Tensor) -> tuple[float, Tensor]:
        total, flat = 0.0, torch.zeros_like(theta)
        with self.parameters.holding(theta), torch.enable_grad():
            for piece, share in self.pieces(data):
                evaluation = self.evaluate(piece)
                grads = torch.autograd.grad(
                    evaluation.loss, self.parameters.tensors, allow_unused=True
                )
                total += share * self.value(piece, evaluation)
                flat.add_(_flatten(grads, self.parameters.tensors), alpha=share)
        if self.l2:
            flat.add_(theta, alpha=self.l2)
        return total + self.regulariser(theta), flat

    def squared_gradients(self, data: ModuleData, theta: Tensor) -> Tensor:
        """Mean over cases of the squared gradient of each ``[N]``, without L2. Needs batches."""
        return self._over_cases(
            "squared_gradients", data, theta, lambda squares, part: squares.gradients(part)
        )

    def diagonal(
        self,
        data: ModuleData,
        theta: Tensor,
        probes: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """diag(G) ``[N]`` as in :class:`hfcore.objective.Curvature`. Needs batches."""
        return self._over_cases(
            "diagonal", data, theta, lambda squares, part: squares.diagonal(part, probes, generator)
        )

    def _over_cases(
        self,
        name: str,
        data: ModuleData,
        theta: Tensor,
        sums: Callable[[CaseSquares, BatchPart], Tensor],
    ) -> Tensor:
        if callable(data) or self.loss_function is None:
            raise ValueError(f"{name}: needs batches; a closure has no cases")
        assert self.module is not None
        check_repeatable(self.module)
        if self._squares is None:
            self._squares = CaseSquares(self.outputs, self.loss_function)
        squares = self._squares.at(self.parameters.split(theta.clone()))
        total = torch.zeros_like(theta)
        with differentiable_kernels(self.module, once=True):
            for part in data:
                for chunk in part.chunks(self.chunk_size or part.count):
                    total += sums(squares, chunk)
        return total / sum(part.count for part in data)

    def curvature(self, data: ModuleData, theta: Tensor, kind: str = "ggn") -> ModuleCurvature:
        """The curvature at θ: ``"ggn"``, ``"hessian"`` or (batches only) ``"fisher"``.

        Products stay at θ when the model moves on, except for a closure that uses parameters
        directly, whose products end where the parameters change. Raises ValueError for a kind that
        is not served.
        """
        check_choice("kind", kind, KINDS)
        if kind == "fisher" and callable(data):
            raise ValueError("kind: the empirical Fisher needs batches; a closure has no cases")
        return ModuleCurvature(self, data, theta, kind)


class _Caller(nn.Module):
    """Calls a function while functional_call holds other parameters in ``module``.

    Not through ``forward``: hooks for all modules belong to the user's modules alone.
    """

    def __init__(self, module: nn.Module, function: Callable[[], Any]) -> None:
        super().__init__()
        self.module = module
        self._function = function

    def __call__(self) -> Any:
        return self._function()


def _is_one_batch(data: Any) -> bool:
    """A batch (inputs, targets[, mask]) and not a list of batches."""
    if isinstance(data, (Batch, BatchPart)):
        return True
    return isinstance(data, (tuple, list)) and len(data) > 0 and isinstance(data[0], Tensor)


def _flatten(grads: Gradients, like: Sequence[Tensor]) -> Tensor:
    """Gradients as one vector; None (a parameter that did not take part) counts as zero."""
    return torch.cat(
        [
            torch.zeros_like(p).reshape(-1) if g is None else g.reshape(-1)
            for g, p in zip(grads, like, strict=True)
        ]
    )


class _Graphs:
    """Builds the graphs of a curvature at θ. Holds none, so that they die with their strategy."""

    def __init__(self, objective: ModuleObjective, theta: Tensor, kind: str) -> None:
        self._objective = objective
        self._theta = theta
        self._kind = kind
        self._bare = objective.module is None

    def value(self, piece: Closure | BatchPart) -> float:
        """The mean loss of a piece."""
        with torch.no_grad():
            return self._objective.value(piece, self._objective.evaluate(piece, self._leaves()))

    def _leaves(self) -> Parts | None:
        """θ in the parameters' shapes, or None for the parameters themselves."""
        if self._bare:
            return None
        return [p.detach() for p in self._objective.parameters.split(self._theta)]

    def _evaluate(self, piece: Closure | BatchPart) -> tuple[Evaluation, Parts | None]:
        """The model on a piece, and the leaves of its graph (None: the parameters themselves)."""
        objective, leaves = self._objective, self._leaves()
        if leaves is not None:
            leaves = [p.requires_grad_() for p in leaves]
        evaluation = objective.evaluate(piece, leaves)
        own = objective.parameters
        if leaves is None or not callable(piece) or not reaches(evaluation[:2], own.tensors):
            return evaluation, leaves
        # The closure holds parameters of its own, which nothing can be put in the place of.
        if not torch.equal(own.read(), self._theta):
            raise ValueError(
                "theta: a closure that uses parameters directly, and not through the model, has a "
                "curvature at the model's own values only"
            )
        self._bare = True
        return objective.evaluate(piece), None

    def build(self, piece: Closure | BatchPart) -> tuple[Graph, float]:
        """The graph of a piece, and its mean loss."""
        objective = self._objective
        with torch.enable_grad():
            evaluation, leaves = self._evaluate(piece)
            main = self._main(piece, evaluation)
        if self._kind != "hessian" and not main[0].tensor.requires_grad:
            raise ValueError(NO_DEPENDENCE)
        needs = [z.requires_grad for z in evaluation.held]

        def splits_at(at: Parts, structural: bool) -> tuple[Tensor, ...]:
            moved = objective.evaluate(piece, at)
            tensors = [split.tensor for split in self._main(piece, moved, seconds=False)]
            if structural:
                tensors += [z for z, need in zip(moved.held, needs, strict=True) if need]
            return tuple(tensors)

        functional = leaves is not None
        graph = Graph(
            objective.parameters.tensors if leaves is None else leaves,  # type: ignore[arg-type]
            evaluation.loss,
            main,
            self._held(evaluation),
            self._kind == "hessian",
            splits_at if functional else None,
            (lambda at: objective.evaluate(piece, at).loss) if functional else None,
        )
        return graph, objective.value(piece, evaluation)

    def _main(
        self, piece: Closure | BatchPart, at: Evaluation, seconds: bool = True
    ) -> list[Split]:
        """Where the kind of curvature is split, and the second derivative there."""
        loss = self._objective.loss_function
        if self._kind == "hessian":
            return []
        if callable(piece):
            second = second_of(at.loss, at.outputs) if seconds else torch.zeros_like
            return [Split(at.outputs, second)]
        assert loss is not None
        if self._kind == "fisher":
            return [Split(loss.cases(at.outputs, piece), lambda R: R / piece.count)]
        second = loss.second(at.outputs.detach(), piece) if seconds else torch.zeros_like
        return [Split(at.outputs, second)]

    def _held(self, at: Evaluation) -> list[Split]:
        """The structural splits; what no parameter moves is left out."""
        if not at.held:
            return []
        cases = at.outputs.shape[self._objective.case_dim]
        return [
            Split(z, term.second(z.detach(), cases))
            for term, z in zip(at.terms, at.held, strict=True)
            if z.requires_grad
        ]


class ModuleCurvature:
    """A curvature matrix of a module at fixed parameters and data.

    ``strategy`` names how its products are computed; ``messages`` are for the user.
    """

    def __init__(
        self, objective: ModuleObjective, data: ModuleData, theta: Tensor, kind: str
    ) -> None:
        self._objective = objective
        self._data = data
        self._theta = theta.clone()
        self._kind = kind
        if objective.module is None and not torch.equal(objective.parameters.read(), theta):
            raise ValueError("theta: bare parameters have a curvature at their own values only")
        self._graphs = _Graphs(objective, self._theta, kind)
        self.loss = objective.regulariser(theta)
        self.strategy = objective.strategy
        pieces = list(objective.pieces(data))
        self._recompute = objective.chunk_size is not None and len(pieces) > 1
        self._strategies: list[tuple[Strategy, float]] = []
        for piece, share in pieces:
            strategy, value = self._start(piece)
            self._strategies.append((strategy, share))
            self.loss += share * value
        self.messages = objective.take_news()

    def _start(self, piece: Closure | BatchPart) -> tuple[Strategy, float]:
        """The strategy of one piece, chosen by measurement the first time, and its mean loss."""

        def build() -> Graph:
            return self._graphs.build(piece)[0]

        if self.strategy == "auto":
            choices, key = self._objective.choices, self._key()
            if key not in choices:
                measured = Measurement(
                    build, self._objective.expected_products, recompute=self._recompute
                )
                choices[key], strategy = measured.run()
                self.strategy = choices[key].name
                return strategy, self._graphs.value(piece)
            self.strategy = choices[key].name
        if not self._recompute:
            graph, value = self._graphs.build(piece)
            return make_strategy(self.strategy, graph), value
        if self.strategy not in RECOMPUTING:
            raise ValueError(
                f"strategy: {self.strategy!r} keeps what chunk_size is there to free; need one "
                f"of {', '.join(map(repr, RECOMPUTING))} or 'auto'"
            )
        return Rebuilt(build, self.strategy), self._graphs.value(piece)

    def _key(self) -> str:
        """What a choice of strategy holds for."""
        structural = "+structural" if self._objective.terms else ""
        return self._kind + structural + ("+chunks" if self._recompute else "")

    # ----------------------------------------------------------------------------- products

    def product(
        self,
        v: Tensor,
        *,
        damping: float = 0.0,
        structural: float = 0.0,
        out: Tensor | None = None,
        stop: Tensor | None = None,
    ) -> Tensor:
        """(B + damping·I + structural·G_S) v for ``v [N]``; autograd cannot be stopped."""
        self._check_structural(structural)
        flat = v * (damping + self._objective.l2)
        parts = self._objective.parameters.split(v)
        for strategy, share in self._strategies:
            flat.add_(_flatten(strategy.apply(parts, structural), parts), alpha=share)
        return flat if out is None else out.copy_(flat)

    def products(self, V: Tensor, damping: float = 0.0, structural: float = 0.0) -> Tensor:
        """The same for the rows of ``V [m,N]``: all at once where a traced product can be vmapped,
        else one after the other."""
        self._check_structural(structural)
        traced = all(isinstance(strategy, Traced) for strategy, _ in self._strategies)
        if traced and self._objective._rows_by_vmap:
            try:
                return self._rows(V, damping, structural)
            except (RuntimeError, NotImplementedError) as error:
                self._objective._rows_by_vmap = False
                logger.info("products one after the other, since vmap fails: %s", error)
        return torch.stack([self.product(v, damping=damping, structural=structural) for v in V])

    def _rows(self, V: Tensor, damping: float, structural: float) -> Tensor:
        result = V * (damping + self._objective.l2)
        parts = [
            p.unflatten(1, like.shape)
            for p, like in zip(
                V.split([t.numel() for t in self._objective.parameters.tensors], dim=1),
                self._objective.parameters.tensors,
                strict=True,
            )
        ]
        for strategy, share in self._strategies:
            assert isinstance(strategy, Traced)
            rows = strategy.apply_rows(parts, structural)
            filled = [
                torch.zeros_like(p) if g is None else g for g, p in zip(rows, parts, strict=True)
            ]
            result.add_(torch.cat([g.reshape(len(V), -1) for g in filled], 1), alpha=share)
        return result

    def diagonal(
        self, probes: int | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """diag(G) ``[N]`` of the Gauss-Newton matrix, as in :class:`hfcore.objective.Curvature`."""
        return self._objective.diagonal(self._data, self._theta, probes, generator)

    def _check_structural(self, structural: float) -> None:
        if structural and not self._objective.supports_structural:
            raise ValueError(
                'structural: needs the objective\'s structural={"submodule": D}, which names what '
                "is held"
            )
