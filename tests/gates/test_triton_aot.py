"""Every Triton kernel compiled for sm_80, sm_90 and sm_100 without a GPU: no spills, it fits."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Iterable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest

from hfcore.kernels.triton_variant import Variant, variant

FAMILIES = ("dense", "sparse", "loss", "conjugate_gradient", "momentum", "draws")
# Shared memory of a block in bytes; an oversize kernel compiles and fails only at launch.
SHARED_LIMIT = {80: 166_912, 90: 232_448, 100: 232_448}

Tool = Callable[[str], str]


class Facts(NamedTuple):
    """What the assembler made of a kernel: bytes of stack, accesses to local memory, shared bytes,
    products on tensor cores, the program before the assembler's in Triton's own language.

    The register figure misleads (it is not what limits a kernel that spills) and is not kept.
    """

    stack: int
    local_accesses: int
    shared: int
    tensor: int
    program: str

    def faults(self, arch: int) -> list[str]:
        found = []
        if self.stack:
            found.append(f"{self.stack} B of stack")
        if self.local_accesses:
            found.append(f"{self.local_accesses} loads and stores of local memory")
        if self.shared > SHARED_LIMIT[arch]:
            found.append(f"{self.shared} B of shared memory, sm_{arch} has {SHARED_LIMIT[arch]}")
        return found


@pytest.fixture
def compiler(
    require_tool: Tool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Variant, int], Facts]:
    """``compiler(variant, arch)``; a cache of its own, so that nothing stale is looked at."""
    require_tool("triton")
    cuobjdump, nvdisasm = require_tool("cuobjdump"), require_tool("nvdisasm")
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.fail("TRITON_INTERPRET=1: kernels of this process cannot be compiled")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    def facts(v: Variant, arch: int) -> Facts:
        names = v.kernel.arg_names
        attributes = {(names.index(n),): [["tt.divisibility", 16]] for n in v.aligned}
        source = ASTSource(v.kernel, v.signature, v.constants, attributes)
        made = compile(source, target=GPUTarget("cuda", arch, 32), options=dict(v.options))
        cubin = tmp_path / "kernel.cubin"
        cubin.write_bytes(made.asm["cubin"])
        usage = re.search(r"STACK:(\d+)", _output(cuobjdump, "-res-usage", cubin))
        code = _output(nvdisasm, "-c", cubin)
        assert usage is not None
        assert "EXIT" in code
        found = [
            len(re.findall(p, code)) for p in (r"\b(?:STL|LDL)\b", r"\b(?:HG?MMA|UTC\w*MMA)\b")
        ]
        return Facts(
            int(usage.group(1)), found[0], made.metadata.shared, found[1], made.asm["ttgir"]
        )

    return facts


def _output(tool: str, option: str, cubin: Path) -> str:
    done = subprocess.run([tool, option, cubin], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _load(family: str) -> ModuleType:
    return import_module(f"hfcore.kernels.{family}.gpu_triton")


def _check(
    compiler: Callable[[Variant, int], Facts], variants: Iterable[Variant], arch: int
) -> int:
    """Compile all; fail with a line for each fault; gives how many there were."""
    faults = {v.name: compiler(v, arch).faults(arch) for v in variants}
    lines = [f"{name}: {fault}" for name, found in faults.items() for fault in found]
    assert not lines, f"sm_{arch}:\n" + "\n".join(lines)
    return len(faults)


@pytest.mark.parametrize("family", FAMILIES)
def test_quick_variants_on_sm90(family: str, compiler: Callable[[Variant, int], Facts]) -> None:
    variants = [v for v in _load(family).variants() if v.quick]
    kernels = {n for n in vars(_load(family)) if n.endswith("_kernel")}
    assert _check(compiler, variants, 90) >= len(kernels) / 2


@pytest.mark.slow
@pytest.mark.parametrize("arch", SHARED_LIMIT)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_variant(family: str, arch: int, compiler: Callable[[Variant, int], Facts]) -> None:
    _check(compiler, _load(family).variants(), arch)


@pytest.mark.parametrize("arch", [pytest.param(80, marks=pytest.mark.slow), 90])
def test_six_bfloat16_products_are_on_tensor_cores(
    arch: int, compiler: Callable[[Variant, int], Facts]
) -> None:
    """In the narrowest tile that there is, and in the order of the emulation."""
    from tensor_dot import ORDER  # needs Triton

    found: dict[str, Facts] = {}
    for v in _load("dense").variants():
        if v.name in [f"dense_backward-fp32-{p}-16x16-odd-logistic" for p in ("ieee", "bf16x6")]:
            found[v.constants["PRECISION"]] = compiler(v, arch)
    assert found["ieee"].tensor == 0
    assert found["bf16x6"].tensor >= 6
    assert found["bf16x6"].tensor % 6 == 0
    pieces = re.findall(r"(%\w+) = arith.truncf", found["bf16x6"].program)
    dots = re.findall(r"(?:tt.dot|ttng.\w*mma\w*) (%\w+), (%\w+)", found["bf16x6"].program)
    assert len(pieces) == 6  # of the left operand, then of the right one
    assert [(pieces.index(a), pieces.index(b) - 3) for a, b in dots] == list(ORDER)


def _with_sizes_of_one(v: Variant) -> Variant:
    """As launched where every size is 1: Triton makes a constant of an integer argument of 1,
    unless it is told not to."""
    kept = {p.name for p in v.kernel.params if p.do_not_specialize}
    sizes = [n for n, t in v.signature.items() if t == "i32" and n not in kept]
    signature = {n: "constexpr" if n in sizes else t for n, t in v.signature.items()}
    aligned = tuple(n for n in v.aligned if n not in sizes)
    constants = {**v.constants, **dict.fromkeys(sizes, 1)}
    return v._replace(signature=signature, constants=constants, aligned=aligned)


@pytest.mark.parametrize(
    "family",
    [pytest.param(f, marks=[] if f in ("dense", "draws") else pytest.mark.slow) for f in FAMILIES],
)
def test_sizes_of_one(family: str, compiler: Callable[[Variant, int], Facts]) -> None:
    _check(compiler, [_with_sizes_of_one(v) for v in _load(family).variants() if v.quick], 90)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_kernel_has_a_variant(family: str, require_tool: Tool) -> None:
    require_tool("triton")
    kernels = {v for n, v in vars(_load(family)).items() if n.endswith("_kernel")}
    assert kernels == {v.kernel for v in _load(family).variants()}
    names = [v.name for v in _load(family).variants()]
    assert len(names) == len(set(names))


# ---------------------------------------------------------------------------- the gate bites


@pytest.mark.parametrize(
    ("name", "fault"), [("spill", "local memory"), ("oversize", "of shared memory")]
)
def test_planted_fault_is_found(
    name: str, fault: str, compiler: Callable[[Variant, int], Facts]
) -> None:
    from planted import triton_kernels  # needs Triton

    kernel = getattr(triton_kernels, f"{name}_kernel")
    v = variant(kernel, name, *getattr(triton_kernels, name.upper()))
    with pytest.raises(AssertionError, match=fault):
        _check(compiler, [v], 90)
