"""torchvision's VisionTransformer."""

from typing import Any

from weightinit.anatomy.rules.rule import QKV, Family, Rule, Stack, W, linear
from weightinit.anatomy.traits import ModuleFacts

BLOCK = (
    Rule(rf"ln_(?P<i>[12])\.{W}", "norm{i}.{w}", "d"),
    *linear(r"self_attention\.in_proj", "attn.qkv", "(3 h k) d", QKV, join="_"),
    *linear(r"self_attention\.out_proj", "attn.proj", "d (h k)"),
    # linear_1 and linear_2 are the names of checkpoints before torchvision 0.13.
    *linear(r"mlp\.(?:0|linear_1)", "mlp.fc1", "m d"),
    *linear(r"mlp\.(?:3|linear_2)", "mlp.fc2", "d m"),
)

OUTSIDE = (
    *linear(r"conv_proj", "patch", "d c p q"),
    Rule(r"class_token", "token.cls", "1 r d"),
    Rule(r"encoder\.pos_embedding", "pos", "1 t d"),
    Rule(rf"encoder\.ln\.{W}", "norm.{w}", "d"),
    *linear(r"heads\.pre_logits", "pre_logits", "z d"),
    Rule(r"heads\.head\.weight", "head.weight", "n d", when="!pre_logits"),
    Rule(r"heads\.head\.weight", "head.weight", "n z", when="pre_logits"),
    Rule(r"heads\.head\.bias", "head.bias", "n"),
)

STACKS = (Stack("blocks", r"encoder\.layers\.encoder_layer_(?P<block>\d+)\.", BLOCK),)


def _note(module: Any, noted: ModuleFacts) -> None:
    noted.sizes["h"] = module.encoder.layers[0].self_attention.num_heads
    side = module.image_size // module.patch_size
    noted.traits.update(
        prefix_tokens=1,
        grid=(side, side),
        pool="token",
        act="gelu",
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
        note=_note,
        proven=True,
    ),
)
