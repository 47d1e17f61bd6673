"""Runs on a GPU where there is one, and everywhere in Triton's interpreter (in a process of its
own: the interpreter is chosen when triton is imported)."""

import os
import subprocess
import sys

import pytest
import torch
from helpers.kron_reference import ROUNDING, make, reference

from weightinit import kernels
from weightinit.kernels import kron_sum

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICES = ["cpu"] if INTERPRETED else ["cuda"]
runs = pytest.mark.skipif(
    not (INTERPRETED or torch.cuda.is_available()), reason="no GPU; see test_in_the_interpreter"
)

SHAPES = [
    (1, (1, 7), (1, 3), (2,)),  # vectors
    (3, (5, 6), (2, 3), (2,)),  # nothing a power of two
    (6, (16, 32), (3, 1), (12,)),  # qkv of a small ViT
    (8, (33, 40), (1, 4), ()),  # several tiles
    (20, (4, 8), (5, 4), (2,)),  # more templates and rows than one tile of tl.dot
]
CASES = [(shape, torch.float32) for shape in SHAPES] + [(SHAPES[1], dtype) for dtype in ROUNDING]


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="this is the process it starts")
def test_in_the_interpreter():
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(
        command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "passed" in done.stdout


@pytest.fixture(params=DEVICES)
def device(request, monkeypatch):
    """Sends every tensor to the Triton kernels."""
    pytest.importorskip("triton")
    from weightinit.kernels import kron_triton

    if INTERPRETED:  # where every program is a loop in Python
        monkeypatch.setattr(kron_triton, "PROGRAMS", 4)
    monkeypatch.setattr(kernels, "_backend", lambda tensor: kron_triton)
    return request.param


def on(device, shape, dtype):
    return [tensor.to(device) for tensor in make(*shape, dtype=dtype)]


@runs
@pytest.mark.parametrize(("shape", "dtype"), CASES)
@pytest.mark.parametrize("order", ["block", "paper"])
def test_equals_a_loop_of_kron(device, shape, order, dtype):
    case = on(device, shape, dtype)
    tolerance = 4 * ROUNDING[dtype]
    expected = reference(*case, order)
    result = kron_sum(*case, order=order)
    torch.testing.assert_close(result.double(), expected, atol=tolerance, rtol=tolerance)

    base = torch.full((*expected.shape[:-2], expected.shape[-1], expected.shape[-2] + 2), 7.0)
    base = base.to(device, dtype)
    version = base._version
    kron_sum(*case, order=order, out=base.mT[..., 1:-1, :])
    assert base._version > version
    transposed = base.mT.double()
    torch.testing.assert_close(transposed[..., 1:-1, :], expected, atol=tolerance, rtol=tolerance)
    assert (transposed[..., [0, -1], :] == 7).all()


@runs
@pytest.mark.parametrize(("shape", "dtype"), CASES)
@pytest.mark.parametrize("order", ["block", "paper"])
def test_gradients_equal_those_of_the_reference(device, shape, order, dtype):
    case = on(device, shape, dtype)
    weight = torch.randn(reference(*case).shape, generator=torch.Generator().manual_seed(1))
    ours = [tensor.clone().requires_grad_() for tensor in case]
    theirs = [tensor.double().requires_grad_() for tensor in case]
    weight = weight.to(device, dtype).mT.contiguous().mT  # a gradient of odd strides
    got = torch.autograd.grad(kron_sum(*ours, order=order), ours, weight)
    want = torch.autograd.grad(reference(*theirs, order), theirs, weight.double())
    for a, b in zip(got, want, strict=True):
        assert a.dtype == dtype
        tolerance = ROUNDING[dtype] * (4 + b.abs().max().item())
        torch.testing.assert_close(a.double(), b, atol=tolerance, rtol=tolerance)


@runs
@pytest.mark.skipif(INTERPRETED, reason="too slow in the interpreter")
def test_vit_base_on_a_gpu(device):
    shape = (8, (768, 768), (4, 1), (12,))
    case = on(device, shape, torch.float32)
    ours = [tensor.requires_grad_() for tensor in case]
    result = kron_sum(*ours)
    expected = torch.einsum("lnab,nij->laibj", *[t.double() for t in ours[::-1]]).reshape_as(result)
    torch.testing.assert_close(result.double(), expected, atol=1e-5, rtol=1e-5)
    weight = torch.randn_like(result)
    got = torch.autograd.grad(result, ours, weight)
    want = torch.autograd.grad(expected, ours, weight.double())
    torch.testing.assert_close(got, want, atol=2e-2, rtol=1e-4)
