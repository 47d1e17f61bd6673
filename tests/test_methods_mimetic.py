import pytest
import timm
import torch
from helpers.models import state_hash, vit
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed

import weightinit as wi
from weightinit.anatomy import anatomy
from weightinit.errors import ProjectionError
from weightinit.inherit.fresh import sub_generator
from weightinit.methods.mimetic import Mimetic, planned_mimetic
from weightinit.plan import Plan


def fill(model, options=None, *, seed=0):
    seen = anatomy(model)
    recipes = planned_mimetic(seen, options, seed=seed).recipes(seen)
    return Plan(model, seen, recipes, source="").commit()


def poison(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
    return model


def attentions(model, heads):
    """Each attention's products: of queries and keys by head, and what a value becomes."""
    seen, values = anatomy(model), dict(model.named_parameters())
    for block in [*seen.blocks, *(block for _, block in seen.extra_blocks)]:
        for prefix in (role[: -len("q.weight")] for role in block if role.endswith(".q.weight")):
            parts = {}
            for part in ("q", "k", "v", "proj"):
                piece = block[f"{prefix}{part}.weight"]
                parts[part] = seen.split(piece.spec, values[piece.spec.name].detach())[piece.role]
            q, k, v, proj = parts.values()
            group = len(q) // len(k)
            k, v = (
                x.unflatten(0, (heads // group, -1)).repeat_interleave(group, 0) for x in (k, v)
            )
            yield q.unflatten(0, (heads, -1)).mT @ k, proj @ v.flatten(0, 1)


def mean_diagonal(product):
    return float(product.diagonal(dim1=-2, dim2=-1).mean())


def test_products_equal_the_published_re_implementation(golden, monkeypatch):
    tensors = load_file(golden / "mimetic_a.safetensors")
    noise = [
        tensors[name][None]
        for block in range(2)
        for name in (*(f"source.Zqk.{block}.{head}" for head in range(3)), f"source.Zvo.{block}")
    ]
    monkeypatch.setattr(wi.init._mimetic, "_noise", lambda *_: noise.pop(0))
    model = fill(vit(embed_dim=48, num_heads=3, depth=2))
    assert not noise
    for block, (qk, vo) in enumerate(attentions(model, 3)):
        expected = tensors[f"check.qk_effective.{block}"]
        torch.testing.assert_close(qk, expected, rtol=0, atol=1e-5)
        # It stores both factors untransposed: its rule holds of v @ proj.
        expected = tensors[f"check.v_times_proj_stored.{block}"]
        torch.testing.assert_close(vo.T, expected, rtol=0, atol=1e-5)
        theirs = tensors[f"check.effective_map_proj_at_v.{block}"]
        assert mean_diagonal(vo) == pytest.approx(mean_diagonal(theirs), abs=0.1)


SHAPES = {
    "shape": st.sampled_from([(16, 2), (24, 3), (40, 5), (8, 1), (12, 3), (10, 2), (6, 3)]),
    "depth": st.integers(1, 3),
    "mlp_ratio": st.sampled_from([4.0, 1.25]),
    "qkv_bias": st.booleans(),
    "init_values": st.sampled_from([None, 1e-5]),
    "reg_tokens": st.sampled_from([0, 2]),
    "class_token": st.booleans(),
    "no_embed_class": st.booleans(),
    "qk_norm": st.booleans(),
    "patch_size": st.sampled_from([2, 8]),
    "num_classes": st.sampled_from([5, 0]),
}


@settings(deadline=None, max_examples=40, suppress_health_check=list(HealthCheck))
@given(options=st.fixed_dictionaries(SHAPES))
def test_any_size_and_scheme_follows_the_rule_and_nothing_is_left(options):
    width, heads = options.pop("shape")
    model = poison(
        vit(
            **options,
            embed_dim=width,
            num_heads=heads,
            global_pool="token" if options["class_token"] else "avg",
        ).double()
    )
    fill(model)
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())
    found = list(attentions(model, heads))
    assert len(found) == options["depth"]
    for index, (qk, vo) in enumerate(found):
        assert bool((torch.linalg.matrix_rank(qk) == width // heads).all())
        generator = sub_generator(0, f"blocks.{index}.attn.qkv.weight.attn.v.weight")
        z = torch.randn(width, width, generator=generator).double() / width**0.5
        torch.testing.assert_close(vo.T, 0.4 * z - 0.4 * torch.eye(width), rtol=0, atol=1e-6)
    prefix = model.pos_embed.shape[1] - model.patch_embed.num_patches
    assert bool((model.pos_embed[0, :prefix] == 0).all())
    assert bool((model.pos_embed[0, prefix:].abs() <= 1).all())
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert bool((parameter == 0).all()), name


def test_every_head_and_layer_has_noise_of_its_own_and_the_same_rule():
    found = list(attentions(fill(vit(embed_dim=96, num_heads=3, depth=2)), 3))
    heads = torch.cat([qk for qk, _ in found])
    assert float(torch.cdist(heads.flatten(1), heads.flatten(1)).add(torch.eye(6)).min()) > 0.5
    for qk, vo in found:
        assert mean_diagonal(qk) == pytest.approx(0.40, abs=0.03)
        assert mean_diagonal(vo) == pytest.approx(-0.40, abs=0.03)
    assert not torch.equal(found[0][1], found[1][1])


def test_draws_follow_the_seed_and_the_name_alone():
    before = torch.get_rng_state()
    one, same, other = (fill(vit(depth=2), seed=seed) for seed in (3, 3, 4))
    deeper = fill(vit(depth=3, num_classes=9), seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    for name, value in one.state_dict().items():
        assert torch.equal(value, same.state_dict()[name]), name
        if not name.startswith("head."):
            assert torch.equal(value, deeper.state_dict()[name]), name
    assert not torch.equal(one.blocks[0].attn.proj.weight, other.blocks[0].attn.proj.weight)


def test_a_meta_model_gets_the_same_bits_and_other_dtypes_round_them():
    plain = fill(vit())
    with torch.device("meta"):
        meta = vit()
    half, double = fill(vit().bfloat16()), fill(vit().double())
    for name, value in fill(meta).state_dict().items():
        assert torch.equal(value, plain.state_dict()[name]), name
        assert torch.equal(value.bfloat16(), half.state_dict()[name]), name
    for (qk, vo), (qk_double, vo_double) in zip(
        attentions(plain, 2), attentions(double, 2), strict=True
    ):
        torch.testing.assert_close(qk.double(), qk_double, rtol=0, atol=1e-4)
        torch.testing.assert_close(vo.double(), vo_double, rtol=0, atol=1e-5)


def test_separate_queries_keys_and_values():
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=48, num_hidden_layers=2, num_attention_heads=3, intermediate_size=64,
        image_size=8, patch_size=2, num_labels=5, num_channels=1,
    )  # fmt: skip
    model = fill(poison(transformers.ViTForImageClassification(config)))
    for qk, vo in attentions(model, 3):
        assert torch.linalg.matrix_rank(qk).tolist() == [16, 16, 16]
        assert mean_diagonal(qk) == pytest.approx(0.40, abs=0.04)
        assert mean_diagonal(vo) == pytest.approx(-0.40, abs=0.06)
    positions = model.vit.embeddings.position_embeddings
    assert bool((positions[0, 0] == 0).all())
    torch.testing.assert_close(positions[0, 1:], build_sincos2d_pos_embed([4, 4], 48))


def test_grouped_queries_share_keys_and_values():
    """Six heads and two key heads: a rank of 2 x 8 is what the values can hold of -0.4 I."""
    pytest.importorskip("timm", minversion="1.0.30", reason="no grouped queries before")
    model = timm.models.Eva(
        img_size=8, patch_size=2, embed_dim=48, depth=1, num_heads=6, num_kv_heads=2,
        attn_type="rope", qkv_fused=False, num_classes=3,
    )  # fmt: skip
    ((qk, vo),) = attentions(fill(poison(model)), 6)
    assert qk.shape == (6, 48, 48)
    assert mean_diagonal(qk) > 0.15 and float(torch.cdist(qk, qk.roll(1, 0)).mean()) > 0.1
    assert int(torch.linalg.matrix_rank(vo)) == 16 and mean_diagonal(vo) < -0.15
    with torch.no_grad():
        assert bool(torch.isfinite(model.eval()(torch.randn(1, 3, 8, 8))).all())


@pytest.mark.parametrize(
    ("name", "heads", "changes"),
    [
        ("vit_small_patch16_18x2_224", 3, {}),  # parallel branches
        ("vit_dlittle_patch16_reg1_gap_256", 6, {}),  # differential: two maps a head
        ("vit_dpwee_patch16_reg1_gap_256", 6, {}),  # and one projection in for all
        ("cait_xxs24_224", 3, {"depth_token_only": 1}),  # talking heads, class attention
        ("beit_base_patch16_224", 3, {}),  # no position embedding, no key bias
        ("eva02_tiny_patch14_224", 3, {}),  # separate projections, SwiGLU
        ("deit_tiny_distilled_patch16_224", 3, {}),
        ("naflexvit_base_patch16_gap", 3, {}),
        ("samvit_base_patch16", 3, {"global_attn_indexes": (1,)}),
        ("vit_tiny_r_s16_p8_224", 3, {}),  # convolutional stem
    ],
)
def test_unusual_models(name, heads, changes):
    size = {"embed_dim": 48, "depth": 2, "num_heads": 3} | changes
    if not name.startswith(("samvit", "naflexvit")):
        size["img_size"] = 64
    model = timm.create_model(name, num_classes=3, **size)
    buffers = {n: b.clone() for n, b in model.named_buffers()}
    fill(poison(model))
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())
    assert all(torch.equal(b, buffers[n]) for n, b in model.named_buffers())
    for qk, _ in attentions(model, heads):
        assert bool((torch.linalg.matrix_rank(qk) == 48 // heads).all())
        assert mean_diagonal(qk) > 0.2
    for _, vo in attentions(model, 3):
        assert mean_diagonal(vo) == pytest.approx(-0.40, abs=0.06)


def test_positions_are_those_of_the_grid():
    model = fill(vit(img_size=(8, 4), embed_dim=18, num_heads=3, class_token=True, reg_tokens=2))
    table = build_sincos2d_pos_embed([4, 2], 20)[:, :18]
    assert bool((model.pos_embed[0, :3] == 0).all())
    assert torch.equal(model.pos_embed[0, 3:], table)
    fresh = fill(vit(), Mimetic(positions="fresh"))
    assert fresh.pos_embed.std().item() == pytest.approx(0.02, rel=0.2)


def test_options_scale_the_products():
    options = Mimetic(alpha_qk=0, beta_qk=1, alpha_vo=0.1, beta_vo=-0.5)
    for qk, vo in attentions(fill(vit(), options), 2):
        assert qk.diagonal(dim1=1, dim2=2).sum(1).tolist() == pytest.approx([8, 8])
        assert mean_diagonal(vo) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("bad", [{"positions": "learned"}, {"alpha_qk": float("nan")}])
def test_options_are_checked(bad):
    with pytest.raises(ProjectionError, match="use"):
        Mimetic(**bad)


def test_other_models_are_refused():
    model = timm.create_model("convnext_atto", depths=(1, 1, 1, 1), dims=(8, 8, 8, 8))
    before = state_hash(model)
    with pytest.raises(ProjectionError, match=r"convnext.*mimetic_qk_"):
        fill(model)
    assert state_hash(model) == before


def test_an_attention_without_its_projection_is_named():
    model = vit(depth=1)
    model.blocks[0].side = torch.nn.Linear(16, 16, bias=False)
    rules = [wi.Rule(r"blocks\.(?P<block>\d+)\.side\.weight", "side.q.weight", "(h k) d")]
    with pytest.raises(ProjectionError, match=r"blocks\.0\.side\.weight.*rules="):
        planned_mimetic(anatomy(model, rules=rules))
