import copy

import pytest
import timm
import torch
import transformers
from helpers.inherit import fill, small_vit

import weightinit as wi
from weightinit.anatomy import anatomy
from weightinit.methods.auto import SELECTION, Auto
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


def post(width, depth):
    """A ViT with norms after attention and MLP, to which no rotation of the stream can be put."""
    block = timm.models.vision_transformer.ResPostBlock
    return small_vit(width, width // 8, depth, block_fn=block)


def cait(width, depth):
    sizes = {"img_size": 16, "patch_size": 8, "num_classes": 5, "num_heads": width // 8}
    return timm.models.cait.Cait(embed_dim=width, depth=depth, **sizes).eval()


def batches_of():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(4, 3, 16, 16, generator=generator) for _ in range(4)]


@pytest.mark.parametrize("build", [post, cait])
@pytest.mark.parametrize("target", [(16, 2), (16, 3)])
def test_batches_rank_what_cannot_be_fitted(build, target):
    """Calibration is not dropped in silence: families without a fit are ranked by activation."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ancestor, model = build(24, 3), build(*target)
    plan = wi.plan_projection(ancestor, model, calibration=batches_of())
    notes = plan.report().notes
    assert any("picked Subcloning" in note for note in notes)
    assert any(note.startswith("not fitted to data: activation-aware") for note in notes)
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


def made(ancestor, seed=0, **options):
    """A smaller model of the ancestor's knowledge, and the notes of its report."""
    model = small_vit(16, 2, 2)
    generator = torch.Generator().manual_seed(seed)
    state = torch.get_rng_state()
    plan = wi.plan_projection(ancestor, model, generator=generator, **options)
    plan.commit()
    assert torch.equal(torch.get_rng_state(), state)
    return model.state_dict(), "; ".join(plan.report().notes)


def alike(one, two):
    return all(torch.equal(value, two[name]) for name, value in one.items())


def test_without_batches_the_target_is_fitted_on_generated_images():
    ancestor = small_vit(24, 3, 3)
    before = copy.deepcopy(ancestor.state_dict())
    fitted, notes = made(ancestor)
    assert "picked ActivationAware" in notes
    assert "fitted on 192 generated images of 16 x 16" in notes
    assert "pass calibration= with real data for better" in notes
    assert alike(before, ancestor.state_dict())
    assert alike(fitted, made(ancestor)[0])
    assert not alike(fitted, made(ancestor, seed=1)[0])


def test_generated_images_serve_what_shrinks_and_grows():
    model = small_vit(16, 2, 5)
    notes = wi.plan_projection(small_vit(24, 3, 3), model).report().notes
    assert any("picked ShrinkThenGrow(shrink=ActivationAware" in note for note in notes)
    assert any("generated images" in note for note in notes)


@pytest.mark.parametrize("width", [24, 48])
def test_blocks_alone_are_left_out_without_generated_images(width):
    """Whole blocks keep more than blocks that are fitted on images that are not real."""
    model = small_vit(width, width // 8, 2)
    notes = wi.plan_projection(small_vit(24, 3, 3), model).report().notes
    assert any("WeightSelection" in note for note in notes)
    assert not any("generated" in note for note in notes)


def test_the_weights_alone_are_taken_when_asked():
    ancestor = small_vit(24, 3, 3)
    alone, notes = made(ancestor, calibration="none")
    assert "picked WeightSelection" in notes
    assert "low learning rate" in notes
    assert "generated" not in notes
    assert alike(alone, made(ancestor, method=SELECTION)[0])


def test_an_ancestor_that_cannot_be_run_gives_its_weights_and_the_report_says_why():
    ancestor = small_vit(24, 3, 3)
    bare = wi.Ancestor.open(ancestor.state_dict(), heads=3)
    alone, notes = made(bare)
    assert "picked WeightSelection" in notes
    assert "made of the ancestor's weights alone, which keeps less" in notes
    assert "cannot be run, which this needs: pass the module itself" in notes
    assert alike(alone, made(ancestor, calibration="none")[0])


def test_an_ancestor_that_fails_on_the_images_gives_its_weights_and_the_report_says_why():
    ancestor = small_vit(24, 3, 3)
    ancestor.register_forward_pre_hook(refuse)
    alone, notes = made(ancestor)
    assert "a fit on 192 generated images" in notes
    assert "failed: the ancestor does not run" in notes
    assert "no pictures here" in notes
    assert alike(alone, made(ancestor, calibration="none")[0])


def refuse(*_):
    raise ValueError("no pictures here")


def test_what_cannot_be_fitted_is_not_run():
    notes = wi.plan_projection(post(24, 3), post(16, 2)).report().notes
    assert any("picked WeightSelection" in note for note in notes)
    assert not any("generated" in note or "weights alone" in note for note in notes)


def test_growth_needs_no_images_and_a_low_rate():
    notes = wi.plan_projection(small_vit(), small_vit(depth=3)).report().notes
    assert not any("generated" in note for note in notes)
    assert any("low learning rate: start with about 2e-5 to 1e-4" in note for note in notes)
