"""Decoders, against plain ones that compute everything: values and gradients, in float64."""

import pytest
import torch
from helpers.hypernet_reference import config, published
from hypothesis import given, settings
from hypothesis import strategies as st

from weightinit.errors import ProjectionError
from weightinit.hypernet.decoders import ConvDecoder, Latents, LowRank, LowRankDecoder

SETTINGS = settings(max_examples=40, deadline=None)


def seeded(make, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make().double()


def low_rank(decoder, x, rows, columns, head=0):
    return Latents(decoder, x).factors(list(range(len(x))), rows, columns, head).dense()


def same(decoder, own, plain, x):
    """Compare values, and the gradients of the embeddings and of every parameter."""
    torch.testing.assert_close(own, plain)
    weight = torch.randn(own.shape, dtype=own.dtype, generator=torch.Generator().manual_seed(1))
    leaves = [x, *decoder.parameters()]
    pairs = zip(
        torch.autograd.grad((own * weight).sum(), leaves, allow_unused=True),
        torch.autograd.grad((plain * weight).sum(), leaves, allow_unused=True),
        strict=True,
    )
    for a, b in pairs:
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b)


@SETTINGS
@given(
    rank=st.integers(1, 7),
    ck=st.integers(8, 40),
    sizes=st.tuples(*[st.integers(1, 8)] * 2),
    expand=st.booleans(),
    head=st.integers(0, 2),
    number=st.integers(1, 3),
)
def test_low_rank_is_the_published_memory_view(rank, ck, sizes, expand, head, number):
    """Entry (i, j) of A is the latents' entry i r + j, whatever r and ck are to each other."""
    own = config("pith", rank=rank, max_ck=ck, hid=8)
    decoder = seeded(lambda: LowRankDecoder(own, expand=expand, heads=3))
    x = torch.randn(number, 8, dtype=torch.float64, requires_grad=True)
    rows, columns = sizes
    plain = published.low_rank(decoder, x, sizes, head)
    same(decoder, low_rank(decoder, x, rows, columns, head), plain, x)
    with torch.no_grad():  # another way through the latents
        torch.testing.assert_close(low_rank(decoder, x, rows, columns, head), plain)


@SETTINGS
@given(
    rank=st.integers(1, 6),
    first=st.integers(0, 12),
    count=st.integers(1, 12),
    which=st.integers(0, 1),
)
def test_rows_from_the_middle(rank, first, count, which):
    decoder = seeded(lambda: LowRankDecoder(config(rank=rank, max_ck=24, hid=8)))
    x = torch.randn(4, 8, dtype=torch.float64)
    whole = published.latents(decoder, x)[which][[3, 1]]
    found = Latents(decoder, x).factor([3, 1], which, count, first=first)
    torch.testing.assert_close(found, whole[:, first : first + count])


def test_few_rows_need_few_latents():
    decoder = seeded(lambda: LowRankDecoder(config(rank=8, max_ck=64, hid=8)))
    x = torch.randn(2, 8, dtype=torch.float64, requires_grad=True)
    low_rank(decoder, x, 8, 17).sum().backward()
    layer = decoder.mlp.fc[-1]
    used = layer.weight.grad.view(2, 8, 8, -1).abs().amax((2, 3)) > 0
    assert used.sum(1).tolist() == [1, 3]


def test_more_than_the_decoder_has():
    decoder = LowRankDecoder(config(rank=4, max_ck=32))
    for sizes, words in (((33, 2), "33 rows"), ((2, 40), "40 columns")):
        with pytest.raises(ProjectionError, match=f"{words}.*use a hypernetwork with a larger"):
            low_rank(decoder, torch.randn(1, 16), *sizes)


def test_low_rank_products():
    generator = torch.Generator().manual_seed(0)
    a, b, base = (torch.randn(s, generator=generator) for s in ((5, 2), (3, 2), (5, 3)))
    for value in (LowRank(a, b), LowRank(a, b, base)):
        expected = a @ b.T + (0 if value.base is None else base)
        torch.testing.assert_close(value.dense(), expected)
        outs = [torch.empty(5, 3), torch.empty(3, 5).T, torch.empty(5, 6)[:, ::2]]
        for out in (*outs, torch.empty(5, 3, dtype=torch.float64)):
            value.write(out)
            torch.testing.assert_close(out, expected.to(out.dtype))


@SETTINGS
@given(
    most=st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(1, 5)),
    cut=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    kernel=st.integers(1, 5),
    number=st.integers(1, 3),
)
def test_conv_cuts_what_it_computes(most, cut, kernel, number):
    decoder = seeded(lambda: ConvDecoder(config("ghn3", max_shape=most, hid=8)))
    x = torch.randn(number, 8, dtype=torch.float64, requires_grad=True)
    rows, columns = (min(n, size) for n, size in zip(cut, most, strict=False))
    side = min(kernel, most[2])
    plain = published.convolved(decoder, x, (rows, columns, side, side))
    same(decoder, decoder(x, rows, columns, side, side), plain, x)
    classes = published.convolved(decoder, x, (10, columns), True)
    same(decoder, decoder.classes(x, columns), classes, x)


@pytest.mark.parametrize("kernel", [4, 7, 16])
def test_conv_interpolates_larger_kernels(kernel):
    decoder = seeded(lambda: ConvDecoder(config("ghn3", max_shape=(4, 3, 3), hid=8)))
    x = torch.randn(1, 8, dtype=torch.float64, requires_grad=True)
    plain = published.convolved(decoder, x, (4, 2, kernel, kernel))
    assert plain.shape == (1, 4, 2, kernel, kernel)
    same(decoder, decoder(x, 4, 2, kernel, kernel), plain, x)
    wide = decoder(x, 4, 2, 2, kernel)
    assert wide.shape == (1, 4, 2, 2, kernel)
