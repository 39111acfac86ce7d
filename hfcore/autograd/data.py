"""The data of a module's objective: a closure, or batches of cases."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeGuard

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from hfcore.arguments import called
from hfcore.batches import Batch, check_dense, check_unambiguous, labelled
from hfcore.flat import IN_INFERENCE
from hfcore.losses import Loss
from hfcore.losses.weights import checked_weights
from hfcore.shares import aligned

# Gives (loss, outputs), or the loss alone where the curvature needs no outputs.
Closure = Callable[[], tuple[Tensor, Tensor] | Tensor]

SCALAR_CLOSURE = (
    "closure: returned a scalar loss alone; curvature='ggn' needs (loss, outputs), because the "
    "Gauss-Newton matrix JᵀL''J is split at the model's outputs. With the loss alone take "
    "curvature='hessian', which differentiates it twice, or 'hessian_fd', which takes gradients "
    "from its backward()"
)
BACKWARD_CALLED = (
    "closure: called backward(), which frees the graph that is to be differentiated; leave the "
    "call out, or take curvature='hessian_fd', which uses it"
)
INFERENCE_MODE = (
    "torch.inference_mode: is on, so that nothing can be differentiated; need it off, by torch."
    "inference_mode(False) around the call, or torch.no_grad in its place"
)
NO_DEPENDENCE = (
    "model: the outputs do not depend on the model's parameters; does the closure call another "
    "model, or detach them?"
)
NO_GRADIENT = (
    "loss: does not depend on the model's parameters, or was computed under torch.no_grad; does "
    "the closure call another model?"
)

# What torch says of an op that it cannot differentiate, backward or forward.
NO_DERIVATIVE = re.compile(r"derivative for '?(\w+)'? is not implemented|forward AD with (\w+) ")


@dataclass(frozen=True)
class BatchPart:
    """A checked batch of ``count`` cases, which lie along ``input_dim`` and ``target_dim``.

    ``inputs`` goes to the model as it is: a tensor, or a tuple, list or dict of tensors; ``shared``
    are those of its leaves, by their numbers, that belong to all cases, and of the targets'.
    ``mask`` has the targets' leading axes ``[…]`` and is bool, or weights ≥ 0, or None.
    ``fisher_cases``: what a sum over squared gradients of the cases is divided by, None: their
    number. ``largest_class``: of targets that are classes, which a model must have outputs for.
    """

    inputs: Any
    targets: Any
    mask: Tensor | None
    count: int
    input_dim: int
    target_dim: int
    fisher_cases: float | None = None
    largest_class: int = 0
    shared: frozenset[int] = frozenset()
    shared_targets: frozenset[int] = frozenset()

    @property
    def in_fisher(self) -> float:
        """``fisher_cases``, or the number of cases."""
        return self.count if self.fisher_cases is None else self.fisher_cases

    def chunks(self, size: int) -> Iterator[BatchPart]:
        """The same cases in pieces of at most ``size``."""
        if self.count <= size:
            yield self
            return
        for at in range(0, self.count, size):
            yield self._narrowed(at, min(size, self.count - at), lambda t: t)

    def narrow(self, start: int, count: int) -> BatchPart:
        """``count`` cases from ``start`` on, in arrays that begin where torch's own do."""
        return self._narrowed(start, count, aligned)

    def _narrowed(self, at: int, count: int, place: Callable[[Tensor], Tensor]) -> BatchPart:
        def cut(dim: int) -> Callable[[Tensor], Tensor]:
            return lambda t: place(t.narrow(dim, at, count))

        return replace(
            self,
            inputs=_packed_cases(self.inputs, at, count)
            if isinstance(self.inputs, PackedSequence)
            else by_case(self.inputs, self.shared, cut(self.input_dim)),
            targets=by_case(self.targets, self.shared_targets, cut(self.target_dim)),
            mask=None if self.mask is None else cut(self.target_dim)(self.mask),
            count=count,
        )

    def columns(self, dim: int) -> tuple[Any, Any]:
        """The targets and their vmap dimensions."""
        return self.targets, axes(self.targets, self.shared_targets, dim)

    def restore(self, targets: Any, dim: int) -> Any:
        """One case's targets with the axis of cases that vmap took away."""
        return by_case(targets, self.shared_targets, lambda t: t.unsqueeze(dim))


def by_case(tree: Any, shared: Set[int], function: Callable[[Tensor], Any]) -> Any:
    """A tree with the function of each tensor ``[…]`` that holds cases, and the rest as it is."""
    leaves, form = tree_flatten(tree)
    mapped = [
        function(leaf) if isinstance(leaf, Tensor) and i not in shared else leaf
        for i, leaf in enumerate(leaves)
    ]
    return tree_unflatten(mapped, form)


def axes(tree: Any, shared: Set[int], dim: int) -> Any:
    """The axis of cases of each leaf, None of one that holds none."""
    leaves, form = tree_flatten(tree)
    held = [isinstance(leaf, Tensor) and i not in shared for i, leaf in enumerate(leaves)]
    return tree_unflatten([dim if holds else None for holds in held], form)


