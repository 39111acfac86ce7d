"""Every instruction set that this machine can run is right, and none leaks code into another."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
from pathlib import Path

import pytest
from python_process import forked, python_output

from hfcore.bindings import dispatch

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
ORDER = ("baseline", "avx2", "avx512")

# Fails unless the asked set is the one in use, then compares every op with the reference.
COMPARE = """
import sys, pytest
from hfcore.bindings import dispatch
assert dispatch.native().isa() == sys.argv[1], dispatch.native().isa()
sys.exit(pytest.main([*sys.argv[2:], "-q", "-m", "not slow", "-p", "no:cacheprovider"]))
"""


# AVX2 is slow here: where it is the narrower one, its bits are those of AVX-512, as below.
@pytest.mark.parametrize("isa", ["baseline", pytest.param("avx2", marks=pytest.mark.slow)])
def test_narrower_instruction_set(isa: str) -> None:
    widest = dispatch.native().isa()
    if ORDER.index(isa) >= ORDER.index(widest):
        pytest.skip(f"{isa} is not narrower than {widest}, which the other tests run")
    chosen = (
        "test_compiled and tanh or nothing_is_written or test_every_op and cpu and tanh"
        " or test_against_algebra and cpu or bits_that_it_has_alone or wherever_it_stands"
        " or test_every_op and cpu and short or test_through_time and cpu"
    )
    names = ("recurrence", "dense", "net", "momentum", "sparse")
    files = [str(HERE / f"test_{name}.py") for name in names]
    said = python_output(
        *("-c", COMPARE, isa, *files, "-k", chosen), cwd=ROOT, HFCORE_ISA=isa, OMP_NUM_THREADS="1"
    )
    assert " passed" in said


@pytest.mark.skipif(dispatch.native().isa() != "avx512", reason="this machine has no AVX-512")
def test_one_order_of_sums() -> None:
    """AVX2 and AVX-512 give the same bits."""
    script = str(ROOT / "tests" / "support" / "bits_of_ops.py")
    ours, others = (
        json.loads(python_output(script, cwd=ROOT, HFCORE_ISA=isa)) for isa in ("avx512", "avx2")
    )
    assert len(ours) > 100
    assert {name for name in ours if ours[name] != others[name]} == set()


def test_unknown_instruction_set_is_an_error() -> None:
    """At the first use of the compiled kernels, and of hfcore info in one line."""
    served = ", ".join(ORDER[: ORDER.index(dispatch.native().isa()) + 1])
    uses = (
        "import torch, hfcore as hf\nhf.RNN(2, 3, 1)(torch.zeros(2, 2, 2))",
        "from hfcore.cli import main\nmain(['info'])",
    )
    asked = [name for name in ("sse9", "AVX2", "avx512 ") for _ in uses]
    programs = [
        f"import os\nos.environ['HFCORE_ISA'] = {name!r}\n{use}"
        for name, use in zip(asked, 3 * uses, strict=True)
    ]
    for name, done in zip(asked, forked("import torch, hfcore.cli.info", programs), strict=True):
        assert done.returncode == 1
        want = f"HFCORE_ISA: got '{name}', this machine serves {served}"
        assert done.stderr.splitlines()[-1].split(": ", 1)[1] == want


def object_files(isa: str) -> list[Path]:
    folder = f"hfcore_cpu_{isa}.dir"
    return [
        p
        for p in sorted(ROOT.glob(f"build/*/CMakeFiles/{folder}/**/*.o"))
        if "sanitize" not in str(p)
    ]


def mergeable_symbols(path: Path) -> set[str]:
    """Definitions that the linker may replace by another object's of the same name."""
    listed = subprocess.run(
        ["nm", "-C", "--defined-only", str(path)], capture_output=True, text=True, check=True
    )
    parts = [line.split(maxsplit=2) for line in listed.stdout.splitlines()]
    # the pointer to the personality routine holds no instructions
    return {p[2] for p in parts if p[1] in "VWu" and not p[2].startswith("DW.ref.")}


@pytest.mark.skipif(shutil.which("nm") is None, reason="nm is not installed")
@pytest.mark.skipif(platform.system() != "Linux", reason="reads ELF symbol types")
@pytest.mark.parametrize("isa", ORDER)
def test_no_symbol_is_shared_with_another_instruction_set(isa: str) -> None:
    """One inline function compiled for AVX-512 and linked into the baseline crashes elsewhere."""
    paths = object_files(isa)
    if not paths:
        pytest.skip("no object files in build/")
    seen = set()
    for path in paths:
        for name in mergeable_symbols(path):
            seen.add(name)
            assert f"hfcore::{isa}::" in name, f"{path.name}: {name} is outside hfcore::{isa}"
    assert seen, "not even the table of kernels was found: the test looks at the wrong symbols"
