"""Parameters that no source covers: one explicit rule each, drawn from the user's generator."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable

import torch
from torch import Tensor, nn

from weightinit.anatomy import Piece
from weightinit.plan import Part

__all__ = ["base_seed", "fresh_part", "fresh_rule", "sub_generator"]


def base_seed(generator: torch.Generator | None) -> int:
    """Return the seed that every draw of one call derives from.

    Args:
        generator: advanced by one draw; None means seed 0, never the global generator.
    """
    if generator is None:
        return 0
    draw = torch.empty((), dtype=torch.int64, device=generator.device)
    return int(draw.random_(generator=generator))


def sub_generator(seed: int, name: str) -> torch.Generator:
    """Return a CPU generator for one parameter: adding a head does not shift the blocks.

    Args:
        seed: of the call, from :func:`base_seed`.
        name: of the parameter.

    Examples:
        >>> a, b = sub_generator(0, "head.weight"), sub_generator(0, "head.weight")
        >>> bool(torch.equal(torch.rand(2, generator=a), torch.rand(2, generator=b)))
        True
    """
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def _ones(tensor: Tensor, _: torch.Generator) -> None:
    nn.init.ones_(tensor)


def _zeros(tensor: Tensor, _: torch.Generator) -> None:
    nn.init.zeros_(tensor)


def _identity(tensor: Tensor, _: torch.Generator) -> None:
    nn.init.eye_(tensor)


def _trunc_normal(tensor: Tensor, generator: torch.Generator) -> None:
    nn.init.trunc_normal_(tensor, std=0.02, generator=generator)


def _kaiming(tensor: Tensor, generator: torch.Generator) -> None:
    nn.init.kaiming_normal_(tensor, mode="fan_out", nonlinearity="relu", generator=generator)


#: From a pattern of canonical roles to the rule for what no source covers; the first match holds.
RULES: tuple[tuple[str, str, Callable[[Tensor, torch.Generator], None]], ...] = (
    (r".*\bls\d*(\..*)?|.*gamma.*", "ones (the block's function is the composed one)", _ones),
    (r".*norm[^.]*\.weight|.*norm", "ones", _ones),
    (r"attn\.talk_[lw]\.weight", "identity", _identity),
    (r"attn\.rel_table|.*rel_pos.*table.*", "zeros", _zeros),
    (r".*bias", "zeros", _zeros),
    (r"stem\..*weight", "torch.nn.init.kaiming_normal_(fan_out)", _kaiming),
    (r".*", "torch.nn.init.trunc_normal_(std=0.02)", _trunc_normal),
)


def fresh_rule(
    role: str, shape: tuple[int, ...]
) -> tuple[str, Callable[[Tensor, torch.Generator], None]]:
    """Return the rule for a canonical role that no source covers: its description and function.

    Args:
        role: canonical role, e.g. ``"head.weight"``.
        shape: of the parameter.
    """
    for pattern, text, rule in RULES:
        if re.fullmatch(pattern, role) and not (rule is _kaiming and len(shape) < 3):
            return text, rule
    raise AssertionError("the last rule matches everything")


def fresh_part(piece: Piece, seed: int) -> Part:
    """Return how a piece that no source covers is drawn: by its rule, from its own generator.

    Args:
        piece: of the target.
        seed: base seed for all random draws.
    """
    text, rule = fresh_rule(piece.role, piece.spec.shape)
    key = f"{piece.spec.key}.{piece.role}"
    return Part("fresh", text, lambda out: rule(out, sub_generator(seed, key)))
