"""Published settings by name.

>>> opt = hf.HessianFree(model, loss, **hf.presets.rnn2011)
>>> net = hf.presets.autoencoders["curves"]
>>> opt = hf.HessianFree(hf.Autoencoder(net.encoder_sizes), net.loss, **net.optimiser)

Where the papers are silent the original releases decide, and where those are too the numbered
notes say what was chosen.

1. λ0 of MNIST and FACES is not published: the author's tuning rule (the first ρ in 0.75–0.95)
   finds it, from 45. Their weight decay, not published either, is that of CURVES.
2. A.6 does not give the hybrid's λ rule and preconditioner: those of Martens 2010 are kept.
3. The length of the hybrid's second CURVES phase is not published: the step size falls from 0.5,
   and the phase is given as many CG iterations as the first.
4. FACES: the demo's objective is Σ(t − y)², ours ½ of it, as in the author's later code; λ and the
   weight decay halve with it, to 1e-5 and in the starred run to 5e-3.
5. The loss scale that Sutskever et al.'s learning rates assume is not stated either; ours is the
   sum over pixels averaged over cases.
6. Weight decay is on biases too, as in the demo, where the line that would leave them out is
   commented out. The starred runs of the paper have it on the connection weights alone.
7. ρ's objective is on all data in the paper (section 4.3), on the curvature's batch in the demo:
   the presets are the demo's, ``dataclasses.replace(preset, rho="gradient")`` is the paper's.
8. CG's iterates are stored where the demo stores them, ⌈5·1.3^j⌉; the paper's own grid (section
   4.6) is ``{**martens2010_curves, "cg_evaluate_every": "powers"}``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from hfcore.losses import Loss
from hfcore.minibatches import FullGradient
from hfcore.problems import SequenceProblem
from hfcore.problems.reconstruction import DATASETS
from hfcore.schedules import Phase, Reciprocal

# Martens & Sutskever (2011): λ0 = 0.1·T, μ = 0.03 with D'' = 1 − h², sums averaged over sequences.
rnn2011: dict[str, Any] = {
    "damping": "auto",
    "damping_rule": "rnn2011",
    "structural": 0.03,
    "cg_max_iter": 300,
    "cg_decay": 0.95,
    "cg_evaluate_every": 10,
    "cg_backtracking": "best",
    "line_search_decay": 0.8,
    "line_search_armijo": 0.0,
    "line_search_max": 50,
    "normalize": "sequences",
    "structural_distance": "matching",
}

# The original code release: averages over unmasked outputs, 0.25·(1 − h²), L2 2e-5.
rnn2011_release: dict[str, Any] = {
    **rnn2011,
    "l2": 2e-5,
    "normalize": "outputs",
    "structural_distance": "quarter",
}

# Martens (2010) and his demo: λI added to the mean curvature over cases, Fisher^¾ preconditioner,
# iterates at ⌈5·1.3^j⌉ walked back, Armijo line search of at most 60 reductions.
_martens2010: dict[str, Any] = {
    "damping": 45.0,
    "damping_rule": "martens2010",
    "cg_max_iter": 250,
    "cg_tolerance": 5e-4,
    "cg_lookback": 10,
    "cg_residual": 0.0,
    "cg_decay": 0.95,
    "cg_restart": False,
    "cg_evaluate_every": "geometric",
    "cg_backtracking": "walk",
    "preconditioner": "fisher",
    "line_search_decay": 0.8,
    "line_search_armijo": 0.01,
    "line_search_max": 61,  # α = 1 and 60 reductions
}
martens2010_curves: dict[str, Any] = {**_martens2010, "l2": 2e-5}
martens2010_mnist: dict[str, Any] = {
    **_martens2010,
    "l2": 2e-5,
    "damping_window": (0.75, 0.95),  # note 1
}
martens2010_faces: dict[str, Any] = {
    **_martens2010,
    "l2": 1e-5,  # note 4
    "damping_window": (0.75, 0.95),
    "cg_max_iter": 100,
}


@dataclass(frozen=True)
class AutoencoderPreset:
    """A net of Martens (2010): sizes of the encoder, output loss, curvature batches, iterations.

    ``starred_l2`` is the weight decay of the paper's second, starred runs.
    """

    encoder_sizes: tuple[int, ...]
    loss: Loss
    curvature_batches: int
    optimiser: dict[str, Any]
    starred_l2: float | None = None
    iterations: int = field(default=200)  # "rarely exceeds 200"

    rho: Literal["curvature", "gradient"] = "curvature"  # note 7

    def policy(self, seed: int = 0) -> FullGradient:
        """Which images play which part, without the images."""
        return FullGradient(curvature_batches=self.curvature_batches, rho=self.rho, seed=seed)


def _autoencoder(
    dataset: str, curvature_batches: int, optimiser: dict[str, Any], starred_l2: float | None
) -> AutoencoderPreset:
    images = DATASETS[dataset]
    return AutoencoderPreset(
        images.encoder_sizes, images.loss, curvature_batches, optimiser, starred_l2
    )


autoencoders: dict[str, AutoencoderPreset] = {
    "curves": _autoencoder("curves", 4, martens2010_curves, None),
    "mnist": _autoencoder("mnist", 8, martens2010_mnist, 1e-4),
    "faces": _autoencoder("faces", 20, martens2010_faces, 5e-3),
}

# Sutskever et al. (2013), appendix A.6: no line search, a step size set by hand, CG's decay raised
# like a momentum coefficient, small batches that serve gradient and curvature alike; at the end
# large batches again. The hybrid starts from these options and runs through the phases.
hybrid2013: dict[str, Any] = {
    **_martens2010,  # note 2
    "cg_tolerance": 0.0,
    "cg_backtracking": "last",
    "step_size": 1.0,
}


def _hybrid(cg_decay: float, l2: float, **others: Any) -> dict[str, Any]:
    """Options of a phase: 50 CG iterations and the step size 1, unless it says otherwise."""
    return {"cg_max_iter": 50, "step_size": 1.0, "cg_decay": cg_decay, "l2": l2, **others}


hybrid2013_curves: tuple[Phase, ...] = (
    Phase("small batches", _hybrid(0.95, 2e-5), 1 / 16, 1 / 16, cg_total=250_000),
    # note 3
    Phase(
        "averaging",
        _hybrid(0.999, 2e-5, step_size=Reciprocal(500, 4000)),
        1 / 16,
        1 / 16,
        cg_total=250_000,
    ),
    Phase("everything", _hybrid(0.995, 2e-5, cg_max_iter=200), cg_total=100_000),
    Phase("no weight decay", _hybrid(0.995, 0.0, cg_max_iter=200), cg_total=500_000),
)
hybrid2013_mnist: tuple[Phase, ...] = (
    Phase("small batches", _hybrid(0.95, 1e-5), 1 / 20, 1 / 20, cg_total=25_000),
    Phase("averaging", _hybrid(0.995, 1e-5, step_size=Reciprocal(250)), 1 / 20, 1 / 20, 225_000),
    Phase("full gradient", _hybrid(0.995, 1e-5), curvature=1 / 20, cg_total=125_000),
)

# Sutskever et al. (2013), section 3: the runs of tables 1 and 3 as keywords of hf.sweep, without
# weight decay, and the values their best is from (μ_max 0 is plain SGD). Note 5.
momentum2013: dict[str, Any] = {
    "updates": 750_000,
    "batch_size": 200,
    "schedule": "increasing",
    "final_updates": 1000,
}
momentum2013_grid: dict[str, tuple[float, ...]] = {
    "learning_rate": (0.05, 0.01, 0.005, 0.001, 0.0005, 0.0001),
    "momentum": (0.9, 0.99, 0.995, 0.999),
}


def esn2013(problem: SequenceProblem) -> dict[str, Any]:
    """Options of ``hf.init.esn_`` for a problem (Sutskever et al. 2013, table 4).

    Fan-in 15, spectral radius 1.1, output weights N(0, 0.1²), the problem's own input scale, and
    output biases at its mean target.

    >>> hf.init.esn_(model, generator, **hf.presets.esn2013(problem))
    """
    return {
        "fan_in": 15,
        "spectral_radius": 1.1,
        "input_scale": problem.esn_input_scale,
        "output_scale": 0.1,
        "mean_target": problem.mean_target,
        "loss": problem.loss,
    }
