"""Composers of one kind of templates, for a target of any size."""

import torch

from weightinit.anatomy import Rule, anatomy
from weightinit.templates.compose import Composer
from weightinit.templates.config import TemplateConfig
from weightinit.templates.kinds import kind_roles

PATTERNS = {
    "attn.qkv.weight": "(h k) d",
    "attn.qkv.bias": "(h k)",
    "attn.proj.weight": "d (h k)",
    "mlp.fc1.weight": "m d",
    "mlp.fc1.bias": "m",
    "mlp.fc2.weight": "d m",
}


def composer(
    config: TemplateConfig, kind: str, size: tuple[int, ...], *, heads=1, head_dim=None
) -> Composer:
    """A composer for blocks of nothing but the roles of one kind, each of a size."""
    roles = kind_roles(kind)
    target = anatomy(
        {f"blocks.0.{role}": torch.empty(size, device="meta") for role in roles},
        rules=[
            Rule(rf"(?P<stack>blocks)\.(?P<block>\d+)\.{role}", role, PATTERNS[kind])
            for role in roles
        ],
        sizes={"h": heads},
    )
    return Composer(config, target, head_dim)


def compose(composer, kind, templates, scalers):
    """The parameters of a kind by role."""
    block = composer.target.blocks[0]
    return {
        role: composer.compose(block[role], templates, scalers)
        for role in kind_roles(kind)
        if role in block
    }
