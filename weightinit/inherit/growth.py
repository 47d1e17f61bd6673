"""What the growing methods share: which axes grow, identity blocks, what breaks the function.

A network grows without changing its function if every channel is copied where it is made, and its
copies share the weights of what reads it; if norms see the same mean and variance; and if new
blocks add nothing to the residual stream. What breaks one of these is a fault, said in the report.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property

from torch import Tensor

from weightinit.anatomy import Anatomy, Difference, Labels, Piece, facts
from weightinit.errors import ProjectionError
from weightinit.inherit.depth import Depth, Mix, followers, mixes
from weightinit.inherit.transfer import Place

__all__ = ["Growth", "claim", "followers"]

#: Norms whose statistics are plain averages over channels; where none is named, it is one of them.
PLAIN_NORMS = ("LayerNorm", "LayerNormFp32", "RmsNorm", "RmsNormFp32", "RMSNorm")
TRAITS = ("act", "norm", "form", "pool", "rope", "grid", "pos_prefix", "prefix_tokens")


class Growth:
    """Which axes grow from an ancestor to a target.

    Args:
        method: name of the method, for messages.
        old: anatomy of the ancestor.
        new: anatomy of the target.
        depth: rule for the blocks of the target; see :func:`followers`.
        lossless: whether to refuse growth that no proof covers.

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
        difference = Difference(old, new)
        difference.forbid_shrinking(method)
        self.sizes, self.grown = difference.widths, difference.wider
        if lossless and new.traits.form == "post_norm" and new.depth > old.depth:
            raise ProjectionError(
                f"{method} adds blocks that leave the stream alone, and behind a norm of the whole "
                "stream there are none: use method='bert2bert' or 'stacking', or keep the depth "
                f"{old.depth}"
            )
        stuck = sorted(
            {
                _text(*pair)
                for pair in self._block_pairs()
                if self._stuck(*pair) and pair[1].facts.kind != "table"
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
        return not self.new.traits.centred

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
        normed = self.new.traits.form == "branch_norm"
        pieces = {role: piece for block in self.new.blocks for role, piece in block.items()}
        return tuple(
            role
            for role, piece in pieces.items()
            if (piece.facts.branch_norm if normed else piece.ends)
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

    def faults(self, uneven: Callable[[Labels], bool]) -> list[str]:
        """Return why the target computes another function; ``uneven`` tells norms that change."""
        return [*self._differences(), *self._unproven(), *self._norms(uneven)]

    def _differences(self) -> Iterator[str]:
        old, new = self.old, self.new
        if not new.traits.proven or old.family != new.family:
            yield f"no test proves it for the family {new.family}"
        for trait in TRAITS:
            was, now = getattr(old.traits, trait), getattr(new.traits, trait)
            if was is not None and was != now:
                yield f"{trait} is {now}, not {was}"
        before, after = (dict(_pieces(seen)) for seen in (old, new))
        if lost := sorted(before.keys() - after.keys()):
            yield f"the target lacks {', '.join(lost)}"
        added = (x for x in after.keys() - before.keys() if not facts(x).loose)
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
            if not piece.facts.proven and (role in deeper or any(map(self._grows, piece.axes)))
        ]
        if names:
            yield f"no test proves it for {', '.join(dict.fromkeys(names))}"
        if self.new.traits.rope not in (None, "none") and "k" in self.grown:
            yield "the head dim grows, and rotations of its channels depend on it"

    def _norms(self, uneven: Callable[[Labels], bool]) -> Iterator[str]:
        over = {
            role: piece.axes[0]
            for role, piece in _pieces(self.new)
            if piece.facts.kind == "norm"
            and piece.facts.gain
            and len(piece.axes) == 1
            and self._grows(piece.axes[0])
        }
        norm = self.new.traits.norm
        if over and norm is not None and norm not in PLAIN_NORMS:
            yield f"a {norm} over more channels is another function"
        d, more = self.sizes.get("d", (1, 1))
        if self.new.traits.form == "adaLN" and more % d:
            yield "norms without a gain average over channels that are not copied equally often"
        wrong = [role for role, labels in over.items() if uneven(labels)]
        if wrong:
            yield f"{', '.join(wrong)} average over channels that are not copied equally often"

    def _block_pairs(self) -> Iterator[tuple[Piece, Piece]]:
        others = ([block for _, block in seen.extra_blocks] for seen in (self.old, self.new))
        for old, new in ((self.old.blocks, self.new.blocks), tuple(others)):
            for block in new:
                for role, piece in block.items():
                    if old and role in old[0]:
                        yield old[0][role], piece

    def _grows(self, labels: Labels) -> bool:
        return not self.grown.keys().isdisjoint(labels)

    def _stuck(self, old: Piece, new: Piece) -> bool:
        """Whether an axis differs in size and not because of a label that grows."""
        return old.axes != new.axes or any(
            a != b and not labels.block and not self._grows(labels)
            for a, b, labels in zip(old.size, new.size, new.axes, strict=True)
        )


def claim(name: str, faults: Sequence[str], condition: str = "") -> tuple[str, list[str]]:
    """Return for the report a few words for each row, and what to say once.

    Args:
        name: name of the method.
        faults: faults from :meth:`Growth.faults`.
        condition: condition on which the function is kept, if any.

    Examples:
        >>> claim("LEMON", ["the head is fresh"])
        ('LEMON', ['LEMON is not lossless here: the head is fresh'])
    """
    if faults:
        return name, [f"{name} is not lossless here: {'; '.join(faults)}"]
    words = f"{name}, lossless{' with eps as noted' if condition else ''}"
    return words, [f"{name} is lossless here{condition}"]


def _pieces(anatomy: Anatomy) -> Iterator[tuple[str, Piece]]:
    extra_blocks = (block for _, block in anatomy.extra_blocks)
    for block in (*anatomy.blocks[:1], *extra_blocks, anatomy.outside):
        yield from block.items()


def _text(old: Piece, new: Piece) -> str:
    return f"{new.role} ({'x'.join(map(str, old.size))} -> {'x'.join(map(str, new.size))})"
