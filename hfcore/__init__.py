"""Hessian-free and accelerated first-order training on hand-written kernels."""

from importlib.util import find_spec as _find_spec

if _find_spec("hfcore.bindings") is None:
    raise ImportError(
        "hfcore is imported from its bare checkout, which has no compiled kernels beside it: "
        "install it (`make install`, or `pip install .`) and run Python outside the checkout or "
        "with `python -P`."
    )

from hfcore import init, losses, presets, problems
from hfcore.batches import Batch, Batches
from hfcore.bindings.dispatch import BackendUnavailable, use_backend
from hfcore.curvature.gauss_newton import GaussNewton
from hfcore.models.rnn import RNN
from hfcore.objective import Objective
from hfcore.optimisers.hessian_free import HessianFree
from hfcore.optimisers.statistics import StepStats
from hfcore.training import Callback, TrainResult, TrainState, train

__all__ = [
    "RNN",
    "BackendUnavailable",
    "Batch",
    "Batches",
    "Callback",
    "GaussNewton",
    "HessianFree",
    "Objective",
    "StepStats",
    "TrainResult",
    "TrainState",
    "init",
    "losses",
    "presets",
    "problems",
    "train",
    "use_backend",
]
