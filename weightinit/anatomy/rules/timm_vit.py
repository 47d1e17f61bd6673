"""timm's plain ViTs: vision_transformer, hybrid, deit, beit, eva, naflexvit, relpos, sam, cait.

Files of DINOv2 and DINOv3 have their names but for a few.
"""

from typing import Any

from torch import nn

from weightinit.anatomy.rules.rule import QKV, Family, Rule, Stack, W, linear
from weightinit.anatomy.traits import ModuleFacts, note_mlp, type_name
from weightinit.errors import AnatomyError

_BRANCH_NORM = ("ResPostBlock", "ResPostRelPosBlock", "EvaBlockPostNorm")


def _attention(p: str, role: str) -> tuple[Rule, ...]:
    """Return the rules of an attention module: ``p`` matches its name, ``role`` begins roles."""
    return (
        *linear(rf"{p}\.qkv", f"{role}.qkv", "(3 h k) d", tuple(f"{role}.{x}" for x in "qkv")),
        Rule(rf"{p}\.(?P<x>[qkv])(?:_proj)?\.weight", f"{role}.{{x}}.weight", "(h k) d"),
        Rule(rf"{p}\.(?P<x>[qkv])(?:_proj\.|\.|_)bias", f"{role}.{{x}}.bias", "(h k)"),
        *linear(rf"{p}\.(?P<x>[kv])_proj", f"{role}.{{x}}", "(e k) d"),
        *linear(rf"{p}\.gate", f"{role}.gate", "(h k) d"),
        *linear(rf"{p}\.proj", f"{role}.proj", "d (h k)"),
        Rule(rf"{p}\.norm\.{W}", f"{role}.norm.{{w}}", "(h k)"),
        *_differential(rf"{p}\.", role),
        Rule(rf"{p}\.(?:rel_pos\.)?relative_position_bias_table", f"{role}.rel_table", "u h"),
        Rule(rf"{p}\.rel_pos_(?P<x>[hw])", f"{role}.rel_pos_{{x}}", "u k"),
        Rule(rf"{p}\.rpe_(?P<x>[qk])\.lookup_table_weight", f"{role}.rpe_{{x}}.weight", "1 k u"),
        Rule(rf"{p}\.rpe_v\.lookup_table_weight", f"{role}.rpe_v.weight", "1 u k"),
        *_rel_pos_mlp(rf"{p}\.rel_pos\.mlp", f"{role}.rel_pos"),
        # Talking heads mix the h attention maps, before (l) and after (w) the softmax.
        *linear(rf"{p}\.proj_(?P<x>[lw])", f"{role}.talk_{{x}}", "h h"),
    )


def _differential(p: str, role: str) -> tuple[Rule, ...]:
    """Return the rules of what acts on q, k and v; j is half the head dim, a map's of two."""
    return (
        Rule(rf"{p}(?P<x>[qk])_norm\.{W}", f"{role}.{{x}}_norm.{{w}}", "k"),
        Rule(rf"{p}(?P<x>[qk])_norm\.{W}", f"{role}.{{x}}_norm.{{w}}", "j"),
        Rule(rf"{p}sub_norm\.{W}", f"{role}.sub_norm.{{w}}", "k"),
        Rule(rf"{p}(?P<x>lambda_[qk][12])", f"{role}.{{x}}", "j"),
        Rule(rf"{p}(?P<x>lambda_[ab])", f"{role}.{{x}}", ""),
    )


def _rel_pos_mlp(p: str, role: str) -> tuple[Rule, ...]:
    return (
        *linear(rf"{p}\.fc1", f"{role}.fc1", "a 2"),
        *linear(rf"{p}\.fc2", f"{role}.fc2", "h a"),
    )


def _mlp(p: str, role: str, m: str = "m") -> tuple[Rule, ...]:
    """Return the rules of one MLP, with or without a GLU, whose hidden axis is ``m``."""
    rules = [
        *linear(rf"{p}\.(?:fc1|fc1_g)", f"{role}.fc1", f"{m} d"),
        *linear(rf"{p}\.fc1_x", f"{role}.up", f"{m} d"),
        *linear(rf"{p}\.fc2", f"{role}.fc2", f"d {m}"),
        Rule(rf"{p}\.norm\.{W}", f"{role}.norm.{{w}}", m),
    ]
    for which, pattern in (("weight", f"(2 {m}) d"), ("bias", f"(2 {m})")):
        name, packed = rf"{p}\.fc1\.{which}", f"{role}.fc1_up.{which}"
        halves = (f"{role}.fc1.{which}", f"{role}.up.{which}")
        rules.append(Rule(name, packed, pattern, halves, when="!gate_last"))
        rules.append(Rule(name, packed, pattern, halves[::-1], when="gate_last"))
    return tuple(rules)


# DINO's and its followers' SwiGLU, packed and not.
SWIGLU = (
    *linear(r"mlp\.w12", "mlp.fc1_up", "(2 m) d", ("mlp.fc1", "mlp.up")),
    *linear(r"mlp\.w1", "mlp.fc1", "m d"),
    *linear(r"mlp\.w2", "mlp.up", "m d"),
    *linear(r"mlp\.w3", "mlp.fc2", "d m"),
)

