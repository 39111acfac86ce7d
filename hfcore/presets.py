"""Published settings by name, as keyword arguments of the optimisers.

>>> opt = hf.HessianFree(model, loss, **hf.presets.rnn2011)
"""

from __future__ import annotations

from typing import Any

# Martens & Sutskever (2011): λ0 = 0.1·T, μ = 0.03 with D'' = 1 − h², sums averaged over sequences.
rnn2011: dict[str, Any] = {
    "damping": "auto",
    "structural": 0.03,
    "cg_max_iter": 300,
    "cg_decay": 0.95,
    "cg_evaluate_every": 10,
    "cg_backtracking": "best",
    "rho": "damped",
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
