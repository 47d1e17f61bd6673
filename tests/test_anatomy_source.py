import warnings

import pytest
import timm
import torch
from torch import nn

from weightinit import AnatomyError
from weightinit.anatomy.source import read, strip, unwrap


def tiny():
    sizes = {"img_size": 16, "patch_size": 4, "embed_dim": 12, "depth": 1, "num_heads": 3}
    return timm.models.VisionTransformer(**sizes, num_classes=5)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("module.blocks.0.norm1.weight", "blocks.0.norm1.weight"),
        ("_orig_mod.module.visual.trunk.cls_token", "visual.trunk.cls_token"),
        ("blocks.0._orig_mod.attn.qkv.bias", "blocks.0.attn.qkv.bias"),
        ("blocks.0._checkpoint_wrapped_module.ls1.gamma", "blocks.0.ls1.gamma"),
        ("patch_embed.backbone.stem.conv.weight", "patch_embed.backbone.stem.conv.weight"),
        ("modules.weight", "modules.weight"),
        ("blocks.0.attn.qkv.base_layer.weight", "blocks.0.attn.qkv.weight"),
        ("decode.module.weight", "decode.module.weight"),
    ],
)
def test_strip(name, key):
    assert strip(name) == key


def test_parameters_are_those_that_torch_names():
    model = timm.create_model("test_vit2")
    entries = read(model)
    named = dict(model.named_parameters())
    assert [entry.name for entry in entries] == list(named)
    assert [entry.shape for entry in entries] == [tuple(p.shape) for p in named.values()]


def test_unwrap():
    model = tiny()
    outer = nn.Module()
    outer.backbone = nn.DataParallel(model)
    assert unwrap(nn.DataParallel(outer), "backbone.module.") is model
    assert unwrap(nn.DataParallel(model)) is model


def test_equal_tensors_are_not_tied_but_shared_ones_are():
    shared = torch.zeros(3)
    entries = read({"a": shared, "b": torch.zeros(3), "c": shared, "d": shared[:2]})
    assert [(entry.name, entry.tied) for entry in entries] == [("a", ("c",)), ("b", ()), ("d", ())]
    meta = read({"a": torch.zeros(3, device="meta"), "b": torch.zeros(3, device="meta")})
    assert len(meta) == 2


def refused(model, *names):
    with pytest.raises(AnatomyError) as error:
        read(model)
    for name in names:
        assert name in str(error.value)


def test_parametrized_weights_are_refused():
    model = tiny()
    nn.utils.parametrizations.weight_norm(model.blocks[0].attn.qkv)
    refused(model, "blocks.0.attn.qkv.parametrizations", "remove_parametrizations")
    refused(dict(model.state_dict()), "parametrizations.weight.original0")


def test_quantized_weights_are_refused():
    model = tiny()
    linear = model.blocks[0].mlp.fc1
    linear.weight = nn.Parameter(linear.weight.to(torch.int8), requires_grad=False)
    refused(model, "blocks.0.mlp.fc1.weight (quantized, int8)")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = tiny()
        model.head = torch.ao.nn.quantized.dynamic.Linear(12, 5)
    refused(model, "head (Linear)")


def test_integer_weights_of_a_state_dict_are_refused():
    from weightinit.anatomy import anatomy

    state = tiny().state_dict()
    state["blocks.0.attn.proj.weight"] = state["blocks.0.attn.proj.weight"].to(torch.int8)
    with pytest.raises(AnatomyError, match=r"blocks\.0\.attn\.proj\.weight.*unquantized"):
        anatomy(state, sizes={"h": 3})


def test_lazy_weights_are_refused():
    model = tiny()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.head = nn.LazyLinear(5)
    refused(model, "head.weight (uninitialized)", "head.bias")


def test_a_module_that_contains_itself_is_refused():
    model = tiny()
    model.blocks[0].parent = model
    refused(model, "blocks.0.parent contains itself", "object.__setattr__")


def test_names_cannot_reach_the_terminal():
    from weightinit.anatomy import anatomy

    with pytest.raises(AnatomyError) as error:
        anatomy({"\x1b]0;owned\x07": torch.zeros(2), "a" * 10**6: torch.zeros(2)})
    assert "\x1b" not in str(error.value)
    assert len(str(error.value)) < 1000


def test_what_has_no_anatomy():
    refused({"state_dict": tiny().state_dict(), "epoch": 3}, "state_dict, epoch")
    with pytest.raises(AnatomyError, match="a list has no anatomy"):
        read([torch.zeros(1)])
