"""Objective and curvature of any torch module, through autograd and torch.func."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from hfcore.arguments import naming_options
from hfcore.autograd.autocast import no_casts
from hfcore.autograd.calls import Select, check_select
from hfcore.autograd.case_check import check_cases
from hfcore.autograd.cases import CaseSquares
from hfcore.autograd.checks import check_repeatable, differentiable_kernels
from hfcore.autograd.choice import Choice
from hfcore.autograd.curvature import ModuleCurvature
from hfcore.autograd.data import (
    NO_GRADIENT,
    BatchPart,
    Closure,
    ModuleData,
    as_batch_list,
    call_closure,
    check_part,
    no_graph,
    said_of_graphs,
)
from hfcore.autograd.evaluation import Evaluation, Evaluator, flatten
from hfcore.autograd.graph import Gradients, Parts
from hfcore.autograd.losses import MeanLoss, PackageLoss
from hfcore.autograd.strategies import STRATEGIES
from hfcore.autograd.structural import structural_terms
from hfcore.autograd.torch_losses import split_loss
from hfcore.bindings.checks import check_choice
from hfcore.bindings.conjugate_gradient import dot
from hfcore.flat import FlatParameters
from hfcore.losses import Loss
from hfcore.objective import DAMPING_START
from hfcore.shares import Counts, Share, cut

__all__ = ["Closure", "ModuleCurvature", "ModuleObjective", "call_closure"]

logger = logging.getLogger("hfcore")

# Every submodule, by its id, and whether it is in train mode.
Modes = list[tuple[int, bool]]

KINDS = ("ggn", "hessian", "fisher")

# Curvature products in a step for which "auto" chooses: CG takes tens to a few hundred.
EXPECTED_PRODUCTS = 50


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
    strategy : of :mod:`hfcore.autograd.strategies`; ``"auto"`` goes by the structure of the model
        (:mod:`hfcore.autograd.choice`), ``"measure"`` times them at the first curvature of a kind
        and keeps the cheapest for ``expected_products`` products, so that runs do not repeat bit
        for bit. Results agree up to rounding
    chunk_size : most cases whose activations are held at once; None holds all. With more cases than
        that every product runs the forward pass again, chunk by chunk
    outputs : which of the things that the model returns the loss takes: a key or attribute
        (``"logits"``), an index, or a function (``lambda o: o.logits``); None: it returns a tensor

    Inputs that are a mapping go to ``forward`` as keywords, where it has arguments of these names,
    and a tuple or list as its arguments, where it takes as many and not one alone. Tensors among
    them with another length along the axis of cases belong to all cases, and are not cut.
    A batch that is a mapping holds the targets as ``"labels"``.

    Parameters that do not affect the loss are legal: their rows of the curvature are zero. Of a
    ``torch.compile``'d module the eager one inside is run, whose parameters are the same. Refused
    (ValueError): dropout and batch normalisation in train mode, see ``autograd/checks.py``.
    """

    supports_stop = False

    @naming_options
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
        outputs: Select | None = None,
    ) -> None:
        check_select(outputs)
        check_choice("strategy", strategy, ("auto", "measure", *STRATEGIES))
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
        self._loss = loss if isinstance(loss, Loss) else None
        self.l2 = l2
        self.terms = structural_terms(self.module, structural)
        self.evaluator = Evaluator(
            self.module, self.parameters, self.loss_function, self.terms, self.case_dim, outputs
        )
        self.supports_structural = bool(self.terms)
        self.strategy = strategy
        self.expected_products = expected_products
        self.chunk_size = chunk_size
        # Whether products that are those of no curvature are refused.
        self.refuses = True
        # What was chosen, by kind of curvature.
        self.choices: dict[str, Choice] = {}
        self._squares: CaseSquares | None = None
        self._rows_by_vmap = True
        # The modules, and their modes, that were seen to compute each case by itself; and those
        # that were not, with the number of cases.
        self._cases_checked: Modes | None = None
        self._mixes_cases: tuple[Modes, int] | None = None
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
        parts = [
            batch if isinstance(batch, BatchPart) else self._check(batch)
            for batch in as_batch_list(data)
        ]
        if not parts:
            raise ValueError("data: got no batch, need at least one")
        return parts

    def _check(self, batch: Any) -> BatchPart:
        served = self.loss_function
        return check_part(
            batch,
            like=self.parameters.tensors[0],
            input_dim=self._input_dim,
            target_dim=self.case_dim,
            loss=self._loss,
            served=served.loss if isinstance(served, PackageLoss) else None,
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
        """What is evaluated at once, with the share that its mean has in that of all."""
        if callable(data):
            if self.chunk_size is not None:
                raise ValueError("chunk_size: a closure cannot be cut; give batches")
            yield data, 1.0
            return
        loss = self.loss_function
        assert loss is not None
        total = loss.total([self.counts(data).counted])
        for part in data:
            for chunk in part.chunks(self.chunk_size or part.count):
                share = chunk.count / total
                if loss.counts_cases:
                    yield chunk, share
                else:
                    yield replace(chunk, fisher_cases=share * self._fisher_cases(data)), share

    def _fisher_cases(self, data: Sequence[BatchPart]) -> float:
        """What Σ ∇Lᵢ∇Lᵢᵀ over all cases is divided by: f is the mean of n·scale·Lᵢ."""
        loss, counts = self.loss_function, self.counts(data)
        assert loss is not None
        if loss.counts_cases:
            return counts.cases
        return loss.total([counts.counted]) ** 2 / (counts.cases * loss.factor**2)

    def counts(self, data: ModuleData) -> Counts:
        """What batches count; of a :class:`hfcore.shares.Share` what the whole counts."""
        if isinstance(data, Share):
            return data.whole
        loss = self.loss_function
        assert loss is not None
        assert not callable(data)
        return Counts(
            counted=sum(loss.counted(part) for part in data),
            cases=sum(part.count for part in data),
            batches=len(data),
        )

    def share(self, data: ModuleData, start: int, end: int, whole: Counts) -> Share[BatchPart]:
        """Cases ``start`` … ``end`` − 1 of the batches, as a share of the ``whole``."""
        assert not callable(data)
        return Share(cut(data, start, end), whole)

    def tell(self, message: str) -> None:
        """Log what the user should know; the next curvature holds it in ``messages``."""
        logger.warning("%s", message)
        self._news.append(message)

    def take_news(self) -> tuple[str, ...]:
        """What was told since the last time."""
        news, self._news = tuple(self._news), []
        return news

    # -------------------------------------------------------------------------- evaluation

    def evaluate(
        self, piece: Closure | BatchPart, parameters: Parts | None = None, *, loss: bool = True
    ) -> Evaluation:
        """The model on a piece of the data, see :meth:`Evaluator.evaluate`."""
        return self.evaluator.evaluate(piece, parameters, loss=loss)

    def regulariser(self, theta: Tensor) -> float:
        """½ l2 ‖θ‖² of ``theta [N]``."""
        return 0.5 * self.l2 * dot(theta, theta) if self.l2 else 0.0

    def loss(self, data: ModuleData, theta: Tensor) -> float:
        total = 0.0
        with self.parameters.holding(theta):
            self._check_chunks(data)
            for piece, share in self.pieces(data):
                total += share * self.evaluator.mean_loss(piece)
        return total + self.regulariser(theta)

    def gradient(self, data: ModuleData, theta: Tensor) -> tuple[float, Tensor]:
        total, flat = 0.0, torch.zeros_like(theta)
        with self.parameters.holding(theta):
            self._check_chunks(data)
            for piece, share in self.pieces(data):
                value, grads = self._at(piece)
                total += share * value
                flat.add_(flatten(grads, self.parameters.tensors), alpha=share)
        if self.l2:
            flat.add_(theta, alpha=self.l2)
        return total + self.regulariser(theta), flat

    def _at(self, piece: Closure | BatchPart) -> tuple[float, Gradients]:
        """The mean loss of a piece and its gradient."""
        evaluation, loss = self.evaluate(piece, loss=False), self.loss_function
        value = self.evaluator.value(piece, evaluation)
        if callable(piece) or not isinstance(loss, PackageLoss):
            return value, self._gradients(evaluation.loss)
        outputs = evaluation.outputs
        assert outputs is not None
        slope = loss.gradient(outputs, piece) if outputs.requires_grad else None
        return value, self._gradients(outputs, slope)

    def _check_chunks(self, data: ModuleData) -> None:
        """Before data is cut for the first time."""
        size = self.chunk_size
        if isinstance(data, Share):
            self._check_cases("process_group", data)
        if not callable(data) and size is not None and any(part.count > size for part in data):
            self._check_cases("chunk_size", data)

    def _check_cases(self, what: str, data: Sequence[BatchPart]) -> None:
        """Where there are two cases to compare, once for the same modules in the same modes: see
        :mod:`hfcore.autograd.case_check`."""
        part, modes = max(data, key=lambda part: part.count), self._modes()
        if self._cases_checked == modes or part.count < 2:
            return
        check_cases(
            what,
            part,
            self.evaluate,
            chunk_size=self.chunk_size,
            case_dim=self.case_dim,
        )
        self._cases_checked = modes

    def _modes(self) -> Modes:
        assert self.module is not None
        return [(id(part), part.training) for part in self.module.modules()]

    def has_separate_cases(self, part: BatchPart) -> bool:
        """Whether a batch may be cut between cases; looked at once for modules, modes and count."""
        looked = (self._modes(), part.count)
        if self._mixes_cases != looked:
            try:
                self._check_cases("a curvature in pieces", [part])
            except ValueError:
                self._mixes_cases = looked
        return self._mixes_cases != looked

    def _gradients(self, of: Tensor, slope: Tensor | None = None) -> Gradients:
        """Of the loss, or of outputs ``[…]`` by whose ``slope`` it moves."""
        if not of.requires_grad:
            raise no_graph(NO_GRADIENT)
        with no_casts(self.parameters.device), said_of_graphs():
            return torch.autograd.grad(of, self.parameters.tensors, slope, allow_unused=True)

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
            self._squares = CaseSquares(self.evaluator.outputs, self.loss_function)
        with self.parameters.holding(theta):
            self._check_cases(name, data)
        squares = self._squares.at(self.parameters.readable(theta.clone()))
        total = torch.zeros_like(theta)
        with differentiable_kernels(self.module, once=True):
            for part in data:
                for chunk in part.chunks(self.chunk_size or part.count):
                    total += sums(squares, chunk)
        if name == "squared_gradients":
            return total / self._fisher_cases(data)
        loss, counts = self.loss_function, self.counts(data)
        if loss.counts_cases:
            return total / counts.cases
        return total * (loss.factor / loss.total([counts.counted]))

    def curvature(self, data: ModuleData, theta: Tensor, kind: str = "ggn") -> ModuleCurvature:
        """The curvature at ``theta [N]``: ``"ggn"``, ``"hessian"`` or (batches only) ``"fisher"``.

        ``"hessian"`` is content with a closure that returns the loss alone.

        Products stay at θ when the model moves on, except for a closure that uses parameters
        directly, whose products end where the parameters change. Raises ValueError for a kind that
        is not served.
        """
        check_choice("kind", kind, KINDS)
        if kind == "fisher" and callable(data):
            raise ValueError("kind: the empirical Fisher needs batches; a closure has no cases")
        with self.parameters.holding(theta):
            self._check_chunks(data)
            if kind == "fisher" and not callable(data):
                self._check_cases("the empirical Fisher", data)
        return ModuleCurvature(self, data, theta, kind)
