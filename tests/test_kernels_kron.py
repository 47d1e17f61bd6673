import pytest
import torch
from helpers.kron_reference import make, reference

from weightinit.kernels import kron, kron_sum


@pytest.mark.parametrize("order", ["block", "paper"])
def test_blocks_are_a_view(order):
    (templates, scalers), (w, s) = make(n=1), ((2, 5), (3, 2))
    product = reference(templates, scalers, order)
    view = kron.blocks(product, w, s, order)
    assert view.data_ptr() == product.data_ptr()
    torch.testing.assert_close(view[2, :, 1], scalers[0, 2, 1] * templates[0])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("order", ["block", "paper"])
@pytest.mark.parametrize("step_bytes", [1, 1000, 1 << 30])
@pytest.mark.parametrize(("s", "lead"), [((3, 2), (5,)), ((3, 1), ()), ((1, 1), (2,))])
def test_every_way_of_cutting_gives_the_same(monkeypatch, s, lead, step_bytes, order, dtype):
    monkeypatch.setattr(kron, "STEP_BYTES", step_bytes)
    templates, scalers = make(n=4, w=(11, 6), s=s, lead=lead, dtype=dtype)
    tolerance = 1e-1 if dtype == torch.bfloat16 else 1e-5
    expected = reference(templates, scalers, order)
    result = kron_sum(templates, scalers, order=order).double()
    torch.testing.assert_close(result, expected, atol=tolerance, rtol=tolerance)
    for out in (torch.empty_like(expected), torch.empty_like(expected.mT.contiguous()).mT):
        out = out.to(dtype)
        kron_sum(templates, scalers, order=order, out=out)
        torch.testing.assert_close(out.double(), expected, atol=tolerance, rtol=tolerance)

    ours = [templates.requires_grad_(), scalers.requires_grad_()]
    theirs = [tensor.detach().double().requires_grad_() for tensor in ours]
    got = torch.autograd.grad(kron_sum(*ours, order=order).sum(), ours)
    want = torch.autograd.grad(reference(*theirs, order).sum(), theirs)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a.double(), b, atol=5 * tolerance, rtol=tolerance)


def test_half_precision_is_rounded_once():
    """Sixty-four terms of one size: kept in bfloat16, the sum would stall at 1 + 2^-8."""
    templates = torch.full((64, 1, 8), 2.0**-8, dtype=torch.bfloat16)
    templates[0] = 1
    scalers = torch.ones(64, 2, 1, dtype=torch.bfloat16, requires_grad=True)
    assert (kron_sum(templates, scalers) == torch.tensor(1 + 63 / 256, dtype=torch.bfloat16)).all()

    weight = torch.full((2, 8), 2.0**-8, dtype=torch.bfloat16)
    weight[:, 0] = 1
    kron_sum(torch.ones_like(templates), scalers).backward(weight)
    assert (scalers.grad == torch.tensor(1 + 7 / 256, dtype=torch.bfloat16)).all()


@pytest.mark.parametrize("s", [(3, 4), (3, 1)])
def test_destinations_differ_by_their_rounding_alone(s):
    templates, scalers = make(n=6, w=(16, 32), s=s, dtype=torch.float32)
    plain, half = (torch.empty(s[0] * 16, s[1] * 32, dtype=d) for d in (None, torch.bfloat16))
    turned = torch.empty(s[1] * 32, s[0] * 16).mT
    for out in (plain, half, turned):
        kron_sum(templates, scalers, out=out)
    assert torch.equal(plain.bfloat16(), half)
    assert torch.equal(plain, turned)
    torch.testing.assert_close(kron_sum(templates, scalers), plain)
