"""Whose threads have the cores: torch's, or those of the compiled kernels.

Behind an op of torch's on more than some ten thousand elements the threads of OpenMP go on
spinning for about 5 ms, on the cores that the next kernel needs: an update of the CURVES
autoencoder took twice as long behind one. Where kernels do the work, torch's ops between them are
better left to the calling thread.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from threading import Lock

import torch
from torch import Tensor

from hfcore.bindings.dispatch import choose

# Threads that torch gave up for the kernels, where this code runs; None: it has its own.
_given_up: ContextVar[int | None] = ContextVar("given_up", default=None)
_lock = Lock()
# Threads of the process inside of torch_on_one_thread, and what torch had before the first of them.
_inside, _before = 0, 1


def kernel_threads() -> int:
    """Threads of a compiled kernel: torch's, also where torch has given them up."""
    given_up = _given_up.get()
    return torch.get_num_threads() if given_up is None else given_up


@contextmanager
def torch_on_one_thread() -> Iterator[None]:
    """Inside, torch's ops stay on the calling thread; the kernels go on with as many as before."""
    if _given_up.get() is not None:
        yield
        return
    before = _enter()
    token = _given_up.set(before)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        _given_up.reset(token)
        _leave()


def among_kernels(like: Tensor) -> AbstractContextManager[None]:
    """:func:`torch_on_one_thread` where compiled kernels serve ``like [...]``, else nothing."""
    served = choose("conjugate_gradient.cg_update", like) == "cpu"
    return torch_on_one_thread() if served else nullcontext()


def _enter() -> int:
    # A new thread of Python's takes over torch's present number, which may be somebody else's 1.
    global _inside, _before
    with _lock:
        if _inside == 0:
            _before = torch.get_num_threads()
        _inside += 1
        return _before


def _leave() -> None:
    global _inside
    with _lock:
        _inside -= 1


def _after_fork() -> None:
    """Nobody is inside in a forked child but the thread that forked, if it was."""
    global _inside, _lock
    _lock = Lock()  # its holder may not exist here
    if _inside and _given_up.get() is None:
        _inside = 0
        torch.set_num_threads(_before)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
