"""The curvature of a module at fixed parameters: graphs of its pieces, and products with them."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from hfcore.autograd.autocast import CastState, no_casts
from hfcore.autograd.checks import reaches
from hfcore.autograd.choice import Chooser, NotACurvature, freed
from hfcore.autograd.data import (
    NO_DEPENDENCE,
    NO_GRADIENT,
    SCALAR_CLOSURE,
    BatchPart,
    Closure,
    ModuleData,
    no_graph,
    said_of_graphs,
)
from hfcore.autograd.double_vjp import Strategy
from hfcore.autograd.doubts import Look, explain
from hfcore.autograd.evaluation import Evaluation, placed
from hfcore.autograd.graph import Graph, Parts, Split
from hfcore.autograd.large_outputs import in_pieces
from hfcore.autograd.loss_graph import LinearMap
from hfcore.autograd.losses import second_of
from hfcore.autograd.strategies import Rebuilt, make_strategy
from hfcore.autograd.trace import NotTraceable
from hfcore.autograd.traced import OVERWRITTEN, Traced
from hfcore.objective import UnstoppableCurvature

if TYPE_CHECKING:
    from hfcore.autograd.objective import ModuleObjective

logger = logging.getLogger("hfcore")


class Graphs:
    """Builds the graphs of a curvature at ``theta [N]``.

    Holds none, so that they die with their strategy.
    """

    def __init__(self, objective: ModuleObjective, theta: Tensor, kind: str) -> None:
        self._objective = objective
        self._theta = theta
        self.kind = kind
        self._bare = objective.module is None
        # Products may come after the context in which the curvature was asked for.
        self._casts = CastState(theta.device)

    @property
    def module(self) -> nn.Module | None:
        return self._objective.module

    def leaves(self, piece: Closure | BatchPart) -> Parts | None:
        """Evaluates a piece; gives the leaves of the graph it has."""
        leaves = self._evaluate(piece)[1]
        return self._objective.parameters.tensors if leaves is None else leaves  # type: ignore[return-value]

    def value(self, piece: Closure | BatchPart) -> float:
        """The mean loss of a piece."""
        return self._objective.evaluator.value(piece, self._at(piece, self._leaves()))

    def _at(self, piece: Closure | BatchPart, parameters: Parts | None) -> Evaluation:
        with self._casts.again():
            return self._objective.evaluate(piece, parameters, loss=self.kind == "hessian")

    def _leaves(self) -> Parts | None:
        """θ in the parameters' shapes, or None for the parameters themselves."""
        if self._bare:
            return None
        return [p.detach() for p in self._objective.parameters.readable(self._theta)]

    def _evaluate(self, piece: Closure | BatchPart) -> tuple[Evaluation, Parts | None]:
        """The model on a piece, and the leaves of its graph (None: the parameters themselves)."""
        objective, leaves = self._objective, self._leaves()
        if leaves is not None:
            leaves = [p.requires_grad_() for p in leaves]
        evaluation = self._at(piece, leaves)
        own = objective.parameters
        reached = [t for t in evaluation[:2] if t is not None]
        if leaves is None or not callable(piece) or not reaches(reached, own.tensors):
            return evaluation, leaves
        # The closure holds parameters of its own, which nothing can be put in the place of.
        if not torch.equal(own.read(), self._theta):
            raise ValueError(
                "theta: a closure that uses parameters directly, and not through the model, has a "
                "curvature at the model's own values only"
            )
        self._bare = True
        return self._at(piece, None), None

    def build(self, piece: Closure | BatchPart) -> tuple[Graph, float]:
        """The graph of a piece, and its mean loss."""
        objective = self._objective
        with torch.enable_grad():
            evaluation, leaves = self._evaluate(piece)
            with self._casts.again():
                main = self._main(piece, evaluation)
        if self.kind == "hessian" and not evaluation.loss.requires_grad:
            raise no_graph(NO_GRADIENT)
        if self.kind != "hessian" and not main[0][0].requires_grad:
            raise no_graph(NO_DEPENDENCE)
        needs = [z.requires_grad for z in evaluation.held]

        def splits_at(at: Parts, structural: bool) -> tuple[Tensor, ...]:
            moved = self._at(piece, at)
            tensors = [tensor for tensor, _ in self._main(piece, moved, seconds=False)]
            if structural:
                tensors += [z for z, need in zip(moved.held, needs, strict=True) if need]
            return tuple(tensors)

        functional = leaves is not None
        graph = Graph(
            objective.parameters.tensors if leaves is None else leaves,  # type: ignore[arg-type]
            evaluation.loss,
            [Split(*split) for split in main],
            self._held(evaluation),
            self.kind == "hessian",
            splits_at if functional else None,
            (lambda at: self._at(piece, at).loss) if functional else None,
            self._casts.precision,
            _moved(evaluation.outputs) if self.kind == "hessian" else None,
        )
        return graph, objective.evaluator.value(piece, evaluation)

    def _main(
        self, piece: Closure | BatchPart, at: Evaluation, seconds: bool = True
    ) -> list[tuple[Tensor, LinearMap]]:
        """Where the kind of curvature is split, and the second derivative there."""
        loss = self._objective.loss_function
        if self.kind == "hessian":
            return []
        if at.outputs is None:
            raise TypeError(SCALAR_CLOSURE)
        if callable(piece):
            with said_of_graphs():
                second = second_of(at.loss, at.outputs) if seconds else torch.zeros_like
            return [(at.outputs, second)]
        assert loss is not None
        if self.kind == "fisher":
            return [(loss.cases(at.outputs, piece), lambda R: R / piece.in_fisher)]
        second = loss.second(at.outputs.detach(), piece) if seconds else torch.zeros_like
        return [(at.outputs, second)]

    def _held(self, at: Evaluation) -> list[Split]:
        """The structural splits; what no parameter moves is left out."""
        if not at.held:
            return []
        if at.outputs is None:
            raise TypeError(
                "closure: returned a scalar loss alone; structural damping, an average over cases, "
                "needs (loss, outputs)"
            )
        cases = at.outputs.shape[self._objective.case_dim]
        return [
            Split(z, term.second(z.detach(), cases))
            for term, z in zip(at.terms, at.held, strict=True)
            if z.requires_grad
        ]


