"""Which of an ancestor's blocks make each block of a target."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from operator import index
from typing import Literal

from weightinit.anatomy import Anatomy
from weightinit.errors import ProjectionError
from weightinit.init.operators import Mix, interpolation

__all__ = [
    "RULES",
    "Depth",
    "DepthRule",
    "blocks_for",
    "damping",
    "followers",
    "mixes",
]

#: Names of rules.
DepthRule = Literal[
    "first", "first_last", "interlace", "interpolate", "last", "mid", "solar", "stack", "stack_top",
    "uniform",
]  # fmt: skip
#: A rule by name; the ancestor's block for each of the target's, by its number over all stages; or
#: a function from (blocks of the ancestor, blocks of the target) to a mix of the ancestor's blocks
#: for each of the target's, where a block of an empty mix is new.
Depth = DepthRule | Sequence[int] | Callable[[int, int], list[Mix]]


def _solar(old: int, new: int) -> list[int]:
    if not old <= new <= 2 * old:
        raise ProjectionError(
            f"depth='solar' joins two copies of {old} blocks and cannot make {new}: ask for {old} "
            f"to {2 * old}, or use depth='stack'"
        )
    first = -(-new // 2)
    return [*range(first), *range(old - (new - first), old)]


def _single(rule: Callable[[int, int], list[int]]) -> Callable[[int, int], list[Mix]]:
    return lambda old, new: [((index, 1.0),) for index in rule(old, new)]


RULES: Mapping[str, Callable[[int, int], list[Mix]]] = {
    "first": _single(lambda old, new: [min(i, old - 1) for i in range(new)]),
    "last": _single(lambda old, new: [max(0, old - new + i) for i in range(new)]),
    # The first new - 1 blocks and the last: what lies before the last is the least missed. Gromov
    # et al., "The Unreasonable Ineffectiveness of the Deeper Layers", arXiv 2403.17887, with as
    # many blocks left out as are too many. A single block is the first.
    "first_last": _single(
        lambda old, new: [*(min(i, old - 1) for i in range(new - 1)), old - 1 if new > 1 else 0]
    ),
    "mid": _single(
        lambda old, new: [min(max(0, (old - new) // 2 + i), old - 1) for i in range(new)]
    ),
    # Even steps from the first to the last; halves are rounded to the even block.
    "uniform": _single(
        lambda old, new: [round(i * (old - 1) / max(1, new - 1)) for i in range(new)]
    ),
    # Every block several times in a row (LiGO's interlacing).
    "interlace": _single(lambda old, new: [i * old // new for i in range(new)]),
    # Whole copies on top of each other (StackBERT).
    "stack": _single(lambda old, new: [i % old for i in range(new)]),
    # Whole copies, the rest filled with the top blocks (bert2BERT).
    "stack_top": _single(
        lambda old, new: [i % old if i < new // old * old else i - new + old for i in range(new)]
    ),
    # Two copies, the first without its last blocks, the second without its first: depth up-scaling,
    # s = 2 (n - m), of Kim et al., "SOLAR 10.7B", arXiv 2312.15066.
    "solar": _single(_solar),
    # Between neighbours; a single block is the first.
    "interpolate": lambda old, new: interpolation(old if new > 1 else 1, new),
}


def followers(old: int, new: int) -> list[Mix]:
    """Return each block followed by copies of itself, the last blocks by more of them.

    Up to twice as deep it is LEMON's order: 2 old - new blocks alone, each other with one copy.
    """
    each, more = divmod(new - old, old)
    counts = [1 + each + (i >= old - more) for i in range(old)]
    return [((i, 1.0),) for i, count in enumerate(counts) for _ in range(count)]


def damping(depth: int, auxiliary: int) -> float:
    """Return the factor on what each block of a much deeper target adds to the residual stream.

    A target of r times the auxiliary model's blocks writes r times as often: up to r = 1.5 that
    does no harm, beyond it min(1, (1.5 / r)^(3/4)) makes up for it (ours; chosen on validation
    images of CIFAR-10).

    Examples:
        >>> damping(8, 6), round(damping(24, 6), 3)
        (1.0, 0.479)
    """
    return min(1.0, (1.5 * auxiliary / depth) ** 0.75)


def mixes(depth: Depth, source: Anatomy, target: Anatomy) -> list[Mix]:
    """Return a mix of the ancestor's blocks for each of a target's, stage by stage."""
    old, new = source.stages, target.stages
    if len(old) != len(new):
        raise ProjectionError(
            f"the ancestor has {len(old)} stages and the target {len(new)}: use an ancestor of the "
            "same family and as many stages"
        )
    if not isinstance(depth, str) and not callable(depth):
        return _listed(depth, old, new)
    chosen: list[Mix] = []
    offset = 0
    for before, after in zip(old, new, strict=True):
        for mix in blocks_for(depth, before, after):
            chosen.append(tuple((offset + index, weight) for index, weight in mix))
        offset += before
    return chosen


def _listed(depth: Sequence[int], old: Sequence[int], new: Sequence[int]) -> list[Mix]:
    """Return the blocks of a list, each of its stage; a negative number counts from the end."""
    total = sum(old)
    try:
        blocks = [index(block) for block in depth]
    except TypeError:
        raise ProjectionError(
            f"depth={depth!r}: use one of {sorted(RULES)}, or the ancestor's block for each of the "
            f"target's {sum(new)}, such as {list(range(total))[: sum(new)]}"
        ) from None
    places = [stage for stage, number in enumerate(new) for _ in range(number)]
    first = [0, *accumulate(old)]
    blocks = [block + total if block < 0 else block for block in blocks]
    if len(blocks) != sum(new) or any(
        not first[stage] <= block < first[stage + 1]
        for block, stage in zip(blocks, places, strict=True)
    ):
        stages = f" in stages of {[*old]}" if len(old) > 1 else ""
        raise ProjectionError(
            f"depth={[*depth]} names {len(blocks)} blocks for a target of {sum(new)}, and the "
            f"ancestor has 0 to {total - 1}{stages}: name one of the same stage for each"
        )
    return [((block, 1.0),) for block in blocks]


def blocks_for(depth: str | Callable[[int, int], list[Mix]], old: int, new: int) -> list[Mix]:
    """Return which of ``old`` blocks make each of ``new`` ones, by a rule's name or a function.

    Examples:
        >>> [index for ((index, _),) in blocks_for("uniform", 12, 6)]
        [0, 2, 4, 7, 9, 11]
        >>> blocks_for("interpolate", 2, 3)[1]
        ((0, 0.5), (1, 0.5))
    """
    if isinstance(depth, str) and depth not in RULES:
        raise ProjectionError(f"depth={depth!r} is unknown: use one of {sorted(RULES)}")
    mixes = (RULES[depth] if isinstance(depth, str) else depth)(old, new)
    if len(mixes) != new or any(not 0 <= i < old for mix in mixes for i, _ in mix):
        raise ProjectionError(
            f"the depth rule {depth!r} gave {mixes} for {old} blocks to {new}: it must give {new} "
            f"tuples of (block, weight) with blocks from 0 to {old - 1}"
        )
    return list(mixes)
