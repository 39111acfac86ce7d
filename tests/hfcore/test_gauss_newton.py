"""hf.GaussNewton against an oracle that shares no code with it: torch.func on a plain loop."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import functional_call, jacrev, jvp, vjp

import hfcore as hf
from hfcore.losses import Loss
from oracles import rnn
from oracles.losses import LOSSES, per_output, targets
from oracles.rnn import ACTIVATIONS


def mean_loss(loss: Loss, s: Tensor, y: Tensor, mask: Tensor) -> Tensor:
    """Sum over unmasked outputs, averaged over sequences."""
    return (per_output(loss.kind, s, y) * mask).sum() / s.shape[1]


def oracle(
    model: hf.RNN, loss: Loss, x: Tensor, y: Tensor, mask: Tensor, v: Tensor, damping: float,
    structural: float, factor: float = 1.0,
) -> Tensor:  # fmt: skip
    """(G_f + λ(I + μ G_S)) v by jvp, a Hessian of the loss in s, and vjp, all in float64."""
    model = hf_double(model)
    theta = rnn.flat(model)
    x, v = x.double(), v.double()
    y = y.double() if y.is_floating_point() else y
    net = lambda p: rnn.net(p, model, x)  # noqa: E731
    (t, s), (Rt, Rs) = jvp(net, (theta,), (v,))
    _, HRs = jvp(torch.func.grad(lambda s: mean_loss(loss, s, y, mask.double())), (s,), (Rs,))
    bar_t = damping * structural * factor * rnn.slope(t, model.nonlinearity) * Rt / x.shape[1]
    _, pull = vjp(net, theta)
    return pull((bar_t, HRs))[0] + damping * v


def hf_double(model: hf.RNN) -> hf.RNN:
    copy = hf.RNN(
        model.input_size,
        model.hidden_size,
        model.output_size,
        nonlinearity=model.nonlinearity,
        dtype=torch.float64,
    )
    copy.load_state_dict({k: p.double() for k, p in model.state_dict().items()})
    return copy


def make(
    T: int, B: int, n: int, H: int, k: int, loss: Loss, *, nonlinearity: str = "tanh",
    dtype: torch.dtype = torch.float64, seed: int = 0, gain: float = 1.2,
) -> tuple[hf.RNN, Tensor, Tensor]:  # fmt: skip
    g = torch.Generator().manual_seed(seed)
    model = hf.RNN(n, H, k, nonlinearity=nonlinearity, dtype=torch.float64, generator=g)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=g, dtype=p.dtype))
        radius = torch.linalg.eigvals(model.W_hh).abs().max()
        model.W_hh.mul_(gain / radius.clamp_min(1e-12))
    x = torch.randn(T, B, n, generator=g, dtype=torch.float64)
    y = targets(loss.kind, (T, B), k, g)
    return model.to(dtype), x.to(dtype), y.to(dtype) if y.is_floating_point() else y


def masks(T: int, B: int) -> dict[str, Tensor]:
    last = torch.zeros(T, B, dtype=torch.bool)
    last[-1] = True
    ragged = torch.rand(T, B, generator=torch.Generator().manual_seed(5)) < 0.4
    ragged[T // 2, 0] = True
    return {"all": torch.ones(T, B, dtype=torch.bool), "last": last, "ragged": ragged}


def relative_error(got: Tensor, want: Tensor) -> float:
    return float((got.double() - want).norm() / want.norm())


SHAPES = [
    (1, 1, 1, 1, 1),
    (2, 3, 1, 2, 2),
    (5, 7, 3, 11, 2),
    (9, 17, 2, 33, 5),
    (13, 33, 19, 16, 3),
]


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.kind)
@pytest.mark.parametrize("nonlinearity", ACTIVATIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "T{}-B{}-n{}-H{}-k{}".format(*s))
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_product_equals_oracle_float64(shape, nonlinearity, loss, backend) -> None:
    T, B, n, H, k = shape
    model, x, y = make(T, B, n, H, k, loss, nonlinearity=nonlinearity)
    for (_, mask), (damping, structural) in itertools.product(
        masks(T, B).items(), [(0.0, 0.0), (0.3, 0.0), (0.3, 0.7)]
    ):
        with hf.use_backend(backend):
            G = hf.GaussNewton(model, loss, x, y, mask=mask, damping=damping, structural=structural)
            v = torch.randn(G.shape[0], generator=torch.Generator().manual_seed(1)).double()
            got = G @ v
        want = oracle(model, loss, x, y, mask, v, damping, structural)
        scale = want.norm() if want.norm() > 0 else torch.tensor(1.0)
        assert float((got - want).norm() / scale) <= 1e-12


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.kind)
@pytest.mark.parametrize("shape", [(100, 33, 2, 100, 1), (61, 17, 5, 67, 4), (7, 5, 3, 128, 2)])
def test_product_float32_within_1e5(shape, loss) -> None:
    T, B, n, H, k = shape
    if loss.kind == "softmax" and k == 1:
        k = 3  # one class has no curvature at all
    model, x, y = make(T, B, n, H, k, loss, dtype=torch.float32, gain=1.2)
    for (_, mask), structural in itertools.product(masks(T, B).items(), (0.0, 0.1)):
        G = hf.GaussNewton(model, loss, x, y, mask=mask, damping=0.01, structural=structural)
        v = torch.randn(G.shape[0], generator=torch.Generator().manual_seed(2))
        want = oracle(model, loss, x, y, mask, v, 0.01, structural)
        assert relative_error(G @ v, want) <= 1e-5


def test_float_and_bool_masks_agree() -> None:
    loss = hf.losses.SquaredError()
    model, x, y = make(5, 4, 2, 6, 2, loss)
    mask = masks(5, 4)["ragged"]
    v = torch.randn(hf.GaussNewton(model, loss, x, y).shape[0]).double()
    as_bool = hf.GaussNewton(model, loss, x, y, mask=mask) @ v
    as_float = hf.GaussNewton(model, loss, x, y, mask=mask.double()) @ v
    assert torch.equal(as_bool, as_float)


def test_dense_matrix_is_symmetric_psd_and_equals_jacobians() -> None:
    loss = hf.losses.SoftmaxCrossEntropy()
    model, x, y = make(4, 3, 2, 5, 3, loss)
    G = hf.GaussNewton(model, loss, x, y, damping=0.2, structural=0.5)
    N = G.shape[0]
    dense = G @ torch.eye(N, dtype=torch.float64)
    assert (dense - dense.T).abs().max() <= 1e-14 * dense.abs().max()
    assert torch.linalg.eigvalsh(dense).min() >= 0.2 * (1 - 1e-12)
    theta = rnn.flat(model)
    J_t, J_s = jacrev(lambda p: rnn.net(p, model, x))(theta)
    t, s = rnn.net(theta, model, x)
    J_t, J_s = J_t.reshape(-1, N), J_s.reshape(-1, 3, N)
    p = torch.softmax(s, -1).reshape(-1, 3)
    L = torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)
    G_f = torch.einsum("oin,oij,ojm->nm", J_s, L, J_s) / 3
    G_S = J_t.T @ ((1 - torch.tanh(t) ** 2).reshape(-1, 1) * J_t) / 3
    want = G_f + 0.2 * (torch.eye(N, dtype=torch.float64) + 0.5 * G_S)
    torch.testing.assert_close(dense, want, rtol=1e-12, atol=1e-13)


def test_release_conventions_are_what_they_say() -> None:
    """normalize="outputs" divides by unmasked outputs; "quarter" weakens μ four times."""
    loss = hf.losses.SquaredError()
    model, x, y = make(6, 5, 2, 7, 2, loss)
    mask = masks(6, 5)["ragged"]
    v = torch.randn(model.shape.numel).double()
    per_sequence = hf.GaussNewton(model, loss, x, y, mask=mask) @ v
    per_output = hf.GaussNewton(model, loss, x, y, mask=mask, normalize="outputs") @ v
    torch.testing.assert_close(per_output * mask.sum() / 5, per_sequence, rtol=1e-12, atol=0)
    quarter = hf.GaussNewton(
        model, loss, x, y, mask=mask, damping=0.5, structural=0.8, structural_distance="quarter"
    )
    matching = hf.GaussNewton(model, loss, x, y, mask=mask, damping=0.5, structural=0.2)
    torch.testing.assert_close(quarter @ v, matching @ v, rtol=1e-12, atol=0)


def test_loss_attribute_equals_plain_loss() -> None:
    for loss in LOSSES:
        model, x, y = make(6, 5, 2, 7, 3, loss)
        mask = masks(6, 5)["ragged"]
        theta = rnn.flat(model)
        want = mean_loss(loss, rnn.net(theta, model, x)[1], y, mask.double())
        assert hf.GaussNewton(model, loss, x, y, mask=mask).loss == pytest.approx(
            float(want), rel=1e-13
        )


def test_matmat_columns_equal_matvec_bitwise_and_out_is_filled() -> None:
    loss = hf.losses.SquaredError()
    model, x, y = make(7, 35, 2, 19, 2, loss, dtype=torch.float32)
    G = hf.GaussNewton(model, loss, x, y, damping=0.1, structural=0.1)
    V = torch.randn(G.shape[0], 5)
    together = G @ V
    out = torch.full((G.shape[0],), float("nan"))
    for j in range(5):
        assert torch.equal(together[:, j], G @ V[:, j])
        assert G.matvec(V[:, j].contiguous(), out=out) is not None
        assert torch.equal(out, together[:, j])
    assert (G @ V[:, :0]).shape == (G.shape[0], 0)


def test_to_scipy_solves_and_finds_eigenvalues() -> None:
    from scipy.sparse.linalg import cg, eigsh

    loss = hf.losses.SquaredError()
    model, x, y = make(5, 9, 2, 6, 2, loss)
    G = hf.GaussNewton(model, loss, x, y, damping=0.1)
    A = G.to_scipy()
    b = np.random.default_rng(0).standard_normal(A.shape[0])
    solution, info = cg(A, b, rtol=1e-10)
    assert info == 0
    np.testing.assert_allclose(A @ solution, b, atol=1e-8)
    dense = G @ torch.eye(A.shape[0], dtype=torch.float64)
    want = torch.linalg.eigvalsh(dense)[-2:].numpy()
    np.testing.assert_allclose(np.sort(eigsh(A, k=2, which="LA")[0]), want, rtol=1e-8)
    np.testing.assert_allclose(A.matmat(np.eye(A.shape[0])), dense.numpy(), rtol=1e-12, atol=1e-14)


def test_operator_stays_where_it_was_built() -> None:
    loss = hf.losses.SquaredError()
    model, x, y = make(5, 4, 2, 6, 2, loss)
    G = hf.GaussNewton(model, loss, x, y)
    v = torch.randn(G.shape[0]).double()
    before = G @ v
    with torch.no_grad():
        model.W_hh.mul_(2)
    assert torch.equal(G @ v, before)


def test_agrees_with_functional_call_of_the_module() -> None:
    """The operator's flat order is that of model.parameters()."""
    loss = hf.losses.SquaredError()
    model, x, y = make(5, 4, 3, 6, 2, loss)
    v = torch.randn(model.shape.numel).double()
    params = {k: p.detach() for k, p in model.named_parameters()}
    f = lambda p: functional_call(model, p, (x,))  # noqa: E731
    Rs = jvp(f, (params,), (rnn.split(v, *model.shape),))[1]
    pulled = vjp(f, params)[1](Rs / 4)[0]
    want = torch.cat([pulled[k].reshape(-1) for k in params])
    torch.testing.assert_close(hf.GaussNewton(model, loss, x, y) @ v, want, rtol=1e-11, atol=1e-14)


