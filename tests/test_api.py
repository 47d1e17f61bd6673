import pytest
import timm
import torch
from helpers.models import bundle_hash, make_bundle, state_hash, vit
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import weightinit as wi
from weightinit.errors import AnatomyError, BundleError, ProjectionError


def logits(model, channels=1, size=8):
    generator = torch.Generator().manual_seed(3)
    dtype = next(model.parameters()).dtype
    x = torch.randn(4, channels, size, size, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        return model.eval()(x.to(dtype))


def poison(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
    return model


@pytest.mark.parametrize(
    "size",
    [
        {"embed_dim": 32, "num_heads": 4},
        {"embed_dim": 48, "num_heads": 6},
        {"embed_dim": 32, "num_heads": 2},  # head dim doubles
        {"embed_dim": 64, "num_heads": 4},  # heads and head dim double
        {"mlp_ratio": 8.0},
        {"embed_dim": 32, "num_heads": 4, "mlp_ratio": 12.0},
    ],
)
def test_growing_by_integer_factors_leaves_the_function_unchanged(bundle, size):
    """In float64, to 1e-10: residual stream, heads, head dim and MLP, noise included."""
    before = wi.init_from_templates(vit().double(), bundle)
    after = wi.init_from_templates(vit(**size).double(), bundle)
    assert float(logits(before).std()) > 0.1
    torch.testing.assert_close(logits(after), logits(before), rtol=0, atol=1e-10)


def test_the_copies_of_a_grown_model_do_not_stay_equal(bundle):
    """Noise breaks the symmetry: after a step, no two copies of a channel are the same."""
    model = wi.init_from_templates(vit(embed_dim=32, num_heads=4), bundle).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(3):
        generator = torch.Generator().manual_seed(step)
        x, y = torch.randn(8, 1, 8, 8, generator=generator), torch.arange(8) % 5
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    for name in ("patch_embed.proj.weight", "blocks.0.mlp.fc2.weight", "blocks.1.attn.proj.weight"):
        value = model.get_parameter(name)
        first, second = value[:16], value[16:]
        assert not torch.isclose(first, second, rtol=1e-6, atol=0).flatten(1).all(1).any(), name


OPTIONS = {
    "depth": st.integers(1, 5),
    "shape": st.sampled_from(
        [(16, 2), (24, 3), (40, 5), (8, 1), (12, 3), (36, 2), (64, 1), (20, 4)]
    ),
    "mlp_ratio": st.sampled_from([4.0, 2.0, 3.0, 1.25, 6.0]),
    "qkv_bias": st.booleans(),
    "init_values": st.sampled_from([None, 1e-5]),
    "reg_tokens": st.sampled_from([0, 2]),
    "class_token": st.booleans(),
    "qk_norm": st.booleans(),
    "patch_size": st.sampled_from([2, 4, 1]),
    "img_size": st.sampled_from([8, 12]),
    "in_chans": st.sampled_from([1, 3, 4]),
    "num_classes": st.sampled_from([5, 9, 0]),
    "fc_norm": st.sampled_from([None, True, False]),
    "no_embed_class": st.booleans(),
}


@settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
@given(options=st.fixed_dictionaries(OPTIONS))
def test_any_size_and_scheme_gets_finite_sensible_weights_and_nothing_is_left(bundle, options):
    width, heads = options.pop("shape")
    model = poison(
        vit(
            **options,
            embed_dim=width,
            num_heads=heads,
            global_pool="token" if options["class_token"] else "avg",
        )
    )
    report = wi.plan_templates(model, bundle).report()
    wi.init_from_templates(model, bundle)
    assert len(report.rows) == len(list(model.parameters())) == sum(report.counts.values())
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())
    out = logits(model, options["in_chans"], options["img_size"])
    assert bool(torch.isfinite(out).all()) and float(out.abs().max()) < 1e3
    if options["num_classes"] == 5:
        assert {r.action for r in report.rows if r.role == "head.weight"} == {"written"}


def test_the_main_job():
    model = timm.create_model(
        "vit_small_patch16_224", depth=2, embed_dim=320, num_heads=5, num_classes=100
    )
    with pytest.warns(UserWarning, match="far from"):
        assert wi.init_from_templates(poison(model)) is model
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())
    report = str(wi.plan_templates(model).report())
    assert "the shipped mixed-w96 is used" in report


def test_the_report_says_when_timm_has_exactly_this_size(bundle):
    with torch.device("meta"):
        exact = timm.create_model("vit_tiny_patch16_224", num_classes=3)
        other = timm.create_model("vit_tiny_patch16_224", depth=3)
    assert "timm.create_model('vit_tiny_patch16_224." in str(
        wi.plan_templates(exact, bundle).report()
    )
    assert "pretrained=True" not in str(wi.plan_templates(other, bundle).report())


