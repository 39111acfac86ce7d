"""The ops that are timed on the GPU: work models, aims, and everyone who can compute them.

Bytes and flops are the least an op needs: every array once, float32, products as 2 flops a term.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import Tensor

import hfcore as hf
from bench.gpu.measurements import EAGER, GRAPHED, OURS, OURS_GRAPHED, Aim, Work
from bench.gpu.timing import Call, graphed
from hfcore.bindings import dense, loss, recurrence, tensor_cores
from hfcore.bindings.forms.dense import measured
from hfcore.bindings.triton_backend import torch_matmul
from hfcore.kernels.dense import reference as dense_reference
from hfcore.kernels.loss import reference as loss_reference
from hfcore.kernels.recurrence import Curvature, ForwardPass, RnnShape, RnnWeights, gpu, reference

COMPILED = "reference, torch.compile"
ON_TENSOR_CORES = f"{OURS_GRAPHED}, bf16x6"
CUDNN = "torch.nn.RNN (cuDNN, TF32 off)"

# float32 sums of 1e5 terms in other orders; a different quantity would be off by far more.
AGREEMENT = 1e-3


@dataclass
class Bench:
    """One op on one case and how each contestant is made; a maker may raise to say why not."""

    name: str
    case: str
    work: Work
    make: dict[str, Callable[[], Call]]
    aims: tuple[Aim, ...] = ()
    absent: dict[str, str] = field(default_factory=dict)

    def contestants(self) -> dict[str, Call]:
        """Those that can run here; the others are noted in ``absent`` with the reason."""
        calls: dict[str, Call] = {}
        for name, make in self.make.items():
            try:
                calls[name] = make()
            except Exception as error:
                if name == OURS:
                    raise
                self.absent[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
        return calls


@dataclass
class Net:
    """A tanh RNN on the GPU with the output of the last step, its data, states and a tangent."""

    B: int
    T: int
    H: int
    n: int = 2
    k: int = 1

    def __post_init__(self) -> None:
        draw = torch.Generator().manual_seed(0)
        model = hf.RNN(self.n, self.H, self.k, generator=draw).to("cuda")
        self.w: RnnWeights = model.weights(detach=True)
        self.x = torch.rand(1, self.T, self.B, self.n, generator=draw).to("cuda")
        self.steps = torch.tensor([self.T - 1], device="cuda")
        h, s = recurrence.rnn_forward(self.x, self.w, steps=self.steps)
        assert h is not None
        self.h, self.c = h, torch.ones_like(s)
        self.gs = torch.randn(s.shape, generator=draw).to("cuda")
        self.v = torch.randn(1, model.shape.numel, generator=draw).to("cuda")
        self.u = torch.randn(1, self.T, self.B, self.H, generator=draw).to("cuda")
        self.d = 1 - self.h.square()

    @property
    def case(self) -> str:
        return f"B{self.B}-T{self.T}-H{self.H}-n{self.n}-k{self.k}-last"

    @property
    def shape(self) -> RnnShape:
        return RnnShape(self.n, self.H, self.k)


def against_reference(
    ours: Call, plain: Call, *, compiled: bool, tensor: bool = False
) -> dict[str, Callable[[], Call]]:
    """hfcore and the reference: called, replayed from a CUDA graph, and compiled.

    ``tensor``: hfcore on tensor cores too, where they serve.
    """
    makers: dict[str, Callable[[], Call]] = {
        OURS: lambda: _agreeing(ours, plain),
        OURS_GRAPHED: lambda: graphed(ours),
        EAGER: lambda: plain,
        GRAPHED: lambda: graphed(plain),
    }
    if tensor:
        makers[ON_TENSOR_CORES] = lambda: graphed(_agreeing(_on_tensor_cores(ours), plain))
    if compiled:
        makers[COMPILED] = lambda: _warm(torch.compile(plain))
    return makers


def _on_tensor_cores(ours: Call) -> Call:
    """``ours`` in six bfloat16 products; RuntimeError with the reason where they do not serve."""
    with hf.set_matmul_precision("bf16x6"):
        served = tensor_cores.in_words("recurrence.rnn_forward", torch.device("cuda"))
    if not served.startswith(" on tensor cores"):
        raise RuntimeError(f"recurrences are{served}")

    def asked() -> object:
        with hf.set_matmul_precision("bf16x6"):
            return ours()

    return asked


def recurrence_ops(net: Net, *, compiled: bool) -> list[Bench]:
    """Forward pass, scans, gradient and whole product of one net."""
    B, T, H, n, k = net.B, net.T, net.H, net.n, net.k
    rows = B * T
    states = 4.0 * rows * H
    out = torch.empty(1, T, B, H, device="cuda")
    g = torch.empty(1, net.shape.numel, device="cuda")
    x, h, w, c, v, gs, steps = net.x, net.h, net.w, net.c, net.v, net.gs, net.steps
    at = ForwardPass(x, h, w, "tanh", steps)
    scratch = recurrence.Scratch()
    on_addition = (B, H) == (1000, 100)

    def aims(*wanted: Aim) -> tuple[Aim, ...]:
        return wanted if on_addition else ()

    faster = (
        Aim(f"times faster than {EAGER}", 20, at_least=True),
        Aim(f"times faster than {GRAPHED}", 5, at_least=True),
    )
    benches = [
        Bench(
            "rnn_forward",
            net.case,
            Work(4.0 * rows * n + states, 2.0 * rows * H * (H + n), T),
            against_reference(
                lambda: recurrence.rnn_forward(x, w, steps=steps, out=out),
                lambda: reference.rnn_forward(x, w, "tanh", steps),
                compiled=compiled,
                tensor=True,
            )
            | {CUDNN: lambda: _cudnn_forward(net)},
            aims(Aim("µs a step", 0.8)),
        ),
        *(
            Bench(
                f"linear_scan {'reverse' if reverse else 'forward'}",
                net.case,
                Work(3.0 * states, 2.0 * rows * H * H, T),
                against_reference(
                    lambda r=reverse: recurrence.linear_scan(  # type: ignore[misc]
                        net.u, net.d, w.W_hh, reverse=r, out=out
                    ),
                    lambda r=reverse: reference.linear_scan(  # type: ignore[misc]
                        net.u, net.d, w.W_hh, None, r
                    ),
                    compiled=compiled,
                ),
                aims(Aim("µs a step", 0.8)) if reverse else (),
            )
            for reverse in (False, True)
        ),
        Bench(
            "rnn_backward",
            net.case,
            Work(2.0 * states + 4.0 * rows * n, 2.0 * rows * H * (2 * H + n), T),
            against_reference(
                lambda: recurrence.rnn_backward(x, h, w, gs, steps=steps, out=g),
                lambda: reference.rnn_backward(at, gs),
                compiled=compiled,
                tensor=True,
            )
            | {CUDNN: lambda: _cudnn_gradient(net)},
        ),
        Bench(
            "rnn_gauss_newton",
            net.case,
            Work(
                3.0 * states + 4.0 * rows * n,
                (8.0 * H * H + 4.0 * n * H) * rows + 8.0 * k * H * B,
                T,
            ),
            against_reference(
                lambda: recurrence.rnn_gauss_newton(
                    x,
                    h,
                    w,
                    v,
                    c,
                    steps=steps,
                    scale=1 / B,
                    structural=0.03,
                    damping=0.1,
                    out=g,
                    scratch=scratch,
                ),
                lambda: reference.rnn_gauss_newton(at, v, Curvature(c, False, 1 / B, 0.03, 0.1)),
                compiled=compiled,
                tensor=True,
            ),
            aims(*((Aim("ms, CUDA graph", 0.5),) if T == 200 else ()), *faster),
        ),
    ]
    return benches


def dense_ops(*, compiled: bool, B: int = 5000, n: int = 784, m: int = 400) -> list[Bench]:
    """The widest layer of the CURVES autoencoder, in true float32, bfloat16 pieces and TF32.

    The aim is the rate of cuBLAS: the floor is the float32 GEMM that was measured in this run.
    """
    draw = torch.Generator().manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(1, *size, generator=draw).to("cuda")

    a, Ra, W, V, b = normal(B, n), normal(B, n), normal(m, n) / n**0.5, normal(m, n), normal(m)
    delta, e = normal(B, m), "logistic"
    y = dense.dense_forward(a, W, b, activation=e)
    above, below = torch.empty_like(y), torch.empty_like(a)
    g, scratch = (torch.empty_like(W), torch.empty_like(b)), dense.Scratch()
    flops, weights = 2.0 * B * n * m, 4.0 * n * m
    calls: dict[str, tuple[Work, Call, Call]] = {
        "dense_forward": (
            Work(4.0 * B * (n + m) + weights, flops),
            lambda: dense.dense_forward(a, W, b, activation=e, out=above),
            lambda: dense_reference.dense_forward(a, W, b, e),
        ),
        "dense_rforward": (
            Work(8.0 * B * (n + m) + 2 * weights, 2 * flops),
            lambda: dense.dense_rforward(a, Ra, W, V, b, y, activation=e, out=above),
            lambda: dense_reference.dense_rforward(a, Ra, W, V, b, y, e),
        ),
        "dense_backward": (
            Work(4.0 * B * (m + 2 * n) + weights, flops),
            lambda: dense.dense_backward(delta, W, a, activation=e, out=below),
            lambda: dense_reference.dense_backward(delta, W, a, e, None),
        ),
        "dense_gradient": (
            Work(4.0 * B * (n + m) + weights, flops),
            lambda: dense.dense_gradient(delta, a, out=g, scratch=scratch),
            lambda: dense_reference.dense_gradient(delta, a, 1.0, False),
        ),
    }

    def in_tf32(call: Call) -> Call:
        def run() -> object:
            with hf.set_matmul_precision("tf32"), torch_matmul():
                return call()

        return run

    def in_six_products(call: Call) -> Call:
        """Whichever form is faster."""

        def run() -> object:
            with mock.patch.object(measured, "precision", return_value="bf16x6"):
                return call()

        return run

    return [
        Bench(
            name,
            f"B{B}-n{n}-m{m}-{e}",
            work,
            against_reference(ours, plain, compiled=compiled)
            | {
                ON_TENSOR_CORES: lambda ours=ours, plain=plain: graphed(  # type: ignore[misc]
                    _agreeing(in_six_products(ours), plain)
                ),
                "hfcore, TF32": lambda ours=ours: _warm(in_tf32(ours)),  # type: ignore[misc]
                "reference, TF32": lambda plain=plain: _warm(in_tf32(plain)),  # type: ignore[misc]
            },
            (Aim("times the floor", 1.25),),
        )
        for name, (work, ours, plain) in calls.items()
    ]


def loss_ops(*, compiled: bool, T: int = 100, B: int = 1000, k: int = 100) -> list[Bench]:
    """Value, gradient, curvature and Hessian product of softmax cross-entropy."""
    draw = torch.Generator().manual_seed(0)
    s = torch.randn(1, T, B, k, generator=draw).to("cuda")
    y = torch.randint(k, (1, T, B), generator=draw).to("cuda")
    c, out = torch.softmax(s, -1), torch.empty_like(s)
    array, classes = 4.0 * s.numel(), 8.0 * y.numel()
    kind = "softmax"
    calls: dict[str, tuple[float, Call, Call]] = {
        "loss_value": (
            array + classes,
            lambda: loss.loss_value(kind, s, y, None),
            lambda: loss_reference.loss_value(kind, s, y, None, 1.0),
        ),
        "loss_gradient": (
            2 * array + classes,
            lambda: loss.loss_gradient(kind, s, y, None, out=out),
            lambda: loss_reference.loss_gradient(kind, s, y, None, 1.0),
        ),
        "loss_curvature": (
            2 * array,
            lambda: loss.loss_curvature(kind, s, y, None, out=out),
            lambda: loss_reference.loss_curvature(kind, s, y, None),
        ),
        "loss_hessian_product": (
            3 * array,
            lambda: loss.loss_hessian_product(c, s, rank_one=True, out=out),
            lambda: loss_reference.loss_hessian_product(c, s, True, 1.0),
        ),
    }
    return [
        Bench(
            name,
            f"softmax-T{T}-B{B}-k{k}",
            Work(size, 0.0),
            against_reference(ours, plain, compiled=compiled),
        )
        for name, (size, ours, plain) in calls.items()
    ]


def cg_ops(N: int = 3_000_000) -> list[Bench]:
    """The CG update and the dot before it as they run inside a solve, scalars on the device."""
    from hfcore.kernels.conjugate_gradient import gpu_triton as kernels

    draw = torch.Generator().manual_seed(0)
    x, r, p, Ap, b = (torch.randn(N, generator=draw).to("cuda") for _ in range(5))
    # pᵀAp = 1 and a tiny rᵀz: α is small, so that thousands of updates leave finite vectors.
    partial = torch.zeros(4, kernels.BLOCKS, dtype=torch.float64, device="cuda")
    partial[0, 0] = 1.0
    scalars = torch.full((kernels.SCALARS,), 1e-9, dtype=torch.float64, device="cuda")
    stop = torch.zeros(1, dtype=torch.int32, device="cuda")
    spare = torch.zeros_like(partial)

    def update() -> None:
        kernels._update(x, r, r, p, Ap, b, None, partial, scalars, stop)

    def plain_update() -> object:
        x.add_(p, alpha=1e-9)
        r.sub_(Ap, alpha=1e-9)
        wide = r.double()
        return wide @ wide, x.double() @ (wide + b)

    def dot() -> None:
        kernels._dot_partials(p, Ap, spare, stop)

    def plain_dot() -> object:
        return p.double() @ Ap.double()

    def makers(ours: Call, plain: Call) -> dict[str, Callable[[], Call]]:
        return {
            OURS: lambda: ours,
            OURS_GRAPHED: lambda: graphed(ours),
            EAGER: lambda: plain,
            GRAPHED: lambda: graphed(plain),
        }

    near_the_floor = (Aim("times the floor", 1.2),)
    size = f"N{N}"
    return [
        Bench("cg_update", size, Work(28.0 * N, 0.0), makers(update, plain_update), near_the_floor),
        Bench("cg dot", size, Work(8.0 * N, 0.0), makers(dot, plain_dot)),
    ]


# Aims of a product's kernels on the addition net, in µs a step.
KERNEL_AIMS = {"rnn_tangent": 1.2, "linear_scan": 0.8}


def kernels_of_a_product(net: Net, rounds: int) -> dict[str, tuple[int, list[float]]]:
    """Launches of every kernel inside one whole product, and their seconds together in each round.

    By CUDA events around each launch. ``rnn_tangent`` is the R-op with V, ``linear_scan`` the
    reverse scan, in whichever form the rule gives them.
    """
    from hfcore.bindings import cuda

    launch = cuda.launcher("recurrence", torch.device("cuda", torch.cuda.current_device()))
    Span = tuple[torch.cuda.Event, torch.cuda.Event]
    spans: list[dict[str, list[Span]]] = []
    scratch = recurrence.Scratch()
    for _ in range(rounds + 1):
        spans.append({})

        def timed(name: str, *rest: Any, seen: dict[str, list[Span]] = spans[-1]) -> None:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            launch(name, *rest)
            end.record()
            name = name.removesuffix("_registers")
            seen.setdefault(name, []).append((start, end))

        at = ForwardPass(net.x, net.h, net.w, "tanh", net.steps)
        curvature = Curvature(net.c, False, 1.0, 0.03, 0.1)
        limit = launch.shared_limit
        gpu.rnn_gauss_newton(timed, at, net.v, curvature, scratch=scratch, shared_limit=limit)
    torch.cuda.synchronize()

    def seconds(name: str) -> list[float]:  # the first round warms up
        return [1e-3 * sum(a.elapsed_time(b) for a, b in seen[name]) for seen in spans[1:]]

    return {name: (len(pairs), seconds(name)) for name, pairs in spans[0].items()}


def _agreeing(ours: Call, plain: Call) -> Call:
    """``ours``, once its result was held against the reference's."""
    for got, want in zip(_tensors(ours()), _tensors(plain()), strict=True):
        error = float((got.double() - want.double()).norm() / want.double().norm())
        if not error <= AGREEMENT:
            raise AssertionError(f"differs from the reference by {error:.1e}")
    return ours


def _tensors(result: Any) -> list[Tensor]:
    parts = result if isinstance(result, tuple) else (result,)
    return [part for part in parts if isinstance(part, Tensor)]


def _warm(call: Call) -> Call:
    call()
    torch.cuda.synchronize()
    return call


def _cudnn(net: Net) -> torch.nn.RNN:
    return torch.nn.RNN(net.n, net.H, device="cuda")


def _cudnn_forward(net: Net) -> Call:
    rnn, x = _cudnn(net), net.x[0]

    @torch.no_grad()
    def forward() -> object:
        return rnn(x)

    return _warm(forward)


def _cudnn_gradient(net: Net) -> Call:
    rnn = _cudnn(net)
    last = rnn(net.x[0])[0][-1]
    gh = torch.randn_like(last)
    weights = list(rnn.parameters())
    return _warm(lambda: torch.autograd.grad(last, weights, gh, retain_graph=True))
