"""Models of one's own: heads stated, sizes as numbers, short tokens, rules that do not fit."""

import pytest
import timm
import torch
from torch import nn

import weightinit as wi
from weightinit.anatomy import Rule

BLOCK = r"layers\.(?P<block>\d+)\."
QKV = ("attn.q.weight", "attn.k.weight", "attn.v.weight")


class Tiny(nn.Module):
    def __init__(self, d, heads=None):
        super().__init__()
        self.cls = nn.Parameter(torch.randn(d, generator=torch.Generator().manual_seed(d)))
        parts = {"qkv": nn.Linear(d, 3 * d, False), "out": nn.Linear(d, d, False)}
        self.layers = nn.ModuleList(nn.ModuleDict(parts) for _ in "ab")
        if heads:
            self.num_heads = heads


def rules(role, dim="k"):
    return [
        Rule("cls", role, "d"),
        Rule(BLOCK + r"qkv\.weight", "attn.qkv.weight", f"(3 h {dim}) d", parts=QKV),
        Rule(BLOCK + r"out\.weight", "attn.proj.weight", f"d (h {dim})"),
    ]


@pytest.mark.parametrize("role", ["token.cls", "cls"])
@pytest.mark.parametrize("width", [16, 64])
def test_heads_from_an_attribute(role, width):
    ancestor = wi.Ancestor.open(Tiny(32), heads=4, rules=rules(role))
    report = wi.plan_projection(ancestor, Tiny(width, width // 8), rules=rules(role)).report()
    assert "fresh" not in report.counts or not report.counts["fresh"]
    target = wi.project_from(ancestor, Tiny(width, width // 8), rules=rules(role))
    assert set(target.cls.tolist()) <= set(Tiny(32).cls.tolist()) or width == 16


@pytest.mark.parametrize("width", [16, 64])
def test_head_dim_as_a_number(width):
    own = rules("token.cls", "8")
    target = wi.project_from(Tiny(32), Tiny(width), rules=own)
    seen = wi.anatomy(target, rules=own)
    assert (seen.sizes["h"], seen.sizes["k"]) == (width // 8, 8)
    assert seen.outside["token.cls"].size == (1, width)


@pytest.mark.parametrize("number", ["4", "h 4"])
def test_any_other_number_among_channels_grows(number):
    own = [
        Rule("cls", "cls", "d"),
        Rule(BLOCK + r"qkv\.weight", "mlp.fc1.weight", f"(3 m {number}) d"),
        Rule(BLOCK + r"out\.weight", "mlp.fc3.weight", "d d"),
    ]
    for width in (16, 64):
        plan = wi.plan_projection(Tiny(32, 2), Tiny(width, 2), rules=own, method="auto")
        assert not plan.report().counts.get("fresh")


def test_the_error_says_how_to_state_heads():
    with pytest.raises(wi.AnatomyError, match=r"attribute num_heads.*'\(3 h 64\) d'"):
        wi.project_from(
            wi.Ancestor.open(Tiny(32), heads=4, rules=rules("cls")), Tiny(16), rules=rules("cls")
        )
    with pytest.raises(wi.AnatomyError, match="says k = 8, but the module says 5"):
        wi.anatomy(Tiny(32), rules=rules("cls", "8"), sizes={"k": 5})


def vit(**changes):
    size = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 1, "num_heads": 4}
    return timm.create_model("vit_tiny_patch16_224", **(size | changes), num_classes=5)


def test_a_rule_that_does_not_fit_leaves_the_built_in_one():
    old, new = vit(), vit()
    new.patch_embed.proj = nn.Conv3d(3, 64, (2, 8, 8))
    rule = Rule(r"patch_embed\.proj\.weight", "stem.weight", "d c frames p q")
    assert wi.anatomy(old, rules=[rule]).spec("patch_embed.proj.weight").role == "patch.weight"
    plan = wi.plan_projection(old, new, rules=[rule])
    rows = {row.name: row for row in plan.report().rows}
    assert rows["patch_embed.proj.weight"].action == "fresh"


@pytest.mark.parametrize("shrunk", [64, 32])
def test_a_conv3d_stem_is_inflated(shrunk):
    old, new = vit(), vit(embed_dim=shrunk)
    new.patch_embed.proj = nn.Conv3d(3, shrunk, (2, 8, 8), (2, 8, 8))
    torch.nn.init.zeros_(new.patch_embed.proj.weight)
    wi.project_from(old, new)
    image = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    video = image[:, :, None].expand(-1, -1, 4, -1, -1)
    with torch.no_grad():
        frames = new.patch_embed.proj(video)
        torch.testing.assert_close(frames[:, :, 0], frames[:, :, 1])
        if shrunk == 64:
            expected = old.patch_embed.proj(image)
            torch.testing.assert_close(frames[:, :, 1], expected, rtol=1e-4, atol=1e-5)


def test_rules_may_have_the_names_of_one_side_only():
    old, new = vit(), vit()
    new.blocks[0].adapter = nn.Linear(64, 8, bias=False)
    rule = Rule(r"blocks\.(?P<block>\d+)\.adapter\.weight", "adapter.weight", "a d")
    assert wi.anatomy(old, rules=[rule]).specs == wi.anatomy(old).specs
    assert "adapter.weight" in wi.anatomy(new, rules=[rule]).blocks[0]


def test_a_rule_that_fits_nothing_is_named():
    model = nn.Sequential(nn.Linear(3, 4, bias=False))
    with pytest.raises(wi.AnatomyError, match=r"rules= has 'd c p' for 0\.weight, whose shape is"):
        wi.anatomy(model, rules=[Rule(r"0\.weight", "in.weight", "d c p")])


def test_a_known_submodule_is_named():
    class Segmenter(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = vit()
            self.decode = nn.Conv2d(64, 3, 1)

    with pytest.raises(wi.AnatomyError, match=r"decode\.weight.*'backbone' is a timm vit"):
        wi.anatomy(Segmenter())
