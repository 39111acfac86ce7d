"""A kernel that forgets the mask of its last tile; the interpreter gate must fail on it."""

import torch
import triton
import triton.language as tl

from guarded import guarded


@triton.jit
def copy_kernel(a, out, N, BLOCK: tl.constexpr):
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + index, tl.load(a + index, mask=index < N, other=0.0))


def test_copy() -> None:
    a = torch.randn(100)
    with guarded([100], a.dtype) as out:
        copy_kernel[(2,)](a, out, 100, BLOCK=64)
    assert torch.equal(out, a)
