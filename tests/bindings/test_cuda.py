"""Loading and launching CUDA kernels, on a machine without a GPU: every reason, every refusal.

CuPy and the parts of torch.cuda that ask a driver are stood in for; what the loader decides and
hands to them is what is tested. The kernels themselves: tests/gates.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from op_recorder import Recorder
from python_process import python
from torch import Tensor

import hfcore as hf
from hfcore.bindings import (
    conjugate_gradient,
    cuda,
    dispatch,
    loss,
    nvtx,
    tensor_cores,
    triton_backend,
)
from hfcore.bindings.momentum import lookahead_point, momentum_update
from hfcore.kernels.recurrence.gpu_launch import NO_TENSOR_CORES

FAMILY = "recurrence"
DEVICE = torch.device("cuda", 0)
SHARED_LIMIT = 232_448


class Kernel:
    """What CuPy gives for a kernel's name; remembers its launches."""

    def __init__(self, driver: Driver, name: str) -> None:
        self.driver, self.name = driver, name

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "max_dynamic_shared_size_bytes":
            self.driver.granted.append((self.name, value))
        object.__setattr__(self, name, value)

    def __call__(self, grid: Any, block: Any, args: Any, *, shared_mem: int) -> None:
        if self.driver.refusal is not None:
            raise RuntimeError(self.driver.refusal)
        stream = self.driver.streams[-1]
        self.driver.launches.append((self.name, grid, block, shared_mem, args, stream))


class Driver:
    """A GPU that does nothing: its properties, and what was asked of it."""

    def __init__(self) -> None:
        self.capability = (9, 0)
        self.multiprocessors = 132
        self.shared_limit = SHARED_LIMIT
        self.load_error: str | None = None
        self.refusal: str | None = None
        self.loads = 0
        self.launches: list[tuple[Any, ...]] = []
        self.granted: list[tuple[str, int]] = []
        self.streams: list[int] = []

    @property
    def properties(self) -> SimpleNamespace:
        major, minor = self.capability
        return SimpleNamespace(
            name="Test GPU",
            major=major,
            minor=minor,
            total_memory=2**30,
            multi_processor_count=self.multiprocessors,
            shared_memory_per_block_optin=self.shared_limit,
        )

    def module(self, path: str) -> Any:
        driver = self

        class Module:
            @property
            def module(self) -> None:
                driver.loads += 1
                if driver.load_error is not None:
                    raise RuntimeError(driver.load_error)

            def get_function(self, name: str) -> Kernel:
                return Kernel(driver, name)

        assert path.endswith("gpu.fatbin")
        return Module()

    def stream(self, torch_stream: Any) -> Any:
        @contextlib.contextmanager
        def entered() -> Iterator[None]:
            self.streams.append(torch_stream.cuda_stream)
            yield
            self.streams.pop()

        class Stream:
            def __enter__(self) -> None:
                self.context = entered()
                self.context.__enter__()

            def __exit__(self, *failure: Any) -> None:
                self.context.__exit__(*failure)

        return Stream()


def forget() -> None:
    cuda.why_no_cupy.cache_clear()
    cuda._loaded.cache_clear()
    tensor_cores._found.cache_clear()


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Driver]:
    """A machine with one GPU, CuPy and a fatbin."""
    made = Driver()
    cupy = SimpleNamespace(
        RawModule=lambda path: made.module(path),
        cuda=SimpleNamespace(
            is_available=lambda: True, Stream=SimpleNamespace(from_external=made.stream)
        ),
    )
    stream = SimpleNamespace(
        cuda_stream=7, synchronize=lambda: None, __cuda_stream__=lambda: (0, 7)
    )
    binary = tmp_path / "gpu.fatbin"
    binary.touch()
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda index=None: stream)
    monkeypatch.setattr(torch.cuda, "device", lambda index: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: made.properties)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: made.capability)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (3 * 2**20, 8 * 2**20))
    monkeypatch.setattr(cuda, "find_binary", lambda *_: binary)
    forget()
    yield made
    forget()


