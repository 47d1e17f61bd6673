"""Hugging Face's ViT and DeiT, with the names of transformers 5 and of 4 (and its checkpoints)."""

from typing import Any

from weightinit.anatomy.rules.rule import Family, Rule, Stack, W, linear
from weightinit.anatomy.traits import ModuleFacts, note_config

BLOCK = (
    Rule(rf"layernorm_before\.{W}", "norm1.{w}", "d"),
    Rule(rf"layernorm_after\.{W}", "norm2.{w}", "d"),
    *linear(r"attention\.(?:q_proj|attention\.query)", "attn.q", "(h k) d"),
    *linear(r"attention\.(?:k_proj|attention\.key)", "attn.k", "(h k) d"),
    *linear(r"attention\.(?:v_proj|attention\.value)", "attn.v", "(h k) d"),
    *linear(r"attention\.(?:o_proj|output\.dense)", "attn.proj", "d (h k)"),
    *linear(r"(?:mlp\.fc1|intermediate\.dense)", "mlp.fc1", "m d"),
    *linear(r"(?:mlp\.fc2|output\.dense)", "mlp.fc2", "d m"),
)

OUTSIDE = (
    Rule(r"embeddings\.cls_token", "token.cls", "1 r d"),
    Rule(r"embeddings\.distillation_token", "token.dist", "1 r d"),
    Rule(r"embeddings\.mask_token", "embed.mask", "1 r d"),
    Rule(r"embeddings\.position_embeddings", "pos", "1 t d"),
    *linear(r"embeddings\.patch_embeddings\.projection", "patch", "d c p q"),
    Rule(rf"layernorm\.{W}", "norm.{w}", "d"),
    *linear(r"pooler\.dense", "pool.fc", "z d"),
    *linear(r"(?:cls_)?classifier", "head", "n d"),
    *linear(r"distillation_classifier", "head_dist", "n d"),
)

STACKS = (Stack("blocks", r"(?:layers|encoder\.layer)\.(?P<block>\d+)\.", BLOCK),)


def _note(module: Any, noted: ModuleFacts) -> None:
    note_config(module, noted)
    model_type = getattr(getattr(module, "config", None), "model_type", None)
    if model_type in ("vit", "deit"):
        noted.traits.update(prefix_tokens=1 + (model_type == "deit"), pool="token")


FAMILIES = (
    Family(
        "vit",
        "transformers",
        r"(?:layers|encoder\.layer)\.\d+\.layernorm_before\.",
        STACKS,
        OUTSIDE,
        form="pre_norm",
        note=_note,
        proven=True,
    ),
)
