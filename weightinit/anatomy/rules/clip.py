"""Vision towers of CLIP and SigLIP: Hugging Face's, and OpenAI's and open_clip's."""

from typing import Any

from weightinit.anatomy.rules.rule import QKV, Family, Rule, Stack, W, linear
from weightinit.anatomy.traits import ModuleFacts, activation, note_config

BLOCK = (
    Rule(rf"(?:layer_norm|ln_)(?P<i>[12])\.{W}", "norm{i}.{w}", "d"),
    Rule(r"ls_(?P<i>[12])\.gamma", "ls{i}", "d"),
    *linear(r"self_attn\.(?P<x>[qkv])_proj", "attn.{x}", "(h k) d"),
    *linear(r"attn\.in_proj", "attn.qkv", "(3 h k) d", QKV, join="_"),
    *linear(r"(?:self_)?attn\.out_proj", "attn.proj", "d (h k)"),
    *linear(r"mlp\.(?:fc1|c_fc)", "mlp.fc1", "m d"),
    *linear(r"mlp\.(?:fc2|c_proj)", "mlp.fc2", "d m"),
)

OUTSIDE = (
    Rule(r"(?:embeddings\.)?class_embedding", "token.cls", "d", to="r d"),
    *linear(r"(?:embeddings\.patch_embedding|conv1)", "patch", "d c p q"),
    Rule(r"(?:embeddings\.patch_embedding|conv1)\.weight", "patch.weight", "d c w p q"),
    Rule(r"(?:embeddings\.position_embedding\.weight|positional_embedding)", "pos", "t d"),
    Rule(rf"(?:pre_layrnorm|ln_pre)\.{W}", "norm_pre.{w}", "d"),
    Rule(rf"(?:post_layernorm|ln_post)\.{W}", "norm.{w}", "d"),
    *linear(r"(?:visual_projection|classifier)", "head", "n d"),
    Rule(r"proj", "head.weight", "d n", to="n d"),
    # SigLIP's pool: one query attends to all tokens.
    Rule(r"head\.probe", "pool.latent", "1 r d"),
    *linear(
        r"head\.attention\.in_proj",
        "pool.qkv",
        "(3 hp kp) d",
        ("pool.q", "pool.k", "pool.v"),
        join="_",
    ),
    *linear(r"head\.attention\.out_proj", "pool.proj", "d (hp kp)"),
    Rule(rf"head\.layernorm\.{W}", "pool.norm.{w}", "d"),
    *linear(r"head\.mlp\.fc1", "pool.mlp.fc1", "mp d"),
    *linear(r"head\.mlp\.fc2", "pool.mlp.fc2", "d mp"),
)


def _note(module: Any, noted: ModuleFacts) -> None:
    note_config(module, noted)
    side = module.config.image_size // module.config.patch_size
    pool = getattr(getattr(module, "head", None), "attention", None)
    noted.traits.update(grid=(side, side), pool="token" if pool is None else "map")
    if pool is not None:
        noted.sizes["hp"] = pool.num_heads


def _note_open_clip(module: Any, noted: ModuleFacts) -> None:
    block = module.transformer.resblocks[0]
    noted.sizes["h"] = block.attn.num_heads
    noted.traits.update(act=activation(block.mlp.gelu), glu="none")
    if hasattr(module, "grid_size"):
        noted.traits["grid"] = tuple(module.grid_size)


FAMILIES = (
    Family(
        "vit",
        "transformers",
        r"encoder\.layers\.\d+\.layer_norm1\.",
        (Stack("blocks", r"encoder\.layers\.(?P<block>\d+)\.", BLOCK),),
        OUTSIDE,
        r"embeddings\.position_ids",
        form="pre_norm",
        note=_note,
        proven=True,
    ),
    Family(
        "vit",
        "open_clip",
        r"ln_post\.",
        (Stack("blocks", r"transformer\.resblocks\.(?P<block>\d+)\.", BLOCK),),
        OUTSIDE,
        form="pre_norm",
        note=_note_open_clip,
        proven=True,
    ),
)
