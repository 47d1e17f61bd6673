import json

import pytest
import timm
import torch
from helpers.inherit import Stub, fill, logits, small_vit
from safetensors.torch import load_file

from weightinit.errors import ProjectionError
from weightinit.methods.selection import WeightSelection


@pytest.mark.parametrize("case", ["weight_selection_a", "weight_selection_c"])
def test_flat_selection_is_the_published_code(golden, case):
    described = json.loads((golden / f"{case}.json").read_text())
    tensors = load_file(golden / f"{case}.safetensors")

    def build(size):
        return timm.models.VisionTransformer(
            img_size=size["img"], patch_size=size["patch"], embed_dim=size["width"],
            depth=size["depth"], num_heads=size["heads"], mlp_ratio=size["ratio"],
            num_classes=size["classes"],
        )  # fmt: skip

    ancestor, model = build(described["teacher"]), build(described["student"])
    values = {
        k.removeprefix("source."): v.float() for k, v in tensors.items() if k.startswith("source.")
    }
    fill(model, Stub(ancestor, values), WeightSelection(heads="flat"))
    wanted = {
        k.removeprefix("target."): v.float() for k, v in tensors.items() if k.startswith("target.")
    }
    assert set(dict(model.named_parameters())) - set(wanted) == {"head.weight", "head.bias"}
    for name, value in wanted.items():
        assert torch.equal(model.get_parameter(name), value), name


def test_aligned_selection_keeps_whole_heads():
    ancestor, model = small_vit(24, 6, 3), small_vit(12, 3, 2)
    fill(model, ancestor, WeightSelection())
    rows = torch.cat([torch.arange(4) + 4 * head for head in (0, 2, 4)])
    q = ancestor.blocks[1].attn.qkv.weight.unflatten(0, (3, 24))[0]
    assert torch.equal(model.blocks[1].attn.qkv.weight.unflatten(0, (3, 12))[0], q[rows][:, ::2])
    proj = ancestor.blocks[1].attn.proj.weight
    assert torch.equal(model.blocks[1].attn.proj.weight, proj[::2][:, rows])
    assert torch.equal(model.head.weight, ancestor.head.weight[:, ::2])


@pytest.mark.parametrize("heads", ["flat", "aligned"])
@pytest.mark.parametrize("elements", ["uniform", "consecutive", "random"])
def test_the_same_size_is_the_same_function(heads, elements):
    ancestor, model = small_vit(), small_vit()
    torch.nn.init.normal_(model.pos_embed)
    fill(model, ancestor, WeightSelection(heads=heads, elements=elements, depth="uniform"))
    if heads == "aligned":
        torch.testing.assert_close(logits(model), logits(ancestor))
    assert torch.equal(model.pos_embed, ancestor.pos_embed)


def test_rescaling_keeps_the_size_of_sums():
    ancestor, plain, scaled = small_vit(48, 6, 1), small_vit(24, 3, 1), small_vit(24, 3, 1)
    fill(plain, ancestor, WeightSelection())
    fill(scaled, ancestor, WeightSelection(rescale=True))
    ratio = scaled.blocks[0].mlp.fc1.weight / plain.blocks[0].mlp.fc1.weight
    torch.testing.assert_close(ratio, torch.full_like(ratio, 2**0.5))
    assert torch.equal(scaled.patch_embed.proj.weight, plain.patch_embed.proj.weight)


def test_growing_is_refused_by_name():
    with pytest.raises(ProjectionError, match="d 12 -> 24"):
        fill(small_vit(24, 3, 1), small_vit(12, 3, 1), WeightSelection())
    with pytest.raises(ProjectionError, match="elements='best'"):
        WeightSelection(elements="best")


def test_a_head_of_other_classes_is_fresh():
    report = fill(small_vit(12, 3, 1, num_classes=3), small_vit(24, 6, 1), WeightSelection())
    assert {row.name for row in report.rows if row.action == "fresh"} == {
        "head.weight",
        "head.bias",
    }


def test_both_spellings_follow_the_published_code():
    models = []
    for method in (WeightSelection(faithful=True), WeightSelection(heads="flat")):
        model = small_vit(24, 3, 1)
        fill(model, small_vit(48, 6, 2), method)
        models.append(model)
    for one, other in zip(*(model.parameters() for model in models), strict=True):
        assert torch.equal(one, other)
