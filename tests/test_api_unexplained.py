"""Parameters beside a known network: left out of an ancestor, kept in a target, and listed."""

import pytest
import timm
import torch
from helpers.inherit import logits, randomise, small_vit
from torch import nn

import weightinit as wi


def rows(plan):
    return {row.name: (row.action, row.source) for row in plan.report().rows}


@pytest.mark.parametrize(
    "extra",
    [
        "mask_token",
        "decoder_pred.weight",
        "decoder_blocks.0.norm1.weight",
        "decoder.blocks.0.norm1.weight",
        "dino_head.mlp.0.weight",
        "dino_head.last_layer.weight_g",
        "dino_head.last_layer.parametrizations.weight.original0",
        "criterion.weight",
        "queue",
    ],
)
def test_what_an_ancestor_has_beside_its_network_is_left_out_and_listed(extra):
    old, new = small_vit(), small_vit(32, 4, 3)
    expected = small_vit(32, 4, 3)
    wi.project_from(old, expected)
    value = torch.zeros(8, 8, dtype=torch.int64 if extra == "queue" else torch.float32)
    ancestor = wi.Ancestor.open({**old.state_dict(), extra: value}, heads=3, grid=(2, 2))
    found = wi.plan_projection(ancestor, new).report().notes
    assert any(f"as no rule explains it: {extra}" in note for note in found)
    wi.project_from(ancestor, new)
    assert torch.equal(logits(new), logits(expected))


def test_what_lies_in_the_blocks_of_an_ancestor_is_not_left_out():
    state = {**small_vit().state_dict(), "blocks.0.attn.qkv.lora_A.weight": torch.zeros(2, 24)}
    with pytest.raises(wi.AnatomyError, match=r"lora_A.*Merge adapters first"):
        wi.Ancestor.open(state, heads=3)
    state = {**small_vit().state_dict(), "blocks.0.attn.qkv.weight_g": torch.zeros(2, 24)}
    with pytest.raises(wi.AnatomyError, match=r"weight_g \(parametrized\)"):
        wi.Ancestor.open(state, heads=3)
    with pytest.raises(wi.AnatomyError, match="any model known"):
        wi.Ancestor.open({"queue": torch.zeros(3)})


class Segmenter(nn.Module):
    def __init__(self, **kwargs):
        super().__init__()
        self.backbone = small_vit(num_classes=0, **kwargs)
        self.decode_head = nn.Conv2d(24, 7, 1)
        self.scale = nn.Parameter(torch.ones(()))


@pytest.mark.parametrize("how", ["names", "all"])
@pytest.mark.parametrize("ancestor", [small_vit, Segmenter])
def test_a_whole_segmenter(how, ancestor):
    old, new = ancestor(), Segmenter(depth=3)
    with pytest.raises(
        wi.AnatomyError, match=r"'backbone' is a timm vit: pass that submodule"
    ) as e:
        wi.project_from(old, new)
    assert "unexplained='keep' or keep=[names]" in str(e.value)
    before = {n: p.clone() for n, p in new.named_parameters() if "backbone" not in n}
    options = {
        "names": {"keep": ["decode_head", "scale"]},
        "all": {"unexplained": "keep"},
    }[how]
    plan = wi.plan_projection(old, new, **options)
    reason = "kept by request" if how == "names" else "kept, unexplained"
    assert {name: x for name, x in rows(plan).items() if x[0] == "kept"} == dict.fromkeys(
        before, ("kept", reason)
    )
    plan.commit()
    assert all(torch.equal(new.get_parameter(name), x) for name, x in before.items())
    own = old if ancestor is small_vit else old.backbone
    assert torch.equal(new.backbone.blocks[0].attn.qkv.weight, own.blocks[0].attn.qkv.weight)


def test_every_verb_takes_it():
    def model():
        made = small_vit(32, 2, 2)
        made.adapter = nn.Linear(4, 4)
        return made

    small = wi.HyperConfig("logah", hid=16, layers=1, heads=2, rank=4, max_ck=8192)
    from weightinit.hypernet.network import GraphHyperNetwork

    for verb, arguments in (
        (wi.plan_templates, ()),
        (wi.plan_mimetic, ()),
        (wi.plan_hypernet, (GraphHyperNetwork(small),)),
    ):
        with pytest.raises(wi.AnatomyError, match=r"adapter\.weight"):
            verb(model(), *arguments)
        for options in ({"unexplained": "keep"}, {"keep": "adapter"}):
            assert verb(model(), *arguments, **options).report().counts["kept"] == 2
    with pytest.raises(wi.AnatomyError, match=r"unexplained='drop'.*'raise', 'keep'"):
        wi.plan_templates(model(), unexplained="drop")
    with pytest.raises(wi.ProjectionError, match="keep='adaptor' names no parameter"):
        wi.plan_templates(model(), unexplained="keep", keep="adaptor")


