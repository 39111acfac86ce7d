"""Hessian-free and accelerated first-order training on hand-written kernels."""

from importlib.util import find_spec as _find_spec

__version__ = "0.2.0"

if _find_spec("hfcore.bindings") is None:
    raise ImportError(
        "hfcore is imported from its bare checkout, which has no compiled kernels beside it: "
        "`make install` or `pip install -e .` makes the checkout itself importable; an hfcore "
        "that was installed by `pip install .` is found with `python -P` or in another folder."
    )

from hfcore import (
    data,
    distributed,
    init,
    losses,
    minibatches,
    nets,
    presets,
    pretraining,
    problems,
    schedules,
    solvers,
    sweeps,
    training,
)
from hfcore.batches import Batch, Batches
from hfcore.bindings.dispatch import BackendUnavailable, use_backend
from hfcore.bindings.triton_backend import matmul_precision, set_matmul_precision
from hfcore.curvature.algebra import Identity
from hfcore.curvature.fisher import EmpiricalFisher
from hfcore.curvature.gauss_newton import GaussNewton
from hfcore.curvature.hessian import Hessian
from hfcore.curvature.jacobian import Jacobian
from hfcore.curvature.linear_operator import LinearOperator
from hfcore.models.echo_state import EchoState
from hfcore.models.gated import GRU, LSTM
from hfcore.models.lstm import BlockLSTM
from hfcore.models.mlp import MLP, Autoencoder
from hfcore.models.rnn import RNN
from hfcore.models.stacked_rnn import StackedRNN
from hfcore.objective import Objective
from hfcore.objective_factory import objective_for
from hfcore.optimisers.adaptive_nag import AdaptiveNAG
from hfcore.optimisers.hessian_free import HessianFree
from hfcore.optimisers.least_squares import LeastSquares
from hfcore.optimisers.least_squares_step import LeastSquaresStats
from hfcore.optimisers.momentum import NAG, SGD, ClassicalMomentum, LookaheadError
from hfcore.optimisers.natural_gradient import NaturalGradient
from hfcore.optimisers.natural_gradient_step import NaturalGradientStats
from hfcore.optimisers.nonlinear_cg import LineSearchStats, NonlinearCG
from hfcore.optimisers.statistics import StepStats
from hfcore.pretraining import PretrainResult, pretrain
from hfcore.solvers.lanczos import EigenpairsNotConverged
from hfcore.solvers.linear import SolveInfo, cg, minres
from hfcore.solvers.preconditioners import NystromPreconditioner
from hfcore.solvers.spectral_density import SpectralDensity
from hfcore.step_interrupt import StepInterrupted
from hfcore.sweeps import AutoencoderStart, RnnStart, SweepResult, sweep
from hfcore.training import Callback, TrainResult, TrainState, load_run, train
from hfcore.verify import check_curvature

__all__ = [
    "GRU",
    "LSTM",
    "MLP",
    "NAG",
    "RNN",
    "SGD",
    "AdaptiveNAG",
    "Autoencoder",
    "AutoencoderStart",
    "BackendUnavailable",
    "Batch",
    "Batches",
    "BlockLSTM",
    "Callback",
    "ClassicalMomentum",
    "EchoState",
    "EigenpairsNotConverged",
    "EmpiricalFisher",
    "GaussNewton",
    "Hessian",
    "HessianFree",
    "Identity",
    "Jacobian",
    "LeastSquares",
    "LeastSquaresStats",
    "LineSearchStats",
    "LinearOperator",
    "LookaheadError",
    "NaturalGradient",
    "NaturalGradientStats",
    "NonlinearCG",
    "NystromPreconditioner",
    "Objective",
    "PretrainResult",
    "RnnStart",
    "SolveInfo",
    "SpectralDensity",
    "StackedRNN",
    "StepInterrupted",
    "StepStats",
    "SweepResult",
    "TrainResult",
    "TrainState",
    "cg",
    "check_curvature",
    "data",
    "distributed",
    "init",
    "load_run",
    "losses",
    "matmul_precision",
    "minibatches",
    "minres",
    "nets",
    "objective_for",
    "presets",
    "pretrain",
    "pretraining",
    "problems",
    "schedules",
    "set_matmul_precision",
    "solvers",
    "sweep",
    "sweeps",
    "train",
    "training",
    "use_backend",
]
