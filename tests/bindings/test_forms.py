"""Every implementation of an op has the op's one signature."""

from __future__ import annotations

import inspect
from importlib import import_module
from typing import get_args

import pytest

from hfcore.bindings import forms, triton_backend
from hfcore.bindings.dispatch import OPS, Backend

# Ops of the dense layers' kernels that have forms of their own.
OF_LAYERS = {"net", "contrastive"}
FAMILIES = sorted({op.partition(".")[0] for op in OPS} | OF_LAYERS)


def protocol_of(family: str) -> type:
    """The class that says what a family's forms offer."""
    package = import_module(f"{forms.__name__}.{family}")
    (found,) = (v for n, v in vars(package).items() if n.endswith("Form") and n != "Form")
    return found


def methods_of(protocol: type) -> dict[str, list[inspect.Parameter]]:
    """Name and parameters of each op, less ``self``."""
    return {
        name: list(inspect.signature(method).parameters.values())[1:]
        for name, method in vars(protocol).items()
        if inspect.isfunction(method) and not name.startswith("_")
    }


@pytest.mark.parametrize("backend", get_args(Backend))
@pytest.mark.parametrize("family", FAMILIES)
def test_signatures(family: str, backend: Backend) -> None:
    own = any(backend in OPS[op] for op in OPS if op.startswith(f"{family}."))
    if not own and family not in OF_LAYERS:
        pytest.skip(f"the {family} ops have no {backend} form")
    if backend == "cuda" and triton_backend.why_no_triton() is not None:
        pytest.skip("its kernels need Triton")
    package = import_module(f"{forms.__name__}.{family}")
    module = import_module(f"{forms.__name__}.{family}.{backend}")
    assert package.form(backend) is module
    for name, wanted in methods_of(protocol_of(family)).items():
        got = inspect.signature(getattr(module, name)).parameters.values()
        assert [(p.name, p.kind) for p in got] == [(p.name, p.kind) for p in wanted], name


def test_every_op_is_some_forms() -> None:
    offered = {name for family in FAMILIES for name in methods_of(protocol_of(family))}
    assert offered == {op.partition(".")[2] for op in OPS}
