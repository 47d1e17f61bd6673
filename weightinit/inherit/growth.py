"""What the growing methods share: which axes grow, identity blocks, what breaks the function.

A network grows without changing its function if every channel is copied where it is made, and its
copies share the weights of what reads it; if norms see the same mean and variance; and if new
blocks add nothing to the residual stream. What breaks one of these is a fault, said in the report.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property

from torch import Tensor

from weightinit.anatomy import Anatomy, Piece
from weightinit.errors import ProjectionError
from weightinit.inherit.depth import Depth, Mix, followers, mixes
from weightinit.inherit.tables import TABLES
from weightinit.inherit.transfer import Place

__all__ = ["Growth", "claim", "followers", "sizes_of"]

#: First letters of the labels that may grow; e are key-value heads that serve several of h.
GROWING = "dhkme"
#: Roles whose growth tests prove to keep the function.
PROVEN = re.compile(
    r"norm[12]\.(weight|bias)|ls[12]?|(attn|attns\.\d+)\.([qkv]|proj|[qk]_norm|norm)\.(weight|bias)"
    r"|(mlp|ffns\.\d+)\.(fc1|up|fc2|norm)\.(weight|bias)|(attns|ffns)\.\d+\.ls"
    r"|attn\.(rel_table|(talk_[lw]|rel_pos\.fc[12])\.(weight|bias))"
    r"|patch\.(weight|bias)|pos|token\.\w+|(norm_pre|norm|fc_norm|patch\.norm)\.(weight|bias)"
    r"|head(_dist)?\.(weight|bias)|embed\.token\.weight|rope\.freqs"
)
FAMILIES = ("vit", "gpt2")
#: Norms whose statistics are plain averages over channels; where none is named, it is one of them.
PLAIN_NORMS = ("LayerNorm", "LayerNormFp32", "RmsNorm", "RmsNormFp32", "RMSNorm")
TRAITS = ("act", "norm", "post_norm", "pool", "rope", "grid", "pos_prefix", "prefix_tokens")


class Growth:
    """Which axes grow from an ancestor to a target.

    Args:
        method: its name, for messages.
        old: anatomy of the ancestor.
        new: anatomy of the target.
        depth: which blocks of the ancestor make those of the target; see :func:`followers`.
        lossless: whether to refuse what the proofs do not know.

    Raises:
        ProjectionError: if an axis or the depth shrinks, or an axis changes that no rule grows.

    Examples:
        >>> import timm, weightinit as wi
        >>> old, new = (
        ...     wi.anatomy(timm.create_model("vit_tiny_patch16_224", depth=1, embed_dim=d))
        ...     for d in (192, 240))
        >>> Growth("lemon", old, new).grown
        {'k': (64, 80), 'd': (192, 240), 'm': (768, 960)}
    """

    def __init__(
        self,
        method: str,
        old: Anatomy,
        new: Anatomy,
        *,
        depth: Depth = followers,
        lossless: bool = True,
    ) -> None:
        self.method, self.old, self.new, self._depth = method, old, new, depth
        before, after = sizes_of(old), sizes_of(new)
        pairs = {x: (before[x], after[x]) for x in after if x in before and x[0] in GROWING}
        smaller = [f"{x} {a} -> {b}" for x, (a, b) in pairs.items() if b < a]
        if old.depth > new.depth:
            smaller.append(f"depth {old.depth} -> {new.depth}")
        if smaller:
            raise ProjectionError(
                f"{method} only grows, and the target is smaller in {', '.join(smaller)}: use "
                "method='auto', which shrinks too"
            )
        self.sizes = pairs
        self.grown = {x: pair for x, pair in pairs.items() if pair[0] != pair[1]}
        stuck = sorted(
            {
                _text(*pair)
                for pair in self._block_pairs()
                if self._stuck(*pair) and not TABLES.fullmatch(pair[1].role)
            }
        )
        if lossless and stuck:
            raise ProjectionError(
                f"{method} has no rule for {', '.join(stuck)}: give the target the ancestor's "
                "size there"
            )

    @property
    def rms(self) -> bool:
        """Whether the norms are means of squares, which do not centre."""
        return "rms" in str(self.new.traits.get("norm")).lower()

    @property
    def group(self) -> tuple[int, int] | None:
        """Query heads that each key-value head serves, before and after; None: one each."""
        if "e" not in self.sizes:
            return None
        (h, more_h), (e, more_e) = self.sizes["h"], self.sizes["e"]
        before, after = h // e, more_h // more_e
        if after < before:
            raise ProjectionError(
                f"each key-value head serves {before} heads of the ancestor and only {after} of "
                "the target: give the target more heads, or fewer key-value heads"
            )
        return before, after

    @cached_property
    def depth(self) -> list[Mix]:
        """The mix of the ancestor's blocks for each block of the target."""
        return mixes(self._depth, self.old, self.new)

    @cached_property
    def identity(self) -> list[bool]:
        """Whether each block of the target is added, and must add nothing to the stream."""
        return [i > 0 and mix == self.depth[i - 1] for i, mix in enumerate(self.depth)]

    @cached_property
    def ends(self) -> tuple[str, ...]:
        """The roles by which a block writes into the residual stream: zeros make it an identity."""
        last = r"(.+\.)?(proj|fc2)\.(weight|bias)"
        if self.new.traits.get("post_norm"):
            last = r"norm[12]\.(weight|bias)"
        pieces = {role: piece for block in self.new.blocks for role, piece in block.items()}
        return tuple(
            role
            for role, piece in pieces.items()
            if re.fullmatch(last, role) and piece.axes[0][0][0] == "d"
        )

    @cached_property
    def shared(self) -> tuple[str, ...]:
        """The norm before a head that is tied to the embedding, whose copies it cannot share."""
        token = self.new.outside.get("embed.token.weight")
        tied = token is not None and token.spec.tied and "head.weight" not in self.new.outside
        last = "pre_logits.norm" if "pre_logits.norm.weight" in self.new.outside else "norm"
        return (f"{last}.weight", f"{last}.bias") if tied else ()

    def alone(self) -> list[Mix]:
        """Return :attr:`depth` with no source for the added blocks."""
        return [() if added else mix for added, mix in zip(self.identity, self.depth, strict=True)]

    def quiet(self) -> dict[str, list[Mix]]:
        """Return mixes for :attr:`ends`, none in the added blocks, where ``new`` fills them."""
        return dict.fromkeys(self.ends, self.alone())

    def silence(self, place: Place, out: Tensor) -> bool:
        """Zero what an added block writes into the stream; False elsewhere."""
        added = place.target >= 0 and self.identity[place.target] and place.role in self.ends
        if added:
            out.zero_()
        return added

    def faults(self, uneven: Callable[[str], bool]) -> list[str]:
        """Return why the target computes another function than the ancestor.

        Args:
            uneven: of the labels of an axis that grows, whether a norm over it changes.
        """
        return [*self._differences(), *self._unproven(), *self._norms(uneven)]

    def _differences(self) -> Iterator[str]:
        old, new = self.old, self.new
        if new.family not in FAMILIES or old.family != new.family:
            yield f"no test proves it for the family {new.family}"
        for trait in TRAITS:
            if trait in old.traits and old.traits[trait] != new.traits.get(trait):
                yield f"{trait} is {new.traits.get(trait)}, not {old.traits[trait]}"
        before, after = (dict(_pieces(seen)) for seen in (old, new))
        if lost := sorted(before.keys() - after.keys()):
            yield f"the target lacks {', '.join(lost)}"
        added = (x for x in after.keys() - before.keys() if not re.fullmatch(r"ls.*|.*\.bias", x))
        if "embed.token.weight" in before:  # which is the head as well, unless there is one
            added = (x for x in added if x != "head.weight")
        if fresh := sorted(added):
            yield f"the ancestor lacks {', '.join(fresh)}"
        if len(old.extra_blocks) != len(new.extra_blocks):
            yield "the blocks off the main stack differ in number"
        other = [r for r in after if r in before and self._stuck(before[r], after[r])]
        if other:
            yield f"{', '.join(other)} are of another size, so resampled or fresh"

    def _unproven(self) -> Iterator[str]:
        deeper = self.new.blocks[0] if self.new.depth > self.old.depth else ()
        names = [
            role
            for role, piece in _pieces(self.new)
            if not PROVEN.fullmatch(role)
            and (role in deeper or any(x in self.grown for labels in piece.axes for x in labels))
        ]
        if names:
            yield f"no test proves it for {', '.join(dict.fromkeys(names))}"
        if self.new.traits.get("rope") and "k" in self.grown:
            yield "the head dim grows, and rotations of its channels depend on it"

    def _norms(self, uneven: Callable[[str], bool]) -> Iterator[str]:
        over = {
            role: " ".join(piece.axes[0])
            for role, piece in _pieces(self.new)
            if re.search(r"norm[^.]*\.weight", role)
            and len(piece.axes) == 1
            and any(label in self.grown for label in piece.axes[0])
        }
        norm = self.new.traits.get("norm")
        if over and norm is not None and norm not in PLAIN_NORMS:
            yield f"a {norm} over more channels is another function"
        wrong = [role for role, labels in over.items() if uneven(labels)]
        if wrong:
            yield f"{', '.join(wrong)} average over channels that are not copied equally often"

    def _block_pairs(self) -> Iterator[tuple[Piece, Piece]]:
        for old, new in ((self.old.blocks, self.new.blocks), tuple(
            [block for _, block in seen.extra_blocks] for seen in (self.old, self.new)
        )):  # fmt: skip
            for block in new:
                for role, piece in block.items():
                    if old and role in old[0]:
                        yield old[0][role], piece

    def _stuck(self, old: Piece, new: Piece) -> bool:
        """Whether an axis differs in size and not because of a label that grows."""
        return old.axes != new.axes or any(
            a != b and labels != ("b",) and not any(label in self.grown for label in labels)
            for a, b, labels in zip(old.size, new.size, new.axes, strict=True)
        )


