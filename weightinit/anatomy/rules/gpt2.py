"""Hugging Face's GPT-2: its Conv1D stores matrices transposed, in x out."""

from weightinit.anatomy.rules.rule import QKV, Family, Rule, Stack, W, linear
from weightinit.anatomy.traits import note_config

BLOCK = (
    Rule(rf"ln_(?P<i>[12])\.{W}", "norm{i}.{w}", "d"),
    *linear(r"attn\.c_attn", "attn.qkv", "d (3 h k)", QKV, to="(h k) d", bias="(3 h k)"),
    *linear(r"attn\.c_proj", "attn.proj", "(h k) d", to="d (h k)"),
    *linear(r"mlp\.c_fc", "mlp.fc1", "d m", to="m d"),
    *linear(r"mlp\.c_proj", "mlp.fc2", "m d", to="d m"),
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
        note=note_config,
        proven=True,
    ),
)
