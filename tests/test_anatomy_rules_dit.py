"""Diffusion transformers: names as facebookresearch/DiT's, and diffusers' own model."""

import pytest
import torch
from helpers.dit import DiT

import weightinit as wi

ADA = [f"ada.{part}{i}.{w}" for w in ("weight", "bias") for i in "12" for part in
       ("shift", "scale", "gate")]  # fmt: skip


def moved(model):
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model.eval().double()


def test_adaln_parts_are_roles_of_their_own():
    model = moved(DiT(width=32, depth=2, heads=4))
    seen = wi.anatomy(model)
    assert (seen.family, seen.depth, seen.traits.form) == ("dit", 2, "adaLN")
    assert (seen.sizes["h"], seen.sizes["k"], seen.sizes["l"], seen.sizes["g"]) == (4, 8, 11, 12)
    assert (seen.traits.act, seen.traits.grid) == ("gelu_tanh", (8, 8))
    assert seen.traits.pos_prefix == 0
    assert set(ADA) <= seen.blocks[0].keys()
    assert "norm1.weight" not in seen.blocks[0]
    spec = seen.spec("blocks.1.adaLN_modulation.1.weight")
    parts = seen.split(spec, model.get_parameter(spec.name))
    for part, chunk in zip(parts.values(), model.blocks[1].adaLN_modulation[1].weight.chunk(6),
                           strict=True):  # fmt: skip
        assert torch.equal(part, chunk)
    assert seen.outside["final.ada.scale.weight"].size == (32, 32)


def run(model):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(5, 3, 16, 16, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        return model(
            x, torch.arange(5.0, dtype=torch.float64) * 100, torch.tensor([0, 3, 9, 10, 10])
        )


def test_projection_at_full_size_is_the_same_function():
    old, new = moved(DiT()), DiT().double()
    wi.project_from(old, new)
    assert torch.equal(run(old), run(new))
    new = DiT().double()
    wi.project_from(wi.Ancestor.open(old.state_dict(), heads=4), new)
    assert torch.equal(run(old), run(new))


@pytest.mark.parametrize("changes", [{"depth": 4}, {"width": 64, "heads": 8},
                                     {"width": 64, "heads": 8, "depth": 3}])  # fmt: skip
def test_growth_by_whole_copies_is_exact(changes):
    old, new = moved(DiT()), DiT(**changes).double()
    plan = wi.plan_projection(old, new, method="hypercloning")
    plan.commit()
    torch.testing.assert_close(run(new), run(old), rtol=1e-9, atol=1e-9)


def test_growth_by_other_widths_is_not_called_lossless():
    for width, heads in ((48, 6), (40, 5)):
        plan = wi.plan_projection(moved(DiT()), DiT(width=width, heads=heads), method="lemon")
        assert any("not lossless" in note for note in plan.report().notes)
    plan = wi.plan_projection(moved(DiT()), DiT(width=64, heads=8, depth=3), method="lemon")
    assert "LEMON is lossless here" in plan.report().notes


def diffusers_model(**changes):
    diffusers = pytest.importorskip("diffusers")
    sizes = {"num_attention_heads": 4, "attention_head_dim": 8, "in_channels": 3, "num_layers": 2,
             "out_channels": 3, "sample_size": 16, "num_embeds_ada_norm": 10}  # fmt: skip
    return diffusers.DiTTransformer2DModel(**(sizes | changes))


def run_diffusers(model):
    x = torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(1)).double()
    with torch.no_grad():
        labels = torch.tensor([0, 3, 9, 10, 10])
        return model(x, timestep=torch.arange(5) * 100, class_labels=labels).sample


def test_diffusers_model_keeps_its_function():
    old = moved(diffusers_model())
    seen = wi.anatomy(old)
    assert (seen.family, seen.traits.form, seen.traits.act) == ("dit", "adaLN", "gelu_tanh")
    assert (seen.sizes["h"], seen.sizes["k"], seen.traits.grid) == (4, 8, (8, 8))
    assert {"embed.label.weight", "cond.t1.weight", *ADA} <= seen.blocks[1].keys()
    new = moved(diffusers_model())
    wi.project_from(old, new)
    assert torch.equal(run_diffusers(old), run_diffusers(new))
    new = moved(diffusers_model(num_layers=4))
    wi.project_from(old, new)
    torch.testing.assert_close(run_diffusers(new), run_diffusers(old), rtol=1e-9, atol=1e-9)