class OnDevice(torch.Tensor):
    """A tensor that says it lies on cuda:0, at address 0x1000."""

    @staticmethod
    def __new__(cls, *size: int) -> OnDevice:
        made: OnDevice = Tensor._make_wrapper_subclass(cls, size, device=DEVICE)
        return made

    @classmethod
    def __torch_dispatch__(cls, *_: Any, **__: Any) -> Any:
        raise AssertionError("the launcher computed with a tensor")

    def data_ptr(self) -> int:
        return 0x1000


def like(device: str, dtype: torch.dtype = torch.float32) -> Any:
    """As much of a tensor as dispatch looks at."""
    return SimpleNamespace(device=torch.device(device), dtype=dtype)


# ------------------------------------------------------------------------- why not


needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")


@needs_no_gpu
def test_without_a_device_the_reason_is_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: False)
    assert cuda.why_no_device() == "torch is built without CUDA"
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    assert cuda.why_no_device() == "torch sees no CUDA device"
    assert cuda.why_unavailable(FAMILY) == "torch sees no CUDA device"
    with pytest.raises(RuntimeError, match="kernels of recurrence cannot serve cuda:0: torch sees"):
        cuda.launcher(FAMILY, DEVICE)


@needs_no_gpu
def test_importing_and_computing_touches_neither_cupy_nor_triton() -> None:
    code = (
        "import sys, torch, hfcore as hf\n"
        "m = hf.RNN(2, 3, 1); m(torch.zeros(4, 2, 2)).sum().backward()\n"
        "hf.GaussNewton(m, hf.losses.SquaredError(), torch.zeros(4, 2, 2), torch.zeros(4, 2, 1))\n"
        "print([name for name in ('cupy', 'triton') if name in sys.modules])\n"
    )
    done = python("-c", code)
    assert done.stdout.strip() == "[]", done.stderr
    assert done.stderr == ""


def test_cupy_absent_broken_or_blind(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["cupy"].cuda, "is_available", lambda: False)
    assert cuda.why_unavailable(FAMILY) == "CuPy sees no CUDA device"
    forget()
    monkeypatch.setitem(sys.modules, "cupy", None)  # importing it raises ModuleNotFoundError
    assert cuda.why_unavailable(FAMILY) == "CuPy is not installed (pip install 'hfcore[cuda]')"
    assert driver.loads == 0


def test_no_binary(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "find_binary", lambda *_: None)
    reason = cuda.why_unavailable(FAMILY)
    assert reason is not None
    assert "has no gpu.fatbin: this install was built without nvcc" in reason


def test_gpu_too_old(driver: Driver) -> None:
    driver.capability = (7, 5)
    reason = cuda.why_unavailable(FAMILY)
    assert reason == (
        "the kernels need compute capability 8.0, Test GPU has compute capability 7.5"
    )
    assert driver.loads == 0


def test_binary_that_does_not_load_is_tried_once(driver: Driver) -> None:
    driver.load_error = "CUDA_ERROR_NO_BINARY_FOR_GPU: no kernel image is available"
    for _ in range(3):
        reason = cuda.why_unavailable(FAMILY)
        assert reason is not None
        assert "does not load; Test GPU has compute capability 9.0" in reason
        assert "CUDA_ERROR_NO_BINARY_FOR_GPU" in reason
    assert driver.loads == 1


def test_loading_out_of_memory_raises_and_is_tried_again(driver: Driver) -> None:
    driver.load_error = "CUDA_ERROR_OUT_OF_MEMORY: out of memory"
    for _ in range(2):
        with pytest.raises(torch.OutOfMemoryError, match="loading it ran out of memory on cuda:0"):
            cuda.why_unavailable(FAMILY)
    driver.load_error = None
    assert cuda.why_unavailable(FAMILY) is None
    assert driver.loads == 3


