"""Mimetic initialisation: attention that resembles a trained model's, in closed form, without data.

Trockman & Kolter, "Mimetic Initialization of Self-Attention Layers", ICML 2023,
https://arxiv.org/abs/2305.09828. Every layer gets the same rule and noise of its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from functools import lru_cache
from typing import Literal, get_args

import torch
from torch import Tensor

from weightinit import init
from weightinit.anatomy import Anatomy, Piece
from weightinit.errors import ProjectionError
from weightinit.inherit.fresh import fresh_part, sub_generator
from weightinit.inherit.method import check_options
from weightinit.recipes import Inheritance, Part

__all__ = ["Mimetic", "planned_mimetic"]

Positions = Literal["sincos", "fresh"]


@dataclass(frozen=True)
class Mimetic:
    """Options of mimetic initialisation; the defaults are the paper's for small data.

    Args:
        alpha_qk: factor of the noise in each head's W_Q W_K^T.
        beta_qk: factor of the identity in it, before the cut to the head dim.
        alpha_vo: factor of the noise in W_V W_proj.
        beta_vo: factor of the identity that is subtracted in it.
        positions: kind of position embeddings: ``"sincos"`` writes 2-D sinusoidal ones (zeros for
            prefix tokens) where positions are those of a grid; ``"fresh"`` draws them by rule.

    Raises:
        ProjectionError: if a number is not finite, or `positions` is neither of the two.

    Examples:
        >>> Mimetic(positions="fresh").beta_vo
        0.4
    """

    alpha_qk: float = 0.7
    beta_qk: float = 0.7
    alpha_vo: float = 0.4
    beta_vo: float = 0.4
    positions: Positions = "sincos"

    def __post_init__(self) -> None:
        """Check every field."""
        if not all(map(math.isfinite, astuple(self)[:4])):
            raise ProjectionError(f"{self}: use finite numbers")
        check_options(self, positions=get_args(Positions))


def planned_mimetic(
    anatomy: Anatomy, options: Mimetic | None = None, *, seed: int = 0
) -> Inheritance:
    """Return a part for every piece of a target: closed form, sinusoidal, or fresh by rule.

    Raises:
        ProjectionError: if the target is no vision transformer, or an attention's shapes do not
            fit one another.
    """
    attentions = _attentions(anatomy)
    if anatomy.family not in ("vit", "custom") or not attentions:
        raise ProjectionError(
            f"this {anatomy.family} cannot be initialised: the mimetic rule is that of a vision "
            "transformer's self-attention. For layers of another model call "
            "weightinit.init.mimetic_qk_ and mimetic_vo_"
        )
    composer = _Composer(anatomy, attentions, options or Mimetic(), seed)
    pieces = (piece for spec in anatomy.specs for piece in anatomy.pieces(spec))
    return Inheritance({piece: composer.part(piece) for piece in pieces})


@dataclass(frozen=True)
class _Attention:
    """The weights of one attention."""

    q: Piece
    k: Piece
    v: Piece
    proj: Piece
    maps: int  # the heads, or twice as many in differential attention
    group: int  # number of query heads that share a key head


def _attentions(anatomy: Anatomy) -> list[_Attention]:
    """Return the attentions of all blocks; raise if the weights of one do not fit one another."""
    return [
        _attention(anatomy, block, piece.facts.parent)
        for block in anatomy.all_blocks
        for piece in block.values()
        if piece.facts.letter == "q" and piece.facts.kind == "matrix"
    ]


def _attention(anatomy: Anatomy, block: Mapping[str, Piece], parent: str) -> _Attention:
    roles = [f"{parent}.{part}.weight" for part in ("q", "k", "v", "proj")]
    weights = [block[role] for role in roles if role in block]
    if len(weights) == len(roles):
        q, k, v, proj = weights
        heads = anatomy.sizes.get(q.axes[0][0], 0) if len(q.axes[0]) == 2 else 0
        group = q.size[0] // k.size[0]
        if (
            heads * group > 0
            and heads % group == 0
            and q.size == (group * k.size[0], k.size[1])
            and proj.size == (v.size[1], group * v.size[0])
        ):
            differential = f"{parent}.sub_norm.weight" in block
            return _Attention(q, k, v, proj, heads * (1 + differential), group)
    listed = ", ".join(f"{p.spec.name} ({p.role}, {p.axes}, {p.size})" for p in weights)
    raise ProjectionError(
        f"not the q, k, v and proj of one self-attention: {listed}. Name their roles and axes by "
        "rules=[Rule(...)], with heads as in '(h k) d'"
    )


class _Composer:
    """The mimetic rule for one target."""

    def __init__(
        self, anatomy: Anatomy, attentions: list[_Attention], options: Mimetic, seed: int
    ) -> None:
        self.anatomy, self.options, self.seed = anatomy, options, seed
        self.queries = {p: a for a in attentions for p in (a.q, a.k)}
        self.values = {p: a for a in attentions for p in (a.v, a.proj)}
        # The weights of one attention follow one another: no earlier ones need be kept.
        self.qk = lru_cache(maxsize=1)(self._qk)
        self.vo = lru_cache(maxsize=1)(self._vo)

    def part(self, piece: Piece) -> Part:
        """Return what becomes of one piece."""
        options, role = self.options, piece.role
        if queries := self.queries.get(piece):
            text = f"W_Q W_K^T ~ {options.alpha_qk:g} Z + {options.beta_qk:g} I of each head"
            return Part("written", text, lambda out: out.copy_(self.qk(queries, out.dtype)[role]))
        if values := self.values.get(piece):
            text = f"W_V W_proj ~ {options.alpha_vo:g} Z - {options.beta_vo:g} I"
            return Part("written", text, lambda out: out.copy_(self.vo(values, out.dtype)[role]))
        grid = self._grid() if piece.facts.kind == "position" else None
        if grid is not None and options.positions == "sincos":
            text = f"2-D sinusoidal, {grid[0]}x{grid[1]} grid"
            return Part("written", text, lambda out: _sincos_(out, grid))
        return fresh_part(piece, self.seed)

    def _qk(self, attention: _Attention, dtype: torch.dtype) -> dict[str, Tensor]:
        q, k = (torch.empty(piece.size, dtype=dtype) for piece in (attention.q, attention.k))
        alpha, beta = self.options.alpha_qk, self.options.beta_qk
        generator = self._generator(attention.q)
        init.mimetic_qk_(q, k, attention.maps, alpha=alpha, beta=beta, generator=generator)
        return {attention.q.role: q, attention.k.role: k}

    def _vo(self, attention: _Attention, dtype: torch.dtype) -> dict[str, Tensor]:
        v = torch.empty(attention.v.size, dtype=dtype)
        proj = torch.empty(attention.v.size[::-1], dtype=dtype)
        alpha, beta = self.options.alpha_vo, self.options.beta_vo
        generator = self._generator(attention.v)
        init.mimetic_vo_(v, proj, alpha=alpha, beta=beta, generator=generator)
        if attention.group > 1:
            # Heads that share values share their projection in equal parts.
            heads = attention.maps // attention.group
            shared = proj.unflatten(1, (heads, -1)).repeat_interleave(attention.group, 1)
            proj = shared.flatten(1) / attention.group
        return {attention.v.role: v, attention.proj.role: proj}

    def _generator(self, piece: Piece) -> torch.Generator:
        return sub_generator(self.seed, f"{piece.spec.key}.{piece.role}")

    def _grid(self) -> tuple[int, int] | None:
        """Return the grid of the position embedding, or None where its rows are no grid's."""
        traits = self.anatomy.traits
        if traits.grid is None:
            return None
        prefix = self.anatomy.outside["pos"].size[0] - math.prod(traits.grid)
        return traits.grid if 0 <= prefix <= traits.prefix_tokens else None


def _sincos_(out: Tensor, grid: tuple[int, int]) -> None:
    """Write 2-D sinusoidal position embeddings, preceded by zeros for the prefix tokens."""
    from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed

    tokens, width = grid[0] * grid[1], out.shape[1]
    table = build_sincos2d_pos_embed(list(grid), -(-width // 4) * 4)
    out[:-tokens].zero_()
    out[-tokens:].copy_(table[:, :width])
