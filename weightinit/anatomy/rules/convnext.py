"""ConvNeXt and ConvNeXt V2: every stage s has a width d<s> and a hidden size m<s>.

The names are timm's (of its features too), those of the published files, and Hugging Face's.
"""

from typing import Any

from weightinit.anatomy.rules.rule import Family, Rule, Stack, W, linear
from weightinit.anatomy.traits import ModuleFacts, note_mlp, type_name

# A stage takes over the width of the one before it; there are four.
STAGES = range(4)
LAST = f"d{STAGES[-1]}"

BLOCK = (
    Rule(r"(?:gamma|layer_scale_parameter)", "ls", "d{s}"),
    *linear(r"(?:conv_dw|dwconv)", "conv_dw", "d{s} 1 y x"),
    Rule(rf"(?:norm|layernorm)\.{W}", "norm.{w}", "d{s}"),
    Rule(r"(?:mlp\.fc|pwconv)1\.weight", "mlp.fc1.weight", "m{s} d{s}"),
    *linear(r"(?:mlp\.fc|pwconv)1", "mlp.fc1", "m{s} d{s} 1 1"),
    Rule(rf"mlp\.grn\.{W}", "mlp.grn.{w}", "m{s}"),
    Rule(rf"grn\.{W}", "mlp.grn.{w}", "1 1 1 m{s}"),
    Rule(r"grn\.gamma", "mlp.grn.weight", "1 1 1 m{s}"),
    Rule(r"grn\.beta", "mlp.grn.bias", "1 1 1 m{s}"),
    Rule(r"(?:mlp\.fc|pwconv)2\.weight", "mlp.fc2.weight", "d{s} m{s}"),
    *linear(r"(?:mlp\.fc|pwconv)2", "mlp.fc2", "d{s} m{s} 1 1"),
)


def _downsampling(s: int) -> tuple[Rule, ...]:
    # Where the stem has a small patch, the first stage downsamples too.
    before = f"d{max(s - 1, 0)}"
    name = (
        rf"(?:stages[._]{s}\.downsample|downsample_layers\.{s}"
        rf"|encoder\.stages\.{s}\.downsampling_layer)"
    )
    return (
        Rule(rf"{name}\.0\.{W}", f"down.{s}.norm.{{w}}", before),
        *linear(rf"{name}\.1", f"down.{s}", f"d{s} {before} y x"),
    )


STEM = r"(?:stem[._]|downsample_layers\.0\.)"
OUTSIDE = (
    Rule(rf"(?:{STEM}0|embeddings\.patch_embeddings)\.weight", "stem.0.weight", "d0 c p q"),
    # The tiered overlapping stems begin narrower.
    Rule(rf"{STEM}0\.weight", "stem.0.weight", "z0 c p q"),
    Rule(rf"(?:{STEM}0|embeddings\.patch_embeddings)\.bias", "stem.0.bias", "d0"),
    Rule(rf"{STEM}0\.bias", "stem.0.bias", "z0"),
    Rule(rf"{STEM}(?P<x>[12])\.weight", "stem.{x}.weight", "d0 d0 y x"),
    Rule(rf"{STEM}(?P<x>[12])\.weight", "stem.{x}.weight", "d0 z0 y x"),
    Rule(rf"{STEM}(?P<x>[123])\.{W}", "stem.{x}.{w}", "d0"),
    Rule(rf"embeddings\.layernorm\.{W}", "stem.1.{w}", "d0"),
    *(rule for s in STAGES for rule in _downsampling(s)),
    Rule(rf"norm_pre\.{W}", "norm.{w}", LAST),
    Rule(rf"(?:head\.norm|norm|layernorm)\.{W}", "fc_norm.{w}", LAST),
    *linear(r"head\.pre_logits\.fc", "pre_logits", f"z {LAST}"),
    Rule(r"head\.fc\.weight", "head.weight", f"n {LAST}", when="!pre_logits"),
    Rule(r"head\.fc\.weight", "head.weight", "n z", when="pre_logits"),
    Rule(r"head\.fc\.bias", "head.bias", "n"),
    *linear(r"(?:head|classifier)", "head", f"n {LAST}"),
)

PREFIX = r"(?:encoder\.)?stages[._](?P<s>\d+)\.(?:blocks\.|layers\.)?(?P<block>\d+)\."
STACKS = (Stack("stages.{s}", PREFIX, BLOCK),)


def _note(module: Any, noted: ModuleFacts) -> None:
    blocks = (x for x in module.modules() if hasattr(x, "conv_dw") or hasattr(x, "dwconv"))
    block = next(blocks, None)
    note_mlp(noted, getattr(block, "mlp", block))
    pool = getattr(getattr(module, "head", None), "global_pool", None)
    norm = getattr(block, "norm", None) or getattr(block, "layernorm", None)
    name = type_name(norm) or ""
    noted.traits.update(
        pool=getattr(pool, "pool_type", None),
        norm="LayerNorm" if name.endswith("LayerNorm") else name,  # some libraries have their own
    )


FAMILIES = (
    Family(
        "convnext",
        "timm",
        PREFIX.replace("?P<s>", "").replace("?P<block>", "") + r"(?:conv_dw|dwconv)\.",
        STACKS,
        OUTSIDE,
        flags=(("pre_logits", r"head\.pre_logits\..*"),),
        note=_note,
        proven=True,
    ),
)