BAD_DATA = {
    "rank": (lambda x, y: (x[0], y), "inputs: got shape"),
    "features": (lambda x, y: (x[..., :1], y), "inputs: got shape"),
    "dtype": (lambda x, y: (x.float(), y), "inputs: got torch.float32"),
    "empty": (lambda x, y: (x[:, :0], y[:, :0]), "at least one of its sequences"),
    "no-time": (lambda x, y: (x[:0], y[:0]), "at least one of its time steps"),
    "nan": (lambda x, y: (x * float("nan"), y), "inputs: holds NaN or Inf"),
    "target-shape": (lambda x, y: (x, y[:-1]), "targets: got shape"),
    "target-dtype": (lambda x, y: (x, y.float()), "targets: got torch.float32"),
    "target-inf": (lambda x, y: (x, y / 0.0), "targets: an unmasked target is"),
    "target-type": (lambda x, y: (x, y.numpy()), "targets: got ndarray"),
}


@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_data_is_named(case) -> None:
    loss = hf.losses.SquaredError()
    model, x, y = make(5, 4, 2, 6, 2, loss)
    spoil, message = BAD_DATA[case]
    with pytest.raises((TypeError, ValueError), match=message.replace("[", r"\[")):
        hf.GaussNewton(model, loss, *spoil(x, y))


