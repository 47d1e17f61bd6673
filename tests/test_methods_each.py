import pytest
import timm
import torch
from helpers.inherit import fill, randomise, small_vit

import weightinit as wi
from weightinit.anatomy import Labels, anatomy
from weightinit.errors import ProjectionError
from weightinit.methods.auto import Auto
from weightinit.methods.each import EachAxis
from weightinit.methods.selection import WeightSelection


def convnext(dims, depths=(1, 1, 2, 1)):
    model = timm.create_model("convnext_atto", dims=dims, depths=depths, num_classes=5)
    return randomise(model)


def logits(model):
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model(images.to(next(model.parameters())))


def test_twice_every_width_is_the_same_function():
    ancestor = convnext((8, 16, 32, 64)).double()
    model = convnext((16, 32, 64, 128)).double()
    report = fill(model, ancestor, EachAxis())
    assert report.counts["fresh"] == 0 and report.notes == ["EachAxis is lossless here"]
    torch.testing.assert_close(logits(model), logits(ancestor), atol=1e-10, rtol=0)


@pytest.mark.parametrize(
    ("dims", "depths"),
    [
        ((8, 16, 32, 80), (1, 1, 1, 1)),
        ((12, 16, 24, 64), (1, 2, 2, 1)),
        ((16, 32, 48, 64), (1, 1, 1, 1)),
    ],
)
def test_widths_and_stages_both_ways(dims, depths):
    ancestor, model = convnext((8, 16, 32, 64)), convnext(dims, depths)
    report = fill(model, ancestor, Auto())
    assert report.counts["fresh"] == 0 and torch.isfinite(logits(model)).all()
    picked, *_, note = report.notes
    assert "picked EachAxis" in picked and note.startswith("EachAxis is not lossless here: ")


@pytest.mark.parametrize("name", ["convnext_atto", "convnextv2_atto", "convnext_tiny"])
@pytest.mark.parametrize("method", ["auto", "lemon", "net2net", "hypercloning", "expansions"])
@pytest.mark.parametrize(
    ("dims", "depths"),
    [
        ((8, 16, 24, 32), (2, 3, 5, 1)),
        ((16, 32, 48, 64), (1, 1, 2, 1)),
        ((8, 48, 24, 64), (1, 1, 2, 2)),
    ],
)
def test_several_widths_grow_without_loss(name, method, dims, depths):
    """In depth alone, and to whole multiples of each stage's width."""
    ancestor, model = (
        randomise(timm.create_model(name, dims=d, depths=n, num_classes=5)).double()
        for d, n in (((8, 16, 24, 32), (1, 1, 2, 1)), (dims, depths))
    )
    if method == "expansions" and dims != (8, 16, 24, 32):
        with pytest.raises(ProjectionError, match="RMSNorm models only"):
            wi.plan_projection(ancestor, model, method=method)
        return
    plan = wi.plan_projection(ancestor, model, method=method)
    plan.commit()
    assert plan.report().notes[-1].endswith(" is lossless here")
    torch.testing.assert_close(logits(model), logits(ancestor), atol=1e-10, rtol=0)


def test_what_only_shrinks_is_a_selection():
    ancestor, one, other = small_vit(24, 3, 3), small_vit(16, 2, 2), small_vit(16, 2, 2)
    fill(one, ancestor, EachAxis())
    fill(other, ancestor, WeightSelection(depth="uniform"))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_heads_of_another_size_are_refused():
    with pytest.raises(ProjectionError, match="head dim 8 -> 12"):
        fill(small_vit(24, 2, 1, mlp_ratio=8.0), small_vit(24, 3, 1), EachAxis())


@pytest.mark.parametrize(
    ("before", "after"), [((3, 8), (6, 8)), ((4, 8), (2, 8)), ((2, 8), (3, 4))]
)
def test_heads_stay_whole(before, after):
    old, new = (anatomy(small_vit(h * k, h, 1)) for h, k in (before, after))
    axis = EachAxis().axes(old, new)(Labels("hk"), None)
    value = torch.arange(before[0] * before[1])[:, None]
    found = axis.rows(value, 0) if callable(axis.rows) else value[axis.rows]
    heads = found.view(after)
    assert (heads // before[1] == heads[:, :1] // before[1]).all()


@pytest.mark.parametrize("depths", [(1, 2, 2, 2), (1, 2, 2, 1)])
def test_a_stage_that_shrinks_is_not_outweighed_by_one_that_grows(depths):
    old, new = (convnext((8, 16, 24, 32), n) for n in ((1, 1, 3, 1), depths))
    for method, words in (("lemon", "only grows"), ("weight_selection", "only shrinks")):
        with pytest.raises(ProjectionError, match=words):
            wi.plan_projection(old, new, method=method)
    notes = "; ".join(wi.plan_projection(old, new).report().notes)
    assert "picked EachAxis" in notes and "depth2 3 -> 2" in notes
    wi.project_from(old, new)
    kept = [old.stages[2].blocks[i].conv_dw.weight for i in (0, 2)]
    assert all(
        torch.equal(b.conv_dw.weight, w) for b, w in zip(new.stages[2].blocks, kept, strict=True)
    )
    first, second = old.stages[1].blocks[0], new.stages[1].blocks[1]
    assert torch.equal(first.conv_dw.weight, second.conv_dw.weight)
