"""Every loss with every option against torch: value, gradient and dense Hessian of its formula."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

import hfcore as hf
from hfcore.losses import (
    HuberLoss,
    LinkedSquaredError,
    LogisticCrossEntropy,
    Loss,
    PoissonNLL,
    SoftmaxCrossEntropy,
    SquaredError,
)
from oracles.loss_cases import (
    CASES,
    EPS,
    MASKS,
    MODULES,
    WEIGHT,
    Case,
    K,
    Norm,
    Quartic,
    StudentT,
    draw,
    mask_of,
    total,
)

T, B = 3, 5
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@pytest.fixture(params=["reference", "cpu"], autouse=True)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    with hf.use_backend(request.param):
        yield request.param


def hessian_of(function: Callable[[Tensor], Tensor], s: Tensor) -> Tensor:
    """By reverse over reverse: torch's Huber loss has no forward derivative."""
    rows = torch.autograd.functional.hessian(function, s)
    return rows.reshape(s.numel(), s.numel())


def assert_close(got: Tensor, want: Tensor, rounds: int = 200) -> None:
    """Some tens of float64 operations an element, on numbers of the size of the largest."""
    size = 1 + float(want.abs().max())
    torch.testing.assert_close(got, want, rtol=0, atol=rounds * EPS * size)


# ---------------------------------------------------------------------------- at the outputs


@pytest.mark.parametrize("mask", MASKS)
@every_case
def test_value_and_gradient_are_torchs(case: Case, mask: str) -> None:
    s, y = draw(case.targets, (T, B))
    keep = mask_of(mask, (T, B))
    s.requires_grad_()
    want = total(case, s, y, keep)
    (slope,) = torch.autograd.grad(want, s)
    s = s.detach()
    value = case.loss.value(s, y, keep, scale=0.3)
    assert_close(torch.tensor(value, dtype=torch.float64), 0.3 * want.detach())
    assert_close(case.loss.gradient(s, y, keep, scale=0.3), 0.3 * slope)
    if keep is not None:  # whatever stands in what is masked
        s[keep == 0] = torch.nan
        y = y.clone()
        y[keep == 0] = -7 if case.targets == "classes" else torch.nan
        assert_close(case.loss.gradient(s, y, keep, scale=0.3), 0.3 * slope)
        value = case.loss.value(s, y, keep, scale=0.3)
        assert_close(torch.tensor(value, dtype=torch.float64), 0.3 * want.detach())


@pytest.mark.parametrize("mask", MASKS)
@every_case
def test_second_derivative_is_the_dense_hessian(case: Case, mask: str) -> None:
    s, y = draw(case.targets, (T, B))
    keep = mask_of(mask, (T, B))
    want = hessian_of(lambda s: total(case, s, y, keep), s)
    hessian = case.loss.hessian(s, y, keep)
    eye = torch.eye(s.numel(), dtype=torch.float64).view(-1, *s.shape)
    H = torch.stack([hessian.apply(e).flatten() for e in eye])
    assert_close(H, want)
    assert_close(H, H.T)
    assert float(torch.linalg.eigvalsh(H).min()) > -100 * EPS * float(H.abs().max())
    S = torch.stack([hessian.root(e).flatten() for e in eye], 1)
    assert_close(S @ S.T, want, rounds=2000)  # through eigenvectors where nothing else is known
    grouped = case.loss.hessian(s[None], y[None], None if keep is None else keep[None])
    for out in (None, torch.full_like(s[None], torch.nan)):
        assert_close(grouped.product(eye[:1].clone(), out=out).flatten(), want[0])
    averaged = hessian.averaged(7.0)
    assert_close(averaged(eye[3]).flatten(), want[3] / 7)


@every_case
def test_group_axis_is_each_net_alone(case: Case) -> None:
    s, y = draw(case.targets, (2, T, B))
    keep = mask_of("weights", (2, T, B))
    assert keep is not None
    for targets, mask in ((y, keep), (y[:1], keep[:1]), (y[:1], None)):
        values = case.loss.values(s, targets, mask)
        gradient = case.loss.gradient(s, targets, mask)
        product = case.loss.hessian(s, targets, mask).product(torch.ones_like(s))
        for g in range(2):
            own = targets[min(g, len(targets) - 1)]
            m = None if mask is None else mask[min(g, len(mask) - 1)]
            assert float(values[g]) == pytest.approx(case.loss.value(s[g], own, m), rel=1e-13)
            assert_close(gradient[g], case.loss.gradient(s[g], own, m))
            assert_close(product[g], case.loss.hessian(s[g], own, m).apply(torch.ones_like(s[g])))


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 7, 3), (2, 3, 1031)], ids=str)
@every_case
def test_float32_and_odd_shapes(case: Case, shape: tuple[int, int, int]) -> None:
    *lead, k = shape
    if k != K and ("weight" in repr(case.loss)):
        pytest.skip("weights of four outputs")
    s, y = draw(case.targets, tuple(lead), k=k)
    narrow = y if case.targets == "classes" else y.float()
    s = s.float().double()
    targets = narrow if case.targets == "classes" else narrow.double()
    eps = torch.finfo(torch.float32).eps
    g, want = case.loss.gradient(s.float(), narrow), case.loss.gradient(s, targets)
    assert g.dtype == torch.float32
    # (s − y)³ loses some roundings of the difference relative to the numbers that are subtracted
    size = 1 + float(want.abs().max()) + float(s.abs().max()) ** 3
    torch.testing.assert_close(g.double(), want, rtol=0, atol=30 * eps * size)
    value = case.loss.value(s.float(), narrow)
    assert value == pytest.approx(case.loss.value(s, targets), rel=1e-12)


