"""Hugging Face's ViT and DeiT, with the names of transformers 5 and of 4 (and its checkpoints)."""

from typing import Any

from weightinit.anatomy.rules.rule import Family, Rule, Stack
from weightinit.anatomy.traits import Look, look_config

W = r"(?P<w>weight|bias)"


def _part(name: str, letter: str) -> tuple[Rule, ...]:
    p = rf"attention\.(?:{letter}_proj|attention\.{name})"
    return (
        Rule(rf"{p}\.weight", f"attn.{letter}.weight", "(h k) d"),
        Rule(rf"{p}\.bias", f"attn.{letter}.bias", "(h k)"),
    )


BLOCK = (
    Rule(rf"layernorm_before\.{W}", "norm1.{w}", "d"),
    Rule(rf"layernorm_after\.{W}", "norm2.{w}", "d"),
    *_part("query", "q"),
    *_part("key", "k"),
    *_part("value", "v"),
    Rule(r"attention\.(?:o_proj|output\.dense)\.weight", "attn.proj.weight", "d (h k)"),
    Rule(r"attention\.(?:o_proj|output\.dense)\.bias", "attn.proj.bias", "d"),
    Rule(r"(?:mlp\.fc1|intermediate\.dense)\.weight", "mlp.fc1.weight", "m d"),
    Rule(r"(?:mlp\.fc1|intermediate\.dense)\.bias", "mlp.fc1.bias", "m"),
    Rule(r"(?:mlp\.fc2|output\.dense)\.weight", "mlp.fc2.weight", "d m"),
    Rule(r"(?:mlp\.fc2|output\.dense)\.bias", "mlp.fc2.bias", "d"),
)

OUTSIDE = (
    Rule(r"embeddings\.cls_token", "token.cls", "1 r d"),
    Rule(r"embeddings\.distillation_token", "token.dist", "1 r d"),
    Rule(r"embeddings\.mask_token", "embed.mask", "1 r d"),
    Rule(r"embeddings\.position_embeddings", "pos", "1 t d"),
    Rule(r"embeddings\.patch_embeddings\.projection\.weight", "patch.weight", "d c p q"),
    Rule(r"embeddings\.patch_embeddings\.projection\.bias", "patch.bias", "d"),
    Rule(rf"layernorm\.{W}", "norm.{w}", "d"),
    Rule(r"pooler\.dense\.weight", "pool.fc.weight", "z d"),
    Rule(r"pooler\.dense\.bias", "pool.fc.bias", "z"),
    Rule(r"(?:cls_)?classifier\.weight", "head.weight", "n d"),
    Rule(r"(?:cls_)?classifier\.bias", "head.bias", "n"),
    Rule(r"distillation_classifier\.weight", "head_dist.weight", "n d"),
    Rule(r"distillation_classifier\.bias", "head_dist.bias", "n"),
)

STACKS = (Stack("blocks", r"(?:layers|encoder\.layer)\.(?P<block>\d+)\.", BLOCK),)


def _look(module: Any, found: Look) -> None:
    look_config(module, found)
    model_type = getattr(getattr(module, "config", None), "model_type", None)
    if model_type in ("vit", "deit"):
        found.traits.update(prefix_tokens=1 + (model_type == "deit"), pool="token")


FAMILIES = (
    Family(
        "vit",
        "transformers",
        r"(?:layers|encoder\.layer)\.\d+\.layernorm_before\.",
        STACKS,
        OUTSIDE,
        form="pre_norm",
        look=_look,
        proven=True,
    ),
)