@pytest.mark.parametrize(
    ("family", "binary", "kernel"),
    [
        (FAMILY, "gpu.fatbin", b"rnn_forward"),
        (FAMILY, "gpu_tensor.fatbin", b"rnn_forward_tensor_7"),
        (FAMILY, "gpu_cluster.fatbin", b"rnn_forward_cluster_5"),
        (FAMILY, "gpu_step.fatbin", b"rnn_forward_step_tensor"),
        ("dense", "gpu.fatbin", b"dense_forward_64x80x32"),
        ("gated", "gpu.fatbin", b"lstm_tangent_step"),
    ],
)
def test_installed_binary_is_found(family: str, binary: str, kernel: bytes) -> None:
    """Wherever this environment was built with nvcc, wheel or editable."""
    path = cuda.find_binary(family, binary)
    if path is None:
        pytest.skip("NOT RUN: this install was built without nvcc")
    assert path.name == binary
    data = path.read_bytes()
    assert data[:4] == bytes.fromhex("50ed55ba")  # a fatbin's first word, 0xBA55ED50
    assert kernel in data


# ------------------------------------------------------------------------- launching


def test_arguments_reach_the_kernel_as_the_protocol_says(driver: Driver) -> None:
    launch = cuda.launcher(FAMILY, DEVICE)
    tensor = OnDevice(3)
    launch("scan", (125, 2, 1), (256, 1, 1), 1000, [tensor, None, 2**40, 0.1, True])
    ((name, grid, block, shared, arguments, stream),) = driver.launches
    assert (name, grid, block, shared, stream) == ("scan", (125, 2, 1), (256, 1, 1), 1000, 7)
    assert [type(a) for a in arguments] == [
        np.uint64, np.uint64, np.int64, np.float32, np.int64,
    ]  # fmt: skip
    assert list(arguments) == [0x1000, 0, 2**40, np.float32(0.1), 1]


def test_shared_memory_is_asked_for_when_it_grows(driver: Driver) -> None:
    launch = cuda.launcher(FAMILY, DEVICE)
    assert launch.shared_limit == SHARED_LIMIT
    for shared in (48 * 1024, 100_000, 90_000, SHARED_LIMIT):
        launch("scan", (1, 1, 1), (32, 1, 1), shared, [])
    assert driver.granted == [("scan", 100_000), ("scan", SHARED_LIMIT)]
    with pytest.raises(ValueError, match=r"scan: needs 232449 B .* cuda:0 has 232448 B"):
        launch("scan", (1, 1, 1), (32, 1, 1), SHARED_LIMIT + 1, [])


def test_tensor_on_another_device(driver: Driver) -> None:
    launch = cuda.launcher(FAMILY, DEVICE)
    with pytest.raises(ValueError, match="scan: argument 1 is on cpu, need cuda:0"):
        launch("scan", (1, 1, 1), (32, 1, 1), 0, [1, torch.zeros(2)])
    assert driver.launches == []


def test_what_the_driver_refuses_names_the_kernel(driver: Driver) -> None:
    launch = cuda.launcher(FAMILY, DEVICE)
    driver.refusal = "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES:\n too many resources"
    expected = r"scan: the driver refused grid \(9, 1, 1\), .* CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES: "
    with pytest.raises(RuntimeError, match=expected):
        launch("scan", (9, 1, 1), (32, 1, 1), 0, [])


