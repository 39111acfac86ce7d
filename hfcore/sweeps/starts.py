"""Where the runs of a sweep start: the net of a problem, drawn from a seed."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Protocol

import torch
from torch import nn

from hfcore import init, presets
from hfcore.arguments import naming_fields
from hfcore.bindings.checks import check_choice, check_positive
from hfcore.models.mlp import Autoencoder
from hfcore.models.rnn import RNN
from hfcore.problems import Problem, Reconstruction, SequenceProblem

RnnInit = Literal["esn", "sparse", "glorot", "gaussian"]


class Start(Protocol):
    """Builds the untrained net of a run."""

    @property
    def options(self) -> tuple[str, ...]:
        """Keys of a grid that it understands."""

    def build(self, problem: Problem, seed: int, **options: float) -> nn.Module:
        """The net of this seed in float32 on the CPU; all of them have one shape."""

    def config(self) -> dict[str, Any]:
        """JSON-able: what determines the nets."""


@naming_fields
@dataclass(frozen=True)
class RnnStart:
    """An hf.RNN, by default with the echo-state start of Sutskever et al. (2013), table 4.

    A grid may vary ``input_scale`` (standard deviation of W_hx, by default the problem's) and
    ``spectral_radius`` (by default 1.1) of the echo-state start, ``scale`` of the others.
    """

    hidden_size: int = 100
    nonlinearity: str = "tanh"
    init: RnnInit = "esn"

    def __post_init__(self) -> None:
        check_positive(hidden_size=self.hidden_size)
        check_choice("init", self.init, ("esn", "sparse", "glorot", "gaussian"))

    @property
    def options(self) -> tuple[str, ...]:
        return ("input_scale", "spectral_radius") if self.init == "esn" else ("scale",)

    def build(self, problem: Problem, seed: int, **options: float) -> RNN:
        model = RNN(
            problem.input_size,
            self.hidden_size,
            problem.output_size,
            nonlinearity=self.nonlinearity,
            dtype=torch.float32,
        )
        generator = torch.Generator().manual_seed(seed)
        if self.init == "esn":
            if not isinstance(problem, SequenceProblem):
                raise TypeError(
                    f"start: the esn start needs a problem of sequences, got {problem.name}"
                )
            init.esn_(model, generator, **{**presets.esn2013(problem), **options})
        else:
            start = {"sparse": init.sparse_, "glorot": init.glorot_, "gaussian": init.gaussian_}
            start[self.init](model, generator, **options)
        return model

    def config(self) -> dict[str, Any]:
        return {"name": type(self).__name__, **asdict(self)}


@naming_fields
@dataclass(frozen=True)
class AutoencoderStart:
    """An hf.Autoencoder with the sparse start of Martens (2010).

    A grid may vary ``scale``, the factor on the initial weights (Sutskever et al. 2013, table 3).
    """

    encoder_sizes: tuple[int, ...]
    activation: str = "logistic"

    @property
    def options(self) -> tuple[str, ...]:
        return ("scale",)

    def build(self, problem: Problem, seed: int, **options: float) -> Autoencoder:
        model = Autoencoder(self.encoder_sizes, activation=self.activation, dtype=torch.float32)
        generator = torch.Generator().manual_seed(seed)
        init.sparse_(model, generator, replacement=True, scale=options.get("scale", 1.0))
        return model

    def config(self) -> dict[str, Any]:
        names = [field.name for field in fields(self)]
        return {"name": type(self).__name__, **{name: getattr(self, name) for name in names}}


def default_start(problem: Problem) -> Start:
    """The published autoencoder for images, else the echo-state start."""
    if isinstance(problem, Reconstruction):
        return AutoencoderStart(problem.encoder_sizes)
    return RnnStart()
