"""One quadratic of a Hessian-free run, kept on disk, and what CG and NAG make of it.

1. The iterates of CG and of NAG from 0 lie in the Krylov space of the matrix and the gradient, so
   m products of the Lanczos process (each vector orthogonalised against all before it, twice) give
   the first m iterates of both in exact arithmetic, of NAG for any ε and μ.
2. CG in floating point is another matter: its directions lose their conjugacy to rounding, and it
   falls behind the minimum over the Krylov space. It is run as an HF step runs it.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

import hfcore as hf

# A residual smaller than this share of the matrix ends the Lanczos process: the space is whole.
BREAKDOWN = 1e-6

TENSORS = ("theta", "gradient", "images")  # of a quadratic


@dataclass(frozen=True)
class QuadraticSettings:
    """Where a quadratic comes from: data set, HF iterations before it, λ, l2, seed of the run."""

    dataset: str
    iteration: int
    damping: float
    l2: float
    seed: int


@dataclass(frozen=True)
class Quadratic:
    """φ(x) = ½ xᵀAx + gᵀx with A = G + λI + l2·I, G the Gauss-Newton matrix on ``images [B,n]``.

    ``theta [N]`` is where it was taken, ``gradient [N]`` is g, that of the whole objective there.
    """

    settings: QuadraticSettings
    theta: Tensor
    gradient: Tensor
    images: Tensor

    def to(self, dtype: torch.dtype) -> Quadratic:
        """The same numbers in another arithmetic."""
        tensors = {name: getattr(self, name).to(dtype) for name in TENSORS}
        return Quadratic(self.settings, **tensors)

    def operator(self) -> hf.GaussNewton:
        """A, rebuilt from what is stored."""
        preset = hf.presets.autoencoders[self.settings.dataset]
        model = hf.Autoencoder(
            preset.encoder_sizes, dtype=self.theta.dtype, device=self.theta.device
        )
        torch.nn.utils.vector_to_parameters(self.theta, model.parameters())
        return hf.GaussNewton(
            model,
            preset.loss,
            self.images,
            self.images,
            damping=self.settings.damping,
            l2=self.settings.l2,
        )

    def conjugate_gradient(
        self, iterations: int, report: Callable[[int], Any] = lambda j: None
    ) -> np.ndarray:
        """φ ``[iterations + 1]`` along CG from 0 in the arithmetic of the tensors (note 2).

        Where it ends early, by a curvature that rounding made negative, φ stays. ``report`` is
        told of each product.
        """
        matrix = self.operator()
        done = itertools.count(1)

        def product(v: Tensor, out: Tensor) -> Tensor:
            out.copy_(matrix.matvec(v))
            report(next(done))
            return out

        cg = hf.solvers.conjugate_gradient
        solution = cg.conjugate_gradient(
            product,
            -self.gradient,
            torch.zeros_like(self.gradient),
            rule=cg.StopRule(iterations, min_iterations=iterations, tolerance=0.0, residual=0.0),
        )
        values = np.array(solution.history)
        return np.pad(values, (0, iterations + 1 - len(values)), mode="edge")

    def save(self, path: Path) -> None:
        """Write a safetensors file, whole or not at all."""
        tensors = {name: getattr(self, name).cpu().contiguous() for name in TENSORS}
        metadata = {"settings": json.dumps(asdict(self.settings))}
        hf.training.write_atomic(path, safetensors.torch.save(tensors, metadata=metadata))

    @classmethod
    def load(cls, path: Path, device: torch.device) -> Quadratic:
        """What :meth:`save` wrote. Raises CheckpointError for a file that is not one."""
        try:
            with safetensors.safe_open(path, framework="pt", device=str(device)) as file:
                settings = QuadraticSettings(**json.loads(file.metadata()["settings"]))
                return cls(settings, *(file.get_tensor(name) for name in TENSORS))
        except (OSError, safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
            raise hf.training.CheckpointError(f"{path}: holds no quadratic: {error}") from error


@dataclass(frozen=True)
class Krylov:
    """A and g in the Krylov space: T ``[m,m]`` tridiagonal, g = ‖g‖ e₁; float64.

    ``asked`` is how many products were wanted; m is less where the space was whole before.
    """

    asked: int
    diagonal: np.ndarray
    off_diagonal: np.ndarray
    gradient_norm: float

    @property
    def matrix(self) -> np.ndarray:
        """T ``[m,m]``."""
        off = self.off_diagonal
        return np.diag(self.diagonal) + np.diag(off, 1) + np.diag(off, -1)

    @property
    def largest(self) -> float:
        """The largest Ritz value, an estimate of A's largest eigenvalue from below."""
        return float(np.linalg.eigvalsh(self.matrix)[-1])

    def minima(self) -> np.ndarray:
        """The least φ ``[m+1]`` in the first 0, 1, … m dimensions: CG's in exact arithmetic."""
        T, m = self.matrix, len(self.diagonal)
        values = [0.0]
        for k in range(1, m + 1):
            e1 = np.zeros(k)
            e1[0] = self.gradient_norm
            values.append(-0.5 * float(e1 @ np.linalg.solve(T[:k, :k], e1)))
        return np.array(values)

    def nag(self, learning_rate: float, momentum: Callable[[int], float]) -> np.ndarray:
        """φ ``[m+1]`` after 0, 1, … m updates of eqs. 3-4 from 0 with v₀ = 0."""
        T, m = self.matrix, len(self.diagonal)
        x, v = np.zeros(m), np.zeros(m)
        values = [0.0]
        for t in range(m):
            mu = momentum(t)
            gradient = T @ (x + mu * v)
            gradient[0] += self.gradient_norm
            v = mu * v - learning_rate * gradient
            x = x + v
            with np.errstate(over="ignore", invalid="ignore"):
                values.append(float(0.5 * x @ (T @ x) + self.gradient_norm * x[0]))
        return np.array(values)

    def save(self, path: Path) -> None:
        """Write a safetensors file, whole or not at all."""
        tensors = {
            "asked": torch.tensor(self.asked),
            "diagonal": torch.from_numpy(self.diagonal),
            "off_diagonal": torch.from_numpy(self.off_diagonal),
            "gradient_norm": torch.tensor(self.gradient_norm, dtype=torch.float64),
        }
        hf.training.write_atomic(path, safetensors.torch.save(tensors))

    @classmethod
    def load(cls, path: Path) -> Krylov:
        """What :meth:`save` wrote. Raises CheckpointError for a file that is not one."""
        try:
            tensors = safetensors.torch.load_file(path)
            return cls(
                int(tensors["asked"]),
                tensors["diagonal"].numpy(),
                tensors["off_diagonal"].numpy(),
                float(tensors["gradient_norm"]),
            )
        except (OSError, safetensors.SafetensorError, KeyError) as error:
            raise hf.training.CheckpointError(f"{path}: holds no Krylov space: {error}") from error


