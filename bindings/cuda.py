"""CUDA C++ kernels: binaries built ahead of time, loaded through CuPy when first needed.

torch owns all memory and says which stream; CuPy loads and launches. Nothing here is imported or
initialised before data on a CUDA device asks for it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hfcore.bindings.nvtx import annotate

Argument = Tensor | int | float | None
Extent = tuple[int, int, int]

BINARY = "gpu.fatbin"

# The oldest GPUs that the binaries are built for (CMakeLists.txt).
OLDEST = (8, 0)

# What every block may have without asking; beyond it a kernel must be told.
PLAIN_SHARED = 48 * 1024

_MIB = 2.0**20
_NULL = np.uint64(0)


def why_no_device() -> str | None:
    """Why this process has no CUDA device at all, or None if it has one."""
    if not torch.backends.cuda.is_built():
        return "torch is built without CUDA"
    return None if torch.cuda.is_available() else "torch sees no CUDA device"


@functools.cache
def why_no_cupy() -> str | None:
    """Why CuPy cannot launch kernels here, or None if it can."""
    try:
        import cupy
    except ModuleNotFoundError:
        return "CuPy is not installed (pip install 'hfcore[cuda]')"
    except Exception as error:  # a CuPy for another CUDA fails in many ways
        return f"CuPy did not load: {_one_line(error)}"
    return None if cupy.cuda.is_available() else "CuPy sees no CUDA device"


def find_binary(family: str, binary: str = BINARY) -> Path | None:
    """The fatbin of a .cu of ``kernels/<family>``, or None if built without nvcc."""
    # An editable install keeps Python files in the checkout and built files in site-packages.
    for folder in import_module(f"hfcore.kernels.{family}").__path__:
        path = Path(folder) / binary
        if path.exists():
            return path
    return None


def why_unavailable(
    family: str, device: torch.device | None = None, binary: str = BINARY
) -> str | None:
    """Why the kernels of ``family`` cannot serve data on ``device``, or None if they can.

    None as device is torch's current one. The first question loads the binary on that device.
    """
    reason = why_no_device() or why_no_cupy()
    return reason if reason is not None else _loaded(family, _index(device), binary)[1]


def launcher(family: str, device: torch.device, binary: str = BINARY) -> Launcher:
    """What launches the kernels of a binary of ``family`` on ``device``.

    Raises RuntimeError with the reason of :func:`why_unavailable`.
    """
    reason = why_no_device() or why_no_cupy()
    if reason is None:
        launch, reason = _loaded(family, _index(device), binary)
        if launch is not None:
            return launch
    raise RuntimeError(f"the CUDA kernels of {family} cannot serve {device}: {reason}")


def describe(device: torch.device | None = None) -> str:
    """Name, compute capability, memory and shared memory of a device, in words."""
    p = _properties(_index(device))
    return (
        f"{p.name}, compute capability {p.major}.{p.minor}, {p.total_memory / _MIB:,.0f} MiB, "
        f"{p.multi_processor_count} multiprocessors, "
        f"{p.shared_memory_per_block_optin:,} B shared memory a block"
    )


@contextmanager
def naming_memory(op: str, device: torch.device) -> Iterator[None]:
    """Running out of device memory inside names the op, the size asked and the size free."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        free, total = torch.cuda.mem_get_info(device)
        raise torch.OutOfMemoryError(
            f"{op}: out of memory on {device}: {free / _MIB:,.0f} of {total / _MIB:,.0f} MiB are "
            f"free; {_one_line(error)}"
        ) from error


@contextmanager
def serving(op: str, family: str, device: torch.device) -> Iterator[Launcher]:
    """The launcher of an op's family while it runs: its device is current, its range is marked.

    Raises RuntimeError where the family's kernels cannot serve ``device``, torch.OutOfMemoryError
    naming the op.
    """
    launch = launcher(family, device)
    with torch.cuda.device(device), naming_memory(op, device), annotate(op):
        yield launch


