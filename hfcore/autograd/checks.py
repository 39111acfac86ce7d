"""What a torch module must and must not do while its curvature is taken."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.utils.parametrizations import _SpectralNorm

from hfcore.autograd.buffers import MOVES_SINGULAR_VECTORS, moves_singular_vectors

RANDOM = (
    "draws a new mask in every evaluation, so that loss, gradient and curvature products would not "
    "belong to one function"
)
BATCH = (
    "normalises by the statistics of the batch, so that cases have no loss of their own, and in "
    "train mode every evaluation moves its running statistics"
)

_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
# What :func:`_why_not` and the check of embeddings can refuse.
_LOOKED_AT = (
    *_EMBEDDINGS, _NormBase, _DropoutNd, nn.RNNBase, nn.MultiheadAttention, nn.RReLU, _SpectralNorm
)  # fmt: skip


def check_repeatable(
    module: nn.Module,
    *,
    differentiable: bool = False,
    parts: Sequence[nn.Module] | None = None,
) -> None:
    """Raise ValueError naming a submodule whose evaluations are not one function of θ per case.

    Refused: dropout and its kin and spectral normalisation in train mode, batch normalisation by
    the statistics of the batch, embeddings that rewrite their weights or weigh their gradients.
    Randomness in a forward of one's own cannot be seen here (``hf.check_curvature`` does). Where
    gradients are to be ``differentiable``, embeddings with sparse ones, too. ``parts`` are all
    submodules, where somebody has them already.
    """
    for part in module.modules() if parts is None else parts:
        kind: type = type(part)
        if not part._forward_pre_hooks and not _is_looked_at(kind):
            continue
        reason = _why_not(part)
        if reason is not None:
            where = _named(part, module)
            raise ValueError(f"model: {where} {reason}; call .eval() on it or on the model")
        if isinstance(part, _EMBEDDINGS):
            _check_embedding(part, module, differentiable)


def _check_embedding(part: Any, module: nn.Module, differentiable: bool) -> None:
    """Raise ValueError for an option by which gradients are not those of one function of θ."""
    if part.max_norm is not None:
        got, need = f"max_norm={part.max_norm:g}, which rewrites θ in every evaluation", "None"
    elif part.scale_grad_by_freq:
        got, need = "scale_grad_by_freq=True, whose gradients are not those of the loss", "False"
    elif part.sparse and differentiable:
        got, need = "sparse=True, whose gradients cannot be differentiated once more", "False"
    else:
        return
    option = got.partition("=")[0]
    raise ValueError(f"model: {_named(part, module)} has {got}; need {option}={need}")


@lru_cache(maxsize=4096)
def _is_looked_at(kind: type) -> bool:
    """Whether modules of this type may be refused, apart from what hooks do."""
    return issubclass(kind, _LOOKED_AT)


def _named(part: nn.Module, module: nn.Module) -> str:
    name = next(name for name, m in module.named_modules() if m is part)
    return f"{type(part).__name__} {name!r}" if name else type(part).__name__


def _why_not(part: nn.Module) -> str | None:
    if isinstance(part, _NormBase):
        statistics = part.running_mean is None if isinstance(part, _BatchNorm) else False
        tracked = part.training and part.track_running_stats
        batch_norm = isinstance(part, _BatchNorm) and part.training
        return BATCH if batch_norm or statistics or tracked else None
    if moves_singular_vectors(part):
        return MOVES_SINGULAR_VECTORS
    if not part.training:
        return None
    if isinstance(part, _DropoutNd) and part.p > 0:
        return RANDOM
    if isinstance(part, nn.RNNBase) and part.dropout > 0 and part.num_layers > 1:
        return RANDOM
    if isinstance(part, nn.MultiheadAttention) and part.dropout > 0:
        return RANDOM
    return RANDOM if isinstance(part, nn.RReLU) else None


@contextmanager
def differentiable_kernels(
    module: nn.Module | None, *, once: bool = False, parts: Iterable[nn.Module] | None = None
) -> Iterator[None]:
    """Torch picks kernels that can be differentiated twice and forward inside.

    Fused attention, the fast path of nn.MultiheadAttention, the LSTM and GRU kernels of oneDNN and
    cuDNN, and compiled graphs (``torch.compile``: the eager module is run in their place) cannot.
    ``once`` leaves the LSTM's kernels, which vmap likes better, to first derivatives. ``parts`` are
    all submodules, where somebody has them already.
    """
    if parts is None and module is not None:
        parts = module.modules()
    recurrent = parts is None or any(isinstance(m, nn.RNNBase) for m in parts)
    with _PLAIN_ATTENTION:
        if once or not recurrent:
            yield
        else:
            with _PLAIN_RECURRENCE:
                yield


class _Shared:
    """A setting of the whole process, from where the first thread enters to where the last leaves.

    Each restoring what it found would bring back what another thread had set. Written without
    generators: every evaluation comes through here, and small modules cost little more.
    """

    def __init__(self, setting: Callable[[], AbstractContextManager[object]]) -> None:
        self._setting = setting
        self._lock = threading.Lock()
        self._inside = 0
        self._context: AbstractContextManager[object] | None = None

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._context = self._setting()
                self._context.__enter__()
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0 and self._context is not None:
                self._context.__exit__(None, None, None)


# Kinds of attention: whether each may be chosen, the call that says so, and whether it is plain.
_Switch = tuple[Callable[[], bool], Callable[[bool], None], bool]
_cuda: Any = torch.backends.cuda  # for scaled_dot_product_attention everywhere
_ATTENTION: tuple[_Switch, ...] = (
    (_cuda.flash_sdp_enabled, _cuda.enable_flash_sdp, False),
    (_cuda.mem_efficient_sdp_enabled, _cuda.enable_mem_efficient_sdp, False),
    (_cuda.cudnn_sdp_enabled, _cuda.enable_cudnn_sdp, False),
    (_cuda.math_sdp_enabled, _cuda.enable_math_sdp, True),
)


class _PlainAttention:
    """Attention by plain matrix products, outside of compiled graphs.

    As torch.nn.attention.sdpa_kernel(SDPBackend.MATH), which takes ten times as long.
    """

    def __enter__(self) -> None:
        self._fast_path = torch.backends.mha.get_fastpath_enabled()
        self._before = [enabled() for enabled, _, _ in _ATTENTION]
        for _, enable, plain in _ATTENTION:
            enable(plain)
        self._stance = None
        if "torch._dynamo" in sys.modules:
            self._stance = torch.compiler.set_stance("force_eager")
            self._stance.__enter__()
        torch.backends.mha.set_fastpath_enabled(False)

    def __exit__(self, *_: object) -> None:
        torch.backends.mha.set_fastpath_enabled(self._fast_path)
        if self._stance is not None:
            self._stance.__exit__(None, None, None)
        for switch, before in zip(_ATTENTION, self._before, strict=True):
            switch[1](before)


@contextmanager
def _plain_recurrence() -> Iterator[None]:
    with _without_onednn(), torch.backends.cudnn.flags(enabled=False):
        yield


@contextmanager
def _without_onednn() -> Iterator[None]:
    """Like torch.backends.mkldnn.flags(enabled=False), which also sets, and warns of, TF32."""
    before = torch.backends.mkldnn.set_flags(False, None, None, None)
    try:
        yield
    finally:
        torch.backends.mkldnn.set_flags(before[0], None, None, None)


_PLAIN_ATTENTION = _Shared(_PlainAttention)
_PLAIN_RECURRENCE = _Shared(_plain_recurrence)


def reaches(tensors: Iterable[Tensor], leaves: Iterable[Tensor]) -> bool:
    """Whether the graph of any of the tensors ``[…]`` ends in one of the leaves ``[…]``."""
    wanted = {id(leaf) for leaf in leaves}
    stack = [t.grad_fn for t in tensors if t.grad_fn is not None]
    seen = set(stack)
    while stack:
        node = stack.pop()
        if id(getattr(node, "variable", None)) in wanted:
            return True
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                stack.append(following)
    return False
