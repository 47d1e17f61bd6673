"""Parameters that no source covers: one explicit rule each, drawn from the user's generator."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from weightinit.anatomy import Piece, facts
from weightinit.errors import ProjectionError
from weightinit.recipes import Part

__all__ = ["base_seed", "fresh_part", "fresh_rule", "sub_generator"]


Draw = Callable[[Tensor, torch.Generator], object]


def base_seed(generator: torch.Generator | None) -> int:
    """Return the seed of all draws of a call: one draw of the generator, or 0 without one."""
    if generator is None:
        return 0
    if not isinstance(generator, torch.Generator):
        raise ProjectionError(f"generator={generator!r}: pass a torch.Generator, or leave it out")
    draw = torch.empty((), dtype=torch.int64, device=generator.device)
    return int(draw.random_(generator=generator))


def sub_generator(seed: int, name: str) -> torch.Generator:
    """Return a CPU generator for one parameter, so that adding a head does not shift the blocks."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


#: A description and a function for each way to draw, :attr:`weightinit.anatomy.Role.start`.
RULES: Mapping[str, tuple[str, Draw]] = {
    "ones": ("ones", lambda tensor, _: nn.init.ones_(tensor)),
    "zeros": ("zeros", lambda tensor, _: nn.init.zeros_(tensor)),
    "identity": ("identity", lambda tensor, _: nn.init.eye_(tensor)),
    "kaiming": (
        "torch.nn.init.kaiming_normal_(fan_out)",
        lambda tensor, generator: nn.init.kaiming_normal_(
            tensor, mode="fan_out", nonlinearity="relu", generator=generator
        ),
    ),
    "trunc_normal": (
        "torch.nn.init.trunc_normal_(std=0.02)",
        lambda tensor, generator: nn.init.trunc_normal_(tensor, std=0.02, generator=generator),
    ),
}


def fresh_rule(role: str, shape: Sequence[int]) -> tuple[str, Draw]:
    """Return the rule for a role that no source covers: its description and function."""
    fact = facts(role)
    if fact.kind == "scale":
        return "ones (the block's function is the composed one)", RULES["ones"][1]
    # Of a stem, what has no inputs is the weight of a norm.
    start = "ones" if fact.start == "kaiming" and len(shape) < 2 else fact.start
    return RULES[start]


def fresh_part(piece: Piece, seed: int) -> Part:
    """Return how a piece that no source covers is drawn: by its rule, from its own generator."""
    text, rule = fresh_rule(piece.role, piece.spec.shape)
    key = f"{piece.spec.key}.{piece.role}"
    return Part("fresh", text, lambda out: rule(out, sub_generator(seed, key)))
