import pytest
import timm
import torch
from helpers.inherit import fill, logits, randomise, small_vit

import weightinit as wi
from weightinit.anatomy import anatomy
from weightinit.methods.auto import Auto
from weightinit.methods.halfway import ShrinkThenGrow, smaller
from weightinit.methods.lemon import LEMON
from weightinit.methods.selection import WeightSelection


def test_each_axis_has_its_own_rule():
    """Twice the width, one head more each, half the blocks: what grows keeps the function."""
    ancestor = small_vit(24, 3, 4).double()
    shallow, model = small_vit(24, 3, 2).double(), small_vit(48, 6, 2).double()
    fill(shallow, ancestor, WeightSelection(depth="first_last"))
    fill(model, ancestor, Auto(generate=False))
    torch.testing.assert_close(logits(model), logits(shallow), atol=1e-10, rtol=0)


def test_heads_may_change_in_number_and_size():
    """Four heads of 12 channels compute what the three of 8 do, in two blocks of three."""
    ancestor = small_vit(24, 3, 3).double()
    shallow, model = small_vit(24, 3, 2).double(), small_vit(48, 4, 2).double()
    fill(shallow, ancestor, WeightSelection(depth="first_last"))
    fill(model, ancestor, Auto(generate=False))
    torch.testing.assert_close(logits(model), logits(shallow), atol=1e-10, rtol=0)


def test_halfway_every_axis_is_the_shorter():
    old, new = anatomy(small_vit(24, 3, 2)), anatomy(small_vit(16, 2, 3, mlp_ratio=8.0))
    between = smaller(old, new)
    sizes = {label: between.sizes[label] for label in "dhkm"}
    assert sizes == {"d": 16, "h": 2, "k": 8, "m": 96} and between.depth == len(between.blocks) == 2
    expected = anatomy(small_vit(16, 2, 2, mlp_ratio=6.0))
    for block, other in zip(between.blocks, expected.blocks, strict=True):
        assert {r: (p.size, p.axes) for r, p in block.items()} == {
            r: (p.size, p.axes) for r, p in other.items()
        }


def test_calibrated_then_grown():
    """The MLP grows in what the batches chose: twice the hidden channels, the same function."""
    ancestor = small_vit(24, 3, 3).double()
    small, model = small_vit(16, 2, 3, mlp_ratio=6.0), small_vit(16, 2, 3, mlp_ratio=12.0)
    small, model = small.double(), model.double()
    batches = [torch.randn(16, 3, 16, 16, dtype=torch.float64) for _ in range(2)]
    wi.project_from(ancestor, small, calibration=batches)
    plan = wi.plan_projection(ancestor, model, calibration=batches)
    assert "ActivationAware" in str(plan.report().notes)
    plan.commit()
    torch.testing.assert_close(logits(model), logits(small), atol=1e-10, rtol=0)


FAMILIES = {
    "vit_tiny_patch16_224": {"reg_tokens": 1, "init_values": 0.1, "qk_norm": True},
    "eva02_tiny_patch14_224": {},
    "deit_tiny_distilled_patch16_224": {},
    "beit_base_patch16_224": {},
    "cait_xxs24_224": {},
}


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(("width", "depth"), [(24, 3), (64, 2), (40, 4)])
def test_every_family(name, width, depth):
    """From 48 wide and 3 deep, with 16 channels a head in the one and 8 in the other."""

    def build(width, depth, heads, ratio):
        sizes = {"embed_dim": width, "depth": depth, "num_heads": heads, "mlp_ratio": ratio}
        if "cait" in name:  # its class blocks have a ratio of their own
            del sizes["mlp_ratio"]
        given = {"img_size": 32, "patch_size": 16, "num_classes": 5, **FAMILIES[name]}
        return randomise(timm.create_model(name, **given, **sizes))

    ancestor, model = build(48, 3, 3, 4), build(width, depth, width // 8, 2)
    report = fill(model, ancestor, ShrinkThenGrow(WeightSelection()))
    assert report.counts["fresh"] == 0
    assert torch.isfinite(logits(model)).all()


def test_without_anything_to_shrink_it_grows():
    ancestor, model, other = small_vit(24, 3, 2), small_vit(48, 6, 3), small_vit(48, 6, 3)
    fill(model, ancestor, ShrinkThenGrow(WeightSelection()))
    fill(other, ancestor, LEMON())
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True)
    )


def test_the_report_names_both_steps():
    plan = wi.plan_projection(small_vit(24, 3, 3), small_vit(48, 6, 2), calibration="none")
    (line,) = [note for note in plan.report().notes if note.startswith("shrinks")]
    assert line.startswith("shrinks depth 3 -> 2 by WeightSelection; what that computes grows: ")
    assert "lossless" in line
    row = next(row for row in plan.report().rows if row.role == "mlp.fc1.weight")
    assert row.source.endswith("of what WeightSelection shrank")


def test_a_head_of_other_classes_is_not_called_lossless():
    """It is fresh, though halfway has as many classes as the target."""
    plan = wi.plan_projection(small_vit(24, 3, 3), small_vit(48, 6, 2, num_classes=3))
    (line,) = [note for note in plan.report().notes if note.startswith("shrinks")]
    assert "not lossless" in line and "head.weight" in line
