"""GPT-2: Hugging Face's, whose Conv1D stores matrices in x out, and nanoGPT's linear layers."""

from typing import Any

from weightinit.anatomy.rules.rule import QKV, Family, Rule, Stack, W, linear
from weightinit.anatomy.traits import ModuleFacts, activation, note_config


def _layer(match: str, role: str, rows: str, columns: str, parts: tuple[str, ...] = ()) -> Any:
    """Return the rules of a layer that is stored either way; ``rows`` are those of its parts."""
    stored = f"(3 {rows[1:]}" if parts else rows
    weights = tuple(f"{part}.weight" for part in parts)
    weight, bias = linear(match, role, f"{stored} {columns}", parts)
    turned = f"{columns} {stored}"
    return (
        Rule(weight.match, weight.role, turned, weights, f"{rows} {columns}", when="conv1d"),
        Rule(weight.match, weight.role, weight.pattern, weights, when="!conv1d"),
        bias,
    )


BLOCK = (
    Rule(rf"ln_(?P<i>[12])\.{W}", "norm{i}.{w}", "d"),
    *_layer(r"attn\.c_attn", "attn.qkv", "(h k)", "d", QKV),
    *_layer(r"attn\.c_proj", "attn.proj", "d", "(h k)"),
    *_layer(r"mlp\.c_fc", "mlp.fc1", "m", "d"),
    *_layer(r"mlp\.c_proj", "mlp.fc2", "d", "m"),
)

OUTSIDE = (
    Rule(r"wte\.weight", "embed.token.weight", "v d"),
    Rule(r"wpe\.weight", "pos", "t d"),
    Rule(rf"ln_f\.{W}", "norm.{w}", "d"),
    Rule(r"(?:lm_head|score|classifier)\.weight", "head.weight", "n d"),
    Rule(r"classifier\.bias", "head.bias", "n"),
    # The Decision Transformer's returns, states, actions and time.
    Rule(r"embed_timestep\.weight", "embed.time.weight", "r d"),
    *linear(r"embed_(?P<x>return|state|action)", "embed.{x}", "d i"),
    Rule(rf"embed_ln\.{W}", "norm_pre.{w}", "d"),
    *linear(r"predict_(?P<x>return|state|action)(?:\.0)?", "head_{x}", "o d"),
)

STACKS = (Stack("blocks", r"h\.(?P<block>\d+)\.", BLOCK),)


def _note(module: Any, noted: ModuleFacts) -> None:
    note_config(module, noted)
    block = module.h[0]
    noted.flags["conv1d"] = type(block.attn.c_attn).__name__ == "Conv1D"
    if not hasattr(module, "config"):  # nanoGPT's, whose config stands beside its transformer
        noted.sizes["h"] = block.attn.n_head
        noted.traits["act"] = activation(block.mlp.gelu)


FAMILIES = (
    Family(
        "gpt2",
        "transformers",
        r"h\.\d+\.attn\.c_attn\.",
        STACKS,
        OUTSIDE,
        r"h\.\d+\.attn\.(?:bias|masked_bias)",
        form="pre_norm",
        note=_note,
        proven=True,
    ),
)
