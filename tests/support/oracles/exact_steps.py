"""Options of hf.HessianFree under which a step is the solution of the damped system itself."""

# CG until it is exact, its last iterate, no line search.
EXACT = {
    "cg_max_iter": 200,
    "cg_tolerance": 0.0,
    "cg_residual": 1e-12,
    "cg_backtracking": "last",
    "step_size": 1.0,
}