def test_running_out_of_memory_names_op_asked_and_free(driver: Driver) -> None:
    with (
        pytest.raises(torch.OutOfMemoryError) as raised,
        cuda.serving("recurrence.rnn_forward", FAMILY, DEVICE),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore.")
    assert str(raised.value) == (
        "recurrence.rnn_forward: out of memory on cuda:0: 3 of 8 MiB are free; "
        "CUDA out of memory. Tried to allocate 2.00 GiB. More."
    )


def test_out_of_memory_in_a_step_leaves_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parameters, λ and the CG start are those of before; the next step goes on."""
    model = hf.RNN(2, 4, 1, generator=torch.Generator().manual_seed(0))
    opt = hf.HessianFree(model, hf.losses.SquaredError(), damping=1.0)
    batch = hf.Batch(torch.rand(5, 8, 2), torch.rand(5, 8, 1))
    opt.step(batch)
    before = [p.clone() for p in model.parameters()]
    state = opt.state_dict()
    last = state["state"][0]["cg_last"].clone()
    calls = 0

    def failing(self: Any, *arguments: Any, **options: Any) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise torch.OutOfMemoryError("Tried to allocate 2.00 GiB")
        return product(self, *arguments, **options)

    from hfcore.nets.curvature import FusedCurvature

    product = FusedCurvature.product
    monkeypatch.setattr(FusedCurvature, "product", failing)
    with pytest.raises(torch.OutOfMemoryError, match=r"2\.00 GiB"):
        opt.step(batch)
    after = opt.state_dict()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert torch.equal(after["state"][0]["cg_last"], last)
    assert after["param_groups"] == state["param_groups"]
    assert opt.step(batch).accepted


# ------------------------------------------------------------------------- dispatch


@needs_no_gpu
def test_forced_cuda_without_a_device_says_why() -> None:
    reason = cuda.why_no_device()
    assert reason is not None
    with pytest.raises(hf.BackendUnavailable, match=f"'cuda' was chosen but {reason}"):
        hf.use_backend("cuda")
    assert dispatch.forced_backend() is None
    for op in dispatch.OPS:
        assert dispatch.explain(op, "cuda") == ("none", reason)


@pytest.fixture
def whole(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> Driver:
    """The same machine with a Triton as well."""
    monkeypatch.setattr(triton_backend, "why_no_triton", lambda: None)
    return driver


def test_every_op_is_served_by_cuda_where_all_is_there(whole: Driver) -> None:
    for op in dispatch.OPS:
        assert dispatch.choose(op, like("cuda:0")) == "cuda"
        implementation, reason = dispatch.explain(op, "cuda")
        assert implementation == "cuda"
        assert ("Triton" in reason) == (not op.startswith(("recurrence", "gated")))
        assert ("CUDA C++" in reason) == op.startswith(("recurrence", "gated", "dense"))
    with hf.use_backend("cuda"):
        assert dispatch.choose("loss.loss_value", like("cuda:0")) == "cuda"
        with pytest.raises(
            hf.BackendUnavailable, match=r"for loss\.loss_value but the data is on cpu"
        ):
            dispatch.choose("loss.loss_value", torch.zeros(1))


def test_dense_ops_without_a_binary_are_triton(
    whole: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = cuda.find_binary
    monkeypatch.setattr(cuda, "find_binary", lambda f, b: None if f == "dense" else found(f, b))
    assert dispatch.choose("dense.dense_forward", like("cuda:0")) == "cuda"
    assert dispatch.explain("dense.dense_forward", "cuda") == ("cuda", "Triton kernels")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_other_dtypes_go_to_the_reference(whole: Driver, dtype: torch.dtype) -> None:
    op = "recurrence.rnn_forward"
    assert dispatch.choose(op, like("cuda:0", dtype)) == "reference"
    assert dispatch.explain(op, "cuda", dtype)[1] == f"it computes in float32, not {dtype}"
    with (
        hf.use_backend("cuda"),
        pytest.raises(hf.BackendUnavailable, match=f"for {op} but it computes in float32, not"),
    ):
        dispatch.choose(op, like("cuda:0", dtype))
    wide = dtype == torch.float64
    assert (dispatch.choose("loss.loss_value", like("cuda:0", dtype)) == "cuda") == wide


def test_without_cupy_only_the_recurrence_falls_back(
    whole: Driver, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    dispatch._already_logged.clear()
    with caplog.at_level("INFO", logger="hfcore"):
        for _ in range(2):
            assert dispatch.choose("recurrence.linear_scan", like("cuda:0")) == "reference"
            assert dispatch.choose("loss.loss_value", like("cuda:0")) == "cuda"
    assert [r.getMessage() for r in caplog.records] == [
        "recurrence.linear_scan falls back to the reference: "
        "CuPy is not installed (pip install 'hfcore[cuda]')"
    ]
    with pytest.raises(hf.BackendUnavailable, match="CuPy is not installed"):
        hf.use_backend("cuda")


def test_without_triton_only_the_recurrence_is_served(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton_backend, "why_no_triton", lambda: "Triton is not installed")
    assert dispatch.choose("recurrence.linear_scan", like("cuda:0")) == "cuda"
    assert dispatch.choose("conjugate_gradient.dot", like("cuda:0")) == "reference"
    with pytest.raises(hf.BackendUnavailable, match="Triton is not installed"):
        hf.use_backend("cuda")


def test_tensors_on_other_devices_go_to_the_reference() -> None:
    assert dispatch.choose("loss.loss_value", like("meta")) == "reference"


def test_triton_names_what_it_refuses(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chip with too little shared memory for a kernel, and one without free memory."""

    class OutOfResources(Exception):
        pass

    errors = SimpleNamespace(OutOfResources=OutOfResources)
    for name in ("triton", "triton.runtime", "triton.runtime.errors"):
        monkeypatch.setitem(sys.modules, name, errors)  # type: ignore[arg-type]
    op = "loss.loss_value"
    expected = rf"{op}: its kernel does not fit cuda:0: shared memory, Required: 300000"
    with pytest.raises(RuntimeError, match=expected), triton_backend.serving(op, DEVICE):
        raise OutOfResources("shared memory, Required: 300000")
    expected = rf"{op}: out of memory on cuda:0: 3 of 8 MiB are free; Tried to allocate 2 GiB"
    with pytest.raises(torch.OutOfMemoryError, match=expected), triton_backend.serving(op, DEVICE):
        raise torch.OutOfMemoryError("Tried to allocate 2 GiB")


def test_triton_or_gpu_too_old(whole: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    whole.capability = (7, 5)
    reason = "the GPU has compute capability 7.5, need 8.0"
    assert triton_backend.why_unavailable(DEVICE) == reason
    assert dispatch.choose("conjugate_gradient.dot", like("cuda:0")) == "reference"
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "triton", SimpleNamespace(__version__="3.5.1"))  # type: ignore[arg-type]
    triton_backend.why_no_triton.cache_clear()
    assert triton_backend.why_no_triton() == "Triton 3.5.1 is too old, need 3.6"
    triton_backend.why_no_triton.cache_clear()


def test_tensors_on_two_devices_are_refused_by_name() -> None:
    """By the ops that serve CUDA data, before any implementation is chosen."""
    s, v = torch.rand(1, 2, 3, 4), torch.rand(5)
    there = v.to("meta")
    rates = {"learning_rate": 0.1, "momentum": 0.9}
    calls: list[tuple[str, Any]] = [
        ("targets", lambda: loss.loss_value("squared", s, s.to("meta"), None)),
        ("mask", lambda: loss.loss_gradient("squared", s, s, torch.ones(1, 2, 3).to("meta"))),
        ("mask", lambda: loss.loss_curvature("squared", s, None, torch.ones(1, 2, 3).to("meta"))),
        ("Rs", lambda: loss.loss_hessian_product(s, s.to("meta"))),
        ("out", lambda: loss.loss_hessian_product(s, s, out=s.to("meta"))),
        ("b", lambda: conjugate_gradient.dot(v, there)),
        ("Ap", lambda: conjugate_gradient.cg_update(v, v, v, v, there, v, 1.0)),
        ("z", lambda: conjugate_gradient.cg_direction(v, there, 0.5)),
        ("velocity", lambda: momentum_update(v[None], there[None], v[None], **rates)),
        ("gradient", lambda: momentum_update(v[None], v[None], there[None], **rates)),
        ("active", lambda: momentum_update(v[None], v[None], v[None], **rates,
                                           active=torch.ones(1, dtype=torch.bool).to("meta"))),
        ("out", lambda: lookahead_point(v[None], v[None], 0.9, out=there[None])),
        ("targets", lambda: hf.GaussNewton(hf.RNN(4, 3, 4), hf.losses.SquaredError(),
                                           s[0], s[0].to("meta"))),
    ]  # fmt: skip
    for name, call in calls:
        with pytest.raises(ValueError, match=f"^{name}: is on meta, need cpu"):
            call()


# ------------------------------------------------------------------------- ranges


def test_ranges_do_nothing_without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("NVTX was called")

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    monkeypatch.setattr(torch.cuda.nvtx, "range_push", fail)
    with nvtx.annotate("phase"):
        pass


def test_passes_of_a_product_are_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    """R-op, reverse scan and gradient products, around what launches in each."""
    from hfcore.bindings.forms.recurrence import cuda as form
    from hfcore.kernels.recurrence import Curvature, ForwardPass, RnnShape, RnnWeights

    assert form.annotate is nvtx.annotate
    events: list[str] = []

    @contextlib.contextmanager
    def annotate(name: str) -> Iterator[None]:
        events.append(f"<{name}")
        yield
        events.append(f"{name}>")

    class Launch:
        shared_limit = 232_448

        def __call__(self, name: str, *_: object) -> None:
            events.append(name)

    @contextlib.contextmanager
    def serving(op: str, family: str, device: torch.device) -> Iterator[Launch]:
        yield Launch()

    monkeypatch.setattr(cuda, "serving", serving)
    monkeypatch.setattr(form, "annotate", annotate)
    shape = RnnShape(2, 8, 1)
    w = RnnWeights(*(torch.zeros(1, *s) for s in shape.shapes))
    at = ForwardPass(torch.zeros(1, 3, 4, 2), torch.zeros(1, 3, 4, 8), w, "tanh", None)
    form.rnn_gauss_newton(
        at, torch.zeros(1, shape.numel), Curvature(torch.ones(1, 3, 4, 1)), (1, shape.numel),
        out=None, accumulate=False, stop=None, scratch=None,
    )  # fmt: skip
    assert events == [
        "<R-op", "rnn_tangent_registers", "rows_product", "R-op>",
        "<reverse scan", "linear_scan_registers", "reverse scan>",
        "<gradient products", "outer_partials", "outer_partials", "finish_gradient",
        "gradient products>",
    ]  # fmt: skip


def test_phases_of_a_step_are_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    open_ranges: list[str] = []
    seen: set[str] = set()

    def push(name: str) -> None:
        open_ranges.append(name)
        seen.add(name)

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda.nvtx, "range_push", push)
    monkeypatch.setattr(torch.cuda.nvtx, "range_pop", lambda: open_ranges.pop())
    model = hf.RNN(2, 4, 1, generator=torch.Generator().manual_seed(0))
    opt = hf.HessianFree(model, hf.losses.SquaredError(), damping=1.0)
    opt.step(hf.Batch(torch.rand(5, 8, 2), torch.rand(5, 8, 1)))
    assert open_ranges == []
    wanted = ("prepare", "gradient", "curvature", "products", "cg", "rho", "line_search")
    assert seen >= {f"hf.{phase}" for phase in wanted}


