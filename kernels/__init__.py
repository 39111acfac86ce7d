"""How: one folder per family of ops. Nothing here knows what Hessian-free optimisation is."""
