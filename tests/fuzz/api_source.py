"""Random sizes, data, models and spoilt values for the calls of ``fuzz_api.py``."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import hfcore as hf


class Call:
    """A callable, its arguments by name, and what is done with what it gives.

    ``spoilt``: an argument may be bad from the start.
    """

    spoilt = False

    def __init__(
        self,
        function: Callable[..., Any],
        arguments: dict[str, Any],
        then: Callable[[Any, Source], None] | None = None,
    ) -> None:
        self.function, self.arguments, self.then = function, arguments, then


class Source:
    """Random sizes, data, models and spoilt values of one call."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.dtype = self.random.choice([torch.float32, torch.float64])
        self.T, self.B = self.size(), self.size()
        self.n, self.H, self.k = self.size(), self.size(), self.size()

    def size(self) -> int:
        return self.random.choice([1, 1, 2, 3, 4, 5, 7])

    def pick(self, *values: Any) -> Any:
        return self.random.choice(values)

    def tensor(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator, dtype=self.dtype)

    def classes(self, *shape: int) -> Tensor:
        return torch.randint(self.k, shape, generator=self.generator)

    # ---- models with data

    def loss_and_targets(self, *shape: int) -> tuple[hf.losses.Loss, Tensor]:
        kind = self.pick("squared", "logistic", "softmax", "huber", "poisson")
        if kind == "softmax":
            return hf.losses.SoftmaxCrossEntropy(), self.classes(*shape)
        if kind == "logistic":
            return hf.losses.LogisticCrossEntropy(), self.tensor(*shape, self.k).sigmoid()
        if kind == "poisson":
            return hf.losses.PoissonNLL(), self.tensor(*shape, self.k).square()
        if kind == "huber":
            return hf.losses.HuberLoss(0.8), self.tensor(*shape, self.k)
        return hf.losses.SquaredError(), self.tensor(*shape, self.k)

    def sequences(self) -> dict[str, Any]:
        sparse = self.pick(False, False, True)
        model: nn.Module
        model = hf.RNN(self.n, self.H, self.k, dtype=self.dtype, generator=self.generator)
        if sparse:
            fan_in = min(self.H, self.pick(1, 2, 15))
            sparse_options: dict[str, Any] = {"sparse": True, "fan_in": fan_in, "dtype": self.dtype}
            model = hf.RNN(self.n, self.H, self.k, **sparse_options)
            hf.init.esn_(model, self.generator, fan_in=fan_in)
        elif self.pick(True, False, False):
            layers = [self.H, self.size()]
            model = hf.StackedRNN(
                self.n, layers, self.k, dtype=self.dtype, generator=self.generator
            )
        loss, targets = self.loss_and_targets(self.T, self.B)
        mask = None
        if self.pick(False, True):
            mask = torch.rand(self.T, self.B, generator=self.generator) < 0.5
            mask[self.random.randrange(self.T), self.random.randrange(self.B)] = True
        inputs = self.tensor(self.T, self.B, self.n)
        return {"model": model, "loss": loss, "inputs": inputs, "targets": targets, "mask": mask}

    def cases(self) -> dict[str, Any]:
        loss, targets = self.loss_and_targets(self.B)
        phi = self.pick("tanh", "logistic", "relu", "linear")
        model: nn.Module
        if self.pick(True, False):
            sizes = [self.n, self.H, self.k]
            model = hf.MLP(sizes, [phi, "linear"], dtype=self.dtype, generator=self.generator)
        else:
            layers = nn.Linear(self.n, self.H), nn.Tanh(), nn.Linear(self.H, self.k)
            model = nn.Sequential(*layers).to(self.dtype)
        inputs = self.tensor(self.B, self.n)
        return {"model": model, "loss": loss, "inputs": inputs, "targets": targets}

    def task(self) -> dict[str, Any]:
        return self.sequences() if self.pick(True, False) else self.cases()

    def problem(self) -> Any:
        kind = self.pick("Addition", "Multiplication", "Memorization5")
        return getattr(hf.problems, kind)(self.pick(3, 5, 8) if kind != "Memorization5" else 3)

    # ---- spoilt values

    def anything(self) -> Any:
        numbers = 0, 1, -1, 2.5, -0.5, float("nan"), float("inf"), 1e-300, 10**30, sys.maxsize, 1j
        texts = "", "nonsense", b"x", Path(".")
        holders = [], [1, 2], (), {}, {"a": 1}, iter([]), nn.Linear(2, 2)
        arrays = np.float32(1), np.zeros(3), np.zeros((2, 2), dtype=object)
        tensors = (
            torch.zeros(0),
            torch.zeros(()),
            torch.zeros(2, 3),
            torch.full((3,), torch.nan),
            torch.zeros(3, dtype=torch.int64),
            torch.zeros(2, dtype=torch.complex64),
            torch.zeros(2, 2).to_sparse(),
            torch.zeros(2, device="meta"),
        )
        others = None, True, object(), int, len
        return self.pick(*others, *numbers, *texts, *holders, *arrays, *tensors)

    def spoilt(self, value: Any) -> Any:
        """Something else in the place of ``value``, often of its kind."""
        if self.random.random() < 0.4:
            return self.anything()
        if isinstance(value, Tensor):
            return self.spoilt_tensor(value)
        if isinstance(value, bool):
            return self.pick(2, "yes", None)
        if isinstance(value, int | float):
            others = 0, -1, -0.5, value + 0.5, float("nan"), float("inf"), str(value), True
            return self.pick(*others, np.float64(value), torch.tensor(float(value)), 10**30)
        if isinstance(value, str):
            return self.pick(value + "x", value[:-1], value.upper(), "")
        if callable(value) and not isinstance(value, nn.Module):
            return self.pick(lambda *a, **k: None, lambda: 0, lambda *a, **k: self.anything())
        return self.anything()

    def spoilt_tensor(self, value: Tensor) -> Any:
        def holed() -> Tensor:
            if value.dtype == torch.bool:
                return ~value
            if not value.is_floating_point() or value.numel() == 0:
                return value - 1000
            bad = value.clone()
            bad.view(-1)[self.random.randrange(value.numel())] = self.pick(torch.nan, torch.inf)
            return bad

        other = torch.float32 if value.dtype == torch.float64 else torch.float64
        return self.pick(
            lambda: value[:0],
            lambda: value[:1],
            lambda: torch.cat([value, value]),
            lambda: value.unsqueeze(0),
            lambda: value.reshape(-1),
            lambda: value.mT if value.ndim > 1 else value[::2],
            lambda: value.to(other),
            lambda: value.to(torch.complex64),
            lambda: value.to(torch.int32),
            lambda: value.half(),
            lambda: value.numpy(force=True),
            lambda: value.tolist(),
            lambda: value.to("meta"),
            holed,
            lambda: value.clone().requires_grad_() if value.is_floating_point() else value.bool(),
        )()
