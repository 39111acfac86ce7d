"""Whether a net still computes what its class says: only then may kernels compute it in its place.

A fused net reads parameters and sizes. What else can change the function of a module (hooks,
parametrizations, pruning, a layer exchanged for another one) is unseen by it, so that such a net is
left to autograd, which calls the module itself.
"""

from __future__ import annotations

from collections.abc import Sequence

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


def why_not_fused(model: nn.Module, layers: Sequence[type[nn.Module]] = LAYERS) -> str | None:
    """Why kernels must not stand in for this net of a fused class; None: they may.

    ``layers`` are the types its submodules have where nobody exchanged them.
    """
    for kind, what in HOOKS.items():
        if getattr(torch_module, f"_global{kind}"):
            return f"{what} is registered for all modules"
    for part in model.modules():
        reason = _why_not(part, layers, part is model)
        if reason is not None:
            name = next(name for name, m in model.named_modules() if m is part)
            return f"{type(part).__name__} {name!r} {reason}" if name else f"it {reason}"
    return None


def _why_not(part: nn.Module, layers: Sequence[type[nn.Module]], is_whole: bool) -> str | None:
    own = part.__dict__
    if not is_whole and type(part) not in layers:
        return "is not a layer of its class"
    if "forward" in own:
        return "has a forward of its own"
    for kind, what in HOOKS.items():
        if own[kind]:
            return f"has {what}"
    for name, p in own["_parameters"].items():
        if p is not None and (p._backward_hooks or p._post_accumulate_grad_hooks):
            return f"has a hook on the gradient of {name}"
    return None
