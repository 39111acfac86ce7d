"""The constants of a stack of machines, by layer, and what decides them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from hfcore.arguments import count, nonnegative, positive
from hfcore.bindings.checks import check_choice
from hfcore.models.mlp import Autoencoder
from hfcore.pretraining.rbm import UNITS, Units

# Hinton & Salakhutdinov (2006) and the code of theirs: layers of Bernoulli units, and layers with
# Gaussian units on either side, where larger rates diverge.
RATES = {"bernoulli": 0.1, "gaussian": 0.001}
# Of the first layer with Gaussian visible units, and of all others.
GAUSSIAN_EPOCHS, EPOCHS = 200, 50
# What a layer of an autoencoder becomes.
UNITS_OF: dict[str, Units] = {"logistic": "bernoulli", "linear": "gaussian"}


@dataclass(frozen=True)
class LayerSettings:
    """One machine of the stack: its sizes and units, epochs and the rate ε of its updates."""

    visible: int
    hidden: int
    visible_units: Units
    hidden_units: Units
    epochs: int
    learning_rate: float


@dataclass(frozen=True)
class PretrainingSettings:
    """All that determines a stack, besides the data."""

    layers: tuple[LayerSettings, ...]
    batch_size: int
    initial_momentum: float
    momentum: float
    initial_epochs: int
    weight_cost: float
    scale: float
    seed: int

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("initial_epochs", 0), ("seed", 0)):
            object.__setattr__(self, name, count(name, getattr(self, name), least=least))
        for name in ("weight_cost", "scale"):
            object.__setattr__(self, name, nonnegative(name, getattr(self, name)))
        for name in ("initial_momentum", "momentum"):
            value = nonnegative(name, getattr(self, name))
            if value >= 1:
                raise ValueError(f"{name}: got {value}, need 0 ≤ {name} < 1")
            object.__setattr__(self, name, value)

    @property
    def epochs(self) -> int:
        """Of all layers together."""
        return sum(layer.epochs for layer in self.layers)

    def at(self, epoch: int) -> tuple[int, int]:
        """(layer, epoch within it), both from 0, of an epoch of the whole stack."""
        for number, layer in enumerate(self.layers):
            if epoch < layer.epochs:
                return number, epoch
            epoch -= layer.epochs
        return len(self.layers), 0

    def momentum_at(self, epoch: int) -> float:
        """μ in an epoch of a layer, from 0."""
        return self.initial_momentum if epoch < self.initial_epochs else self.momentum

    def config(self) -> dict[str, Any]:
        """JSON-able, for config.json."""
        return {**asdict(self), "layers": [asdict(layer) for layer in self.layers]}


def layer_settings(
    autoencoder: Autoencoder, visible: str, epochs: Any, learning_rate: Any
) -> tuple[LayerSettings, ...]:
    """One machine for each layer of the encoder.

    Raises ValueError naming the argument for units that no machine has, and for a list of another
    length; TypeError for what is no number.
    """
    check_choice("visible", visible, UNITS)
    depth = len(autoencoder.sizes) // 2
    kinds: list[Any] = [visible]
    for l, activation in enumerate(autoencoder.activations[:depth]):
        if activation not in UNITS_OF:
            raise ValueError(
                f"autoencoder: layer {l + 1} is {activation}, need logistic or linear, whose units "
                "a Boltzmann machine has"
            )
        kinds.append(UNITS_OF[activation])
    default_epochs = [EPOCHS] * depth
    if visible == "gaussian":
        default_epochs[0] = GAUSSIAN_EPOCHS
    default_rates = [
        RATES["gaussian" if "gaussian" in pair else "bernoulli"] for pair in pairwise(kinds)
    ]
    return tuple(
        LayerSettings(n, m, *units, count("epochs", e, least=0), positive("learning_rate", rate))
        for (n, m), units, e, rate in zip(
            pairwise(autoencoder.sizes[: depth + 1]),
            pairwise(kinds),
            _by_layer("epochs", epochs, default_epochs),
            _by_layer("learning_rate", learning_rate, default_rates),
            strict=True,
        )
    )


def _by_layer(name: str, given: Any, default: Sequence[Any]) -> list[Any]:
    """A value for each layer from one for all, a sequence, or None for the default."""
    if given is None:
        return list(default)
    if not isinstance(given, Sequence) or isinstance(given, str | bytes):
        return [given] * len(default)
    if len(given) != len(default):
        raise ValueError(
            f"{name}: got {len(given)} values, need one, or {len(default)}, one for each layer of "
            "the encoder"
        )
    return list(given)