def test_adapters_that_a_rule_explains_are_kept():
    old, new = small_vit(), small_vit()
    for block in new.blocks:
        block.adapter = nn.Linear(24, 16, bias=False)
    rule = wi.Rule(r"blocks\.(?P<block>\d+)\.adapter\.weight", "adapter.weight", "a d")
    with pytest.raises(wi.ProjectionError, match=r"adapter\.weight, which the ancestor lacks"):
        wi.plan_projection(old, new, rules=[rule])
    plan = wi.plan_projection(old, new, rules=[rule], keep=["adapter.weight"])
    assert plan.report().counts == {"written": 32, "fresh": 0, "kept": 2}
    plan = wi.plan_projection(old, new, unexplained="keep")
    assert plan.report().counts == {"written": 32, "fresh": 0, "kept": 2}


def test_a_model_with_lora():
    """The names that peft gives, around a model and around its layers."""
    old, new = small_vit(), small_vit(depth=3)
    for block in new.blocks:
        qkv = block.attn.qkv
        block.attn.qkv = nn.Module()
        block.attn.qkv.base_layer = qkv
        block.attn.qkv.lora_A = nn.ModuleDict({"default": nn.Linear(24, 2, bias=False)})
        block.attn.qkv.lora_B = nn.ModuleDict({"default": nn.Linear(2, 72, bias=False)})
    wrapped = nn.ModuleDict({"base_model": nn.ModuleDict({"model": new})})
    plan = wi.plan_projection(old, wrapped, unexplained="keep")
    kept = [name for name, (action, _) in rows(plan).items() if action == "kept"]
    assert len(kept) == 3 * 2 and all("lora_" in name for name in kept)
    plan.commit()
    assert torch.equal(new.blocks[0].attn.qkv.base_layer.weight, old.blocks[0].attn.qkv.weight)
    with pytest.raises(wi.AnatomyError, match="Merge adapters first"):
        wi.plan_projection(old, wrapped)


def test_another_head_and_another_stem_are_kept():
    old, new = small_vit(), small_vit()
    new.head = nn.Sequential(nn.Linear(24, 8), nn.ReLU(), nn.Linear(8, 5))
    new.patch_embed.proj = nn.Conv3d(3, 24, (2, 8, 8))
    with pytest.raises(wi.AnatomyError):
        wi.plan_projection(old, new)
    plan = wi.plan_projection(old, new, keep=["head", "patch_embed.proj.weight"])
    kept = {name for name, (action, _) in rows(plan).items() if action == "kept"}
    assert kept == {
        "head.0.weight", "head.0.bias", "head.2.weight", "head.2.bias", "patch_embed.proj.weight",
    }  # fmt: skip
    # Of the rules' number of axes, and of sizes that contradict the rest.
    new = small_vit()
    new.head = nn.Linear(48, 5)
    with pytest.raises(wi.AnatomyError, match="contradict"):
        wi.plan_projection(old, new)
    counts = wi.plan_projection(old, new, keep=["head"]).report().counts
    assert counts == {"written": 30, "fresh": 0, "kept": 2}


def test_a_second_known_model_may_be_kept():
    pair = nn.ModuleDict({"vision": small_vit(), "other": small_vit(32, 4)})
    with pytest.raises(wi.AnatomyError, match="there are 2 models"):
        wi.project_from(small_vit(depth=3), pair)
    before = pair["other"].blocks[0].attn.qkv.weight.clone()
    wi.project_from(small_vit(), pair, keep=["other"])
    assert torch.equal(pair["other"].blocks[0].attn.qkv.weight, before)


def test_a_normalised_head_of_a_target_is_kept():
    new = small_vit()
    new.head = nn.utils.parametrizations.weight_norm(nn.Linear(24, 5))
    with pytest.raises(wi.AnatomyError, match="Remove the parametrizations"):
        wi.plan_projection(small_vit(), new)
    counts = wi.plan_projection(small_vit(), new, keep=["head"]).report().counts
    assert counts == {"written": 30, "fresh": 0, "kept": 3}


def sam():
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "num_heads": 3, "depth": 2}
    return randomise(
        timm.models.vision_transformer_sam.VisionTransformerSAM(
            **sizes, num_classes=5, use_rel_pos=True, window_size=0, neck_chans=0
        )
    )


@pytest.mark.parametrize("depth", [2, 3])
def test_relative_positions_of_sam_start_at_nothing(depth):
    old = small_vit(
        img_size=32, depth=depth, class_token=False, fc_norm=False, global_pool="avg"
    ).double()
    new = sam().double()
    plan = wi.plan_projection(old, new)
    assert any("rel_pos_h, attn.rel_pos_w, which the ancestor lacks, start where" in note
               and "windows" in note for note in plan.report().notes)  # fmt: skip
    plan.commit()
    assert not new.blocks[0].attn.rel_pos_h.any()
    if depth == 2:
        torch.testing.assert_close(logits(new), logits(old), atol=1e-4, rtol=0)


def test_a_convnext_becomes_a_convnext_v2():
    sizes = {"depths": (1, 1, 2, 1), "dims": (8, 16, 24, 32), "num_classes": 5}
    old = randomise(timm.models.ConvNeXt(**sizes, ls_init_value=0.5)).double()
    new = timm.models.ConvNeXt(**sizes, ls_init_value=None, use_grn=True).double().eval()
    wi.project_from(old, new)
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        torch.testing.assert_close(new(x), old(x), atol=1e-10, rtol=0)
    with pytest.raises(wi.ProjectionError, match=r"has mlp\.grn\.weight, which the target lacks"):
        wi.project_from(new, old)
