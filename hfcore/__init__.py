"""Hessian-free and accelerated first-order training on hand-written kernels."""

from importlib.util import find_spec as _find_spec

if _find_spec("hfcore.bindings") is None:
    raise ImportError(
        "hfcore is imported from its bare checkout, which has no compiled kernels beside it: "
        "install it (`make install`, or `pip install .`) and run Python outside the checkout or "
        "with `python -P`."
    )

from hfcore import losses
from hfcore.batches import Batch, Batches
from hfcore.bindings.dispatch import use_backend
from hfcore.models.rnn import RNN

__all__ = ["RNN", "Batch", "Batches", "losses", "use_backend"]
