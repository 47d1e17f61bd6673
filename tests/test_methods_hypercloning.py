import math

import pytest
import torch
from helpers.inherit import Stub, fill, logits, randomise, small_vit
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import SwiGLU

from weightinit.anatomy import anatomy
from weightinit.errors import ProjectionError
from weightinit.init.operators import Copies
from weightinit.methods.hypercloning import HyperCloning, _pairs
from weightinit.plan import Plan


@given(
    st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3),
    st.integers(1, 2), st.integers(0, 3), st.sampled_from([None, 0.0, 10.0]),
    st.sampled_from(["token", "avg", "qkv_bias", "init_values", "qk_norm", "swiglu"]),
)  # fmt: skip
@settings(max_examples=25, deadline=None)
def test_whole_multiples_keep_the_function(
    heads, more_heads, more_dims, hidden, depth, deeper, snr, kind
):
    """Heads multiplied in number, in size, or both; noise or none."""
    options = {
        "avg": {"class_token": False, "global_pool": "avg"},
        "qkv_bias": {"qkv_bias": False},
        "init_values": {"init_values": 0.1},
        "qk_norm": {"qk_norm": True},
        "swiglu": {"mlp_layer": SwiGLU},
    }.get(kind, {})
    old = small_vit(4 * heads, heads, depth, mlp_ratio=2.0, **options).double()
    width = 4 * heads * more_heads * more_dims
    ratio = 2.0 * hidden / (more_heads * more_dims)
    if (width * ratio) % (8 * heads) or int(width * ratio) != width * ratio:
        ratio = 2.0 * hidden
    new = small_vit(width, heads * more_heads, depth + deeper, mlp_ratio=ratio, **options).double()
    if anatomy(new).sizes["m"] < anatomy(old).sizes["m"]:
        return
    method = HyperCloning(snr_db=snr)
    fill(new, old, method)
    torch.testing.assert_close(logits(new), logits(old), atol=1e-10, rtol=0)
    assert method.plan(Stub(old), anatomy(new)).notes == ["HyperCloning is lossless here"]


def test_matrices_are_tiled_and_divided():
    """The published code, on single tensors: tile over the number of copies that are read."""
    old, new = small_vit(24, 3, 1), small_vit(48, 6, 1)
    fill(new, old, HyperCloning())
    a, b = old.blocks[0], new.blocks[0]
    for part, wide in zip(a.attn.qkv.weight.chunk(3), b.attn.qkv.weight.chunk(3), strict=True):
        assert torch.equal(wide, part.tile(2, 2) / 2)
    assert torch.equal(b.mlp.fc2.weight, a.mlp.fc2.weight.tile(2, 2) / 2)
    assert torch.equal(b.mlp.fc2.bias, a.mlp.fc2.bias.tile(2))
    assert torch.equal(b.norm1.weight, a.norm1.weight.tile(2))
    assert torch.equal(new.pos_embed, old.pos_embed.tile(2))
    assert torch.equal(new.patch_embed.proj.weight, old.patch_embed.proj.weight.tile(2, 1, 1, 1))
    assert torch.equal(new.head.weight, old.head.weight.tile(1, 2) / 2)


def test_larger_heads_are_scaled_by_a_fourth_root():
    old, new = small_vit(24, 3, 1), small_vit(48, 3, 1)
    fill(new, old, HyperCloning())
    q, _, v = old.blocks[0].attn.qkv.bias.view(3, 3, 8)
    wide_q, _, wide_v = new.blocks[0].attn.qkv.bias.view(3, 3, 16)
    torch.testing.assert_close(wide_q, q.tile(1, 2) * 0.5**0.25)
    assert torch.equal(wide_v, v.tile(1, 2))


@pytest.mark.parametrize("times", [2, 3, 4])
def test_noise_cancels_in_pairs_at_the_ratio_asked_for(times):
    copies = Copies(torch.arange(5 * times) % 5)
    even = torch.randn(40, 5).tile(1, times).double()
    noise = _pairs(even, copies, 10 ** (-10 / 20), torch.Generator().manual_seed(0))
    blocks = noise.view(40, times, 5)
    for first in range(0, times - 1, 2):
        assert torch.equal(blocks[:, first], -blocks[:, first + 1])
    assert blocks[:, -1].any() == (times % 2 == 0)
    paired = blocks[:, : times // 2 * 2]
    snr = 10 * torch.log10(even.square().mean() / paired.square().mean())
    assert math.isclose(float(snr), 10, abs_tol=1e-4)


def test_noise_is_in_every_matrix_of_a_block_and_in_nothing_else():
    old, plain, noisy = small_vit(), small_vit(48, 6), small_vit(48, 6)
    fill(plain, old, HyperCloning())
    fill(noisy, old, HyperCloning(snr_db=10))
    for name, value in noisy.named_parameters():
        wanted = plain.get_parameter(name)
        if name.startswith("blocks") and value.ndim == 2:
            assert (value != wanted).all(), name
        else:
            assert torch.equal(value, wanted), name


def test_gpt2_with_a_tied_head_is_exact():
    """The head reads tiled embeddings undivided: the norm before it is divided instead."""
    transformers = pytest.importorskip("transformers")

    def build(width, heads, layers):
        config = transformers.GPT2Config(
            vocab_size=11, n_positions=8, n_embd=width, n_layer=layers, n_head=heads
        )
        return randomise(transformers.GPT2LMHeadModel(config)).double()

    old, new = build(12, 3, 2), build(24, 6, 3)
    seen, tokens = anatomy(new), torch.arange(8)[None]
    method = HyperCloning(snr_db=10)
    Plan(new, seen, method.plan(Stub(old), seen).recipes(seen), source="stub").commit()
    with torch.no_grad():
        wanted, found = old(tokens).logits, new(tokens).logits
    torch.testing.assert_close(found, wanted, atol=1e-10, rtol=0)
    assert method.plan(Stub(old), seen).notes == ["HyperCloning is lossless here"]


def test_other_ratios_are_refused_with_the_way_out():
    with pytest.raises(ProjectionError, match=r"h 3 -> 5.*d 24 -> 40.*method='lemon'"):
        fill(small_vit(40, 5), small_vit(), HyperCloning())
