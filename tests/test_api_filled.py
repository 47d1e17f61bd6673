"""Every family, filled under deterministic fill: what nobody writes would be NaN, and is found."""

import pytest
import timm
import torch
from helpers.inherit import randomise

import weightinit as wi

#: Small models of every family that timm's rules cover, each with parts that others lack.
SMALL = {"img_size": 32, "embed_dim": 32, "depth": 2, "num_heads": 4, "num_classes": 5}
MODELS = {
    "vit_tiny_patch16_224": SMALL,
    "vit_base_patch16_siglip_224": SMALL,
    "vit_base_patch16_siglip_gap_224": SMALL,
    "vit_base_patch16_clip_224": SMALL,
    "vit_giant_patch14_dinov2": SMALL | {"img_size": 28},
    "vit_giant_patch14_reg4_dinov2": SMALL | {"img_size": 28},
    "vit_dpwee_patch16_reg1_gap_256": SMALL,
    "vit_base_patch16_18x2_224": SMALL,
    "vit_pe_core_tiny_patch16_384": SMALL,
    "deit_tiny_distilled_patch16_224": SMALL,
    "deit3_small_patch16_224": SMALL,
    "beit_base_patch16_224": SMALL,
    "beitv2_base_patch16_224": SMALL,
    "eva02_tiny_patch14_224": SMALL | {"img_size": 28},
    "vit_relpos_small_patch16_224": SMALL,
    "vit_srelpos_small_patch16_224": SMALL,
    "samvit_base_patch16": SMALL | {"img_size": 64, "global_attn_indexes": (1,)},
    "cait_xxs24_224": SMALL,
    "naflexvit_base_patch16_gap": {"embed_dim": 32, "depth": 2, "num_heads": 4, "num_classes": 5},
    "naflexvit_base_patch16_map": {"embed_dim": 32, "depth": 2, "num_heads": 4, "num_classes": 5},
    "convnext_atto": {"dims": (8, 8, 16, 16), "depths": (1, 1, 2, 1), "num_classes": 5},
    "convnextv2_atto": {"dims": (8, 8, 16, 16), "depths": (1, 1, 2, 1), "num_classes": 5},
}


@pytest.fixture(autouse=True)
def deterministic_fill():
    """Make uninitialised memory NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def known(name):
    return {"naflexvit_base_patch16_map": "naflexvit_base_patch16_siglip"}.get(name, name)


@pytest.mark.parametrize("name", MODELS)
def test_templates_write_every_number_of_a_vit(name):
    if name.startswith("convnext"):
        pytest.skip("the shipped templates are a ViT's")
    model = timm.create_model(known(name), **MODELS[name])
    plan = wi.plan_templates(model).validate()
    assert plan.report().counts["kept"] == 0
    plan.commit()
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


@pytest.mark.parametrize("name", MODELS)
def test_an_ancestor_of_the_same_size_is_taken_over_whole(name):
    ancestor, model = (timm.create_model(known(name), **MODELS[name]) for _ in range(2))
    randomise(ancestor)
    plan = wi.plan_projection(ancestor, model).validate()
    assert plan.report().counts == {"written": len(plan.recipes), "fresh": 0, "kept": 0}
    plan.commit()
    for (key, new), old in zip(model.named_parameters(), ancestor.parameters(), strict=True):
        assert torch.equal(new, old), key


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_base_patch16_siglip_224"])
def test_the_mimetic_rule_writes_every_number(name):
    model = timm.create_model(name, **MODELS[name])
    wi.plan_mimetic(model).validate()
