import pytest
import torch
from helpers.inherit import Stub, fill, logits, small_vit
from hypothesis import given, settings
from hypothesis import strategies as st

from weightinit.anatomy import anatomy
from weightinit.errors import ProjectionError
from weightinit.methods.net2net import Net2Net


@given(
    st.integers(1, 3), st.integers(0, 3), st.sampled_from([2, 4]), st.integers(0, 2),
    st.integers(1, 3), st.integers(0, 4), st.sampled_from(["even", "random"]), st.booleans(),
)  # fmt: skip
@settings(max_examples=15, deadline=None)
def test_hidden_channels_and_blocks_grow_without_a_trace(
    heads, more_heads, dim, more, depth, deeper, mapping, scaled
):
    """At a fixed width of the residual stream any map is exact, whole heads included."""
    options = {"init_values": 0.1, "qkv_bias": False} if scaled else {}
    width = heads * dim * (heads + more_heads)
    old = small_vit(width, heads, depth, mlp_ratio=2.0, **options).double()
    new = small_vit(width, heads, depth + deeper, mlp_ratio=2.0 + more / width, **options).double()
    report = fill(new, old, Net2Net(mapping=mapping), seed=more)
    torch.testing.assert_close(logits(new), logits(old), atol=1e-10, rtol=0)
    assert all("lossless" in row.source for row in report.rows if row.block is not None)


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 2), st.integers(0, 2))
@settings(max_examples=10, deadline=None)
def test_whole_multiples_of_the_width_are_exact_under_layer_norm(heads, times, grown, deeper):
    old = small_vit(8 * heads, heads, 1).double()
    sizes = {"width": 8 * heads * times * grown, "heads": heads * times, "depth": 1 + deeper}
    new = small_vit(**sizes, mlp_ratio=5.0).double()
    fill(new, old, Net2Net(), seed=times)
    torch.testing.assert_close(logits(new), logits(old), atol=1e-10, rtol=0)


@pytest.mark.parametrize(
    ("method", "width", "heads"), [(Net2Net(), 40, 5), (Net2Net(mapping="random"), 48, 6)]
)
def test_uneven_copies_of_the_stream_break_layer_norm_and_it_says_so(method, width, heads):
    old, new = small_vit().double(), small_vit(width, heads).double()
    report = fill(new, old, method)
    assert (logits(new) - logits(old)).abs().max() > 1e-4
    assert not any("lossless" in row.source for row in report.rows)
    (note,) = method.plan(Stub(old), anatomy(new)).notes
    assert "norm1.weight, norm2.weight, norm.weight average over" in note and "lemon" in note


def test_rows_are_copied_and_columns_divided():
    """The paper's own rule, on the matrices of one MLP."""
    old, new = small_vit(24, 3, 1), small_vit(24, 3, 1, mlp_ratio=6.5)
    fill(new, old, Net2Net(mapping="random"), seed=3)
    old, new = old.blocks[0].mlp, new.blocks[0].mlp
    distance = (new.fc1.weight[:, None] - old.fc1.weight[None]).abs().amax(-1)
    assert (distance.min(1).values == 0).all()
    g = distance.argmin(1)
    assert torch.equal(g[:96], torch.arange(96)) and g.bincount().max() > 2
    assert torch.equal(new.fc1.bias, old.fc1.bias[g])
    torch.testing.assert_close(new.fc2.weight, old.fc2.weight[:, g] / g.bincount()[g])


def test_added_blocks_write_nothing_and_keep_the_rest():
    old, new = small_vit(depth=2), small_vit(depth=3)
    fill(new, old, Net2Net())
    added = new.blocks[2]
    for layer in (added.attn.proj, added.mlp.fc2):
        assert not layer.weight.any() and not layer.bias.any()
    assert torch.equal(added.mlp.fc1.weight, old.blocks[1].mlp.fc1.weight)


def test_noise_tells_copies_apart_and_is_small():
    old, plain, noisy = small_vit().double(), *(small_vit(48, 6).double() for _ in range(2))
    fill(plain, old, Net2Net())
    report = fill(noisy, old, Net2Net(noise=1e-3))
    assert not any("lossless" in row.source for row in report.rows)
    a, b = (model.blocks[0].mlp for model in (plain, noisy))
    difference = b.fc1.weight - a.fc1.weight
    assert not difference[:96].any() and (difference[96:] != 0).all()
    rms = old.blocks[0].mlp.fc1.weight.square().mean().sqrt() / 2  # two copies read it
    torch.testing.assert_close(difference[96:].std(), 1e-3 * rms, rtol=0.1, atol=0)
    assert torch.equal(a.fc2.weight, b.fc2.weight) and torch.equal(a.fc1.bias, b.fc1.bias)
    assert 0 < (logits(noisy) - logits(old)).abs().max() < 1e-2


def test_values_are_checked():
    with pytest.raises(ProjectionError, match="mapping='circular'"):
        Net2Net(mapping="circular")
    with pytest.raises(ProjectionError, match="noise=-1"):
        Net2Net(noise=-1)