ModuleData = Closure | Sequence[BatchPart]


def check_part(
    batch: Any,
    *,
    like: Tensor,
    input_dim: int,
    target_dim: int,
    loss: Loss | None,
    served: Loss | None = None,
) -> BatchPart:
    """Check ``(inputs, targets[, mask])`` once.

    ``loss`` of hf.losses takes the targets as they are; ``served`` is what stands for one of
    torch's, whose classes are looked at alone.

    Raises TypeError or ValueError naming the argument: no tensor, another device than the
    parameters', no case, numbers of cases that differ, NaN or Inf in inputs or counted targets.
    """
    inputs, targets, mask = _unpack(batch)
    packed = isinstance(inputs, PackedSequence)
    within = inputs.data if packed else inputs
    leaves = [t for t in tree_leaves(within) if isinstance(t, Tensor)]
    if not leaves:
        raise TypeError(f"inputs: got {type(inputs).__name__}, need a tensor or a tuple of tensors")
    for name, tensors in (("inputs", leaves), ("targets", tree_leaves(targets))):
        for t in tensors:
            if isinstance(t, Tensor) and t.device != like.device:
                raise ValueError(f"{name}: is on {t.device}, need {like.device} like the model")
    for t in leaves:
        if t.is_floating_point():
            check_dense("inputs", t)
        if t.is_inference() and not torch.is_inference_mode_enabled():
            raise ValueError(f"inputs: {IN_INFERENCE}; take a .clone() of it")
    columns = [t for t in tree_leaves(targets) if isinstance(t, Tensor)]
    if packed:
        count = int(inputs.batch_sizes[0])
    else:
        wanted = _cases(columns[0], target_dim) if columns else None
        holding = (t for t in leaves if wanted and _cases(t, input_dim) == wanted)
        count = _count("inputs", next(holding, leaves[0]), input_dim)
    if columns and _count("targets", columns[0], target_dim) != count:
        raise ValueError(
            f"targets: got {columns[0].shape[target_dim]} cases along axis {target_dim}, need "
            f"{count} like the inputs along axis {input_dim}"
        )
    mask = _check_mask(mask, like)
    if any(t.is_floating_point() and not bool(torch.isfinite(t).all()) for t in leaves):
        raise ValueError("inputs: holds NaN or Inf, need finite values")
    if loss is not None:
        targets = _check_targets(targets, mask, loss)
    elif served is not None and mask is not None and isinstance(targets, Tensor):
        targets = cut_off(targets, mask)
    largest = _largest_class(targets, served or loss)
    return BatchPart(
        inputs,
        targets,
        mask,
        count,
        input_dim,
        target_dim,
        largest_class=largest,
        shared=frozenset() if packed else _shared(inputs, input_dim, count),
        shared_targets=_shared(targets, target_dim, count),
    )


def _cases(t: Tensor, dim: int) -> int | None:
    return t.shape[dim] if t.ndim > dim else None


def _shared(tree: Any, dim: int, count: int) -> frozenset[int]:
    """The leaves that hold no cases, such as a table, a length or a mask of all of them."""
    leaves = enumerate(tree_leaves(tree))
    return frozenset(i for i, t in leaves if isinstance(t, Tensor) and _cases(t, dim) != count)


def _packed_cases(inputs: PackedSequence, at: int, count: int) -> PackedSequence:
    """Some of the sequences, in their own order."""
    padded, lengths = pad_packed_sequence(inputs)
    cases = slice(at, at + count)
    return pack_padded_sequence(padded[:, cases], lengths[cases], enforce_sorted=False)


def _unpack(batch: Any) -> tuple[Any, Any, Any]:
    batch = labelled(batch)
    if not isinstance(batch, (tuple, list)) or len(batch) not in (2, 3):
        what = f"{len(batch)} items" if isinstance(batch, (tuple, list)) else type(batch).__name__
        raise TypeError(f"batch: got {what}, need (inputs, targets) or (inputs, targets, mask)")
    inputs = dict(batch[0]) if isinstance(batch[0], Mapping) else batch[0]
    return inputs, batch[1], batch[2] if len(batch) == 3 else None


def _count(name: str, tensor: Tensor, dim: int) -> int:
    if tensor.ndim <= dim:
        raise ValueError(f"{name}: got shape {list(tensor.shape)}, need cases along axis {dim}")
    if tensor.shape[dim] == 0:
        raise ValueError(f"{name}: got shape {list(tensor.shape)}, need at least one case")
    return tensor.shape[dim]


def _check_mask(mask: Any, like: Tensor) -> Tensor | None:
    if mask is None:
        return None
    if not isinstance(mask, Tensor):
        raise TypeError(f"mask: got {type(mask).__name__}, need a torch.Tensor or None")
    if mask.device != like.device:
        raise ValueError(f"mask: is on {mask.device}, need {like.device} like the model")
    if mask.dtype != torch.bool:
        if mask.dtype != like.dtype:
            raise TypeError(f"mask: got {mask.dtype}, need torch.bool or {like.dtype}")
        mask = checked_weights(mask)
    if not bool(mask.any()):
        raise ValueError("mask: masks every output, need at least one that counts")
    checked: Tensor = mask
    return checked


