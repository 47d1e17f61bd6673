import itertools

import pytest
import torch
from helpers.project_reference import DTYPES, close
from hypothesis import given, settings
from hypothesis import strategies as st

from weightinit.kernels import chain

lengths = st.shared(st.integers(2, 5), key="length")


def trees(start, stop):
    """Every order of multiplying factors start to stop."""
    if stop - start == 1:
        yield start
    for middle in range(start + 1, stop):
        yield from itertools.product(trees(start, middle), trees(middle, stop))


def price(tree, sizes, layers):
    """First and last factor of a tree, its multiplications and the size of its products."""
    if isinstance(tree, int):
        return tree, tree + 1, 0, 0
    (start, middle, *left), (_, stop, *right) = (price(side, sizes, layers) for side in tree)
    held = max(layers[start:stop]) * sizes[start] * sizes[stop]
    return start, stop, left[0] + right[0] + held * sizes[middle], left[1] + right[1] + held


@given(
    lengths.flatmap(lambda n: st.tuples(*[st.sampled_from([0, 1, 2, 4, 5, 40])] * (n + 1))),
    lengths.flatmap(lambda n: st.tuples(*[st.sampled_from([1, 12])] * n)),
)
@settings(deadline=None)
def test_no_other_order_is_cheaper(sizes, layers):
    every = [price(tree, sizes, layers)[2:] for tree in trees(0, len(layers))]
    assert len(every) == {2: 1, 3: 2, 4: 5, 5: 14}[len(layers)]
    assert price(chain.cheapest(sizes, layers), sizes, layers)[2:] == min(every)


def test_the_order_follows_the_sizes():
    assert chain.cheapest((3072, 1536, 384, 768), (1, 1, 1)) == ((0, 1), 2)
    assert chain.cheapest((768, 384, 1536, 3072), (1, 1, 1)) == (0, (1, 2))
    low_rank = chain.cheapest((768, 32, 384, 384, 32, 768), (1, 1, 12, 1, 1))
    assert low_rank == (0, ((1, (2, 3)), 4))


def test_what_layers_share_is_multiplied_out_once():
    sizes = (8, 6, 8, 8)
    assert chain.cheapest(sizes, (1, 1, 1)) == (0, (1, 2))
    assert chain.cheapest(sizes, (1, 1, 12)) == ((0, 1), 2)


@st.composite
def products(draw, dtypes=DTYPES):
    number = draw(st.integers(2, 5))
    sizes = draw(st.tuples(*[st.integers(1, 6)] * (number + 1)))
    layers = draw(st.sampled_from([None, 0, 3]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    factors = []
    for shape in itertools.pairwise(sizes):
        lead = () if layers is None or draw(st.booleans()) else (layers,)
        strided = draw(st.booleans())
        shape = (*lead, *(reversed(shape) if strided else shape))
        factor = torch.randn(shape, generator=generator, dtype=torch.float64)
        factors.append(factor.mT if strided else factor)
    dtype = draw(st.sampled_from(dtypes))
    return [factor.to(dtype) for factor in factors]


def multiplied(factors):
    result = factors[0].double()
    for factor in factors[1:]:
        result = result @ factor.double()
    return result


@given(products())
@settings(deadline=None)
def test_forward_equals_the_plain_product(factors):
    result, *saved = chain.forward(factors)
    assert result.dtype == factors[0].dtype
    assert result.is_contiguous()
    assert len(saved) == len(factors) - 2
    close(result, multiplied(factors), result.dtype)


@given(products(), st.sampled_from(DTYPES), st.booleans(), st.booleans())
@settings(deadline=None)
def test_forward_into_equals_the_plain_product(factors, dtype, whole, transposed):
    expected = multiplied(factors)
    if expected.numel() == 0:
        return
    base = expected.mT if transposed else expected
    out = torch.full(base.shape, 7.0, dtype=dtype)
    out = out.mT if transposed else out
    layers = [out] if whole or out.ndim == 2 else list(out)
    chain.forward_into(factors, layers)
    close(out, expected, max(dtype, factors[0].dtype, key=lambda d: torch.finfo(d).eps))


@given(products(), st.booleans(), st.data())
@settings(deadline=None)
def test_backward_equals_that_of_the_plain_product(factors, keep, data):
    need = data.draw(st.lists(st.booleans(), min_size=len(factors), max_size=len(factors)))
    result, *saved = chain.forward(factors)
    generator = torch.Generator().manual_seed(1)
    grad = torch.randn(result.shape, generator=generator).to(result.dtype)
    got = chain.backward(grad, factors, saved if keep else [], need)
    leaves = [factor.double().requires_grad_() for factor in factors]
    want = torch.autograd.grad(multiplied(leaves), leaves, grad.double())
    for needed, ours, theirs, factor in zip(need, got, want, factors, strict=True):
        assert (ours is not None) == needed
        if ours is not None:
            assert ours.dtype == factor.dtype
            assert ours.is_contiguous()
            close(ours, theirs, ours.dtype)


def test_backward_is_twice_the_work_of_forward(monkeypatch):
    """Whatever is saved is not made again, and only what a needed gradient wants is made."""
    count = 0
    product = chain._product

    def counted(*args):
        nonlocal count
        count += 1
        return product(*args)

    monkeypatch.setattr(chain, "_product", counted)
    factors = [torch.ones(2, 2) for _ in range(5)]
    result, *saved = chain.forward(factors)
    assert count == 4
    chain.backward(result, factors, saved, [True] * 5)
    assert count == 4 + 8
    chain.backward(result, factors, saved, [False] * 5)
    assert count == 4 + 8


@pytest.mark.parametrize(("dtype", "number"), [(torch.float16, 2049), (torch.bfloat16, 257)])
def test_half_precision_is_rounded_once(dtype, number):
    """The intermediate result, number and number - 1, is more than the dtype can hold."""
    ones = torch.ones(number, 2, dtype=dtype)
    ones[0, 1] = 0
    factors = [ones[None, :, 0], ones, torch.tensor([[1.0], [-1.0]], dtype=dtype)]
    result, *saved = chain.forward(factors)
    assert result == 1
    *_, grad = chain.backward(-result, factors, saved, [True] * 3)
    assert (grad == torch.tensor([[-number], [1 - number]]).to(dtype)).all()


def test_layers_are_summed_by_one_product_on_a_gpu(monkeypatch):
    """The way that the CPU does not take: the same sum."""
    like, left, right = torch.empty(3, 5), torch.randn(4, 3, 2), torch.randn(4, 2, 5)
    expected = torch.einsum("lij,ljk->ik", left, right)
    torch.testing.assert_close(chain._product_like(like, left, right), expected)
    torch.testing.assert_close(chain._summed(left, right), expected)
    torch.testing.assert_close(
        chain._summed(left.mT.contiguous().mT, right.mT.contiguous().mT), expected
    )
