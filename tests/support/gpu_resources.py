"""What every .cu becomes: compiled by nvcc with spills as errors, or read from the binaries of the
installed package; and kernels/gpu_resources.md.

python -P tests/support/gpu_resources.py            print the table
python -P tests/support/gpu_resources.py --write    replace the committed one
"""

from __future__ import annotations

import functools
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
TABLE = ROOT / "kernels" / "gpu_resources.md"
SOURCES = sorted(path.relative_to(ROOT) for path in (ROOT / "kernels").rglob("*.cu"))
ARCHITECTURES = (80, 90, 100)
# As HFCORE_GPU_SOURCES_FROM_90 of CMakeLists.txt.
FROM_90 = (Path("kernels/recurrence/gpu_cluster.cu"),)
BUILDS = [(s, a) for s in SOURCES for a in ARCHITECTURES if a >= 90 or s not in FROM_90]

# As CMakeLists.txt compiles them, plus the gate itself: ptxas makes an error of every spill.
FLAGS = ("-cubin", "-std=c++17", "-O3", "-lineinfo", "-Xptxas=-v,-warn-spills,-Werror")

HEADER = """# What the CUDA kernels ask of a chip

Registers a thread and bytes of static shared memory a block, by `nvcc {version}`; no kernel spills
or has a stack frame. Dynamic shared memory depends on the shape and is planned in each family's
`gpu.py`. Written by `python -P tests/support/gpu_resources.py --write`; the gate
`tests/gates/test_nvcc.py` fails when a kernel's row changes without this file.

No GPU has run the kernels of {unrun} yet: they are compiled, and emulated on the CPU.

| kernel | source | architecture | registers | static shared |
| --- | --- | --- | --- | --- |
"""

_ENTRY = re.compile(
    r"Compiling entry function '(?P<kernel>\w+)' for 'sm_(?P<arch>\d+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores.*?"
    r"Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.S,
)
_USAGE = re.compile(
    r"Function (\w+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)",
)


class CompileError(Exception):
    """nvcc refused a source; the message is what it said."""


@dataclass(frozen=True, order=True)
class Resources:
    """What one kernel takes on one architecture."""

    kernel: str
    source: str
    architecture: int
    registers: int
    static_shared: int
    stack: int
    spills: int

    def row(self) -> str:
        return (
            f"| `{self.kernel}` | {self.source} | sm_{self.architecture} | {self.registers} | "
            f"{self.static_shared} |"
        )


def version(nvcc: str) -> str:
    """Release of nvcc, such as 13.0."""
    said = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"release (\d+\.\d+)", said)
    if found is None:
        raise CompileError(f"{nvcc} --version says no release: {said}")
    return found[1]


def compile_source(nvcc: str, source: Path, architecture: int) -> list[Resources]:
    """The kernels of one source; raises :class:`CompileError` for an error, a spill included."""
    said = _compiled(nvcc, source, architecture)
    relative = source.resolve().relative_to(ROOT)
    return [_resources(str(relative), entry) for entry in _ENTRY.finditer(said)]


def compile_all(nvcc: str, architectures: Iterable[int] = ARCHITECTURES) -> None:
    """All sources, two at a time; what is asked for later is there then."""
    every = [(nvcc, ROOT / source, a) for source, a in BUILDS if a in set(architectures)]
    with ThreadPoolExecutor(2) as pool:
        # An error is that of whoever asks.
        wait([pool.submit(_compiled, *one) for one in every])


@functools.cache
def _compiled(nvcc: str, source: Path, architecture: int) -> str:
    """What nvcc and ptxas say."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernels.cubin"
        done = subprocess.run(
            [nvcc, *FLAGS, f"-arch=sm_{architecture}", f"-I{ROOT}", "-o", str(cubin), str(source)],
            capture_output=True,
            text=True,
            timeout=600,
        )
        if done.returncode != 0:
            raise CompileError(f"{source}, sm_{architecture}: {done.stderr.strip()}")
        return done.stderr


def resources_in(cuobjdump: str, fatbin: Path, source: Path) -> list[Resources]:
    """The kernels of a binary, for every architecture in it; local memory counts as spills."""
    said = _said(cuobjdump, "-res-usage", str(fatbin))
    found = []
    for part in re.split(r"^arch = sm_", said, flags=re.M)[1:]:
        architecture = int(part.split(maxsplit=1)[0])
        for entry in _USAGE.finditer(part):
            registers, stack, shared, local = (int(n) for n in entry.groups()[1:])
            # From sm_90 on the driver's own kilobyte is in the sum, where a block has any.
            shared = max(0, shared - 1024) if architecture >= 90 else shared
            found.append(
                Resources(entry[1], str(source), architecture, registers, shared, stack, local)
            )
    return found


class Loop(NamedTuple):
    """Instructions of one round of a loop in machine code."""

    fma: int
    shared_loads: int  # of 16 bytes
    all: int
    local: int = 0  # loads and stores of local memory
    mma: int = 0  # products on tensor cores
    parameters: int = 0  # loads of the kernel's arguments into a register of a lane


def hottest_loops(cuobjdump: str, fatbin: Path, architecture: int) -> dict[str, Loop]:
    """Of every kernel's innermost loops the one with most float32 multiply-adds."""
    kernels = machine_code(cuobjdump, fatbin, architecture)
    loops = {name: _loops(code, inner=True) for name, code in kernels.items()}
    return {name: max(found) for name, found in loops.items() if found}