@pytest.mark.parametrize(
    "name",
    [
        "eva02_tiny_patch14_224",
        "vit_small_patch16_dinov3",
        "beit_base_patch16_224",
        "cait_xxs24_224",
        "deit_tiny_distilled_patch16_224",
        "vit_relpos_small_patch16_224",
    ],
)
def test_other_families(bundle, name):
    known = timm.list_models(name)
    if not known:
        pytest.skip(f"this timm has no {name}")
    with torch.device("meta"):
        model = timm.create_model(name, depth=2, num_classes=5)
    wi.init_from_templates(model, bundle)
    size = model.patch_embed.img_size
    out = logits(model, 3, size[0] if size else 64)
    assert bool(torch.isfinite(out).all()) and float(out.abs().max()) < 1e4


@pytest.mark.parametrize("library", ["transformers", "torchvision"])
def test_other_libraries_get_the_same_function(bundle, library):
    """The blocks of a ViT with a class token, whoever wrote it, are the same function."""
    torch_vit = wi.init_from_templates(
        vit(class_token=True, global_pool="token", in_chans=3, norm_layer=nn.LayerNorm), bundle
    )
    if library == "torchvision":
        from torchvision.models import VisionTransformer

        other = VisionTransformer(8, 2, 3, 2, 16, 64, num_classes=5).eval()
    else:
        transformers = pytest.importorskip("transformers")
        config = transformers.ViTConfig(
            hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64,
            image_size=8, patch_size=2, num_labels=5, num_channels=3, layer_norm_eps=1e-5,
        )  # fmt: skip
        other = transformers.ViTForImageClassification(config).eval()
    wi.init_from_templates(poison(other), bundle)
    for norm in (
        m for m in (*other.modules(), *torch_vit.modules()) if isinstance(m, nn.LayerNorm)
    ):
        norm.eps = 1e-6
    out = logits(other, 3) if library == "torchvision" else None
    if out is None:
        generator = torch.Generator().manual_seed(3)
        x = torch.randn(4, 3, 8, 8, generator=generator, dtype=torch.float64).float()
        with torch.no_grad():
            out = other(x).logits
    with torch.no_grad():  # the class token and its position are drawn by parameter name
        for a, b in (
            ("cls_token", ("class_token", "vit.embeddings.cls_token")),
            ("pos_embed", ("encoder.pos_embedding", "vit.embeddings.position_embeddings")),
        ):
            source = next(p for n, p in other.named_parameters() if n in b)
            getattr(torch_vit, a).copy_(source)
    torch.testing.assert_close(out, logits(torch_vit, 3), rtol=1e-4, atol=1e-5)


def test_same_generator_same_bits_and_the_global_one_is_untouched(bundle):
    state = torch.random.get_rng_state()
    models = [
        wi.init_from_templates(
            vit(num_classes=9, embed_dim=32, num_heads=4, depth=depth),
            bundle,
            generator=torch.Generator().manual_seed(seed),
        )
        for seed, depth in ((0, 3), (0, 3), (1, 3), (0, 4))
    ]
    assert torch.equal(torch.random.get_rng_state(), state)
    heads = [m.head.weight for m in models]
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])
    assert torch.equal(heads[0], heads[3]), "a deeper model draws the same head"
    generator = torch.Generator().manual_seed(0)
    first, second = (
        wi.init_from_templates(vit(num_classes=9), bundle, generator=generator).head.weight
        for _ in range(2)
    )
    assert not torch.equal(first, second), "a generator goes on, as in torch.nn.init"


def test_dtype_and_device_do_not_change_the_values(bundle):
    plain = wi.init_from_templates(vit(num_classes=9), bundle)
    half = wi.init_from_templates(vit(num_classes=9).bfloat16(), bundle)
    with torch.device("meta"):
        meta = vit(num_classes=9)
    wi.init_from_templates(meta, bundle)
    for name, value in plain.state_dict().items():
        assert torch.equal(value.bfloat16(), half.state_dict()[name])
        assert torch.equal(value, meta.state_dict()[name])


def test_compiled_and_wrapped_models(bundle):
    plain = wi.init_from_templates(vit(), bundle)
    compiled = torch.compile(vit(), backend="eager")
    assert wi.init_from_templates(compiled, bundle) is compiled
    torch.testing.assert_close(logits(compiled), logits(plain))
    wi.init_from_templates(compiled, bundle, scalers="linear")
    assert not torch.allclose(logits(compiled), logits(plain)), "compiled code sees new values"

    class Wrapper(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = vit()

    wrapper = wi.init_from_templates(Wrapper(), bundle)
    torch.testing.assert_close(logits(wrapper.backbone), logits(plain))


def test_mode_flags_and_the_bundle_stay(bundle):
    before = bundle_hash(bundle)
    model = vit().train()
    model.pos_embed.requires_grad_(False)
    model.blocks[1].eval()
    modes = [m.training for m in model.modules()]
    wi.init_from_templates(model, bundle)
    assert [m.training for m in model.modules()] == modes and not model.pos_embed.requires_grad
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7)
    assert bundle_hash(bundle) == before


