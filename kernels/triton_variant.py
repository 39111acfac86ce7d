"""What must be known of a Triton kernel to compile it before there is a GPU to launch it on."""

from __future__ import annotations

from typing import Any, NamedTuple


class Variant(NamedTuple):
    """One specialisation of a kernel, as a launch would ask for it.

    ``signature`` gives each argument's type (``"*fp32"``, ``"i64"``, ``"constexpr"``),
    ``constants`` the constexpr values; ``aligned`` names the arguments known to be multiples of 16.
    """

    name: str
    kernel: Any
    signature: dict[str, str]
    constants: dict[str, Any]
    aligned: tuple[str, ...]
    options: dict[str, int | bool]
    quick: bool


def variant(
    kernel: Any,
    name: str,
    types: dict[str, str],
    constants: dict[str, Any],
    options: dict[str, int | bool],
    *,
    aligned: bool = True,
    quick: bool = False,
) -> Variant:
    """A variant whose pointers are 16-byte aligned or not; an absent (None) pointer is a constant.

    ``types`` holds the runtime arguments, in any order.
    """
    signature = {n: types.get(n, "constexpr") for n in kernel.arg_names}
    missing = [n for n, t in signature.items() if t == "constexpr" and n not in constants]
    if missing or types.keys() - signature.keys():
        raise ValueError(f"{name}: arguments {missing or types.keys() - signature.keys()} unknown")
    pointers = tuple(n for n, t in types.items() if t.startswith("*")) if aligned else ()
    return Variant(name, kernel, signature, constants, pointers, options, quick)