def claim(name: str, faults: Sequence[str], condition: str = "") -> tuple[str, list[str]]:
    """Return for the report a few words for each row, and what to say once.

    Args:
        name: of the method.
        faults: from :meth:`Growth.faults`.
        condition: on which the function is kept, if any.

    Examples:
        >>> claim("LEMON", ["the head is fresh"])
        ('LEMON', ['LEMON is not lossless here: the head is fresh'])
    """
    if faults:
        return name, [f"{name} is not lossless here: {'; '.join(faults)}"]
    words = f"{name}, lossless{' with eps as noted' if condition else ''}"
    return words, [f"{name} is lossless here{condition}"]


def sizes_of(seen: Anatomy) -> Mapping[str, int]:
    """Return the sizes of the labels, that of grouped key-value heads among them."""
    for piece in seen.blocks[0].values():
        for labels, size in zip(piece.axes, piece.size, strict=True):
            if labels == ("e", "k"):
                return {**seen.sizes, "e": size // seen.sizes["k"]}
    return seen.sizes


def _pieces(seen: Anatomy) -> Iterator[tuple[str, Piece]]:
    for block in (*seen.blocks[:1], *(block for _, block in seen.extra_blocks), seen.outside):
        yield from block.items()


def _text(old: Piece, new: Piece) -> str:
    return f"{new.role} ({'x'.join(map(str, old.size))} -> {'x'.join(map(str, new.size))})"
