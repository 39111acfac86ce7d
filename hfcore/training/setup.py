"""What the arguments of ``train`` come to: data parts, batches, loss, and what is measured."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from hfcore.arguments import count
from hfcore.autograd.calls import Select, check_select
from hfcore.batches import Batch
from hfcore.cases import MAX_AXIS, ArrayCases, Cases
from hfcore.data.dataset import Dataset
from hfcore.distributed.ranks import Ranks
from hfcore.losses.checks import check_loss
from hfcore.minibatches import DeviceBatches, Fresh, FullGradient, Policy, SmallBatches
from hfcore.nets.registry import axis_of_cases
from hfcore.optimisers.hessian_free import HessianFree
from hfcore.problems.base import FiniteProblem, Judged1997, Problem, ZeroOne
from hfcore.training import metrics
from hfcore.training.callbacks import Callback
from hfcore.training.config import Settings
from hfcore.training.data import TrainingData, placed
from hfcore.training.describe import describe, name_of
from hfcore.training.feeds import Feed, FreshFeed, LoaderFeed, PolicyFeed, random_kept
from hfcore.training.judged1997 import Judging1997
from hfcore.training.parts import Form, Part, image_cases, part_of
from hfcore.training.steps import Count, count_along, device_of

# Of a Hessian-free step on a problem or a DataLoader; a first-order update takes one.
GRADIENT_BATCHES = 10
BATCH_SIZE = 1000
TEST_SIZE = 10_000


@dataclass(frozen=True)
class Data:
    """The parts of the data in their forms."""

    train: Part
    validation: Part | None
    test: Part | None
    form: Form

    @property
    def problem(self) -> Problem | None:
        return self.train.problem


def check_kinds(model: Any, optimizer: Any, run_dir: Any, notes: Any) -> None:
    """Raise TypeError naming the argument that is of another kind."""
    for name, value, kinds, need in (
        ("model", model, torch.nn.Module, "a torch.nn.Module"),
        ("optimizer", optimizer, torch.optim.Optimizer, "a torch optimiser"),
        ("run_dir", run_dir, (str, os.PathLike, type(None)), "a path or None"),
        ("notes", notes, (Mapping, type(None)), "a mapping or None"),
    ):
        if not isinstance(value, kinds):
            raise TypeError(f"{name}: got {type(value).__name__}, need {need}")


def data_of(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    data: Any,
    *,
    validation: Any,
    test: Any,
    batch_dim: int | None,
) -> Data:
    """The three parts. Raises TypeError or ValueError naming what is wrong."""
    form = _form(model, optimizer, batch_dim)
    train = part_of("data", data, form)
    if train.cases is not None and isinstance(optimizer, HessianFree):
        # Moved once: a step may go through all of them.
        train = replace(train, cases=train.cases.to(device_of(model)))
    if isinstance(data, Dataset):
        validation = data.validation if validation is None else validation
        test = data.test if test is None else test
    parts: dict[str, Part | None] = {}
    for name, given in (("validation", validation), ("test", test)):
        if isinstance(data, Dataset) and (given is data.validation or given is data.test):
            parts[name] = None if given is None else Part(cases=image_cases(given, form))
        else:
            parts[name] = None if given is None else part_of(name, given, form)
            part = parts[name]
            if part is not None and part.problem is not None:
                raise TypeError(f"{name}: got a problem, need cases that stay the same")
    return Data(train, parts["validation"], parts["test"], form)


def _form(model: torch.nn.Module, optimizer: torch.optim.Optimizer, batch_dim: int | None) -> Form:
    """Where the cases lie: as told, as the optimiser was told, as the model says, or in front.

    Raises ValueError for another axis than that of a net.
    """
    dim: Any = batch_dim
    if dim is None:
        dim = optimizer.param_groups[0].get("batch_dim")
    if dim is None:
        dim = getattr(model, "batch_dim", 0)
    first, second = dim if isinstance(dim, tuple) and len(dim) == 2 else (dim, dim)
    for axis in (first, second):
        count("batch_dim", axis, least=0, most=MAX_AXIS)
    _check_axes("batch_dim", (first, second), model, dim)
    return Form(first, second, next(model.parameters()).dtype)


def _check_axes(name: str, axes: tuple[int, int], model: torch.nn.Module, shown: Any) -> None:
    """Raise ValueError where a net has its cases elsewhere: it would take time steps for them."""
    own = axis_of_cases(model)
    if own is not None and axes != (own, own):
        raise ValueError(
            f"{name}: got {shown}, need {own}, where {type(model).__name__} has its cases"
        )


def loss_of(given: Any, problem: Problem | None, optimizer: torch.optim.Optimizer) -> Any:
    """The loss as given, of the problem, or of HessianFree; None where nobody has one.

    Raises TypeError for what is no loss, ValueError for another one than HessianFree's.
    """
    if given is not None:
        check_loss(given)
    minimised = getattr(optimizer, "loss", None)
    if given is not None and minimised is not None and describe(given) != describe(minimised):
        raise ValueError(
            f"loss: got {describe(given)}, need {describe(minimised)} like the optimiser, which "
            "minimises it, or None"
        )
    if given is not None:
        return given
    return minimised if problem is None else problem.loss


def outputs_of(given: Any, optimizer: torch.optim.Optimizer) -> Select | None:
    """Which of the things that the model returns are its outputs: as given, or as HessianFree has.

    Raises TypeError for what does not say it, ValueError for others than HessianFree's.
    """
    check_select(given)
    if not isinstance(optimizer, HessianFree):
        select: Select | None = given
        return select
    own = optimizer.outputs
    if given is not None and given != own and optimizer.objective is None:
        raise ValueError(f"outputs: got {given!r}, need {own!r} like the optimiser, or None")
    return own if given is None else given


def counter(data: Data, policy: Any) -> Count:
    """The cases of a batch. A problem's batches have the size that was asked for, wherever a
    model has its cases."""
    if data.problem is not None and isinstance(policy, Fresh):
        size = policy.size
        return lambda batch: size
    return count_along(data.form.input_dim)


def policy_of(
    model: torch.nn.Module,
    data: Data,
    optimizer: torch.optim.Optimizer,
    given: Any,
    *,
    batch_size: int | None,
    gradient_batches: int | None,
    seed: int,
) -> Any:
    """The policy, on its data: a :class:`Fresh`, or a function of the number of the iteration.

    Raises TypeError or ValueError for one that does not go with the data.
    """
    for name, value in (("batch_size", batch_size), ("gradient_batches", gradient_batches)):
        if value is None:
            continue
        count(name, value)
        if given is not None:
            raise ValueError(f"{name}: got {value} beside batches=, whose policy decides it")
    if given is None:
        given = _default_policy(data, optimizer, batch_size, gradient_batches, seed)
    if isinstance(given, Fresh):
        if data.train.cases is not None:
            raise TypeError(
                "batches: Fresh draws from a problem or a DataLoader; for cases at hand take "
                "SmallBatches or FullGradient"
            )
        return given
    if not callable(given):
        raise TypeError(
            f"batches: got {type(given).__name__}, need a policy of hf.minibatches, or a function "
            "from the number of the iteration to hf.Batches"
        )
    if isinstance(given, Policy) and isinstance(cases := given.held, ArrayCases):
        axes = cases.input_dim, cases.target_dim
        shown = f"{type(given).__name__}(batch_dim={axes[0]})"
        _check_axes("batches", axes, model, shown)
    on = getattr(given, "on", None)
    if on is None or getattr(given, "has_data", False):
        return given
    return on(_cases_at_hand(data, type(given).__name__))


def _default_policy(
    data: Data,
    optimizer: torch.optim.Optimizer,
    batch_size: int | None,
    gradient_batches: int | None,
    seed: int,
) -> Fresh | Policy:
    hessian_free = isinstance(optimizer, HessianFree)
    if data.train.cases is None:
        batches = gradient_batches or GRADIENT_BATCHES
        loader = data.train.loader
        if loader is not None:
            if batch_size is not None:
                raise ValueError(f"batch_size: got {batch_size}, but the DataLoader has its own")
            if gradient_batches is None and hasattr(loader.dataset, "__len__"):
                batches = min(batches, max(1, len(loader)))
        return Fresh(batches if hessian_free else 1, batch_size or BATCH_SIZE)
    if gradient_batches is not None:
        raise ValueError(
            f"gradient_batches: got {gradient_batches}, but cases at hand are drawn by a policy, "
            "batches="
        )
    cases = len(data.train.cases)
    if batch_size is not None and batch_size > cases:
        raise ValueError(f"batch_size: got {batch_size}, need 1 to {cases} cases")
    size = batch_size or min(BATCH_SIZE, cases)
    if hessian_free:
        return FullGradient(curvature_batches=max(1, cases // size), seed=seed)
    return SmallBatches(size=size, seed=seed)


def _cases_at_hand(data: Data, policy: str) -> Cases:
    if data.train.cases is not None:
        return data.train.cases
    if data.train.loader is not None:
        raise TypeError(
            f"batches: {policy} chooses among cases at hand, and the data are a DataLoader; give "
            "(x, y) or the loader's dataset"
        )
    problem: Any = data.problem
    if not isinstance(problem, FiniteProblem):
        raise TypeError(
            f"batches: {policy} chooses among cases at hand, and {data.train.name} draws new ones"
        )
    cases = part_of("data", tuple(problem.all_cases(data.form.dtype)), data.form).cases
    assert cases is not None
    return cases


def feed_of(
    data: Data, policy: Any, settings: Settings, device: torch.device, model: torch.nn.Module
) -> Feed:
    """Where the batches come from, on the device of the steps, or that of the model."""
    if isinstance(policy, DeviceBatches):
        policy = policy.placed(device_of(model))
    if not isinstance(policy, Fresh):
        return PolicyFeed(policy, device)
    if data.train.loader is not None:
        return LoaderFeed(data.train.loader, policy.count, settings.seed, device)
    assert data.problem is not None
    drawn = TrainingData(data.problem, settings.seed, data.form.dtype, device)
    return FreshFeed(drawn, policy.count, policy.size)


class Measured:
    """What is measured of a model: its error on the validation and the test part, by all ``ranks``.

    ``outputs`` says which of the things that the model returns are judged. Raises ValueError where
    there is a part and no measure of error.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        data: Data,
        metric: metrics.Metric | None,
        loss: Any,
        settings: Settings,
        outputs: Select | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self._model, self._outputs, self._ranks = model, outputs, ranks
        cases = count_along(data.form.input_dim)
        self.shares = metric is None and isinstance(data.problem, ZeroOne)
        """The error is a share of wrong cases: the problem can be solved."""
        self.columns: dict[str, Any] = {}
        """What else was found at the last test."""
        self.name = "loss" if data.problem is None else "problem"
        self._judge: metrics.Judge | None = None
        self._judged_1997: Judged1997 | None = None
        if metric is not None:
            if not callable(metric):
                raise TypeError(
                    f"metric: got {type(metric).__name__}, need a function (outputs, targets)"
                )
            self.name, self._judge = name_of(metric), metrics.of_metric(metric, cases)
        elif data.problem is not None:
            self._judge = metrics.of_problem(data.problem)
            if isinstance(data.problem, Judged1997):
                self._judged_1997 = data.problem
        elif loss is not None:
            self._judge = metrics.of_loss(loss, cases, data.form.target_dim)
        device = device_of(model)
        self._parts: dict[str, Callable[[], Iterable[Batch]]] = {}
        for name, part in (("validation", data.validation), ("test", data.test)):
            if part is not None:
                self._parts[name] = _batches(part, device)
        if data.test is None and data.problem is not None:
            drawn = TrainingData(data.problem, settings.seed, data.form.dtype, device)
            tests = drawn.test_set(settings.test_size)
            self._parts["test"] = lambda: tests
        if self._parts and self._judge is None:
            raise ValueError(
                "metric: got None, need a function (outputs, targets) to measure "
                f"{' and '.join(self._parts)} with, or loss="
            )

    def __call__(self) -> dict[str, float]:
        """Mean error by part; further columns of the log are then in :attr:`columns`."""
        if self._judge is None:
            return {}
        errors = {}
        for name, batches in self._parts.items():
            if name == "test" and self._judged_1997 is not None:
                # Every rank judges all of them: what is kept is not exchanged.
                kept = Judging1997(self._judged_1997, self._judge)
                errors[name] = metrics.measured(self._model, kept, batches(), self._outputs)
                self.columns = kept.columns()
            else:
                errors[name] = metrics.measured(
                    self._model, self._judge, batches(), self._outputs, self._ranks
                )
        return errors


