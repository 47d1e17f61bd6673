import pytest
import timm
import torch
from helpers.inherit import logits, randomise, small_vit
from timm.models import vision_transformer as vit

import weightinit as wi
from weightinit.anatomy import anatomy
from weightinit.ancestor.ancestor import Ancestor
from weightinit.ancestor.folding import folded, scale_of
from weightinit.methods.lemon import LEMON


def scaled(width=24, heads=3, depth=2, **kwargs):
    return small_vit(width, heads, depth, init_values=0.3, **kwargs)


def test_what_a_scale_multiplies():
    block = anatomy(scaled(depth=1)).blocks[0]
    found = {role: scale_of(role, block) for role in block}
    assert {role: piece.role for role, piece in found.items() if piece} == {
        "attn.proj.weight": "ls1",
        "attn.proj.bias": "ls1",
        "mlp.fc2.weight": "ls2",
        "mlp.fc2.bias": "ls2",
    }


@pytest.mark.parametrize(
    "build",
    [
        lambda **k: vit.VisionTransformer(**k),
        lambda **k: vit.VisionTransformer(**k, block_fn=vit.ParallelScalingBlock),
        lambda **k: vit.VisionTransformer(**k, block_fn=vit.ParallelThingsBlock),
        lambda init_values=None, **k: timm.models.beit.Beit(
            **k, init_values=init_values, use_rel_pos_bias=True
        ),
    ],
    ids=["plain", "parallel scaling", "parallel things", "beit"],
)
@pytest.mark.parametrize("method", ["auto", "lemon", "bot"])
def test_a_target_without_scales_computes_the_same(build, method):
    sizes = {"img_size": 16, "patch_size": 8, "embed_dim": 24, "num_heads": 3, "depth": 2}
    ancestor = randomise(build(**sizes, num_classes=5, init_values=0.3)).double()
    model = randomise(build(**sizes, num_classes=5), 1).double()
    before = {name: value.clone() for name, value in ancestor.state_dict().items()}
    wi.project_from(ancestor, model, method=method)
    torch.testing.assert_close(logits(model), logits(ancestor), atol=1e-10, rtol=0)
    assert all(torch.equal(value, before[name]) for name, value in ancestor.state_dict().items())


def test_growth_stays_lossless():
    ancestor, model = scaled().double(), small_vit(48, 6, 3).double()
    plan = wi.plan_projection(ancestor, model, method=LEMON())
    assert "folded" in plan.report().notes[0] and plan.report().notes[-1] == (
        "LEMON is lossless here"
    )
    plan.commit()
    torch.testing.assert_close(logits(model), logits(ancestor), atol=1e-10, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_the_folded_ancestor_runs_as_it_did(dtype):
    ancestor = scaled().to(dtype)
    found, _ = folded(Ancestor.open(ancestor), anatomy(small_vit()))
    assert "ls1" not in found.anatomy.blocks[0] and "ls1" in anatomy(ancestor).blocks[0]
    module, wanted = found.module(), ancestor.float() if dtype == torch.float16 else ancestor
    assert bool((module.blocks[1].ls2.gamma == 1).all())
    torch.testing.assert_close(logits(module), logits(wanted), atol=1e-6, rtol=1e-5)
    piece = found.anatomy.blocks[1]["mlp.fc2.weight"]
    gamma = wanted.blocks[1].ls2.gamma.detach()
    value = found.part(piece)
    assert value.dtype == (torch.float32 if dtype == torch.float16 else dtype)
    torch.testing.assert_close(value, gamma[:, None] * wanted.blocks[1].mlp.fc2.weight)


def test_fitting_sees_the_folded_ancestor():
    ancestor, model = scaled().double(), small_vit(16, 2, 1).double()
    images = [torch.randn(32, 3, 16, 16, generator=torch.Generator().manual_seed(0))] * 4
    same = small_vit().double()
    wi.project_from(ancestor, same, method="activation", calibration=images)
    torch.testing.assert_close(logits(same), logits(ancestor), atol=1e-8, rtol=0)
    wi.project_from(ancestor, model, method="subcloning", calibration=images)
    assert torch.isfinite(logits(model)).all()


def test_operators_are_trained_on_the_folded_ancestor():
    ancestor, model = scaled(), small_vit(32, 4, 3)
    images = torch.zeros(2, 3, 16, 16)
    fitted = wi.fit_ligo(ancestor, model, lambda m: m(images).square().mean(), steps=1)
    wi.project_from(ancestor, model, method=fitted)
    deeper = small_vit(depth=3)
    fitted = wi.fit_fine(ancestor, deeper, lambda m: m(images).square().mean(), steps=1)
    wi.project_from(ancestor, deeper, method=fitted)


def test_nothing_is_folded_where_the_target_has_scales():
    opened = Ancestor.open(scaled())
    assert folded(opened, anatomy(scaled(depth=1))) == (opened, [])
    assert folded(Ancestor.open(small_vit()), anatomy(scaled()))[1] == []


def test_convnext_too():
    sizes = {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32), "num_classes": 5}
    ancestor = randomise(timm.models.ConvNeXt(**sizes, ls_init_value=0.3)).double()
    model = timm.models.ConvNeXt(**sizes, ls_init_value=None).double().eval()
    wi.project_from(ancestor, model)
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(model(images), ancestor(images), atol=1e-10, rtol=0)