BLOCK = (
    *SWIGLU,
    Rule(rf"norm(?P<i>[12])\.{W}", "norm{i}.{w}", "d"),
    Rule(r"ls(?P<i>[12])\.gamma", "ls{i}", "d"),
    Rule(r"gamma_(?P<i>[12])", "ls{i}", "d"),
    *_attention("attn", "attn"),
    *_mlp("mlp", "mlp"),
)

# Parallel branches: each of attns and ffns holds a norm, a module and a layer scale of its own.
PARALLEL_THINGS = (
    Rule(rf"(?P<b>(?:attns|ffns)\.\d+)\.norm\.{W}", "{b}.norm.{w}", "d"),
    Rule(r"(?P<b>(?:attns|ffns)\.\d+)\.ls\.gamma", "{b}.ls", "d"),
    *_attention(r"(?P<b>attns\.\d+)\.attn", "{b}"),
    *_mlp(r"(?P<b>ffns\.\d+)\.mlp", "{b}"),
)


PARALLEL_SCALING = (
    # One norm and one layer scale serve both branches, and one bias is the sum of theirs.
    Rule(rf"in_norm\.{W}", "norm1.{w}", "d"),
    Rule(r"ls\.gamma", "ls1", "d"),
    Rule(r"mlp_bias", "mlp.fc1.bias", "m"),
    Rule(r"(?:attn_)?out_proj\.bias", "attn.proj.bias", "d"),
    *linear(r"mlp_out_proj", "mlp.fc2", "d m"),
    Rule(r"attn_out_proj\.weight", "attn.proj.weight", "d (h k)"),
    *linear("in_proj", "in_proj", "(m + h k + h k + h k) d", ("mlp.fc1", *QKV)),
    Rule(
        r"out_proj\.weight",
        "out_proj.weight",
        "d (h k + m)",
        ("attn.proj.weight", "mlp.fc2.weight"),
    ),
    *_differential("", "attn"),
)

POOL = (
    Rule(r"attn_pool\.latent", "pool.latent", "1 r d"),
    Rule(r"attn_pool\.pos_embed", "pool.pos", "u d"),
    *linear(r"attn_pool\.q", "pool.q", "(hp kp) d"),
    *linear(r"attn_pool\.kv", "pool.kv", "(2 hp kp) d", ("pool.k", "pool.v")),
    Rule(rf"attn_pool\.(?P<x>[qk])_norm\.{W}", "pool.{x}_norm.{w}", "kp"),
    *linear(r"attn_pool\.proj", "pool.proj", "d (hp kp)"),
    Rule(rf"attn_pool\.(?P<x>norm|pre_norm|post_norm)\.{W}", "pool.{x}.{w}", "d"),
    *_mlp(r"attn_pool\.mlp", "pool.mlp", "mp"),
)

OUTSIDE = (
    Rule(r"patch_embed\.proj\.weight", "patch.weight", "d c p q"),
    Rule(r"patch_embed\.proj\.weight", "patch.weight", "d c w p q"),
    Rule(r"(?:patch_embed|embeds)\.proj\.bias", "patch.bias", "d"),
    Rule(rf"(?:patch_embed|embeds)\.norm\.{W}", "patch.norm.{w}", "d"),
    Rule(r"embeds\.proj\.weight", "patch.weight", "d c p q"),
    Rule(r"embeds\.proj\.weight", "patch.weight", "d (p q c)", to="d c p q", when="channels_last"),
    Rule(r"embeds\.proj\.weight", "patch.weight", "d (c p q)", to="d c p q", when="!channels_last"),
    Rule(r"pos_embed", "pos", "1 t d"),
    Rule(r"(?:embeds\.)?pos_embed", "pos", "1 gh gw d", to="(gh gw) d"),
    Rule(r"embeds\.pos_embed_(?P<x>[xy])", "pos.{x}", "1 u d"),
    Rule(r"(?:embeds\.)?(?P<x>cls|dist|reg)_token", "token.{x}", "1 r d"),
    # DINOv2 calls them registers, DINOv3 storage.
    Rule(r"(?:register|storage)_tokens", "token.reg", "1 r d"),
    Rule(r"mask_token", "embed.mask", "1 1 d"),
    Rule(r"mask_token", "embed.mask", "1 d"),
    # A pretraining decoder's, of a width of its own.
    Rule(r"mask_token", "decoder.mask", "1 1 o"),
    Rule(r"mask_token", "decoder.mask", "1 o"),
    Rule(rf"(?P<x>norm_pre|norm|fc_norm)\.{W}", "{x}.{w}", "d"),
    Rule(rf"neck\.{W}", "norm.{w}", "d"),
    *linear(r"(?P<x>head|head_dist)", "{x}", "n d"),
    *linear(r"head\.fc", "head", "n d"),
    # SAM's neck narrows the residual stream; its own width is z.
    Rule(r"neck\.0\.weight", "neck.0.weight", "z d y x"),
    Rule(r"neck\.2\.weight", "neck.2.weight", "z z y x"),
    Rule(rf"neck\.(?P<x>[13])\.{W}", "neck.{x}.{w}", "z"),
    Rule(r"head\.fc\.weight", "head.weight", "n z"),
    Rule(r"rope\.freqs", "rope.freqs", "2 b h f"),
    *_rel_pos_mlp(r"shared_rel_pos\.mlp", "rel_pos"),
    # Of relpos models, and of BEiT's shared biases.
    Rule(r"(?:shared_rel_pos|rel_pos_bias)\.relative_position_bias_table", "rel_pos.table", "u h"),
    *POOL,
)

