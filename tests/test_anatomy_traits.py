import pytest
import timm
import torch
from torch import nn

from weightinit import AnatomyError
from weightinit.anatomy import Traits, anatomy
from weightinit.anatomy.traits import activation


def tiny(**changes):
    sizes = {"img_size": 16, "patch_size": 4, "embed_dim": 12, "depth": 2, "num_heads": 3}
    return timm.models.VisionTransformer(**(sizes | {"num_classes": 5} | changes))


def on_meta(name, **changes):
    with torch.device("meta"):
        return timm.create_model(name, **changes)


@pytest.mark.parametrize(
    ("changes", "traits"),
    [
        ({}, {"prefix_tokens": 1, "pos_prefix": 1, "grid": (4, 4), "pool": "token"}),
        ({"reg_tokens": 2}, {"prefix_tokens": 3, "pos_prefix": 3}),
        ({"reg_tokens": 2, "no_embed_class": True}, {"prefix_tokens": 3, "pos_prefix": 0}),
        ({"img_size": (16, 32)}, {"grid": (4, 8), "pos_prefix": 1}),
        ({"class_token": False, "global_pool": "avg"}, {"prefix_tokens": 0, "pool": "avg"}),
        ({"act_layer": "quick_gelu"}, {"act": "quick_gelu", "glu": "none"}),
        ({"mlp_layer": timm.layers.SwiGLUPacked}, {"act": "gelu", "glu": "gate_first"}),
        ({"mlp_layer": timm.layers.GluMlp}, {"act": "gelu", "glu": "gate_last"}),
        ({"mlp_layer": timm.layers.SwiGLU}, {"glu": "split"}),
        ({"norm_layer": "rmsnorm"}, {"norm": "RmsNorm", "form": "pre_norm"}),
        (
            {"block_fn": timm.models.vision_transformer.ResPostBlock, "init_values": 1e-5},
            {"form": "branch_norm"},
        ),
    ],
)
def test_traits_are_read_from_the_module(changes, traits):
    found = anatomy(tiny(**changes)).traits
    assert {name: getattr(found, name) for name in traits} == traits


def test_traits_of_a_distilled_and_of_a_rotary_model():
    distilled = anatomy(on_meta("deit_tiny_distilled_patch16_224"))
    assert (distilled.traits.prefix_tokens, distilled.traits.pos_prefix) == (2, 2)
    assert {"token.dist", "head_dist.weight"} <= distilled.outside.keys()
    rotary = anatomy(on_meta("eva02_tiny_patch14_224"))
    assert rotary.traits.rope == "RotaryEmbeddingCat"
    assert rotary.outside["pos"].size == (257, 192)


def test_blocks_of_different_heads_are_refused():
    model = tiny()
    model.blocks[1].attn.num_heads = 6
    with pytest.raises(AnatomyError, match=r"differ in heads \[3, 6\]"):
        anatomy(model)


def test_names_without_the_attributes_of_their_library():
    model = tiny()
    model.embeds = nn.Identity()
    with pytest.raises(AnatomyError, match="pass its state dict"):
        anatomy(model)


@pytest.mark.parametrize(
    ("act", "name"),
    [
        (torch.nn.GELU(), "gelu"),
        (torch.nn.GELU(approximate="tanh"), "gelu_tanh"),
        ("gelu", "gelu"),
        ("GELUActivation", "gelu"),
        ("gelu_new", "gelu_tanh"),
        ("gelu_pytorch_tanh", "gelu_tanh"),
        (timm.layers.QuickGELU(), "quick_gelu"),
        (torch.nn.functional.silu, "silu"),
        (torch.nn.Mish(), "Mish"),
        (None, None),
    ],
)
def test_an_activation_is_known_by_value(act, name):
    assert activation(act) == name
    assert Traits.of({"act": name}).act == name