def test_keep_by_name_prefix_and_role(bundle):
    model = vit()
    old = {n: p.detach().clone() for n, p in model.named_parameters()}
    wi.init_from_templates(model, bundle, keep=["head", "pos", "blocks.1.attn", "mlp.fc2.bias"])
    for name, parameter in model.named_parameters():
        kept = name.startswith(("head", "pos_embed", "blocks.1.attn")) or "fc2.bias" in name
        assert torch.equal(parameter, old[name]) is kept, name


def test_rules_explain_a_users_own_parameters(bundle):
    model = vit()
    model.blocks[1].gain = nn.Parameter(torch.full((16,), float("nan")))
    with pytest.raises(AnatomyError, match=r"blocks\.1\.gain"):
        wi.init_from_templates(model, bundle)
    rule = wi.Rule(r"blocks\.(?P<block>\d+)\.gain", "gain.bias", "d")
    wi.init_from_templates(model, bundle, rules=[rule])
    assert bool((model.blocks[1].gain == 0).all())


def test_linear_scalers_at_the_auxiliary_size_follow_the_paper(bundle):
    model = wi.init_from_templates(vit(), bundle, scalers="linear")
    t = bundle.tensors["templates.attn.proj.weight"]
    for index, block in enumerate(model.blocks):
        expected = t[0] + (index + 1) / 3 * t[1]
        torch.testing.assert_close(block.attn.proj.weight.detach(), expected, rtol=0, atol=1e-4)


def bad_models():
    yield lambda: nn.Linear(3, 3), AnatomyError, "rules="
    yield lambda: timm.create_model("convnext_atto"), ProjectionError, "convnext"
    yield lambda: timm.create_model("resnet10t"), AnatomyError, "rules="


@pytest.mark.parametrize(("make", "error", "match"), list(bad_models()))
def test_models_that_do_not_fit_are_left_alone(bundle, make, error, match):
    model = make()
    before = state_hash(model)
    with pytest.raises(error, match=match):
        wi.init_from_templates(model, bundle)
    assert state_hash(model) == before


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"templates": "no-such-bundle"}, BundleError, "no-such-bundle"),
        ({"scalers": "lineer"}, ProjectionError, "interpolate"),
        ({"scalers": "fitted"}, ProjectionError, "fit_scalers"),
        ({"keep": ["hed"]}, ProjectionError, "hed"),
    ],
)
def test_bad_arguments_say_what_to_do_and_change_nothing(bundle, arguments, error, match):
    model = vit()
    before = state_hash(model)
    with pytest.raises(error, match=match):
        wi.init_from_templates(model, **({"templates": bundle} | arguments))
    assert state_hash(model) == before


def test_nan_in_a_bundle_never_reaches_the_model(bundle):
    broken = make_bundle()
    broken.tensors["templates.mlp.fc2.weight"][-1, -1, -1] = float("nan")
    model = vit()
    before = state_hash(model)
    with pytest.raises(ProjectionError, match=r"fc2.*not finite"):
        wi.init_from_templates(model, broken)
    assert state_hash(model) == before


def test_mimetic_keeps_what_is_asked_and_draws_from_the_generator_alone():
    model = poison(vit())
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.zero_()
    before = torch.get_rng_state()
    plan = wi.plan_mimetic(model, keep=["head"], generator=torch.Generator().manual_seed(1))
    report = plan.report()
    assert report.counts == {"written": 7, "fresh": 34, "kept": 2}
    assert "W_V W_proj ~ 0.4 Z - 0.4 I" in str(report) and "4x4 grid" in str(report)
    assert plan.commit() is model
    assert not model.head.weight.any()
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())
    same = wi.init_mimetic(vit(), generator=torch.Generator().manual_seed(1))
    assert torch.equal(same.blocks[0].attn.qkv.weight, model.blocks[0].attn.qkv.weight)
    default = wi.init_mimetic(vit(), options=wi.Mimetic(positions="fresh"))
    assert not torch.equal(default.blocks[0].attn.qkv.weight, same.blocks[0].attn.qkv.weight)
    assert not torch.equal(default.pos_embed, same.pos_embed)
    assert torch.equal(torch.get_rng_state(), before)


def test_mimetic_leaves_a_model_alone_that_it_cannot_fill():
    model = vit()
    before = state_hash(model)
    with pytest.raises(ProjectionError, match="names no parameter"):
        wi.init_mimetic(model, keep=["heads"])
    model.extra = nn.Parameter(torch.zeros(3))
    with pytest.raises(AnatomyError, match="extra"):
        wi.init_mimetic(model)
    del model.extra
    assert state_hash(model) == before
