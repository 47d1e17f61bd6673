"""torchvision's VisionTransformer."""

from typing import Any

from weightinit.anatomy.rules.rule import Family, Rule, Stack
from weightinit.anatomy.traits import Look

W = r"(?P<w>weight|bias)"
QKV_WEIGHT = ("attn.q.weight", "attn.k.weight", "attn.v.weight")
QKV_BIAS = ("attn.q.bias", "attn.k.bias", "attn.v.bias")

BLOCK = (
    Rule(rf"ln_(?P<i>[12])\.{W}", "norm{i}.{w}", "d"),
    Rule(r"self_attention\.in_proj_weight", "attn.qkv.weight", "(3 h k) d", QKV_WEIGHT),
    Rule(r"self_attention\.in_proj_bias", "attn.qkv.bias", "(3 h k)", QKV_BIAS),
    Rule(r"self_attention\.out_proj\.weight", "attn.proj.weight", "d (h k)"),
    Rule(r"self_attention\.out_proj\.bias", "attn.proj.bias", "d"),
    # linear_1 and linear_2 are the names of checkpoints before torchvision 0.13.
    Rule(r"mlp\.(?:0|linear_1)\.weight", "mlp.fc1.weight", "m d"),
    Rule(r"mlp\.(?:0|linear_1)\.bias", "mlp.fc1.bias", "m"),
    Rule(r"mlp\.(?:3|linear_2)\.weight", "mlp.fc2.weight", "d m"),
    Rule(r"mlp\.(?:3|linear_2)\.bias", "mlp.fc2.bias", "d"),
)

OUTSIDE = (
    Rule(r"conv_proj\.weight", "patch.weight", "d c p q"),
    Rule(r"conv_proj\.bias", "patch.bias", "d"),
    Rule(r"class_token", "token.cls", "1 r d"),
    Rule(r"encoder\.pos_embedding", "pos", "1 t d"),
    Rule(rf"encoder\.ln\.{W}", "norm.{w}", "d"),
    Rule(r"heads\.pre_logits\.weight", "pre_logits.weight", "z d"),
    Rule(r"heads\.pre_logits\.bias", "pre_logits.bias", "z"),
    Rule(r"heads\.head\.weight", "head.weight", "n d", when="!pre_logits"),
    Rule(r"heads\.head\.weight", "head.weight", "n z", when="pre_logits"),
    Rule(r"heads\.head\.bias", "head.bias", "n"),
)

STACKS = (Stack("blocks", r"encoder\.layers\.encoder_layer_(?P<block>\d+)\.", BLOCK),)


def _look(module: Any, found: Look) -> None:
    found.sizes["h"] = module.encoder.layers[0].self_attention.num_heads
    side = module.image_size // module.patch_size
    found.traits.update(
        prefix_tokens=1,
        grid=(side, side),
        pool="token",
        act="GELU",
        glu="none",
    )


FAMILIES = (
    Family(
        "vit",
        "torchvision",
        r"encoder\.layers\.encoder_layer_\d+\.self_attention\.",
        STACKS,
        OUTSIDE,
        flags=(("pre_logits", r"heads\.pre_logits\..*"),),
        form="pre_norm",
        look=_look,
        proven=True,
    ),
)