def _check_targets(targets: Any, mask: Tensor | None, loss: Loss) -> Tensor:
    """Targets of a loss of hf.losses; those that are masked become 0, whatever they held."""
    if not isinstance(targets, Tensor):
        raise TypeError(f"targets: got {type(targets).__name__}, need a torch.Tensor")
    values: Tensor = targets if mask is None else cut_off(targets, mask)
    loss.check_values(values)
    return values


def cut_off(targets: Any, mask: Tensor) -> Tensor:
    """``targets […]``, zeros where ``mask […]`` is zero.

    Raises ValueError where the mask has other axes than the leading ones.
    """
    if not isinstance(targets, Tensor):
        raise TypeError(f"targets: got {type(targets).__name__}, need a torch.Tensor beside a mask")
    if mask.ndim > targets.ndim or mask.shape != targets.shape[: mask.ndim]:
        raise ValueError(
            f"mask: got shape {list(mask.shape)}, need the leading axes of the targets' "
            f"{list(targets.shape)}"
        )
    keep = (mask != 0).reshape(mask.shape + (1,) * (targets.ndim - mask.ndim))
    return torch.where(keep, targets, torch.zeros_like(targets))


def _largest_class(targets: Any, loss: Loss | None) -> int:
    """0 for targets that are no classes, whose dtype is the matter of ``check_targets``."""
    if loss is None or not loss.takes_classes:
        return 0
    if not isinstance(targets, Tensor) or targets.dtype != torch.int64:
        return 0
    least, largest = loss.class_range(targets)
    if least < 0:
        raise ValueError(f"targets: got class {least}, need classes from 0")
    return largest


def _is_pair(result: object) -> TypeGuard[tuple[Tensor, Tensor]]:
    return (
        isinstance(result, (tuple, list))
        and len(result) == 2
        and all(isinstance(r, Tensor) for r in result)
    )


def no_graph(message: str) -> ValueError:
    """What to raise where autograd has recorded nothing: ``message``, or that it was told not to.

    Gradients are enabled wherever something is differentiated, which inference mode does not heed.
    """
    return ValueError(INFERENCE_MODE if torch.is_inference_mode_enabled() else message)


def call_closure(closure: Closure) -> tuple[Tensor, Tensor | None]:
    """Call the closure; gives its (loss ``[]``, outputs), None for outputs that it does not give.

    Raises TypeError for anything but a pair of tensors or a loss, ValueError for a loss of more
    than one number.
    """
    result: Any = called("closure", closure)
    if not isinstance(result, Tensor) and not _is_pair(result):
        raise TypeError(
            f"closure: returned {type(result).__name__}, need a pair of tensors (loss, outputs) or "
            "a scalar loss"
        )
    loss, outputs = (result, None) if isinstance(result, Tensor) else result
    if loss.numel() != 1:
        raise ValueError(f"closure: loss has shape {list(loss.shape)}, need a scalar")
    return loss.reshape(()), outputs


@contextmanager
def said_of_graphs() -> Iterator[None]:
    """What torch says of a graph that was freed, in the words of who wrote the closure; and of an
    op whose derivative it lacks, what serves in its place."""
    try:
        yield
    except RuntimeError as error:
        if "backward through the graph a second time" in str(error):
            raise ValueError(BACKWARD_CALLED) from error
        missing = NO_DERIVATIVE.search(str(error))
        if missing is not None:
            if missing[1] is None:
                raise ValueError(
                    f"strategy: 'jvp' needs forward mode, which torch lacks for {missing[2]}; take "
                    "'auto'"
                ) from error
            raise ValueError(
                f"model: torch has no derivative of {missing[1]}, so that gradients cannot be "
                "differentiated once more; need other layers (nn.Embedding and a sum for "
                "nn.EmbeddingBag), or curvature='hessian_fd' (hf.Hessian(..., "
                "method='finite_difference')), which needs gradients alone"
            ) from error
        raise


def as_batch_list(data: Any) -> list[Any]:
    """One batch ``(inputs, targets[, mask])`` or several as a list.

    A list holds batches, unless its first item is a tensor; a tuple is one batch, unless its items
    are :class:`hfcore.Batch`. Raises TypeError for what could be either: inputs and targets that
    are tuples or lists themselves, or batches.
    """
    data = labelled(data)
    if isinstance(data, (Batch, BatchPart)):
        return [data]
    if not isinstance(data, (tuple, list)):
        raise TypeError(
            f"data: got {type(data).__name__}, need (inputs, targets), a list of such or a closure"
        )
    if not data or all(isinstance(item, (Batch, BatchPart)) for item in data):
        return list(data)
    pair = len(data) in (2, 3) and (isinstance(data[0], Mapping) or isinstance(data[1], Tensor))
    if isinstance(data[0], Tensor) or pair:
        return [data]
    check_unambiguous("data", data)
    return list(data)
