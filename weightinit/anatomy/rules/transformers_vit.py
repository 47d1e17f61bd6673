"""Hugging Face's ViT, DeiT, AST, DINOv2 and DINOv3, by the names of transformers 5 and of 4."""

from typing import Any

from weightinit.anatomy.rules.rule import Family, Rule, Stack, W, linear
from weightinit.anatomy.traits import ModuleFacts, note_config

BLOCK = (
    Rule(rf"(?:layernorm_before|norm1)\.{W}", "norm1.{w}", "d"),
    Rule(rf"(?:layernorm_after|norm2)\.{W}", "norm2.{w}", "d"),
    Rule(r"layer_scale(?P<i>[12])\.lambda1", "ls{i}", "d"),
    *linear(r"attention\.(?:q_proj|attention\.query)", "attn.q", "(h k) d"),
    *linear(r"attention\.(?:k_proj|attention\.key)", "attn.k", "(h k) d"),
    *linear(r"attention\.(?:v_proj|attention\.value)", "attn.v", "(h k) d"),
    *linear(r"attention\.(?:o_proj|output\.dense)", "attn.proj", "d (h k)"),
    *linear(r"(?:mlp\.fc1|intermediate\.dense)", "mlp.fc1", "m d"),
    *linear(r"(?:mlp\.fc2|output\.dense)", "mlp.fc2", "d m"),
    # The up projection of an MLP is the first layer, and beside a gate the second.
    Rule(rf"mlp\.gate_proj\.{W}", "mlp.fc1.{w}", "m d"),
    Rule(rf"mlp\.gate_proj\.{W}", "mlp.fc1.{w}", "m"),
    Rule(rf"mlp\.up_proj\.{W}", "mlp.up.{w}", "m d", when="gated"),
    Rule(rf"mlp\.up_proj\.{W}", "mlp.up.{w}", "m", when="gated"),
    Rule(rf"mlp\.up_proj\.{W}", "mlp.fc1.{w}", "m d", when="!gated"),
    Rule(rf"mlp\.up_proj\.{W}", "mlp.fc1.{w}", "m", when="!gated"),
    *linear(r"mlp\.weights_in", "mlp.fc1_up", "(2 m) d", ("mlp.fc1", "mlp.up")),
    *linear(r"mlp\.(?:down_proj|weights_out)", "mlp.fc2", "d m"),
)

OUTSIDE = (
    Rule(r"embeddings\.cls_token", "token.cls", "1 r d"),
    Rule(r"embeddings\.distillation_token", "token.dist", "1 r d"),
    Rule(r"embeddings\.register_tokens", "token.reg", "1 r d"),
    Rule(r"embeddings\.mask_token", "embed.mask", "1 1 d"),
    Rule(r"embeddings\.mask_token", "embed.mask", "1 d"),
    Rule(r"embeddings\.position_embeddings", "pos", "1 t d"),
    *linear(r"embeddings\.patch_embeddings(?:\.projection)?", "patch", "d c p q"),
    Rule(rf"(?:layernorm|norm)\.{W}", "norm.{w}", "d"),
    *linear(r"pooler\.dense", "pool.fc", "z d"),
    *linear(r"(?:cls_)?classifier", "head", "n d"),
    # DINOv2 classifies by the class token and the mean of the patches.
    Rule(r"classifier\.weight", "head.weight", "n (2 d)", ("head_cls.weight", "head_avg.weight")),
    *linear(r"distillation_classifier", "head_dist", "n d"),
    # AST normalises once more before its classifier.
    Rule(rf"classifier\.layernorm\.{W}", "fc_norm.{w}", "d"),
    *linear(r"classifier\.dense", "head", "n d"),
    # Masked image modelling predicts the pixels of a patch.
    *linear(r"decoder\.0", "final", "g d 1 1"),
)

STACKS = (Stack("blocks", r"(?:layers|(?:(?:encoder|model)\.)?layer)\.(?P<block>\d+)\.", BLOCK),)


def _note(module: Any, noted: ModuleFacts) -> None:
    note_config(module, noted)
    config = getattr(module, "config", None)
    kind = getattr(config, "model_type", None)
    noted.traits.update(pool="token", norm="LayerNorm", rope="none")
    if getattr(config, "use_swiglu_ffn", False):
        noted.traits.update(act="silu", glu="split")
    elif getattr(config, "use_gated_mlp", False):
        noted.traits["glu"] = "split"
    if kind == "dinov3_vit":
        noted.traits["rope"] = "RotaryEmbeddingDinoV3"
    if kind == "audio-spectrogram-transformer":
        noted.traits["grid"] = module.embeddings.get_shape(config)


FAMILIES = tuple(
    Family(
        "vit",
        "transformers",
        signature,
        STACKS,
        OUTSIDE,
        flags=(("gated", r".*mlp\.gate_proj\.weight"),),
        form="pre_norm",
        note=_note,
        proven=True,
    )
    for signature in (
        r"(?:layers|encoder\.layer)\.\d+\.layernorm_before\.",
        r"(?:(?:encoder|model)\.)?layer\.\d+\.layer_scale1\.",
    )
)
