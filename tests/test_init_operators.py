import pytest
import torch
from helpers.models import draw
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from weightinit import AnatomyError
from weightinit.init.operators import (
    Copies,
    along,
    corner,
    cycle,
    interpolation,
    joint_index,
    mix,
    pad,
    repeat,
    scale,
    share,
)


@given(st.integers(0, 3), st.integers(1, 4), st.sampled_from(["index", "matrix", "call"]))
@settings(deadline=None)
def test_along_is_indexing_and_matmul(dim, new, kind):
    tensor = draw(2, 3, 4, 2)
    rows, size = tensor.unbind(dim), tensor.shape[dim]
    if kind == "index":
        op = torch.arange(new) * 2 % size
        expected = torch.stack([rows[i] for i in op.tolist()], dim)
    elif kind == "matrix":
        op = draw(new, size, seed=1)
        mixed = [sum(op[a, b] * rows[b] for b in range(size)) for a in range(new)]
        expected = torch.stack(mixed, dim)
    else:
        op, expected = Tensor.flip, tensor.flip(dim)
    torch.testing.assert_close(along(tensor, dim, op), expected, rtol=1e-12, atol=1e-12)


def test_along_refuses_what_does_not_fit():
    with pytest.raises(AnatomyError, match=r"length 5.*matrix \[new, 5\]"):
        along(torch.zeros(6, 5), 1, torch.zeros(2, 4))


@pytest.mark.parametrize("dim", [0, 1, 2, -1, -3])
def test_scale_and_pad_act_along_one_axis(dim):
    tensor, size = draw(2, 3, 4), (2, 3, 4)[dim]
    factors = torch.arange(size)
    scaled = torch.stack([x * i for i, x in enumerate(tensor.unbind(dim))], dim)
    assert torch.equal(scale(tensor, dim, factors), scaled)
    one = tensor.narrow(dim, 0, 1)
    assert torch.equal(pad(tensor, dim, size + 2, one), torch.cat([tensor, one, one], dim))
    assert not pad(tensor, dim, size + 2).narrow(dim, size, 2).any()
    assert pad(tensor, dim, size) is tensor


def test_a_corner_is_a_view():
    tensor = torch.zeros(2, 3, 4)
    corner(tensor, (2, 1), 1).fill_(1)
    assert tensor.sum() == 4 and tensor[:, :2, :1].all()


@given(st.integers(1, 9), st.integers(1, 9))
def test_interpolation_is_linear_between_the_ends(old, new):
    mixes = interpolation(old, new)
    assert len(mixes) == new
    places = [sum(i * weight for i, weight in blocks) for blocks in mixes]
    first = 0 if new > 1 else (old - 1) / 2
    step = (old - 1) / max(1, new - 1)
    assert places == pytest.approx([first + i * step for i in range(new)])
    assert all(sum(weight for _, weight in blocks) == pytest.approx(1) for blocks in mixes)
    assert all(0 <= i < old and weight > 0 for blocks in mixes for i, weight in blocks)


def test_a_mix_reads_one_tensor_at_a_time():
    alive = 0

    def read(i):
        nonlocal alive
        alive = i
        return torch.full((2,), float(i))

    parts = ((read(i), 0.5) for i in range(3))
    next(parts)
    assert alive == 0
    assert mix(parts).tolist() == [1.5, 1.5]


def test_joint_indices_are_those_of_a_flattened_pair_of_axes():
    outer, inner = torch.tensor([2, 0, 1]), torch.tensor([3, 1])
    tensor = draw(4, 5)
    expected = tensor[outer][:, inner].flatten()
    assert torch.equal(tensor.flatten()[joint_index(outer, inner, 5)], expected)


@settings(deadline=None)
@given(old=st.integers(1, 7), new=st.integers(1, 20))
def test_what_is_shared_keeps_the_product_with_what_is_repeated(old, new):
    w, x = draw(3, old), draw(old, seed=1)
    wide = share(w, 1, new)
    assert wide.shape == (3, new)
    if new >= old:
        torch.testing.assert_close(wide @ repeat(x, 0, new), w @ x)
    else:
        torch.testing.assert_close(wide, w[:, :new] * (old / new) ** 0.5)


@given(st.integers(1, 6), st.lists(st.integers(0, 5), max_size=9), st.booleans())
@settings(max_examples=40, deadline=None)
def test_the_shares_of_a_channel_sum_to_what_read_it(old, more, uneven):
    index = torch.tensor([*range(old), *(i % old for i in more)])
    copies = Copies(index)
    weight = draw(3, old)
    added = (lambda even: draw(3, 20, seed=1)[:, : even.shape[1]]) if uneven else None
    shares = copies.share(weight, 1, added)
    sums = torch.zeros_like(weight).index_add_(1, index, shares)
    torch.testing.assert_close(sums, weight, atol=1e-14, rtol=0)
    padded = Copies(index, 2).share(weight, 1, added)
    torch.testing.assert_close(padded[:, :-2], Copies(index).share(weight, 1, added))
    for channel in range(old):
        turns = copies.turns[index == channel]
        assert turns.tolist() == list(range(len(turns)))
        assert (copies.counts[index == channel] == len(turns)).all()


def test_what_follows_the_copies_is_free_where_it_is_not_read():
    copies = Copies(cycle(2, 4), 1)
    own = draw(3, 5, seed=1)
    weight = draw(3, 2)
    assert torch.equal(copies.share(weight, 1, lambda even: own)[:, 4], own[:, 4])
    assert not copies.share(weight, 1)[:, 4].any()
    assert torch.equal(copies.repeat(weight, 1, weight[:, :1])[:, 4], weight[:, 0])