# A convolutional stem: its channels are each layer's own, but where it meets the residual stream.
STEM = (
    *linear(r"patch_embed\.backbone\.(?P<x>\d+\.conv)", "stem.{x}", "d i y x"),
    Rule(r"patch_embed\.backbone\.(?P<x>.+)\.weight", "stem.{x}.weight", "o i y x"),
    Rule(rf"patch_embed\.backbone\.(?P<x>.+)\.{W}", "stem.{x}.{w}", "o"),
    *linear(r"patch_embed\.proj", "stem.proj", "d i y x"),
)

STACKS = (
    Stack(
        "blocks",
        # DINOv2 keeps its blocks in chunks, numbered throughout.
        r"blocks\.(?:\d+\.)?(?P<block>\d+)\.",
        (*BLOCK, *PARALLEL_THINGS, *PARALLEL_SCALING),
    ),
    Stack("token_blocks", r"blocks_token_only\.(?P<block>\d+)\.", BLOCK, main=False),
)
BUFFERS = (
    r".*\.(?:relative_position_index|rel_coords_log|k_bias|running_mean|running_var"
    r"|num_batches_tracked|rp_bucket|bias_mask)|rope\.(?!freqs).*|rope_embed\..*"
)


def _note(module: Any, noted: ModuleFacts) -> None:
    blocks = [
        block
        for stack in ("blocks", "blocks_token_only")
        for block in getattr(module, stack, nn.ModuleList()).children()
    ]
    if any(isinstance(block, nn.ModuleList) for block in blocks):  # DINOv2's chunks
        chunks = (block for chunk in blocks for block in chunk.children())
        blocks = [block for block in chunks if not isinstance(block, nn.Identity)]
    _note_heads(noted, blocks)
    pool = getattr(module, "attn_pool", None)
    pool_heads = getattr(pool, "num_heads", None)
    if pool_heads:
        noted.sizes["hp"] = pool_heads
    stem = getattr(module, "patch_embed", None)
    embeds = getattr(module, "embeds", None)
    if embeds is not None:
        noted.sizes["p"], noted.sizes["q"] = embeds.patch_size
        noted.flags["channels_last"] = bool(getattr(embeds, "channels_last", False))
        stem = embeds
    grid = getattr(stem, "grid_size", getattr(stem, "patches_resolution", None))
    if grid:
        noted.traits["grid"] = tuple(grid)
    first = blocks[0] if blocks else None
    mlp = getattr(first, "mlp", None)
    note_mlp(noted, mlp if mlp is not None else first)
    if hasattr(module, "num_prefix_tokens"):
        noted.traits["prefix_tokens"] = int(module.num_prefix_tokens)
    kind = getattr(module, "global_pool", None)
    noted.traits.update(
        pool="none" if kind == "" else kind,
        form="branch_norm" if type(first).__name__ in _BRANCH_NORM else "pre_norm",
        norm=type_name(getattr(first, "norm1", None) or getattr(first, "in_norm", None)),
        rope=type_name(getattr(module, "rope", None)) or "none",
    )


def _note_heads(noted: ModuleFacts, blocks: list[Any]) -> None:
    seen = []
    for block in blocks:
        branches = getattr(block, "attns", None)
        # A parallel-scaling block is its own attention.
        attn = branches[0].attn if branches else getattr(block, "attn", block)
        # Differential attention calls the width of one of a head's two maps its head dim.
        maps = 2 if hasattr(attn, "sub_norm") else 1
        seen.append((getattr(attn, "num_heads", None), maps * getattr(attn, "head_dim", 0)))
    heads = {h for h, _ in seen if h}
    dims = {k for _, k in seen if k}
    if len(heads) > 1 or len(dims) > 1:
        raise AnatomyError(
            f"the blocks differ in heads {sorted(heads)} or head dim {sorted(dims)}: "
            "pass a model whose blocks are alike"
        )
    noted.sizes.update([*(("h", h) for h in heads), *(("k", k) for k in dims)])


FAMILIES = (
    Family(
        "vit",
        "timm",
        r"patch_embed\.backbone\.",
        STACKS,
        (*STEM, *OUTSIDE),
        BUFFERS,
        note=_note,
        proven=True,
    ),
    Family(
        "vit",
        "timm",
        r"blocks\.(?:\d+\.)?\d+\.(?:norm1|attns|in_norm|attn)\.",
        STACKS,
        OUTSIDE,
        BUFFERS,
        note=_note,
        proven=True,
    ),
)
