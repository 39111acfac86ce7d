"""A digest of what the compiled ops give on fixed numbers, one for each, as JSON on the output."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator

import torch
from torch import Tensor, nn

import hfcore as hf
from hfcore.bindings.contrastive import contrastive_gradient
from hfcore.flat import FlatParameters
from hfcore.nets.grouped import grouped_gradient

# Units on both sides of whole vectors: 4, 8 and 16 of them, and columns that share a vector.
HIDDEN = (3, 13, 20, 24, 37, 100)
SQUARED, LOGISTIC = hf.losses.SquaredError(), hf.losses.LogisticCrossEntropy()
SOFTMAX = hf.losses.SoftmaxCrossEntropy()


def digest(*tensors: Tensor) -> str:
    taken = hashlib.sha256()
    for tensor in tensors:
        # no difference between the zeros
        taken.update((tensor.detach() + 0.0).contiguous().numpy().tobytes())
    return taken.hexdigest()[:16]


def randomized(model: nn.Module, generator: torch.Generator) -> nn.Module:
    with torch.no_grad():
        for p in model.parameters():
            scale = p.shape[-1] ** -0.5
            p.copy_(scale * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    return model


def of_net(
    model: nn.Module, loss: hf.losses.Loss, x: Tensor, y: Tensor, generator: torch.Generator
) -> Iterator[tuple[str, str]]:
    """Loss, gradient and products of a net, x and y ``[…]`` its data."""
    theta = FlatParameters(model).read()[None]
    passes = grouped_gradient(model, loss)
    if passes is not None:  # nets with a form for groups
        gradient = torch.empty_like(theta)
        yield "loss", digest(passes.gradient(theta, passes.prepare(hf.Batch(x, y)), gradient))
        yield "gradient", digest(gradient)
    v = torch.randn(theta.shape[1], generator=generator, dtype=x.dtype)
    yield "GGN", digest(hf.GaussNewton(model, loss, x, y) @ v)


def all_bits(dtype: torch.dtype) -> Iterator[tuple[str, str]]:
    generator = torch.Generator().manual_seed(0)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=dtype)

    for H in HIDDEN:
        for name, loss in (("squared", SQUARED), ("logistic", LOGISTIC)):
            rnn = randomized(hf.RNN(3, H, 2, dtype=dtype), generator)
            for what, bits in of_net(rnn, loss, uniform(9, 29, 3), uniform(9, 29, 2), generator):
                yield f"RNN of {H}, {name}, {what}", bits
        for kind in (hf.LSTM, hf.GRU):
            gated = randomized(kind(3, H, 2, dtype=dtype), generator)
            data = uniform(4, 11, 3), uniform(4, 11, 2)
            for what, bits in of_net(gated, SQUARED, *data, generator):
                yield f"{kind.__name__} of {H}, {what}", bits
    for fan_in in (2, 9):
        rnn = hf.RNN(3, 40, 2, sparse=True, fan_in=fan_in, dtype=dtype, generator=generator)
        for what, bits in of_net(rnn, SQUARED, uniform(5, 37, 3), uniform(5, 37, 2), generator):
            yield f"sparse RNN of fan-in {fan_in}, {what}", bits
    for k in (2, 3, 10, 33):
        mlp = randomized(hf.MLP((7, 21, k), ("logistic", "linear"), dtype=dtype), generator)
        classes = torch.randint(0, k, (37,), generator=generator)
        for what, bits in of_net(mlp, SOFTMAX, uniform(37, 7), classes, generator):
            yield f"softmax of {k}, {what}", bits
        for what, bits in of_net(mlp, LOGISTIC, uniform(37, 7), uniform(37, k), generator):
            yield f"logistic of {k}, {what}", bits
    for n, m in ((37, 13), (300, 40)):
        machine, v = uniform(1, n * m + n + m) - 0.5, uniform(1, 29, n)
        units = {"visible": "logistic", "hidden": "logistic"}
        found = contrastive_gradient(v, uniform(1, 29, m), machine, **units)
        yield f"contrastive divergence of {n} and {m}", digest(*found)
    for N in (1, 13, 100, 4097, 50001):
        diagonal, b = uniform(N) + 0.5, uniform(N)
        yield f"CG of {N}", digest(hf.cg(lambda v, d=diagonal: d * v, b, max_iter=4)[0])


def main() -> None:
    torch.set_num_threads(1)
    print(
        json.dumps(
            {
                f"{dtype}: {name}": bits
                for dtype in (torch.float32, torch.float64)
                for name, bits in all_bits(dtype)
            }
        )
    )


if __name__ == "__main__":
    main()