# ------------------------------------------------------------------------- what a graph can capture


VIEWS = {"aten.slice", "aten.select", "aten.view", "aten.alias", "aten.detach", "aten.unsqueeze"}
VIEWS |= {"aten.split_with_sizes", "aten.expand"}


@pytest.mark.parametrize("outputs", ["last", "all"])
@pytest.mark.parametrize("inputs", [2, 40])
@pytest.mark.parametrize("hidden", [20, 140, 200])
def test_a_product_is_kernels_and_views(
    monkeypatch: pytest.MonkeyPatch, hidden: int, inputs: int, outputs: str
) -> None:
    """From the second product on torch makes views only: no allocation, no kernel of its own.

    For all forms of the rule whose W_hh fits on chip; two batches, structural damping.
    """
    from hfcore.bindings import recurrence
    from hfcore.kernels.recurrence import gpu
    from hfcore.objective_factory import objective_for

    T, B = 3, 5
    mask = torch.zeros(T, B, dtype=torch.bool)
    mask[-1] = True
    model = hf.RNN(inputs, hidden, 2)
    batches = [
        hf.Batch(
            torch.rand(T, b, inputs),
            torch.randint(2, (T, b)),
            mask[:, :b] if outputs == "last" else None,
        )
        for b in (B, B - 1)
    ]
    objective = objective_for(model, hf.losses.SoftmaxCrossEntropy())
    theta = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    curvature = objective.curvature(objective.prepare(batches), theta)
    launched: list[str] = []

    class Launch:
        shared_limit = gpu.SHARED_LIMIT[90]

        def __call__(self, name: str, *_: object) -> None:
            launched.append(name.removesuffix("_registers"))

    @contextlib.contextmanager
    def serving(op: str, family: str, device: torch.device) -> Iterator[Launch]:
        yield Launch()

    monkeypatch.setattr(cuda, "serving", serving)
    monkeypatch.setattr(dispatch, "choose", lambda *_: "cuda")
    monkeypatch.setattr(recurrence, "choose", lambda *_: "cuda")
    # Looked at once on a device; on the CPU, where looking is free, every time.
    monkeypatch.setattr(recurrence, "_check_steps", lambda steps, x: T if steps is None else 1)
    v, out = torch.zeros_like(theta), torch.zeros_like(theta)
    stop = torch.zeros(1, dtype=torch.int32)
    for count in range(2):
        with Recorder() as recorder:
            curvature.product(v, damping=0.1, structural=0.2, out=out, stop=stop)
        allocates = "aten.new_empty" in recorder.names or "aten.empty" in recorder.names
        assert allocates == (count == 0)
    assert recorder.names <= VIEWS
    assert {"rnn_tangent", "linear_scan", "outer_partials", "finish_gradient"} <= set(launched)


