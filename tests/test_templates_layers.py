import json

import pytest
import torch
from helpers.models import make_bundle, state_hash, vit
from safetensors import safe_open

import weightinit as wi
from weightinit.anatomy import anatomy
from weightinit.errors import ProjectionError
from weightinit.files.config import BundleConfig
from weightinit.templates.bundle import TemplateBundle
from weightinit.templates.config import TemplateConfig
from weightinit.templates.extract import auto_lg, heur_lg


@pytest.mark.parametrize("depth", [2, 3, 5])
def test_cut_layers_stand_where_the_method_says(depth):
    ancestor = vit(depth=4)
    before = state_hash(ancestor)
    for make, layers in ((heur_lg, 3), (auto_lg, 2)):
        bundle = make(ancestor, layers=layers)
        target = vit(depth=depth)
        report = wi.plan_templates(target, bundle).report()
        wi.init_from_templates(target, bundle)
        offset = 4 - depth if make is heur_lg else 0
        for index, block in enumerate(target.blocks):
            source = index + offset
            chosen = range(4 - layers, 4) if make is heur_lg else range(layers)
            fresh = {r.action for r in report.rows if r.block == index} == {"fresh"}
            assert fresh is (source not in chosen)
            if not fresh:
                for name, value in block.state_dict().items():
                    assert torch.equal(value, ancestor.blocks[source].state_dict()[name]), name
        torch.testing.assert_close(target.head.weight, ancestor.head.weight)
    assert state_hash(ancestor) == before


def test_layers_are_bounded():
    with pytest.raises(ProjectionError, match="use 1 to 4"):
        heur_lg(vit(depth=4), layers=5)


@pytest.mark.parametrize("method", ["tleg", "share"])
def test_layer_templates_grow_in_width_without_changing_the_function(method):
    bundle = make_bundle(method)
    x = torch.randn(3, 1, 8, 8, dtype=torch.float64)
    small, wide = (
        wi.init_from_templates(vit(**size).double(), bundle)
        for size in ({}, {"embed_dim": 32, "num_heads": 4})
    )
    with torch.no_grad():
        torch.testing.assert_close(wide(x), small(x), rtol=0, atol=1e-10)


def published(path):
    """A bundle of the published code's auxiliary model: base and slope of every parameter."""
    with safe_open(path, "pt") as file:
        facts = json.loads(file.metadata()["json"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    config = TemplateConfig.layers("tleg", facts["D"], 2)
    found = {}
    for kind in config.kinds:
        layer, which = kind.rsplit(".", 1)
        stem = f"source.blocks.block.{layer}.instances.0.{which}"
        found[f"templates.{kind}"] = torch.stack(
            [tensors[f"{stem}_base"], tensors[f"{stem}_ilayer"]]
        )
    renamed = {"patch_embed.proj.weight": "patch.weight", "patch_embed.proj.bias": "patch.bias"}
    for name in (
        "patch_embed.proj.weight",
        "patch_embed.proj.bias",
        "norm.weight",
        "norm.bias",
        "head.weight",
        "head.bias",
    ):
        found[f"outside.{renamed.get(name, name)}"] = tensors[f"source.{name}"]
    found["outside.pos"] = tensors["source.pos_embed"][0]
    d, h = facts["D"], facts["heads"]
    bundle = TemplateBundle(
        BundleConfig(
            kind="templates", method="tleg", options=config.to_dict(), depth=facts["aux_depth"],
            licence="other",
            sizes={
                "d": d, "h": h, "k": d // h, "m": 4 * d, "t": 16, "c": 3, "p": 4, "q": 4, "n": 10,
            },
            traits={"family": "vit", "grid": [4, 4], "pos_prefix": 0, "prefix_tokens": 0},
        ),
        found,
    )  # fmt: skip
    return facts, tensors, bundle


@pytest.mark.parametrize("case", ["a", "c"])
def test_tleg_equals_the_published_code(golden, case):
    facts, tensors, bundle = published(golden / f"tleg_{case}.safetensors")
    import timm

    model = timm.models.VisionTransformer(
        img_size=16, patch_size=4, num_classes=10, embed_dim=facts["D"], depth=facts["des_depth"],
        num_heads=facts["heads"], class_token=False, global_pool="avg",
    )  # fmt: skip
    wi.init_from_templates(model, bundle)
    expected = {n.removeprefix("target."): v for n, v in tensors.items() if n.startswith("target.")}
    state = model.state_dict()
    assert set(state) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(state[name], value, rtol=0, atol=1e-7, msg=name)
    with torch.no_grad():
        features = model.eval().forward_features(tensors["check.input"])
    torch.testing.assert_close(features, tensors["check.target_features"], rtol=0, atol=1e-5)


def test_closed_forms_have_no_linear_scalers():
    with pytest.raises(ProjectionError, match="whole layers"):
        wi.init_from_templates(vit(), make_bundle("tleg"), scalers="linear")


def test_split_and_fused_attention_get_the_same_layers():
    transformers = pytest.importorskip("transformers")
    ancestor = vit(depth=3, class_token=True, global_pool="token")
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        image_size=8, patch_size=2, num_labels=5, num_channels=1,
    )  # fmt: skip
    target = transformers.ViTForImageClassification(config)
    wi.init_from_templates(target, auto_lg(ancestor, layers=2))
    seen = anatomy(target)
    values = dict(target.named_parameters())
    qkv = ancestor.blocks[1].attn.qkv.weight.chunk(3)
    for part, value in zip("qkv", qkv, strict=True):
        spec = seen.blocks[1][f"attn.{part}.weight"].spec
        torch.testing.assert_close(values[spec.name], value)