def _batches(part: Part, device: torch.device) -> Callable[[], Iterable[Batch]]:
    """All batches of a part whenever it is called; those of cases at hand are made once."""
    if part.loader is None:
        fixed = [placed(batch, device) for batch in part.batches()]
        return lambda: fixed

    def read() -> Iterator[Batch]:
        with random_kept():  # a test must not move the draws of the training
            yield from (placed(batch, device) for batch in part.batches())

    return read


def data_config(data: Data, policy: Any, settings: Settings) -> dict[str, Any]:
    """What config.json says of the data and the batches."""
    drawn: dict[str, Any] = {"seed": settings.seed}
    if data.problem is not None and data.test is None:
        drawn["test_size"] = settings.test_size
    if isinstance(policy, Fresh):
        drawn["gradient_batches"] = policy.count
        if data.problem is not None:
            drawn["batch_size"] = policy.size
    else:
        policy_config = getattr(policy, "config", None)
        drawn["batches"] = policy_config() if callable(policy_config) else describe(policy)
    for name, part in (("validation", data.validation), ("test", data.test)):
        if part is not None:
            drawn[name] = part.config()
    if data.problem is None:
        drawn["train"] = {"name": data.train.name, **data.train.config()}
    return drawn


def hooks_of(policy: Any, callbacks: Iterable[Callback]) -> list[Callback]:
    """All callbacks; a policy may be one. Raises TypeError for something else."""
    if isinstance(callbacks, Callback) or not isinstance(callbacks, Iterable):
        raise TypeError(f"callbacks: got {type(callbacks).__name__}, need a list of hf.Callback")
    hooks = [*callbacks]
    for hook in hooks:
        if not isinstance(hook, Callback):
            raise TypeError(
                f"callbacks: got {type(hook).__name__}, need hf.Callback, or a subclass's object"
            )
    return [policy, *hooks] if isinstance(policy, Callback) else hooks