@pytest.mark.parametrize("H", [6, 400], ids=["on chip", "a product a step"])
def test_parameters_of_a_group_are_not_copied(H: int) -> None:
    """They are parts of the rows of one array: the kernels are told how far apart nets are."""
    from hfcore.kernels.recurrence import Curvature, ForwardPass, RnnShape, gpu, split_flat

    G, T, B, shape = 3, 4, 5, RnnShape(2, H, 1)
    w = split_flat(torch.zeros(G, shape.numel), shape)
    x, h, y = torch.zeros(1, T, B, 2), torch.zeros(G, T, B, H), torch.zeros(G, T, B, 1)
    at, v = ForwardPass(x, h, w, "tanh", None), torch.zeros(G, shape.numel)
    strides: set[int] = set()

    def launch(kernel: str, *rest: Any) -> None:
        arguments = rest[-1]
        for a in arguments:
            if isinstance(a, torch.Tensor) and not a.is_contiguous():
                assert a.stride(0) in arguments, kernel
                strides.add(a.stride(0))

    with Recorder() as recorder:
        gpu.rnn_forward(launch, x, w, "tanh", None, out=h)
        gpu.rnn_backward(launch, at, y)
        gpu.rnn_gauss_newton(launch, at, v, Curvature(y))
        gpu.linear_scan(launch, h, h, w.W_hh, None, True)
    assert strides == {shape.numel}
    assert recorder.counts["aten.clone"] == 0


