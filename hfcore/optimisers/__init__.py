"""Outer loops: what an optimisation step is, as ``torch.optim.Optimizer`` subclasses."""
