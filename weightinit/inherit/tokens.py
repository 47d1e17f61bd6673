"""Token sequences on which a language model is run where nobody passes any text."""

from __future__ import annotations

import math
from typing import Any

import torch

from weightinit.anatomy import Anatomy
from weightinit.errors import ProjectionError
from weightinit.inherit.calibration import Generated
from weightinit.inherit.fresh import sub_generator
from weightinit.inherit.method import Runnable

__all__ = ["token_batches"]

#: Tokens that the ancestor sees for each of its channels, and the least and most sequences.
TOKENS, LEAST, MOST = 16, 64, 1024
#: Tokens of a sequence at most, and sequences that the ancestor sees at a time.
LENGTH, BATCH = 32, 64


def token_batches(source: Runnable, *, seed: int) -> tuple[Generated | None, str]:
    """Return token sequences for an ancestor and what they are, or None and why there are none.

    Every token is drawn from the whole vocabulary, all with the same chance; special tokens that
    the ancestor's config knows stand where they belong: the first and the last of a sequence, and
    no padding. There are so many sequences that the ancestor sees several times as many tokens as
    it has channels. ``seed`` is the base seed for all random draws.

    Returns:
        Batches of tokens, int64 ``[B, T]``, and a few words on them.
    """
    seen = source.anatomy
    table = seen.word_table
    if table is None:
        return None, "it takes neither images of one size nor tokens of a vocabulary"
    try:
        module: Any = source.module()
    except ProjectionError as error:
        return None, str(error)
    config = getattr(module, "config", None)
    special = {name: getattr(config, f"{name}_token_id", None) for name in ("pad", "bos", "eos")}
    ids = {name: x for name, x in special.items() if isinstance(x, int) and 0 <= x < table.size[0]}
    drawn = torch.ones(table.size[0])
    drawn[list(ids.values())] = 0
    if not drawn.any():
        return None, "its vocabulary has special tokens only"
    length = _length(seen)
    number = min(max(math.ceil(TOKENS * seen.sizes["d"] / length), LEAST), MOST)
    generator = sub_generator(seed, "generated tokens")
    tokens = torch.multinomial(drawn, number * length, replacement=True, generator=generator)
    tokens = tokens.view(number, length)
    if "bos" in ids:
        tokens[:, 0] = ids["bos"]
    if "eos" in ids:
        tokens[:, -1] = ids["eos"]
    text = f"{number} sequences of {length} tokens drawn evenly from its vocabulary"
    return Generated(tokens.split(BATCH)), text


def _length(seen: Anatomy) -> int:
    """Return how long sequences are: within the positions that the ancestor has."""
    positions = seen.position_table
    if positions is None:
        return LENGTH
    return max(1, min(LENGTH, positions.size[0] - (seen.traits.first_position or 0)))
