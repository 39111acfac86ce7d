"""Random arguments of the ops, one module a family."""
