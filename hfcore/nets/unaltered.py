"""Whether a net still computes what its class says: only then may kernels compute it in its place.

A fused net reads parameters and sizes. What else can change the function of a module (hooks,
parametrizations, pruning, a layer exchanged for another one) is unseen by it, so that such a net is
left to autograd, which calls the module itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter

from torch import nn
from torch.nn.modules import module as torch_module

# What the layers of a fused net may be; a class derived from them may compute otherwise.
LAYERS: tuple[type[nn.Module], ...] = (nn.ModuleList, nn.Linear)

HOOKS = {
    "_forward_pre_hooks": "a forward pre-hook",
    "_forward_hooks": "a forward hook",
    "_backward_pre_hooks": "a backward pre-hook",
    "_backward_hooks": "a backward hook",
}

# Those of a module's own dictionary, in one call.
_hooks_of = itemgetter(*HOOKS)
GLOBAL_HOOKS = {f"_global{kind}": what for kind, what in HOOKS.items()}


def why_not_fused(model: nn.Module, layers: Sequence[type[nn.Module]] = LAYERS) -> str | None:
    """Why kernels must not stand in for this net of a fused class; None: they may.

    ``layers`` are the types its submodules have where nobody exchanged them.
    """
    everywhere = vars(torch_module)
    for kind, what in GLOBAL_HOOKS.items():
        if everywhere[kind]:
            return f"{what} is registered for all modules"
    for part in _parts(model):
        reason = _why_not(part, layers, part is model)
        if reason is not None:
            name = next(name for name, m in model.named_modules() if m is part)
            return f"{type(part).__name__} {name!r} {reason}" if name else f"it {reason}"
    return None


def _parts(module: nn.Module) -> list[nn.Module]:
    """The module and what is in it, one used twice as often as it is used.

    ``modules()`` makes the name of each, which costs more than all that is asked here; this is
    asked at every update.
    """
    parts = [module]
    for part in parts:  # which grows
        inner = part.__dict__["_modules"]
        if inner:
            parts += [m for m in inner.values() if m is not None]
    return parts


def _why_not(part: nn.Module, layers: Sequence[type[nn.Module]], is_whole: bool) -> str | None:
    own = part.__dict__
    if not is_whole and type(part) not in layers:
        return "is not a layer of its class"
    if "forward" in own:
        return "has a forward of its own"
    if any(_hooks_of(own)):
        return f"has {next(what for kind, what in HOOKS.items() if own[kind])}"
    for name, p in own["_parameters"].items():
        if p is not None and (p._backward_hooks or p._post_accumulate_grad_hooks):
            return f"has a hook on the gradient of {name}"
    return None
