"""Vector updates of the conjugate gradient method, one pass over memory each."""
