import pytest
import torch
from helpers.models import draw
from hypothesis import given, settings
from hypothesis import strategies as st

import weightinit as wi
from weightinit.inherit.depth import blocks_for
from weightinit.templates.scalers import interpolate_depth


@given(st.integers(1, 6), st.integers(1, 9))
@settings(max_examples=30, deadline=None)
def test_interpolation_is_that_of_scalers_and_of_blocks(old, new):
    sources = draw(old, 2, 3)
    blocks = [torch.empty(2, 3, dtype=torch.float64) for _ in range(new)]
    filled = wi.init.interpolate_depth_(blocks, list(sources))
    assert all(a is b for a, b in zip(filled, blocks, strict=True))
    assert torch.equal(torch.stack(filled), interpolate_depth(sources, new))
    if new > 1:
        for tensor, mix in zip(filled, blocks_for("interpolate", old, new), strict=True):
            torch.testing.assert_close(tensor, sum(sources[i] * w for i, w in mix))


def test_a_block_of_weight_zero_is_not_read():
    broken = torch.full((2,), torch.nan)
    assert wi.init.mix_(torch.empty(2), [broken, torch.ones(2)], [0, 2]).tolist() == [2, 2]
    assert wi.init.mix_(torch.empty(2), [torch.ones(2)], [0]).tolist() == [0, 0]


def test_what_does_not_fit_raises():
    with pytest.raises(wi.WeightInitError, match="1 sources and 2 weights"):
        wi.init.mix_(torch.empty(2), [torch.ones(2)], [1, 2])
    with pytest.raises(wi.WeightInitError, match=r"\[3\] has not the shape of tensor \[2\]"):
        wi.init.mix_(torch.empty(2), [torch.ones(3)], [1])
    with pytest.raises(wi.WeightInitError, match="no sources"):
        wi.init.interpolate_depth_([torch.empty(2)], [])
