"""timm's ConvNeXt and ConvNeXt V2: every stage s has a width d<s> and a hidden size m<s>."""

from typing import Any

from weightinit.anatomy.rules.rule import Family, Rule, Stack, W, linear
from weightinit.anatomy.traits import ModuleFacts, note_mlp, type_name

# A stage takes over the width of the one before it; timm's models have four.
STAGES = range(4)
LAST = f"d{STAGES[-1]}"

BLOCK = (
    Rule(r"gamma", "ls", "d{s}"),
    *linear(r"conv_dw", "conv_dw", "d{s} 1 y x"),
    Rule(rf"norm\.{W}", "norm.{w}", "d{s}"),
    Rule(r"mlp\.fc1\.weight", "mlp.fc1.weight", "m{s} d{s}"),
    *linear(r"mlp\.fc1", "mlp.fc1", "m{s} d{s} 1 1"),
    Rule(rf"mlp\.grn\.{W}", "mlp.grn.{w}", "m{s}"),
    Rule(r"mlp\.fc2\.weight", "mlp.fc2.weight", "d{s} m{s}"),
    *linear(r"mlp\.fc2", "mlp.fc2", "d{s} m{s} 1 1"),
)

OUTSIDE = (
    Rule(r"stem\.0\.weight", "stem.0.weight", "d0 c p q"),
    # The tiered overlapping stems begin narrower.
    Rule(r"stem\.0\.weight", "stem.0.weight", "z0 c p q"),
    Rule(r"stem\.0\.bias", "stem.0.bias", "d0"),
    Rule(r"stem\.0\.bias", "stem.0.bias", "z0"),
    Rule(r"stem\.(?P<x>[12])\.weight", "stem.{x}.weight", "d0 d0 y x"),
    Rule(r"stem\.(?P<x>[12])\.weight", "stem.{x}.weight", "d0 z0 y x"),
    Rule(rf"stem\.(?P<x>[123])\.{W}", "stem.{x}.{w}", "d0"),
    *(
        rule
        for s in STAGES[1:]
        for rule in (
            Rule(rf"stages\.{s}\.downsample\.0\.{W}", f"down.{s}.norm.{{w}}", f"d{s - 1}"),
            *linear(rf"stages\.{s}\.downsample\.1", f"down.{s}", f"d{s} d{s - 1} y x"),
        )
    ),
    Rule(rf"norm_pre\.{W}", "norm.{w}", LAST),
    Rule(rf"head\.norm\.{W}", "fc_norm.{w}", LAST),
    *linear(r"head\.pre_logits\.fc", "pre_logits", f"z {LAST}"),
    Rule(r"head\.fc\.weight", "head.weight", f"n {LAST}", when="!pre_logits"),
    Rule(r"head\.fc\.weight", "head.weight", "n z", when="pre_logits"),
    Rule(r"head\.fc\.bias", "head.bias", "n"),
)

STACKS = (Stack("stages.{s}", r"stages\.(?P<s>\d+)\.blocks\.(?P<block>\d+)\.", BLOCK),)


def _note(module: Any, noted: ModuleFacts) -> None:
    block = next((b for stage in module.stages for b in stage.blocks), None)
    note_mlp(noted, getattr(block, "mlp", None))
    pool = getattr(getattr(module, "head", None), "global_pool", None)
    noted.traits.update(
        pool=getattr(pool, "pool_type", None),
        norm=type_name(getattr(block, "norm", None)),
    )


FAMILIES = (
    Family(
        "convnext",
        "timm",
        r"stages\.\d+\.blocks\.\d+\.conv_dw\.",
        STACKS,
        OUTSIDE,
        flags=(("pre_logits", r"head\.pre_logits\..*"),),
        note=_note,
        proven=True,
    ),
)
