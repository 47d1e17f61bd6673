"""Hugging Face's GPT-2: its Conv1D stores matrices transposed, in x out."""

from weightinit.anatomy.rules.rule import Family, Rule, Stack
from weightinit.anatomy.traits import look_config

W = r"(?P<w>weight|bias)"
QKV_WEIGHT = ("attn.q.weight", "attn.k.weight", "attn.v.weight")
QKV_BIAS = ("attn.q.bias", "attn.k.bias", "attn.v.bias")

BLOCK = (
    Rule(rf"ln_(?P<i>[12])\.{W}", "norm{i}.{w}", "d"),
    Rule(r"attn\.c_attn\.weight", "attn.qkv.weight", "d (3 h k)", QKV_WEIGHT, to="(h k) d"),
    Rule(r"attn\.c_attn\.bias", "attn.qkv.bias", "(3 h k)", QKV_BIAS),
    Rule(r"attn\.c_proj\.weight", "attn.proj.weight", "(h k) d", to="d (h k)"),
    Rule(r"attn\.c_proj\.bias", "attn.proj.bias", "d"),
    Rule(r"mlp\.c_fc\.weight", "mlp.fc1.weight", "d m", to="m d"),
    Rule(r"mlp\.c_fc\.bias", "mlp.fc1.bias", "m"),
    Rule(r"mlp\.c_proj\.weight", "mlp.fc2.weight", "m d", to="d m"),
    Rule(r"mlp\.c_proj\.bias", "mlp.fc2.bias", "d"),
)

OUTSIDE = (
    Rule(r"wte\.weight", "embed.token.weight", "v d"),
    Rule(r"wpe\.weight", "pos", "t d"),
    Rule(rf"ln_f\.{W}", "norm.{w}", "d"),
    Rule(r"(?:lm_head|score|classifier)\.weight", "head.weight", "n d"),
    Rule(r"classifier\.bias", "head.bias", "n"),
)

STACKS = (Stack("blocks", r"h\.(?P<block>\d+)\.", BLOCK),)

FAMILIES = (
    Family(
        "gpt2",
        "transformers",
        r"h\.\d+\.attn\.c_attn\.",
        STACKS,
        OUTSIDE,
        r"h\.\d+\.attn\.(?:bias|masked_bias)",
        form="pre_norm",
        look=look_config,
        proven=True,
    ),
)
