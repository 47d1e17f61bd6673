import pytest
import timm
import torch
from helpers.inherit import Stub, fill, logits, narrow_eps, randomise, small_vit
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import RmsNorm

from weightinit.anatomy import anatomy
from weightinit.errors import ProjectionError
from weightinit.methods.expansions import Expansions


@given(
    st.integers(1, 3), st.integers(0, 3), st.sampled_from([4, 6]), st.integers(0, 3),
    st.integers(0, 3), st.integers(1, 2), st.integers(0, 3), st.booleans(), st.booleans(),
)  # fmt: skip
@settings(max_examples=25, deadline=None)
def test_rms_norm_models_grow_in_every_way_at_once(
    heads, more_heads, dim, more_dims, hidden, depth, deeper, bias, scaled
):
    options = {"norm_layer": "rmsnorm", "qkv_bias": bias, "init_values": 0.1 if scaled else None}
    old = small_vit(heads * dim, heads, depth, mlp_ratio=2.0, **options).double()
    width = (heads + more_heads) * (dim + more_dims)
    sizes = {"width": width, "heads": heads + more_heads, "depth": depth + deeper}
    new = small_vit(**sizes, mlp_ratio=2.0 + hidden / width, **options).double()
    fill(new, old, Expansions())
    (note,) = Expansions().plan(Stub(old), anatomy(new)).notes
    assert "not lossless" not in note and ("eps" in note) == (width > heads * dim)
    narrow_eps(new, note)
    torch.testing.assert_close(logits(new), logits(old), atol=1e-10, rtol=0)


def test_without_its_eps_the_stream_differs_by_about_the_eps():
    options = {"norm_layer": "rmsnorm"}
    old, new = small_vit(**options).double(), small_vit(48, 6, **options).double()
    fill(new, old, Expansions())
    wanted = logits(old)
    assert 1e-9 < (logits(new) - wanted).abs().max() / wanted.abs().max() < 1e-4


def test_layer_norm_models_grow_but_for_the_stream():
    old, new = small_vit().double(), small_vit(depth=4, mlp_ratio=5.0).double()
    fill(new, old, Expansions())
    torch.testing.assert_close(logits(new), logits(old), atol=1e-10, rtol=0)
    with pytest.raises(ProjectionError, match=r"RMSNorm models only.*method='lemon'"):
        fill(small_vit(48, 6), small_vit(), Expansions())


def test_the_six_expansions_write_what_the_paper_says():
    options = {"norm_layer": "rmsnorm"}
    old, new = small_vit(24, 3, 1, **options), small_vit(48, 4, 2, mlp_ratio=3.0, **options)
    fill(new, old, Expansions())
    a, b = old.blocks[0], new.blocks[0]
    hidden = b.mlp.fc2.weight
    assert torch.equal(hidden[:24, :96], a.mlp.fc2.weight) and not hidden[:, 96:].any()  # 1
    proj = b.attn.proj.weight.view(48, 4, 12)
    assert torch.equal(proj[:24, :3, :8], a.attn.proj.weight.view(24, 3, 8))
    assert not proj[:, 3:].any() and not proj[:, :, 8:].any()  # 2, 3
    _, key, value = b.attn.qkv.weight.view(3, 4, 12, 48)
    torch.testing.assert_close(
        key[:3, :8, :24], a.attn.qkv.weight.view(3, 3, 8, 24)[1] * (12 / 8) ** 0.5
    )
    assert not key[:3, 8:, :24].any() and key[3:].any() and value[:3, 8:].any()  # 4
    assert not new.pos_embed[..., 24:].any() and not proj[24:].any() and not hidden[24:].any()
    torch.testing.assert_close(b.norm1.weight[:24], a.norm1.weight * 0.5**0.5)  # 5
    assert not new.blocks[1].attn.proj.weight.any() and not new.blocks[1].mlp.fc2.bias.any()  # 6
    assert value[:, :, 24:].any() and new.head.weight[:, 24:].any()  # what is free is drawn


def test_grouped_queries_grow_in_groups_and_inside_them():
    """A new query head of an old key-value head, and new key-value heads."""
    pytest.importorskip("timm", minversion="1.0.30", reason="no grouped queries before")

    def build(heads, groups):
        return timm.models.Eva(
            img_size=16, patch_size=8, num_classes=5, embed_dim=8 * heads, depth=1, mlp_ratio=2.0,
            num_heads=heads, num_kv_heads=groups, attn_type="rope", qkv_fused=False,
            use_rot_pos_emb=False, norm_layer=RmsNorm,
        ).double()  # fmt: skip

    old = randomise(build(4, 2))
    for heads, groups in ((8, 4), (6, 2), (12, 4)):
        new = build(heads, groups)
        fill(new, old, Expansions())
        narrow_eps(new, f"eps to {4 / heads} of the ancestor's")
        torch.testing.assert_close(logits(new), logits(old), atol=1e-10, rtol=0)


def test_where_an_inner_norm_breaks_it_it_says_so():
    options = {"norm_layer": "rmsnorm", "scale_mlp_norm": True}
    old, new = small_vit(**options).double(), small_vit(mlp_ratio=5.0, **options).double()
    report = fill(new, old, Expansions())
    assert "mlp.norm.weight average over" in Expansions().plan(Stub(old), anatomy(new)).notes[0]
    assert not any("lossless" in row.source for row in report.rows)
    assert (logits(new) - logits(old)).abs().max() > 1e-6