# ---------------------------------------------------------------------------- means, torch's own

every_module = pytest.mark.parametrize(("module", "kind"), MODULES.values(), ids=MODULES)


@every_module
def test_from_torch_has_torchs_value(module: nn.Module, kind: str) -> None:
    s, y = draw(kind, (B,))
    loss = hf.losses.from_torch(module)
    scale = loss.scale([loss.counted(y, None, K, B)])
    assert loss.value(s, y, scale=scale) == pytest.approx(float(module(s, y)), rel=1e-13)


def test_what_a_mean_is_over() -> None:
    y = torch.tensor([0, 1, 1, 3, 2])
    mask = torch.tensor([1.0, 0.5, 0.0, 2.0, 1.0], dtype=torch.float64)
    weighted = SoftmaxCrossEntropy(weight=WEIGHT, ignore_index=3, mean="weights")
    assert weighted.counted(y, None, K, 5) == 0.5 + 2 + 2 + 0
    assert weighted.counted(y, mask, K, 5) == 0.5 + 1 + 0
    assert SoftmaxCrossEntropy(mean="weights").counted(y, mask, K, 5) == 4.5
    assert SoftmaxCrossEntropy(weight=WEIGHT).counted(y, mask, K, 5) == 5
    real = torch.zeros(3, 5, 4)
    assert SquaredError(mean="elements").counted(real, None, 4, 5) == 60
    assert SquaredError(mean="sum").scale([3, 4]) == 1
    with pytest.raises(ValueError, match="no output counts"):
        weighted.scale([0.0])


