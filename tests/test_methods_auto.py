import pytest
import timm
import torch
import transformers
from helpers.inherit import fill, small_vit

import weightinit as wi
from weightinit.anatomy import anatomy
from weightinit.methods.auto import Auto
from weightinit.methods.halfway import ShrinkThenGrow
from weightinit.methods.lemon import LEMON
from weightinit.methods.selection import WeightSelection


@pytest.mark.parametrize(
    ("target", "method"),
    [
        ({}, WeightSelection),
        ({"width": 48, "heads": 6}, LEMON),
        ({"depth": 5}, LEMON),
        ({"width": 16, "heads": 2}, WeightSelection),
        ({"width": 48, "heads": 6, "depth": 1}, ShrinkThenGrow),
        ({"mlp_ratio": 2.0, "depth": 4}, ShrinkThenGrow),
    ],
)
def test_what_is_picked(target, method):
    ancestor, model = (
        small_vit(24, 3, 3),
        small_vit(**{"width": 24, "heads": 3, "depth": 3, **target}),
    )
    assert type(Auto().choose(anatomy(ancestor), anatomy(model))) is method
    report = fill(model, ancestor, Auto())
    assert report.counts["fresh"] == 0
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


def test_a_head_of_other_classes_is_fresh():
    report = fill(small_vit(48, 6, 1, num_classes=3), small_vit(24, 3, 2), Auto())
    assert {row.name for row in report.rows if row.action == "fresh"} == {
        "head.weight",
        "head.bias",
    }


def bert(depth, **sizes):
    config = transformers.BertConfig(
        **{"hidden_size": 24, "num_attention_heads": 3, "intermediate_size": 48, **sizes},
        num_hidden_layers=depth, vocab_size=50, max_position_embeddings=16,
    )  # fmt: skip
    return transformers.BertModel(config).eval()


@pytest.mark.parametrize("wider", [{}, {"hidden_size": 48, "num_attention_heads": 6}])
def test_a_deeper_post_norm_model_stays_alive(wider):
    ancestor, model = bert(2), bert(4, **wider)
    wi.project_from(ancestor, model)
    tokens = torch.randint(50, (3, 8), generator=torch.Generator().manual_seed(0))
    out = model(tokens).last_hidden_state
    assert (out[0] - out[1]).abs().max() > 1e-3
    out.square().sum().backward()
    dead = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert all("pooler" in name or "key.bias" in name for name in dead), dead


@pytest.mark.parametrize("method", ["lemon", "net2net", "hypercloning"])
def test_methods_that_add_silent_blocks_refuse_post_norm(method):
    with pytest.raises(wi.ProjectionError, match=r"norm of the whole stream.*bert2bert"):
        wi.project_from(bert(2), bert(3), method=method)


def siglip(width, depth):
    sizes = {"img_size": 16, "patch_size": 8, "num_classes": 5, "num_heads": width // 8}
    return timm.create_model(
        "vit_base_patch16_siglip_224", embed_dim=width, depth=depth, **sizes
    ).eval()


def cait(width, depth):
    sizes = {"img_size": 16, "patch_size": 8, "num_classes": 5, "num_heads": width // 8}
    return timm.models.cait.Cait(embed_dim=width, depth=depth, **sizes).eval()


def batches_of():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(4, 3, 16, 16, generator=generator) for _ in range(4)]


@pytest.mark.parametrize("build", [siglip, cait])
@pytest.mark.parametrize("target", [(16, 2), (16, 3)])
def test_batches_rank_what_cannot_be_fitted(build, target):
    """Calibration is not dropped in silence: families without a fit are ranked by activation."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ancestor, model = build(24, 3), build(*target)
    plan = wi.plan_projection(ancestor, model, calibration=batches_of())
    assert any("picked Subcloning" in note for note in plan.report().notes)
    assert plan.validate().report().counts["fresh"] == 0


def test_batches_without_use_are_warned_about():
    """In depth alone nothing is ranked."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ancestor, model = cait(24, 3), cait(24, 2)
    with pytest.warns(UserWarning, match=r"picked WeightSelection, which has no use for") as seen:
        wi.project_from(ancestor, model, calibration=batches_of())
    assert any(warning.filename == __file__ for warning in seen)


def test_growth_has_no_use_for_batches_and_says_so():
    plan = wi.plan_projection(small_vit(), small_vit(depth=3), calibration=batches_of())
    assert any("which has no use for calibration=" in note for note in plan.report().notes)
