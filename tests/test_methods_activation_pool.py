from functools import partial

import pytest
import timm
import torch
from helpers.models import draw
from transformers import SiglipVisionConfig, SiglipVisionModel

import weightinit as wi
from weightinit.anatomy import anatomy
from weightinit.ancestor.ancestor import Ancestor
from weightinit.inherit.running import Running
from weightinit.methods.activation.pool import fit_pool, pools
from weightinit.methods.activation.stream import principal


def images(number, seed):
    return draw(number, 3, 16, 16, seed=seed).float()


BATCHES = [images(32, seed) for seed in range(6)]


def jogged(model, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def siglip(width=32, depth=2, seed=0, **options):
    options = {"num_heads": width // 16, "num_classes": 5, **options}
    size = {"img_size": 16, "patch_size": 8, "embed_dim": width, "depth": depth}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = timm.create_model("vit_base_patch16_siglip_224", **size, **options)
    return jogged(model, seed)


def transformers(width=32, depth=2, seed=0):
    sizes = {"hidden_size": width, "intermediate_size": 3 * width, "image_size": 16}
    layers = {"num_hidden_layers": depth, "num_attention_heads": width // 16, "patch_size": 8}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = SiglipVisionModel(SiglipVisionConfig(**sizes, **layers))
    return jogged(model, seed)


@torch.no_grad()
def features(model, x):
    if isinstance(model, SiglipVisionModel):
        return model(x).pooler_output
    return model.forward_head(model.forward_features(x), pre_logits=True)


def unexplained(old, new):
    """Share of the ancestor's features that no linear map of the target's explains."""
    x = images(256, 99)
    wanted, found = features(old, x).double(), features(new, x).double()
    rows = torch.cat([found, torch.ones(len(found), 1)], 1)
    best = torch.linalg.lstsq(rows[:128], wanted[:128]).solution
    missing = wanted[128:] - rows[128:] @ best
    return float(missing.square().sum() / (wanted - wanted.mean(0))[128:].square().sum())


def test_at_full_size_the_pool_does_the_same():
    old = siglip().double()
    running = Running(Ancestor.open(old), [x.double() for x in BATCHES[:2]])
    traced = [running.trace(number) for number in range(2)]
    theirs = [blocks[1](blocks[0](x)) for x, blocks in traced]
    same = principal(torch.eye(32, dtype=torch.float64), 32, centred=True)
    values, shift = fit_pool(running, anatomy(old), same, theirs, theirs, ridge=1e-9)
    assert not shift.any()
    new = siglip(seed=1).double()
    new.load_state_dict(old.state_dict())
    seen = anatomy(new)
    with torch.no_grad():
        new.norm.weight.fill_(1)
        new.norm.bias.zero_()
        for role, value in values.items():
            spec = seen.outside[role].spec
            seen.split(spec, new.get_parameter(spec.name).data)[role].copy_(value)
        ours, wanted = (m.forward_head(m.norm(theirs[0])) for m in (new, old))
    torch.testing.assert_close(ours, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("build", [siglip, transformers])
def test_a_narrower_siglip_is_fitted_and_close(build):
    old, new, ranked = build(48, 3), build(32, 2, seed=1), build(32, 2, seed=1)
    plan = wi.plan_projection(old, new, calibration=BATCHES)
    assert "picked ActivationAware" in plan.report().notes[0]
    plan.commit()
    wi.project_from(old, ranked, method="subcloning", calibration=BATCHES)
    assert unexplained(old, new) < 0.8 * unexplained(old, ranked)


@pytest.mark.parametrize("options", [{}, {"mlp_ratio": 2}, {"qkv_bias": False}])
def test_a_head_gives_nearly_the_ancestors_logits(options):
    old, given = siglip(48, 3), {"seed": 1, **options}
    if "qkv_bias" in options:
        old = siglip(48, 3, **options)
    new, ranked = siglip(32, 3, **given), siglip(32, 3, **given)
    wi.project_from(old, new, calibration=BATCHES)
    wi.project_from(old, ranked, method="subcloning", calibration=BATCHES)
    x = images(128, 99)
    with torch.no_grad():
        far, near = ((model(x) - old(x)).norm() for model in (ranked, new))
    assert near < far / 2


def test_pools_of_another_kind_are_not_fitted():
    old, new = anatomy(siglip()), anatomy(siglip(16))
    assert pools(old, new)
    assert not pools(old, anatomy(siglip(16, num_heads=2)))
    plain = anatomy(timm.create_model("vit_tiny_patch16_224", embed_dim=32, depth=1, num_heads=2))
    assert not pools(plain, plain)


def test_a_pool_that_computes_otherwise_is_refused():
    old, new = siglip(48), siglip(32, seed=1)
    old.attn_pool.mlp.register_forward_hook(lambda module, given, out: 2 * out)
    with pytest.raises(wi.ProjectionError, match="attention pool does not add"):
        wi.project_from(old, new, method=wi.ActivationAware(), calibration=BATCHES)


@pytest.mark.parametrize("width", [48, 64])
def test_a_pool_of_fewer_neurons_alone_is_fitted_too(width):
    """At the ancestor's width, and on the way to a larger one."""
    old, new = siglip(48, 3), siglip(width, 3, seed=1, mlp_ratio=2)
    plan = wi.plan_projection(old, new, calibration=BATCHES)
    assert not plan.report().counts["fresh"]
    plan.commit()
    x = images(128, 99)
    with torch.no_grad():
        wanted = old(x)
        assert (new(x) - wanted).norm() < 0.5 * (wanted - wanted.mean(0)).norm()


@pytest.mark.parametrize("latents", [(2, 2), (2, 1), (1, 2)])
def test_pools_of_several_queries_are_ranked(latents):
    models = [siglip(48, 3), siglip(32, 2, seed=1)]
    for model, number in zip(models, latents, strict=True):
        width, norm = model.embed_dim, partial(torch.nn.LayerNorm, eps=1e-6)
        sizes = {"num_heads": width // 16, "latent_len": number, "norm_layer": norm}
        model.attn_pool = jogged(timm.layers.AttentionPoolLatent(width, mlp_ratio=4, **sizes), 3)
    old, new = models
    notes = wi.plan_projection(old, new, calibration=BATCHES).report().notes
    assert "picked Subcloning" in notes[0]
    assert any("not fitted to data: pool.latent" in note for note in notes)


def test_heads_of_another_size_are_named():
    old, new = siglip(48, 3), siglip(24, 2, seed=1, num_heads=3)
    with pytest.warns(UserWarning, match="no use for calibration="):
        notes = wi.plan_projection(old, new, calibration=BATCHES).report().notes
    assert "not fitted to data: heads have 16 channels, and 8 here" in notes
