"""torch.nn.TransformerEncoder: one input projection of attention, norms before or behind."""

from typing import Any

from weightinit.anatomy.rules.rule import QKV, Family, Rule, Stack, W, linear
from weightinit.anatomy.traits import ModuleFacts, activation, type_name

BLOCK = (
    *linear(r"self_attn\.in_proj", "attn.qkv", "(3 h k) d", QKV, join="_"),
    *linear(r"self_attn\.out_proj", "attn.proj", "d (h k)"),
    *linear(r"linear1", "mlp.fc1", "m d"),
    *linear(r"linear2", "mlp.fc2", "d m"),
    Rule(rf"norm(?P<i>[12])\.{W}", "norm{i}.{w}", "d"),
)

OUTSIDE = (Rule(rf"norm\.{W}", "norm.{w}", "d"),)

STACKS = (Stack("layers", r"layers\.(?P<block>\d+)\.", BLOCK),)


def _note(module: Any, noted: ModuleFacts) -> None:
    layer = module.layers[0]
    noted.sizes["h"] = layer.self_attn.num_heads
    noted.traits.update(
        form="pre_norm" if layer.norm_first else "post_norm",
        act=activation(layer.activation),
        glu="none",
        norm=type_name(layer.norm1),
    )


FAMILIES = (
    Family("encoder", "torch", r"layers\.\d+\.self_attn\.in_proj_", STACKS, OUTSIDE, note=_note),
)