def save_curves(curves: Mapping[str, np.ndarray], path: Path) -> None:
    """Write ``[m+1]`` values by name as a safetensors file, whole or not at all."""
    tensors = {name: torch.from_numpy(values) for name, values in curves.items()}
    hf.training.write_atomic(path, safetensors.torch.save(tensors))


def load_curves(path: Path) -> dict[str, np.ndarray]:
    """The values ``[m+1]`` that :func:`save_curves` wrote.

    Raises CheckpointError for a file that is not one.
    """
    try:
        return {k: v.numpy() for k, v in safetensors.torch.load_file(path).items()}
    except (OSError, safetensors.SafetensorError) as error:
        raise hf.training.CheckpointError(f"{path}: holds no curves: {error}") from error


def lanczos(
    product: Callable[[Tensor], Tensor],
    gradient: Tensor,
    iterations: int,
    report: Callable[[int], Any] = lambda j: None,
) -> Krylov:
    """The Krylov space of a symmetric matrix and ``gradient [N]`` after ``iterations`` products.

    It has fewer dimensions where the space is whole before. ``report`` is told of each product.
    """
    if iterations < 1:
        raise ValueError(f"iterations: got {iterations}, need at least 1")
    size = min(iterations, gradient.numel())
    norm = float(gradient.double().norm())
    if not 0 < norm < float("inf"):
        raise ValueError(f"gradient: has norm {norm}, need a positive finite one")
    basis = gradient.new_empty(size, gradient.numel())
    basis[0] = gradient / norm
    diagonal, off_diagonal = [], []
    for j in range(size):
        w = product(basis[j])
        diagonal.append(float(w.double() @ basis[j].double()))
        report(j + 1)
        for _ in range(2):
            w = w - basis[: j + 1].mT @ (basis[: j + 1] @ w)
        beta = float(w.double().norm())
        if j + 1 == size or beta < BREAKDOWN * max(map(abs, diagonal)):
            break
        off_diagonal.append(beta)
        basis[j + 1] = w / beta
    return Krylov(iterations, np.array(diagonal), np.array(off_diagonal), norm)
