"""The published rules of sizes and scales, against their plain form."""

import pytest
import torch
from helpers.hypernet_reference import config, published
from hypothesis import given, settings
from hypothesis import strategies as st

from weightinit.hypernet.graph import Node
from weightinit.hypernet.network import GraphHyperNetwork
from weightinit.hypernet.shapes import limited, scale_of, tiled, vector


@settings(max_examples=100, deadline=None)
@given(
    size=st.integers(1, 5000),
    most=st.sampled_from([32, 48, 256, 2048, 4096]),
    kind=st.sampled_from(["ghn3", "logah", "tal", "pith"]),
)
def test_sizes_are_rounded_as_published(size, most, kind):
    own = config(kind, max_shape=(most, most, 11))
    with torch.device("meta"):
        key = published.keyed((size,), False, GraphHyperNetwork(own))
    assert limited(size, 0, own, own.max_shape) == key[0]
    if size <= most:
        assert limited(size, 0, own, None) == key[0]
    else:
        assert limited(size, 0, own, None) == size


@settings(max_examples=60, deadline=None)
@given(old=st.tuples(*[st.integers(1, 6)] * 2), new=st.tuples(*[st.integers(1, 15)] * 2))
def test_tiling_repeats_from_the_start(old, new):
    values = torch.arange(2 * old[0] * old[1]).view(2, *old)
    found = tiled(values, new)
    for one, whole in zip(values, found, strict=True):
        assert torch.equal(published.tile(one, new), whole)


@pytest.mark.parametrize(
    "shape", [(64, 32), (10, 7), (96, 3, 16, 16), (96, 1, 4, 4), (96, 3, 4, 8), (96, 1, 1, 1)]
)
def test_scales_are_published(shape):
    op, role = ("conv", "patch.weight" if len(shape) == 4 else "attn.proj.weight")
    node = Node(op, (role,), -1, (*shape, 1, 1)[:4])
    value = torch.randn(shape)
    assert torch.allclose(value * scale_of(node), published.scaled(value, role, weight=True))


def test_vectors_are_bounded():
    value = torch.randn(50) * 100
    assert torch.equal(vector(value, 0), published.scaled(value, "", weight=True))
    assert torch.equal(vector(value, 1), published.scaled(value, "", weight=False))
    assert vector(value, 0).min() >= 0 and vector(value, 1).abs().max() <= 1
