"""Arrays, parameters and modes that are not the ordinary ones: served, or refused by name."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import hfcore as hf

X = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
CLASSES = torch.arange(12) % 3


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def trained(model: nn.Module, data: Any) -> Tensor:
    opt = hf.HessianFree(model, nn.CrossEntropyLoss(), damping=1.0)
    stop = hf.training.Limits(iterations=1)
    hf.train(model, data, opt, stop=stop, progress=False)
    return nn.utils.parameters_to_vector(model.parameters()).detach()


@pytest.mark.parametrize(
    "made",
    [
        lambda a: a.astype(">f4"),
        lambda a: a.astype(np.longdouble),
        lambda a: np.ascontiguousarray(a[::-1])[::-1],
        lambda a: np.ma.masked_array(a, mask=False),
    ],
    ids=["another order of bytes", "long double", "backwards", "nothing masked"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_floats_of_numpy_become_the_models_dtype(
    made: Callable[[np.ndarray], np.ndarray], dtype: torch.dtype
) -> None:
    got = trained(net().to(dtype), (made(X.numpy()), CLASSES))
    assert torch.equal(got, trained(net().to(dtype), (X.to(dtype), CLASSES)))


def test_images_of_numpy_are_pretrained_on_whatever_their_form() -> None:
    images = torch.rand(20, 6, generator=torch.Generator().manual_seed(0))
    found = []
    for data in (images, images.numpy().astype(">f4"), images.flip(0).numpy()[::-1]):
        torch.manual_seed(0)
        model = hf.Autoencoder([6, 4, 2])
        hf.pretrain(model, data, epochs=1)
        found.append(nn.utils.parameters_to_vector(model.parameters()))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_entries_that_are_masked_are_not_taken_as_data() -> None:
    masked = np.ma.masked_array(X.numpy(), mask=X.numpy() > 1)
    said = "got a NumPy array with masked entries, whose values would count"
    with pytest.raises(TypeError, match=f"^data: inputs: {said}"):
        trained(net(), (masked, CLASSES))
    with pytest.raises(TypeError, match=f"^data: {said}"):
        hf.pretrain(hf.Autoencoder([4, 2]), masked, epochs=1)


@pytest.mark.parametrize(
    ("inputs", "got"),
    [
        (X.to_sparse(), "a tensor of layout torch.sparse_coo"),
        (torch.nested.nested_tensor([X[:6], X[6:]]), "a nested tensor"),
    ],
    ids=["sparse", "nested"],
)
def test_inputs_that_are_not_dense(inputs: Tensor, got: str) -> None:
    with pytest.raises(TypeError, match=f"^data: inputs: got {got}, need a dense one$"):
        trained(net(), (inputs, CLASSES))
    with pytest.raises(TypeError, match=f"^inputs: got {got}, need a dense one$"):
        hf.HessianFree(net(), nn.CrossEntropyLoss()).step((inputs, CLASSES))


def in_inference_mode(make: Callable[[], Any]) -> Any:
    with torch.inference_mode():
        return make()


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: nn.Sequential(nn.LazyLinear(3)), "has no shape yet; call the lazy model"),
        (lambda: net().to("meta"), "is on the meta device, which holds no values"),
        (lambda: in_inference_mode(net), "was made under torch.inference_mode"),
    ],
    ids=["lazy", "meta", "inference"],
)
@pytest.mark.parametrize("build", [lambda m: hf.HessianFree(m, nn.CrossEntropyLoss()), hf.Jacobian])
def test_parameters_without_values(
    make: Callable[[], nn.Module], what: str, build: Callable[..., Any]
) -> None:
    given = (make(), X) if build is hf.Jacobian else (make(),)
    with pytest.raises(ValueError, match=f"^model: parameter 0.weight {re.escape(what)}"):
        build(*given)


def closure(model: nn.Module) -> Callable[[], tuple[Tensor, Tensor]]:
    def called() -> tuple[Tensor, Tensor]:
        s = model(X)
        return nn.functional.cross_entropy(s, CLASSES), s

    return called


DIFFERENTIATING: dict[str, Callable[[nn.Module], Any]] = {
    "step": lambda m: hf.HessianFree(m, nn.CrossEntropyLoss()).step((X, CLASSES)),
    "GaussNewton": lambda m: hf.GaussNewton(m, nn.CrossEntropyLoss(), X, CLASSES),
    "Hessian": lambda m: hf.Hessian(m, nn.CrossEntropyLoss(), X, CLASSES),
    "Jacobian": lambda m: hf.Jacobian(m, X),
    "NaturalGradient": lambda m: hf.NaturalGradient(m, "categorical").step(closure(m)),
    "LeastSquares": lambda m: hf.LeastSquares(m).step(lambda: m(X)),
}


@pytest.mark.parametrize("name", DIFFERENTIATING)
def test_inference_mode_is_named_where_something_is_differentiated(name: str) -> None:
    model = net()
    with torch.inference_mode(), pytest.raises(ValueError, match=r"^torch\.inference_mode: is on"):
        DIFFERENTIATING[name](model)


def test_inputs_made_in_inference_mode() -> None:
    x = in_inference_mode(lambda: X + 0)
    with pytest.raises(ValueError, match=r"^inputs: was made under torch\.inference_mode"):
        hf.HessianFree(net(), nn.CrossEntropyLoss()).step((x, CLASSES))


def test_fused_nets_train_in_inference_mode_all_the_same() -> None:
    def step() -> float:
        model = hf.MLP([4, 5, 3], ["tanh", "linear"], generator=torch.Generator().manual_seed(0))
        return hf.HessianFree(model, hf.losses.SoftmaxCrossEntropy()).step((X, CLASSES)).loss_after

    assert in_inference_mode(step) == step()


def test_a_scripted_module_is_a_module() -> None:
    """Its parameters by name are no dict."""
    model = net()
    scripted = torch.jit.script(net())
    want = hf.HessianFree(model, nn.CrossEntropyLoss(), damping=1.0).step((X, CLASSES))
    got = hf.HessianFree(scripted, nn.CrossEntropyLoss(), damping=1.0).step((X, CLASSES))
    assert got.loss_after == pytest.approx(want.loss_after, rel=1e-5)


OPTIMISERS: dict[str, Callable[[nn.Module], Any]] = {
    "HessianFree": lambda m: hf.HessianFree(m.parameters(), damping=1.0),
    "LeastSquares": hf.LeastSquares,
    "NaturalGradient": lambda m: hf.NaturalGradient(m, "normal"),
}


@pytest.mark.parametrize("name", OPTIMISERS)
def test_parameters_in_one_memory_are_refused_before_anything_moves(name: str) -> None:
    """As two of them they would be given two values, of which the last stays."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    model[2].weight.data = model[0].weight.data
    before = [p.detach().clone() for p in model.parameters()]

    def called() -> Any:
        s = model(X)
        return s - X if name == "LeastSquares" else ((s - X).square().mean(), s)

    optimiser = OPTIMISERS[name](model)
    with pytest.raises(ValueError, match=r"^model: parameters .* and .* lie in the same memory"):
        optimiser.step(called)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    model[2].weight = model[0].weight  # one Parameter in both places
    OPTIMISERS[name](model).step(called)
