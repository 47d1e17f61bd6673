"""What the growing methods share: which axes grow, identity blocks, what breaks the function.

A network grows without changing its function if every channel is copied where it is made, and its
copies share the weights of what reads it; if norms see the same mean and variance; and if new
blocks add nothing to the residual stream. What breaks one of these is a fault, said in the report.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cached_property

from torch import Tensor

from weightinit.anatomy import Anatomy, Difference, Labels, Piece, facts
from weightinit.errors import ProjectionError
from weightinit.inherit.depth import Depth, followers, mixes
from weightinit.inherit.transfer import Place
from weightinit.init.operators import Mix
from weightinit.text import first

__all__ = ["Growth"]

#: Norms whose statistics are plain averages over channels; where none is named, it is one of them.
PLAIN_NORMS = (
    "LayerNorm", "LayerNormFp32", "LayerNorm2d", "LayerNorm2dFp32",
    "RmsNorm", "RmsNormFp32", "RMSNorm", "RmsNorm2d", "RmsNorm2dFp32",
)  # fmt: skip
TRAITS = ("act", "norm", "form", "pool", "rope", "grid", "prefix_tokens")


class Growth:
    """Which axes grow from an ancestor to a target, and by which blocks.

    ``lossless`` refuses what changes the function; a target that is smaller anywhere is refused.

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
        self.method, self.old, self.new = method, old, new
        self._depth: Depth = depth
        difference = Difference(old, new)
        difference.forbid_shrinking(method)
        self.sizes, self.grown = difference.widths, difference.wider
        if lossless and new.traits.form == "post_norm" and new.depth > old.depth:
            raise ProjectionError(
                f"{method} adds blocks that leave the stream alone, and behind a norm of the whole "
                "stream there are none: use method='bert2bert' or 'stacking', or keep the depth "
                f"{old.depth}"
            )
        stuck = dict.fromkeys(
            f"{piece.role} ({'x'.join(map(str, own.size))} -> {'x'.join(map(str, piece.size))})"
            for own, piece, block in self._pairs
            if block and own and self._stuck(own, piece) and piece.facts.kind != "table"
        )
        if lossless and stuck:
            raise ProjectionError(
                f"{method} has no rule for {', '.join(sorted(stuck))}: give the target the "
                "ancestor's size there"
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

    @property
    def reordered(self) -> bool:
        """Whether the target has other blocks than the ancestor's, one for one."""
        return self.depth != mixes("first", self.old, self.old)

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
        words = self.new.word_table
        tied = words is not None and words.spec.tied and "head.weight" not in self.new.outside
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

    def claim(
        self,
        name: str,
        uneven: Callable[[Labels], bool],
        more: Iterable[str] = (),
        condition: str = "",
    ) -> tuple[str, list[str]]:
        """Return for the report a few words for each row, and what to say once.

        ``uneven`` tells the axes over which norms change, ``more`` are further faults of the
        method, and ``condition`` is that on which the function is kept.
        """
        faults = [*self._differences(), *self._norms(uneven), *more]
        doubts = list(self._unproven())
        if faults:
            return name, [f"{name} is not lossless here: {'; '.join([*faults, *doubts])}"]
        if doubts:
            return name, [f"{name} is not proven lossless here{condition}: {'; '.join(doubts)}"]
        words = f"{name}, lossless{' with eps as noted' if condition else ''}"
        return words, [f"{name} is lossless here{condition}"]

    def eps(self, ratio: float) -> str:
        """Return the condition on the norms' eps where the stream holds more than its copies."""
        if ratio == 1:
            return ""
        others = any(
            piece.facts.kind == "norm" and not piece.axes[0].stream for _, piece, _ in self._pairs
        )
        which = ", in the norms over the residual stream alone" if others else ""
        return f" if you set the norms' eps to {ratio:.6g} of the ancestor's{which}"

    @cached_property
    def _pairs(self) -> list[tuple[Piece | None, Piece, bool]]:
        """Each piece of the target, with the ancestor's of its place; and whether in a block."""
        begins = dict(reversed(self.old.extra_blocks))
        pairs = [(begins.get(stack, {}), block, True) for stack, block in self.new.extra_blocks]
        for mix, block in zip(self.depth, self.new.blocks, strict=True):
            own = self.old.blocks[mix[0][0]] if mix else {}
            pairs.append((own, block, True))
        pairs.append((self.old.outside, self.new.outside, False))
        return [(own.get(r), p, inside) for own, new, inside in pairs for r, p in new.items()]

    def _differences(self) -> Iterator[str]:
        old, new = self.old, self.new
        for trait in TRAITS:
            was, now = getattr(old.traits, trait), getattr(new.traits, trait)
            if was is not None and was != now:
                yield f"{trait} is {now}, not {was}"
        before, after = (
            dict.fromkeys(role for block in (*x.all_blocks, x.outside) for role in block)
            for x in (old, new)
        )
        if lost := sorted(before.keys() - after.keys()):
            yield f"the target lacks {', '.join(lost)}"
        added = (x for x in after.keys() - before.keys() if not facts(x).loose)
        if old.word_table is not None:  # which is the head as well, unless there is one
            added = (x for x in added if x != "head.weight")
        if fresh := sorted(added):
            yield f"the ancestor has nothing for {', '.join(fresh)}"
        if kept := _listed(piece.spec.role for piece in new.kept_pieces):
            yield f"the target keeps its own {kept}"
        if len(old.extra_blocks) != len(new.extra_blocks):
            yield "the blocks off the main stack differ in number"
        other = [
            p.role
            for own, p, _ in self._pairs
            if own and self._stuck(own, p) and not self._longer(own, p)
        ]
        if other:
            yield f"{_listed(other)} are of another size, so resampled or fresh"
        if new.traits.rope not in (None, "none") and "k" in self.grown:
            yield "the head dim grows, and rotations of its channels depend on it"

    def _unproven(self) -> Iterator[str]:
        if not self.new.traits.proven or self.old.family != self.new.family:
            yield f"no test proves it for the family {self.new.family}"
        if spare := [spec.name for spec in self.new.unexplained]:
            yield f"no rule explains {first(spare)}"
        deeper = self.reordered
        names = [
            piece.role
            for _, piece, inside in self._pairs
            if not piece.facts.proven and ((inside and deeper) or any(map(self._grows, piece.axes)))
        ]
        if names:
            yield f"no test proves it for {_listed(names)}"

    def _norms(self, uneven: Callable[[Labels], bool]) -> Iterator[str]:
        over = {
            piece.role: piece.axes[0]
            for _, piece, _ in self._pairs
            if piece.facts.kind == "norm"
            and piece.facts.gain
            and len(piece.axes) == 1
            and self._grows(piece.axes[0])
        }
        norm = self.new.traits.norm
        if over and norm is not None and norm not in PLAIN_NORMS:
            yield f"a {norm} over more channels is another function"
        wrong = [role for role, labels in over.items() if uneven(labels)]
        if wrong:
            yield f"{', '.join(wrong)} average over channels that are not copied equally often"

    def _longer(self, old: Piece, new: Piece) -> bool:
        """Whether a table of words or of positions in a text has new rows behind the old ones."""
        rows = self.new.is_table(new) and new.facts.kind != "token" and new.size[0] >= old.size[0]
        return rows and all(
            a == b or self._grows(labels)
            for a, b, labels in zip(old.size[1:], new.size[1:], new.axes[1:], strict=True)
        )

    def _grows(self, labels: Labels) -> bool:
        return not self.grown.keys().isdisjoint(labels)

    def _stuck(self, old: Piece, new: Piece) -> bool:
        """Whether an axis differs in size and not because of a label that grows."""
        return old.axes != new.axes or any(
            a != b and not labels.block and not self._grows(labels)
            for a, b, labels in zip(old.size, new.size, new.axes, strict=True)
        )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(names))
