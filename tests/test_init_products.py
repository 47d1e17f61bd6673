import pytest
import torch
from helpers.models import draw
from hypothesis import given, settings
from hypothesis import strategies as st

import weightinit as wi


@given(*[st.integers(1, 6)] * 5, st.sampled_from(["dense", "factors", "none"]))
@settings(max_examples=40, deadline=None)
def test_it_is_p_w_q_transposed(new_out, new_in, old_out, old_in, rank, kind):
    a, b = draw(new_out, rank), draw(rank, old_out, seed=1)
    q = draw(new_in, old_in, seed=2)
    w = draw(old_out, old_in, seed=3)
    left = {"dense": a @ b, "factors": (a, b), "none": None}[kind]
    p = torch.eye(old_out, dtype=torch.float64) if kind == "none" else a @ b
    weight = torch.empty(len(p), new_in, dtype=torch.float64)
    assert wi.init.project_(weight, w, left, q) is weight
    expected = torch.tensor([
        [sum(p[i, k] * w[k, m] * q[j, m] for k in range(old_out) for m in range(old_in))
         for j in range(new_in)]
        for i in range(len(p))
    ], dtype=torch.float64)  # fmt: skip
    torch.testing.assert_close(weight, expected)


def test_vectors_have_a_left_side():
    p, bias = draw(3, 2), draw(2, seed=1)
    held = torch.nn.Parameter(torch.empty(3).double())
    assert wi.init.project_(held, bias, p) is held
    torch.testing.assert_close(held.detach(), p @ bias)
    with pytest.raises(wi.WeightInitError, match="no right side"):
        wi.init.project_(torch.zeros(2), torch.ones(2), None, torch.ones(2, 2))


def test_all_layers_at_once():
    w, p = draw(3, 4, 4), draw(2, 4, seed=1)
    stack = wi.init.project_(torch.empty(3, 2, 4).double(), w, p)
    torch.testing.assert_close(stack, p @ w)


def test_operands_are_converted_and_may_be_learned():
    left = torch.nn.Parameter(torch.ones(1, 2).half())
    weight = wi.init.project_(torch.empty(1, 2), torch.ones(2, 2, dtype=torch.bfloat16), left)
    assert weight.tolist() == [[2, 2]] and not weight.requires_grad


@pytest.mark.parametrize(
    ("shape", "left", "right"),
    [
        ((3, 2), torch.ones(3, 3), None),
        ((3, 2), None, None),
        ((2, 5), None, (torch.ones(5, 1), torch.ones(1, 3))),
        ((2, 5), None, (torch.ones(5, 1),)),
        ((2,), torch.ones(2, 2), None),
    ],
)
def test_what_does_not_fit_raises(shape, left, right):
    weight = torch.zeros(shape)
    with pytest.raises(wi.WeightInitError):
        wi.init.project_(weight, torch.ones(2, 2), left, right)
    assert not weight.any()
