"""Runs on a GPU where there is one, and everywhere in Triton's interpreter (in a process of its
own: the interpreter is chosen when triton is imported)."""

import importlib
import os
import subprocess
import sys

import pytest
import torch
from helpers.project_reference import close, gradients, make, rebuilt, reference, tensors

from weightinit.kernels import project

module = importlib.import_module("weightinit.kernels.project")

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICES = ["cpu"] if INTERPRETED else ["cuda"]
runs = pytest.mark.skipif(
    not (INTERPRETED or torch.cuda.is_available()), reason="no GPU; see test_in_the_interpreter"
)

CASES = [
    ((5, 7, 4, 6), (2, 3), ((), (), ())),
    ((70, 33, 40, 90), (16, 20), ((3,), (), ())),  # nothing a power of two
    ((65, 130, 200, 64), (5, 33), ((2,), (2,), (2,))),  # several tiles, layers of their own
    ((64, 70, 64, 150), (64, 1), ((), (2,), ())),  # the largest rank, layers in one factor
    ((20, 18, 16, 17), (4, 4), ((2, 2), (), (2, 1))),
    ((20, 18, 16, 17), (4, 4), ((0,), (), ())),
]
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


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
    """Sends every product that fits to the Triton kernels."""
    pytest.importorskip("triton")
    from weightinit.kernels import project_triton

    if INTERPRETED:  # where every program is a loop in Python
        monkeypatch.setattr(project_triton, "PROGRAMS", 4)
        monkeypatch.setattr(project_triton, "has_tensor_cores", lambda device: True)
    monkeypatch.setattr(
        module, "_fused", lambda factors: project_triton if project_triton.fits(factors) else None
    )
    return request.param


@runs
@pytest.mark.parametrize("shape", CASES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_equals_the_formula(device, shape, dtype):
    case = make(*shape, dtype=dtype, device=device)
    expected = reference(*case)
    result = project(*case)
    assert result.is_contiguous()
    close(result, expected, dtype)

    *lead, rows, columns = expected.shape
    base = torch.full((*lead, columns, rows + 2), 7.0, device=device, dtype=torch.float32)
    version = base._version
    project(*case, out=base.mT[..., 1:-1, :])
    assert base._version > version or base.numel() == 0
    transposed = base.mT.double()
    close(transposed[..., 1:-1, :], expected, dtype)
    assert (transposed[..., [0, -1], :] == 7).all()


@runs
def test_writes_a_tensor_for_each_layer(device):
    case = make(*CASES[1], dtype=torch.float32, device=device)
    expected = reference(*case)
    outs = [torch.empty_like(layer) for layer in expected]
    project(*case, out=outs)
    close(torch.stack(outs), expected, torch.float32)


@runs
@pytest.mark.parametrize("shape", CASES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_equal_those_of_the_formula(device, shape, dtype):
    case = make(*shape, dtype=dtype, device=device)
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(reference(*case).shape, generator=generator).to(device, dtype)
    weight = weight.mT.contiguous().mT  # a gradient of odd strides
    want = gradients(reference, rebuilt(case, [t.double() for t in tensors(case)]), weight.double())
    # Half precision on a GPU is rounded between the products that the library makes.
    for ours, theirs in zip(gradients(project, case, weight), want, strict=True):
        assert ours.dtype == dtype
        close(ours, theirs, dtype, slack=4)

    source = case[0].requires_grad_()
    (alone,) = torch.autograd.grad(project(*case), source, weight)
    close(alone, want[0], dtype)


@runs
def test_what_does_not_fit_is_left_to_the_library(device):
    from weightinit.kernels import project_triton

    def fits(*args, **options):
        source, (a, b), (c, d) = make(*args, device=device, **options)
        return project_triton.fits([a, b, source, d.mT, c.mT])

    assert all(fits(*shape, dtype=dtype) for shape in CASES for dtype in DTYPES)
    sizes = (80, 80, 80, 80)
    assert fits(sizes, (64, 64), dtype=torch.float32)
    assert not fits(sizes, (64, 65), dtype=torch.float32)
    assert not fits(sizes, (8, 8), dtype=torch.float64)
    assert not fits((80, 80, 7, 80), (8, 8), dtype=torch.float32)
    assert not project_triton.fits(tensors(make(dtype=torch.float32, device=device)))
    for dtype, ranks in [(torch.float64, (8, 8)), (torch.float32, (8, "dense"))]:
        case = make(sizes, ranks, dtype=dtype, device=device)
        close(project(*case), reference(*case), dtype)


def test_only_gpus_with_tensor_cores():
    pytest.importorskip("triton")
    from weightinit.kernels import project_triton

    assert not project_triton.has_tensor_cores(torch.device("cpu"))


@runs
@pytest.mark.skipif(INTERPRETED, reason="too slow in the interpreter")
@pytest.mark.parametrize("ranks", [("dense", "dense"), (32, 32), (90, 90)])
def test_vit_base_on_a_gpu(device, ranks):
    case = make((768, 384, 384, 768), ranks, ((12,), (), ()), dtype=torch.float32, device=device)
    case = rebuilt(case, [tensor / 20 for tensor in tensors(case)])
    result, expected = project(*case), reference(*case)
    close(result, expected, torch.float32)
    weight = torch.randn_like(result)
    doubled = rebuilt(case, [tensor.double() for tensor in tensors(case)])
    want = gradients(reference, doubled, weight.double())
    for ours, theirs in zip(gradients(project, case, weight), want, strict=True):
        close(ours, theirs, torch.float32, slack=4)