def test_parameters_of_a_group_get_one_distance() -> None:
    """Rows stay, as does what one net has for all; others are copied into rows."""
    from hfcore.kernels.gpu_launch import in_rows

    rows = torch.arange(24.0).view(2, 12)
    W, b, shared = rows[:, 1:7].view(2, 2, 3), rows[:, 8:10], torch.ones(1, 3)
    found, apart = in_rows(W, b, shared.expand(2, 3))
    assert apart == 12
    assert [a.data_ptr() for a in found] == [a.data_ptr() for a in (W, b, shared)]
    other = torch.rand(2, 5)
    for given in ((W, other, shared), (W.mT, b, shared), (W.contiguous(), b, other)):
        found, apart = in_rows(*given)
        assert all(torch.equal(a, b) for a, b in zip(found, given, strict=True))
        own = [a for a in found if len(a) > 1]
        assert {a.stride(0) for a in own} == {apart} == {sum(a[0].numel() for a in own)}
        assert all(a[0].is_contiguous() for a in own)
    assert in_rows(shared, W[:1])[1] == 0
    with pytest.raises(TypeError, match="float64, need torch"):
        in_rows(b, b.double())


# ------------------------------------------------------------------------- tensor cores


def test_tensor_cores_serve_where_they_are_asked_for(
    driver: Driver, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one rule: precision, architecture, binary; a refusal is said once, and by hfcore info."""
    op = "recurrence.rnn_forward"
    assert tensor_cores.launchers(DEVICE) == NO_TENSOR_CORES
    assert dispatch.explain(op, "cuda") == ("cuda", "CUDA C++ kernels")
    with hf.set_matmul_precision("bf16x6"), caplog.at_level("INFO", "hfcore"):
        assert None not in tensor_cores.launchers(DEVICE)
        assert dispatch.explain(op, "cuda") == ("cuda", "CUDA C++ kernels on tensor cores")
        scan = dispatch.explain("recurrence.linear_scan", "cuda")
        assert scan == ("cuda", "CUDA C++ kernels")
        driver.capability = (12, 0)
        forget()
        reason = "compute capability 12.0 is none of 8.0, 9.0, 10.0"
        for _ in range(2):
            assert tensor_cores.launchers(DEVICE) == NO_TENSOR_CORES
        assert dispatch.explain(op, "cuda")[1] == f"CUDA C++ kernels in true float32: {reason}"
        driver.capability = (9, 0)
        forget()
        monkeypatch.setattr(
            cuda, "find_binary", lambda family, binary: None if "tensor" in binary else Path("gpu")
        )
        assert tensor_cores.launchers(DEVICE) == NO_TENSOR_CORES
    said = [record.getMessage() for record in caplog.records]
    assert [text.partition(": ")[2] for text in said] == [
        reason,
        "hfcore.kernels.recurrence has no gpu_tensor.fatbin: this install was built without nvcc",
    ]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            {"capability": (8, 0)},
            "compute capability 8.0 is none of 9.0, 10.0",
        ),
        ({"multiprocessors": 7}, "7 multiprocessors, a cluster needs 8"),
        (
            {"shared_limit": 101_376},
            "101,376 B of shared memory a block, clusters need up to 116,224 B",
        ),
        (
            {"missing": "cluster"},
            "hfcore.kernels.recurrence has no gpu_cluster.fatbin: this install was built without "
            "nvcc",
        ),
    ],
    ids=["no clusters", "a slice of a GPU", "shared memory", "binary"],
)
def test_without_clusters_the_others_serve(
    change: dict[str, Any],
    reason: str,
    driver: Driver,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What a device lacks for clusters is said once, and costs the nets they serve alone."""
    if missing := change.pop("missing", ""):
        monkeypatch.setattr(
            cuda,
            "find_binary",
            lambda family, binary: None if missing in binary else Path("gpu.fatbin"),
        )
    for name, value in change.items():
        setattr(driver, name, value)
    forget()
    with hf.set_matmul_precision("bf16x6"), caplog.at_level("INFO", "hfcore"):
        for _ in range(2):
            launch = tensor_cores.launchers(DEVICE)
            assert None not in (launch.block, launch.step)
            assert launch.cluster is None
        said = dispatch.explain("recurrence.rnn_forward", "cuda")[1]
    assert said == f"CUDA C++ kernels on tensor cores, without clusters of blocks: {reason}"
    assert [record.getMessage() for record in caplog.records] == [
        f"recurrences run without clusters of blocks: {reason}"
    ]