def every_loop(cuobjdump: str, fatbin: Path, architecture: int) -> dict[str, list[Loop]]:
    """All loops of every kernel, whatever lies within."""
    kernels = machine_code(cuobjdump, fatbin, architecture)
    return {name: _loops(code, inner=False) for name, code in kernels.items()}


@functools.cache
def machine_code(cuobjdump: str, fatbin: Path, architecture: int) -> dict[str, str]:
    """Every kernel's listing."""
    listing = _said(cuobjdump, "-sass", f"-arch=sm_{architecture}", str(fatbin))
    kernels = re.split(r"Function : ", listing)[1:]
    return {kernel.split()[0]: kernel for kernel in kernels}


def _said(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _loops(sass: str, *, inner: bool) -> list[Loop]:
    """Backward branches, or those that no other one lies within."""
    code = [(int(at, 16), text) for at, text in re.findall(r"/\*([0-9a-f]{4,5})\*/\s+(.*?);", sass)]
    branches = [(at, re.search(r"BRA (?:\S+ )?0x([0-9a-f]+)", text)) for at, text in code]
    spans = [(int(to[1], 16), at) for at, to in branches if to and int(to[1], 16) < at]
    if inner:
        spans = [
            (begin, end)
            for begin, end in spans
            if not any(begin <= b and e <= end and (b, e) != (begin, end) for b, e in spans)
        ]
    bodies = [[text for at, text in code if begin <= at <= end] for begin, end in spans]
    return [
        Loop(
            sum("FFMA" in t for t in body),
            sum("LDS.128" in t for t in body),
            len(body),
            sum("LDL" in t or "STL" in t for t in body),
            sum("HMMA" in t for t in body),
            sum("LDC " in t for t in body),
        )
        for body in bodies
    ]


def _resources(source: str, entry: re.Match[str]) -> Resources:
    shared = re.search(r"(\d+) bytes smem", entry["rest"])
    return Resources(
        entry["kernel"],
        source,
        int(entry["arch"]),
        int(entry["registers"]),
        int(shared[1]) if shared else 0,
        int(entry["stack"]),
        int(entry["stores"]),
    )


def rows_in_table(architecture: int) -> list[str]:
    """The committed rows of one architecture."""
    mark = f"| sm_{architecture} |"
    return [line for line in TABLE.read_text(encoding="utf-8").splitlines() if mark in line]


def version_in_table() -> str:
    """Release of the nvcc that the committed table is by."""
    found = re.search(r"`nvcc (\d+\.\d+)`", TABLE.read_text(encoding="utf-8"))
    return found[1] if found else "unknown"


def header(release: str) -> str:
    """The table's head, by nvcc of this release; which kernels no GPU has run, their .cu says."""
    said = {path: re.sub(r"\s*\n//\s*", " ", (ROOT / path).read_text("utf-8")) for path in SOURCES}
    unrun = [f"`{path}`" for path in SOURCES if "o GPU has run these kernels yet" in said[path]]
    return HEADER.format(version=release, unrun=", ".join(unrun))


def render(nvcc: str) -> str:
    """The whole table, measured now."""
    compile_all(nvcc)
    measured = [
        kernel
        for source, architecture in BUILDS
        for kernel in compile_source(nvcc, ROOT / source, architecture)
    ]
    rows = "".join(f"{kernel.row()}\n" for kernel in sorted(measured))
    return header(version(nvcc)) + rows


def main(arguments: list[str]) -> None:
    table = render("nvcc")
    if arguments == ["--write"]:
        TABLE.write_text(table, encoding="utf-8")
    else:
        print(table, end="")


if __name__ == "__main__":
    main(sys.argv[1:])
