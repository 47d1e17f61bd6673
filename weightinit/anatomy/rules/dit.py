"""Diffusion transformers: facebookresearch/DiT's names (SiT's and forks') and diffusers'.

Their norms have no parameters: a linear layer of the condition makes what shifts, scales and gates
each branch (adaLN), and each of these is a role of its own. The condition is as wide as the
residual stream, so ``d`` serves both.
"""

from typing import Any

from weightinit.anatomy.rules.rule import Family, Rule, Stack, W, linear
from weightinit.anatomy.rules.timm_vit import BLOCK as VIT_BLOCK
from weightinit.anatomy.traits import ModuleFacts, activation, note_mlp, type_name

ADA = tuple(f"ada.{part}{branch}" for branch in "12" for part in ("shift", "scale", "gate"))
FINAL_ADA = ("final.ada.shift", "final.ada.scale")

BLOCK = (
    *VIT_BLOCK,
    *linear(r"adaLN_modulation\.1", "ada", "(6 d) d", ADA),
)

OUTSIDE = (
    *linear(r"x_embedder\.proj", "patch", "d c p q"),
    Rule(r"pos_embed", "pos", "1 t d"),
    *linear(r"t_embedder\.mlp\.0", "cond.t1", "d s"),
    *linear(r"t_embedder\.mlp\.2", "cond.t2", "d d"),
    Rule(r"y_embedder\.embedding_table\.weight", "embed.label.weight", "l d"),
    *linear(r"final_layer\.adaLN_modulation\.1", "final.ada", "(2 d) d", FINAL_ADA),
    Rule(rf"final_layer\.norm_final\.{W}", "norm.{w}", "d"),
    *linear(r"final_layer\.linear", "final", "g d"),
)

DIFFUSERS_BLOCK = (
    *linear(r"norm1\.linear", "ada", "(6 d) d", ADA),
    # Each block embeds the timestep and the label once more.
    *linear(r"norm1\.emb\.timestep_embedder\.linear_(?P<i>[12])", "cond.t{i}", "d s"),
    *linear(r"norm1\.emb\.timestep_embedder\.linear_(?P<i>2)", "cond.t{i}", "d d"),
    Rule(r"norm1\.emb\.class_embedder\.embedding_table\.weight", "embed.label.weight", "l d"),
    *linear(r"attn1\.to_(?P<x>[qkv])", "attn.{x}", "(h k) d"),
    *linear(r"attn1\.to_out\.0", "attn.proj", "d (h k)"),
    *linear(r"ff\.net\.0\.proj", "mlp.fc1", "m d"),
    *linear(r"ff\.net\.2", "mlp.fc2", "d m"),
)

DIFFUSERS_OUTSIDE = (
    *linear(r"pos_embed\.proj", "patch", "d c p q"),
    *linear(r"proj_out_1", "final.ada", "(2 d) d", FINAL_ADA),
    *linear(r"proj_out_2", "final", "g d"),
)


def _note(module: Any, noted: ModuleFacts) -> None:
    block = module.blocks[0]
    noted.sizes["h"] = block.attn.num_heads
    note_mlp(noted, block.mlp)
    noted.traits.update(
        grid=tuple(module.x_embedder.grid_size), prefix_tokens=0, norm=type_name(block.norm1)
    )


def _note_diffusers(module: Any, noted: ModuleFacts) -> None:
    block, patches = module.transformer_blocks[0], module.pos_embed
    gelu = block.ff.net[0]
    noted.sizes["h"] = block.attn1.heads
    noted.traits.update(
        grid=(patches.height, patches.width),
        prefix_tokens=0,
        act=activation(gelu.gelu),
        glu="none",
        norm=type_name(block.norm3),
    )


FAMILIES = (
    Family(
        "dit",
        "facebookresearch",
        r"blocks\.\d+\.adaLN_modulation\.",
        (Stack("blocks", r"blocks\.(?P<block>\d+)\.", BLOCK),),
        OUTSIDE,
        r".*(?:freqs_\w+|rope\..*)",
        form="adaLN",
        note=_note,
        proven=True,
    ),
    Family(
        "dit",
        "diffusers",
        r"transformer_blocks\.\d+\.norm1\.emb\.",
        (Stack("blocks", r"transformer_blocks\.(?P<block>\d+)\.", DIFFUSERS_BLOCK),),
        DIFFUSERS_OUTSIDE,
        form="adaLN",
        note=_note_diffusers,
    ),
)