class Launcher:
    """Launches the kernels of one family on one device, on torch's current stream there.

    Called with a kernel's name, grid, block, bytes of dynamic shared memory and arguments in
    order: a tensor or None is passed as a pointer, an int as ``long long``, a float as ``float``.
    Raises ValueError for a tensor on another device or more shared memory than the chip has,
    RuntimeError naming the kernel for what the driver refuses.
    """

    def __init__(self, module: Any, index: int) -> None:
        self._module = module
        self._kernels: dict[str, Any] = {}
        self._granted: dict[str, int] = {}
        self._streams: dict[int, Any] = {}
        self._index = index
        properties = _properties(index)
        self.shared_limit: int = properties.shared_memory_per_block_optin
        self.multiprocessors: int = properties.multi_processor_count

    def __call__(
        self,
        name: str,
        grid: Extent,
        block: Extent,
        shared: int,
        arguments: Sequence[Argument],
    ) -> None:
        raw = tuple([self._raw(name, i, a) for i, a in enumerate(arguments)])
        with torch.cuda.device(self._index), self._stream():
            kernel = self._kernel(name, shared)
            try:
                kernel(grid, block, raw, shared_mem=shared)
            except Exception as error:
                raise RuntimeError(
                    f"{name}: the driver refused grid {grid}, block {block}, {shared} B of shared "
                    f"memory: {_one_line(error)}"
                ) from error

    def _raw(self, name: str, position: int, value: Argument) -> np.generic:
        """The bytes that a kernel's parameter takes."""
        kind = type(value)  # most are plain: isinstance of a tensor takes longer
        if kind is int:
            return np.int64(value)  # type: ignore[arg-type]
        if value is None:
            return _NULL
        if kind is float:
            return np.float32(value)
        if isinstance(value, Tensor):
            if value.get_device() != self._index:  # −1 on the CPU
                raise ValueError(
                    f"{name}: argument {position} is on {value.device}, need cuda:{self._index}"
                )
            return np.uint64(value.data_ptr())
        return np.int64(value) if isinstance(value, int) else np.float32(value)

    def _kernel(self, name: str, shared: int) -> Any:
        kernel = self._kernels.get(name)
        if kernel is None:
            kernel = self._kernels[name] = self._module.get_function(name)
        if shared > self._granted.get(name, PLAIN_SHARED):
            if shared > self.shared_limit:
                raise ValueError(
                    f"{name}: needs {shared} B of shared memory a block, "
                    f"cuda:{self._index} has {self.shared_limit} B"
                )
            kernel.max_dynamic_shared_size_bytes = shared
            self._granted[name] = shared
        return kernel

    def _stream(self) -> Any:
        import cupy

        stream = torch.cuda.current_stream(self._index)
        key = stream.cuda_stream
        if key not in self._streams:
            # CuPy 14 deprecates ExternalStream in favour of the stream protocol.
            protocol = hasattr(stream, "__cuda_stream__") and hasattr(
                cupy.cuda.Stream, "from_external"
            )
            self._streams[key] = (
                cupy.cuda.Stream.from_external(stream)
                if protocol
                else cupy.cuda.ExternalStream(key, self._index)
            )
        return self._streams[key]


@functools.cache
def _loaded(family: str, index: int, binary: str) -> tuple[Launcher | None, str | None]:
    """(launcher, None), or (None, why the binary does not run on this device)."""
    import cupy

    path = find_binary(family, binary)
    if path is None:
        return None, f"hfcore.kernels.{family} has no {binary}: this install was built without nvcc"
    properties = _properties(index)
    capability = (properties.major, properties.minor)
    gpu = f"{properties.name} has compute capability {capability[0]}.{capability[1]}"
    if capability < OLDEST:
        return None, f"the kernels need compute capability {OLDEST[0]}.{OLDEST[1]}, {gpu}"
    with torch.cuda.device(index):
        torch.cuda.current_stream(index).synchronize()  # makes torch's context, which CuPy joins
        module = cupy.RawModule(path=str(path))
        try:
            module.module  # noqa: B018  # loads; where there is only PTX the driver compiles it now
        except Exception as error:
            # Memory may be free again later: no reason to remember.
            if "OUT_OF_MEMORY" in str(error):
                raise torch.OutOfMemoryError(
                    f"{path}: loading it ran out of memory on cuda:{index}: {_one_line(error)}"
                ) from error
            return None, f"{path} does not load; {gpu}: {_one_line(error)}"
    return Launcher(module, index), None


def _properties(index: int) -> Any:
    """Of a device; torch's own annotations leave some out."""
    return torch.cuda.get_device_properties(index)


def _index(device: torch.device | None) -> int:
    if device is None or device.index is None:
        return torch.cuda.current_device()
    return device.index


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
