"""What is known of parameter names, as data: one file a library or family."""

from weightinit.anatomy.rules import (
    bert,
    clip,
    convnext,
    dit,
    gpt2,
    timm_vit,
    torch_encoder,
    torchvision_vit,
    transformers_vit,
)
from weightinit.anatomy.rules.rule import Family, Rule, Stack

__all__ = ["FAMILIES", "Family", "Rule", "Stack"]

#: Tried in order: the first whose signature is noted among the names holds.
FAMILIES: tuple[Family, ...] = tuple(
    family
    for module in (
        dit,  # before the ViTs, whose names it has too
        timm_vit,
        convnext,
        torchvision_vit,
        transformers_vit,
        clip,
        bert,
        gpt2,
        torch_encoder,
    )
    for family in module.FAMILIES
)