BAD_MASKS = {
    "nothing": (torch.zeros(5, 4, dtype=torch.bool), "masks every output"),
    "shape": (torch.ones(4, 5, dtype=torch.bool), "mask: got shape"),
    "dtype": (torch.ones(5, 4, dtype=torch.int32), "mask: got torch.int32"),
    "values": (torch.full((5, 4), -0.5, dtype=torch.float64), "mask: holds -0.5, need 0 and 1, or"),
}


@pytest.mark.parametrize("case", BAD_MASKS)
def test_bad_mask_is_named(case) -> None:
    loss = hf.losses.SquaredError()
    model, x, y = make(5, 4, 2, 6, 2, loss)
    mask, message = BAD_MASKS[case]
    with pytest.raises((TypeError, ValueError), match=message):
        hf.GaussNewton(model, loss, x, y, mask=mask)


def test_bad_options_parameters_and_vectors_are_named() -> None:
    loss = hf.losses.SquaredError()
    model, x, y = make(5, 4, 2, 6, 2, loss)
    for bad in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="damping: got"):
            hf.GaussNewton(model, loss, x, y, damping=bad)
        with pytest.raises(ValueError, match="structural: got"):
            hf.GaussNewton(model, loss, x, y, structural=bad)
    with pytest.raises(ValueError, match="normalize: got 'mean'"):
        hf.GaussNewton(model, loss, x, y, normalize="mean")  # type: ignore[arg-type]
    G = hf.GaussNewton(model, loss, x, y)
    with pytest.raises(ValueError, match="v: got shape"):
        G @ torch.zeros(3, dtype=torch.float64)
    with pytest.raises(TypeError, match=r"v: got torch\.float32"):
        G @ torch.zeros(G.shape[0])
    v = torch.zeros(G.shape[0], dtype=torch.float64)
    with pytest.raises(ValueError, match="out: shares memory with v"):
        G.matvec(v, out=v)
    with torch.no_grad():
        model.W_yh[0, 0] = float("nan")
    with pytest.raises(ValueError, match="parameter W_yh holds NaN or Inf"):
        hf.GaussNewton(model, loss, x, y)


def test_masked_targets_may_hold_anything() -> None:
    loss = hf.losses.LogisticCrossEntropy()
    model, x, y = make(5, 4, 2, 6, 2, loss)
    mask = masks(5, 4)["last"]
    v = torch.randn(model.shape.numel).double()
    want = hf.GaussNewton(model, loss, x, y, mask=mask)
    y = torch.where(mask.unsqueeze(-1), y, torch.tensor(float("nan")).double())
    got = hf.GaussNewton(model, loss, x, y, mask=mask)
    assert torch.equal(got @ v, want @ v)
    assert got.loss == want.loss
