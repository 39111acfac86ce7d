"""Run the CUDA kernels of a .cu file of the checkout on the CPU, to test them without a GPU."""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

from torch import Tensor

HEADER = Path(__file__).resolve().parent / "cuda_on_cpu.h"
SUPPORT, ROOT = HEADER.parents[1], HEADER.parents[3]
# Whether this process is one of those that ``sanitized`` starts.
SANITIZED = os.environ.get("HFCORE_EMULATION_SANITIZED") == "1"
SANITIZE = ("-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")
FLAGS = (
    "-std=c++17",
    "-shared",
    "-fPIC",
    "-U_FORTIFY_SOURCE",  # whose longjmp takes another stack for a broken one
    "-fno-gnu-unique",  # two libraries in one process have a block each
    *("-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"),
)

Order = Literal["forward", "reverse", "shuffled"]
ORDERS: tuple[Order, ...] = get_args(Order)

# One entry point a file: kernels keep the argument types that the compiler sees.
_ENTRY = """
extern "C" const char* emulate(const char* name, const unsigned* grid, const unsigned* block,
                               unsigned long long shared_bytes, int order, const char* kinds,
                               void* const* slots) {{
    cuda_on_cpu::Launch how{{{{grid[0], grid[1], grid[2]}}, {{block[0], block[1], block[2]}},
                            shared_bytes, static_cast<cuda_on_cpu::Order>(order), 1}};
    const std::string kernel = name;
    bool known = false;
    {cases}
    if (!known) cuda_on_cpu::block().error = "there is no such kernel";
    return cuda_on_cpu::block().error.c_str();
}}
extern "C" long long barriers() {{ return cuda_on_cpu::block().barriers; }}
extern "C" void tensor_core(int extra_bits, int products) {{
    cuda_on_cpu::tensor_core() = {{extra_bits, products}};
}}
"""
_CASE = (
    'if (kernel == "{0}") {{ known = true; how.cluster = {1}; '
    "cuda_on_cpu::launch(::{0}, how, kinds, slots); }}\n    "
)


def kernel_names(source: Path, include: Path = ROOT) -> dict[str, int]:
    """Blocks of a cluster by ``extern "C"`` kernel of a .cu file, those from macros among them."""
    # As nvcc reads it, so that the qualifiers are still there.
    command = ["g++", "-E", "-P", "-D__CUDACC__", f"-I{include}", "-x", "c++", str(source)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.findall(
        r'extern "C" __global__ void\s+(?:__cluster_dims__\((\d+), 1, 1\)\s+)?'
        r"(?:__launch_bounds__\([^()]*\)\s+)?(\w+)",
        text,
    )
    return {name: int(blocks or 1) for blocks, name in found}


def build(
    source: Path,
    folder: Path,
    *,
    sanitize: bool = False,
    optimise: str = "-O2",
    include: Path = ROOT,
) -> Path:
    """Compile the kernels of ``source`` with g++ into a shared library in ``folder``.

    ``include`` is where the sources find "kernels/...".
    ``sanitize`` adds AddressSanitizer and UndefinedBehaviorSanitizer; such a library loads only
    where ``LD_PRELOAD`` names libasan. What runs for a moment compiles fastest with
    ``optimise="-O0"``. Raises CalledProcessError if the compiler refuses.
    """
    wrapper, library = _wrapper(source, folder, include), folder / f"{source.stem}_on_cpu.so"
    flags = (optimise, *FLAGS, f"-I{include}", *(SANITIZE if sanitize else ()))
    subprocess.run(["g++", *flags, str(wrapper), "-o", str(library)], check=True)
    return library


def built(source: Path, *, sanitize: bool = False) -> Path:
    """The library of :func:`build` in build/emulation, compiled once for all processes.

    Its name is a hash of what the compiler sees, so that it is never an old one.
    """
    folder = ROOT / "build" / "emulation"
    folder.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(dir=folder) as own,
        (folder / "lock").open("w") as lock,
    ):
        wrapper = _wrapper(source, Path(own), ROOT)
        command = ["g++", "-E", *FLAGS, f"-I{ROOT}", str(wrapper)]
        text = subprocess.run(command, capture_output=True, check=True).stdout
        text = text.replace(own.encode(), b"")
        release = subprocess.run(["g++", "--version"], capture_output=True, check=True).stdout
        key = hashlib.sha256(text + release + repr((FLAGS, sanitize)).encode()).hexdigest()
        library = folder / f"{source.parent.name}-{source.stem}-{key[:16]}.so"
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not library.exists():
            build(source, Path(own), sanitize=sanitize).rename(library)
    return library