@pytest.mark.parametrize(
    ("module", "text"),
    [
        (nn.NLLLoss(), "L'' = 0.*nn.CrossEntropyLoss"),
        (nn.KLDivLoss(), "L'' = 0"),
        (nn.L1Loss(), "L'' = 0.*HuberLoss"),
        (nn.SmoothL1Loss(beta=0), "beta=0"),
        (nn.PoissonNLLLoss(log_input=False), "log_input=True"),
        (nn.MSELoss(reduction="none"), "reduction='none', need 'mean' or 'sum'"),
    ],
)
def test_from_torch_says_why_not(module: nn.Module, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        hf.losses.from_torch(module)
    with pytest.raises(TypeError, match="got Linear, need one of CrossEntropyLoss"):
        hf.losses.from_torch(nn.Linear(1, 1))


# ---------------------------------------------------------------------------- not convex


@pytest.mark.parametrize("link", ["logistic", "tanh"])
@pytest.mark.parametrize("mask", MASKS)
def test_linked_squared_error_and_its_stand_ins(link: str, mask: str) -> None:
    s, y = draw("real", (T, B))
    keep = mask_of(mask, (T, B))
    phi = {"logistic": torch.sigmoid, "tanh": torch.tanh}[link]
    case = Case(LinkedSquaredError(link), lambda s, y: 0.5 * (phi(s) - y).square().sum(-1), "real")
    s.requires_grad_()
    (want,) = torch.autograd.grad(total(case, s, y, keep), s)
    s = s.detach()
    assert_close(case.loss.gradient(s, y, keep), want)
    H = hessian_of(lambda s: total(case, s, y, keep), s)
    assert float(H.diagonal().min()) < -0.01
    ones = torch.ones_like(s)
    assert_close(case.loss.hessian(s, y, keep, exact=True).apply(ones).flatten(), H.diagonal())
    with pytest.raises(ValueError, match=r"is not convex in the outputs.*choose stand_in"):
        case.loss.hessian(s, y, keep)
    w = torch.ones(T, B, 1, dtype=torch.float64) if keep is None else keep.double().unsqueeze(-1)
    slope = torch.func.jvp(phi, (s,), (ones,))[1]
    wanted = {
        "gauss_newton": (slope.square() * w).flatten(),
        "positive": H.diagonal().clamp_min(0),
        "absolute": H.diagonal().abs(),
    }
    for name, c in wanted.items():
        loss = LinkedSquaredError(link, stand_in=name)  # type: ignore[arg-type]
        assert name in repr(loss)
        assert_close(loss.hessian(s, y, keep).apply(ones).flatten(), c)
        assert_close(loss.hessian(s, y, keep, exact=True).apply(ones).flatten(), H.diagonal())


@pytest.mark.parametrize("k", [4, 40])
def test_a_formula_that_is_not_convex_needs_a_stand_in(k: int) -> None:
    s, y = draw("real", (1, 3), k=k)
    with pytest.raises(ValueError, match=r"StudentT.*not convex"):
        StudentT().hessian(s, y)
    dense = [
        hessian_of(lambda a, b=b: (a - y[0, b]).square().sum().log1p(), s[0, b]) for b in range(3)
    ]
    eye = torch.eye(k, dtype=torch.float64)
    for name in ("positive", "absolute"):
        hessian = StudentT(stand_in=name).hessian(s, y)  # type: ignore[arg-type]
        for b in range(3):
            values, vectors = torch.linalg.eigh(dense[b])
            values = values.abs() if name == "absolute" else values.clamp_min(0)
            want = vectors @ values.diag() @ vectors.T
            R = torch.zeros(k, 1, 3, k, dtype=torch.float64)
            R[:, 0, b] = eye
            got = torch.stack([hessian.apply(r)[0, b] for r in R])
            assert_close(got, want, rounds=2000)
    with pytest.raises(ValueError, match="has no 'gauss_newton'"):
        StudentT(stand_in="gauss_newton").hessian(s, y)


# ---------------------------------------------------------------------------- facts


@every_case
def test_best_constant_has_no_gradient(case: Case) -> None:
    if isinstance(case.loss, HuberLoss | Quartic | Norm) or case.loss.kind == "huber":
        pytest.skip("its best constant is no function of the mean target")
    _, y = draw(case.targets, (T, B))
    loss = case.loss
    mean, count = loss.mean_target(y, None, K)
    if case.targets == "classes":  # every class occurs, that which is ignored and that of weight 0
        weight = getattr(loss, "weight", None)
        if weight is not None or getattr(loss, "ignore_index", None) is not None:
            pytest.skip("classes that do not count have no finite best output")
    s = loss.best_constant(mean / count)
    if case.loss.kind == "logistic" and ("weight=" in repr(loss)):
        s = s.nan_to_num(0, 0, 0)
    slope = loss.gradient(s.expand(T, B, K).contiguous(), y).sum((0, 1))
    counted = s.abs() < 15  # an output without positives or negatives has none
    # 1e-9 of a class that does not occur is all that is left.
    assert float(torch.where(counted, slope, 0).abs().max()) < 15 * 1e-8


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: HuberLoss(0.0), "delta: got 0.0"),
        (lambda: HuberLoss(float("nan")), "delta: got nan"),
        (lambda: SquaredError(mean="batch"), "mean: got 'batch'"),  # type: ignore[arg-type]
        (lambda: SoftmaxCrossEntropy(weight=[1.0, -1.0]), "weight: got .*need finite weights"),
        (lambda: SoftmaxCrossEntropy(weight=torch.ones(2, 2)), "weight: got shape"),
        (lambda: SoftmaxCrossEntropy(label_smoothing=1.5), "label_smoothing: got 1.5"),
        (lambda: LogisticCrossEntropy(pos_weight=[float("inf")]), "pos_weight: got"),
        (lambda: LinkedSquaredError("relu"), "link: got 'relu'"),
        (lambda: LinkedSquaredError("tanh", stand_in="none"), "stand_in: got 'none'"),  # type: ignore[arg-type]
    ],
)
def test_refuses_options_by_name(make: Callable[[], Loss], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make()


def test_refuses_targets_that_do_not_fit() -> None:
    shape = torch.Size([2, 4])
    with pytest.raises(ValueError, match="weight: got 3 weights, need 4"):
        SoftmaxCrossEntropy(weight=[1, 1, 1]).check_targets(
            shape, torch.zeros(2, dtype=torch.int64), torch.float32
        )
    with pytest.raises(ValueError, match=r"an unmasked target is -1.0, need values of at least 0"):
        PoissonNLL().check_values(torch.tensor([[1.0, -1.0]]))
    PoissonNLL().check_values(torch.tensor([[1.0, -1.0]]), torch.tensor([0.0]))
    with pytest.raises(ValueError, match="got class 4"):
        SoftmaxCrossEntropy(weight=[1, 1, 1, 1]).value(torch.zeros(2, 4), torch.tensor([0, 4]))
