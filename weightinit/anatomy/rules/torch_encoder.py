"""torch.nn.TransformerEncoder: attention with one input projection, norms before or behind."""

from typing import Any

from weightinit.anatomy.rules.rule import Family, Rule, Stack
from weightinit.anatomy.traits import Look, type_name

W = r"(?P<w>weight|bias)"
QKV_WEIGHT = ("attn.q.weight", "attn.k.weight", "attn.v.weight")
QKV_BIAS = ("attn.q.bias", "attn.k.bias", "attn.v.bias")

BLOCK = (
    Rule(r"self_attn\.in_proj_weight", "attn.qkv.weight", "(3 h k) d", QKV_WEIGHT),
    Rule(r"self_attn\.in_proj_bias", "attn.qkv.bias", "(3 h k)", QKV_BIAS),
    Rule(r"self_attn\.out_proj\.weight", "attn.proj.weight", "d (h k)"),
    Rule(r"self_attn\.out_proj\.bias", "attn.proj.bias", "d"),
    Rule(r"linear1\.weight", "mlp.fc1.weight", "m d"),
    Rule(r"linear1\.bias", "mlp.fc1.bias", "m"),
    Rule(r"linear2\.weight", "mlp.fc2.weight", "d m"),
    Rule(r"linear2\.bias", "mlp.fc2.bias", "d"),
    Rule(rf"norm(?P<i>[12])\.{W}", "norm{i}.{w}", "d"),
)

OUTSIDE = (Rule(rf"norm\.{W}", "norm.{w}", "d"),)

STACKS = (Stack("layers", r"layers\.(?P<block>\d+)\.", BLOCK),)


def _look(module: Any, found: Look) -> None:
    layer = module.layers[0]
    found.sizes["h"] = layer.self_attn.num_heads
    act = layer.activation
    found.traits.update(
        form="pre_norm" if layer.norm_first else "post_norm",
        act=getattr(act, "__name__", None) or type_name(act),
        glu="none",
        norm=type_name(layer.norm1),
    )


FAMILIES = (
    Family("encoder", "torch", r"layers\.\d+\.self_attn\.in_proj_", STACKS, OUTSIDE, look=_look),
)