def _moved(outputs: Tensor | None) -> Tensor | None:
    return outputs if outputs is not None and outputs.requires_grad else None


class ModuleCurvature(UnstoppableCurvature):
    """A curvature matrix of a module at fixed parameters ``theta [N]`` and data.

    ``strategy`` names how its products are computed; ``messages`` are for the user.
    """

    def __init__(
        self, objective: ModuleObjective, data: ModuleData, theta: Tensor, kind: str
    ) -> None:
        self._objective = objective
        self._data = data
        self._theta = theta.clone()
        self.kind = kind
        if objective.module is None and not torch.equal(objective.parameters.read(), theta):
            raise ValueError("theta: bare parameters have a curvature at their own values only")
        self._graphs = Graphs(objective, self._theta, kind)
        self.loss = objective.regulariser(theta)
        self.strategy = objective.strategy
        pieces = list(objective.pieces(data))
        self._recompute = objective.chunk_size is not None and len(pieces) > 1
        if kind == "ggn" and objective.chunk_size is None:
            pieces = [part for whole in pieces for part in in_pieces(objective, *whole)]
        self._strategies: list[tuple[Strategy, float]] = []
        with no_casts(theta.device), said_of_graphs():
            for piece, share in pieces:
                strategy, value = self._start(piece)
                self._strategies.append((strategy, share))
                self.loss += share * value
        self.messages = objective.take_news()

    def _start(self, piece: Closure | BatchPart) -> tuple[Strategy, float]:
        """The strategy of one piece, chosen and looked at the first time, and its mean loss."""
        asked, chosen = self._objective.strategy, self._objective.choices.get(self._key())
        if chosen is None or asked not in (chosen.asked, chosen.name):
            return self._choose(piece)
        self.strategy = chosen.name
        try:
            return self._made(piece)
        except NotTraceable:
            if asked == self.strategy:
                raise
            return self._choose(piece)  # another function than at first, as after a parametrisation

    def _made(self, piece: Closure | BatchPart) -> tuple[Strategy, float]:
        if self._recompute:
            strategy = Rebuilt(lambda: self._graphs.build(piece)[0], self.strategy)
            return strategy, self._graphs.value(piece)
        graph, value = self._graphs.build(piece)
        return freed(make_strategy(self.strategy, graph)), value

    def _choose(self, piece: Closure | BatchPart) -> tuple[Strategy, float]:
        objective, asked = self._objective, self._objective.strategy
        graph, value = self._graphs.build(piece)
        look = Look(graph, self.kind)
        choose = Chooser(
            lambda: self._graphs.build(piece)[0],
            graph.like,
            recompute=self._recompute,
            checked=objective.refuses,
        )
        del graph  # one at a time
        try:
            if asked == "auto":
                choice, strategy = choose.by_structure()
            elif asked == "measure":
                choice, strategy = choose.by_time(objective.expected_products)
            else:
                self.strategy = asked
                choice, strategy = choose.one(asked)
        except NotACurvature as error:
            raise error.said(explain(error, self._graphs, piece)) from error
        objective.choices[self._key()] = replace(choice, asked=asked)
        self.strategy = choice.name
        for message in look.doubts(objective, piece, self._theta, strategy):
            objective.tell(message)
        return freed(strategy), value

    def _key(self) -> str:
        """What a choice of strategy holds for."""
        structural = "+structural" if self._objective.terms else ""
        return self.kind + structural + ("+chunks" if self._recompute else "")

    # ----------------------------------------------------------------------------- products

    def product(
        self, v: Tensor, *, damping: float = 0.0, structural: float = 0.0,
        out: Tensor | None = None, stop: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        return self._product(v, damping, structural, out)

    def _product(
        self, v: Tensor, damping: float, structural: float, out: Tensor | None = None
    ) -> Tensor:
        """(B + damping·I + structural·G_S) v for ``v [N]``, a new vector or ``out``."""
        self._check_structural(structural)
        parts, flat = self._objective.parameters.split(v), None
        try:
            with no_casts(v.device):
                for strategy, share in self._strategies:
                    to = torch.empty_like(v) if out is None or flat is not None else out
                    into = self._objective.parameters.split(to)
                    product = placed(strategy.apply(parts, structural, into), into, to)
                    product = product if share == 1 else product.mul_(share)
                    flat = product if flat is None else flat.add_(product)
        except RuntimeError as error:
            if "modified by an inplace operation" in str(error):
                raise ValueError(OVERWRITTEN) from error
            raise
        assert flat is not None
        identity = damping + self._objective.l2
        return flat.add_(v, alpha=identity) if identity else flat

    def products(self, V: Tensor, damping: float = 0.0, structural: float = 0.0) -> Tensor:
        """The same for the rows of ``V [m,N]``: all at once where a traced product can be vmapped,
        else one after the other."""
        self._check_structural(structural)
        traced = all(isinstance(strategy, Traced) for strategy, _ in self._strategies)
        if traced and self._objective._rows_by_vmap:
            try:
                with no_casts(V.device):
                    return self._rows(V, damping, structural)
            except (RuntimeError, NotImplementedError) as error:
                self._objective._rows_by_vmap = False
                logger.info("products one after the other, since vmap fails: %s", error)
        return super().products(V, damping, structural)

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