def _wrapper(source: Path, folder: Path, include: Path) -> Path:
    """The C++ file, written to ``folder``, that has the kernels of ``source`` and starts them."""
    kernels = kernel_names(source, include).items()
    cases = "".join(_CASE.format(name, cluster) for name, cluster in kernels)
    wrapper = folder / f"{source.stem}_on_cpu.cpp"
    wrapper.write_text(
        f'#include "{HEADER}"\n#include "{source.resolve()}"\n' + _ENTRY.format(cases=cases)
    )
    return wrapper


def gpu_source(family: str, name: str = "gpu.cu") -> Path:
    """A CUDA C++ file of a family of kernels; wheels carry only what it compiles to."""
    return ROOT / "kernels" / family / name


def sanitized(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Python with these arguments, the sanitizers' runtimes loaded from the start.

    This package can be imported there, and ``SANITIZED`` is True.
    """
    runtime = [
        subprocess.run(
            ["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in ("libasan.so", "libubsan.so", "libstdc++.so")
    ]
    path = os.environ.get("PYTHONPATH")
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(SUPPORT), *([path] if path else [])]),
        "LD_PRELOAD": ":".join(runtime),
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0",
        "HFCORE_EMULATION_SANITIZED": "1",
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run(
        [sys.executable, "-P", *arguments],
        env=env,
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )


def assert_shared_memory_is_exact(program: str, library: Path, less: int, *arguments: str) -> None:
    """``program`` runs in its planned shared memory, and overflows ``less`` bytes fewer."""
    clean = sanitized("-c", program, str(library), "0", *arguments)
    assert clean.returncode == 0, clean.stderr[-3000:]
    caught = sanitized("-c", program, str(library), str(less), *arguments)
    assert caught.returncode != 0, arguments
    assert "heap-buffer-overflow" in caught.stderr


def assert_sanitized_tests_pass(file: str, kept: str) -> None:
    """Those of a file that ``-k`` keeps, on a library with AddressSanitizer and UBSan."""
    done = sanitized("-m", "pytest", "-q", file, "-k", kept)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert " passed" in done.stdout


class EmulationError(RuntimeError):
    """A kernel could not be run to its end, such as a barrier that not every thread reaches."""


class Emulator:
    """The ``launch`` of gpu.py on CPU tensors, with the threads of a block run in ``order``."""

    def __init__(self, library: Path, order: Order = "forward") -> None:
        self._library = ctypes.CDLL(str(library))
        self._library.emulate.restype = ctypes.c_char_p
        self._library.barriers.restype = ctypes.c_longlong
        self.order = order
        self.launches: list[tuple[str, int]] = []

    def tensor_core(self, extra_bits: int, products: int) -> None:
        """How tensor cores add from now on, in this process: see ``tensor_cores_on_cpu.h``."""
        self._library.tensor_core(extra_bits, products)

    def launch(
        self,
        kernel: str,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        shared_bytes: int,
        arguments: Sequence[Tensor | int | float | None],
    ) -> None:
        """Run a kernel; raises :class:`EmulationError` with what went wrong.

        ``launches`` gets the kernel's name and the barriers that each of its blocks passed.
        """
        strides = {a for a in arguments if isinstance(a, int)}
        slots = [_slot(a, strides) for a in arguments]
        kinds = "".join(kind for kind, _ in slots)
        addresses = (ctypes.c_void_p * len(slots))(*(ctypes.addressof(s) for _, s in slots))
        error = self._library.emulate(
            kernel.encode(),
            (ctypes.c_uint * 3)(*grid),
            (ctypes.c_uint * 3)(*block),
            ctypes.c_ulonglong(shared_bytes),
            ORDERS.index(self.order),
            kinds.encode(),
            addresses,
        )
        if error:
            raise EmulationError(f"{kernel}: {error.decode()}")
        barriers = int(self._library.barriers())
        self.launches.append((kernel, barriers // (grid[0] * grid[1] * grid[2])))


def _slot(
    argument: Tensor | int | float | None, strides: set[int]
) -> tuple[str, ctypes.c_void_p | ctypes.c_longlong | ctypes.c_float]:
    """An argument's kind and storage; ``strides`` are the distances of nets that it may have."""
    if argument is None:
        return "p", ctypes.c_void_p(None)
    if isinstance(argument, Tensor):
        in_rows = argument[0].is_contiguous() and argument.stride(0) in strides
        if not argument.is_contiguous() and not in_rows:
            raise ValueError(f"got strides {argument.stride()}, need a contiguous tensor")
        return "p", ctypes.c_void_p(argument.data_ptr())
    if isinstance(argument, float):
        return "f", ctypes.c_float(argument)
    return "i", ctypes.c_longlong(argument)
