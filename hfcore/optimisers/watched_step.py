"""An optimiser's step as torch wraps it, while somebody watches."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

import torch
from torch.optim import Optimizer
from torch.optim import optimizer as torch_optimizer

Step = TypeVar("Step", bound=Callable[..., Any])


def watched_step(step: Step) -> Step:
    """``step`` with torch's profiler range and hooks, called by itself where there are none.

    torch wraps every step, at a cost that shows beside the update of a small net.
    """
    with_hooks = Optimizer.profile_hook_step(step)

    @wraps(step)
    def wrapper(self: Optimizer, *args: Any, **kwargs: Any) -> Any:
        chosen = with_hooks if _is_watched(self) else step
        return chosen(self, *args, **kwargs)

    wrapper.hooked = True  # type: ignore[attr-defined]  # what torch asks for before it wraps
    return cast(Step, wrapper)


def _is_watched(optimizer: Optimizer) -> bool:
    return bool(
        optimizer._optimizer_step_pre_hooks
        or optimizer._optimizer_step_post_hooks
        or torch_optimizer._global_optimizer_pre_hooks
        or torch_optimizer._global_optimizer_post_hooks
        or torch._C._autograd._profiler_enabled()
    )
