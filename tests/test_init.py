import pytest
import torch
from kron_reference import make, reference

import weightinit as wi


@pytest.mark.parametrize("order", ["block", "paper"])
def test_kron_sum_fills_a_parameter_in_place(order):
    case = make(dtype=torch.float32)
    weight = torch.nn.Parameter(torch.full((6, 10), torch.nan))
    version, pointer = weight._version, weight.data_ptr()
    assert wi.init.kron_sum_(weight, *case, order=order) is weight
    assert weight.data_ptr() == pointer
    assert weight._version > version
    assert weight.requires_grad
    assert weight.grad_fn is None
    expected = reference(*case, order).float()
    torch.testing.assert_close(weight.detach(), expected)


def test_kron_sum_fills_a_vector_and_keeps_the_dtype():
    case = make(w=(5,), s=(3,), dtype=torch.float32)
    bias = torch.empty(15, dtype=torch.bfloat16)
    wi.init.kron_sum_(bias, *case)
    assert torch.equal(bias, reference(*case).float().bfloat16())


def test_kron_sum_converts_mixed_dtypes():
    templates, scalers = make()
    weight = wi.init.kron_sum_(torch.empty(6, 10), templates.half(), scalers.float())
    torch.testing.assert_close(weight, reference(templates, scalers).float(), atol=1e-2, rtol=1e-2)


def test_kron_sum_leaves_its_sources_alone():
    case = make(dtype=torch.float32)
    before = [tensor.clone() for tensor in case]
    weight = wi.init.kron_sum_(torch.empty(6, 10), *case)
    weight.zero_()
    assert all(torch.equal(a, b) for a, b in zip(case, before, strict=True))


def test_kron_sum_does_nothing_on_meta_and_empty_tensors():
    meta, empty = torch.empty(6, 10, device="meta"), torch.empty(0, 10)
    assert wi.init.kron_sum_(meta, *make()) is meta
    assert wi.init.kron_sum_(empty, *make()) is empty


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_kron_sum_names_both_shapes(device):
    weight = torch.zeros(6, 11, device=device)
    with pytest.raises(wi.WeightInitError, match=r"\[6, 11\].*\[6, 10\]"):
        wi.init.kron_sum_(weight, *make())
    if device == "cpu":
        assert (weight == 0).all()
