"""Stacking: a deeper network of the same width, from the blocks of a shallower one.

Gong et al., "Efficient Training of BERT by Progressively Stacking", ICML 2019
(http://proceedings.mlr.press/v97/gong19a.html), and its successors: see the rules of
:mod:`weightinit.inherit.depth`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from weightinit.anatomy import Anatomy
from weightinit.errors import ProjectionError
from weightinit.inherit.depth import Depth, Mix, mixes
from weightinit.inherit.transfer import Source, Transfer, transfer_parts
from weightinit.plan import Inheritance

__all__ = ["Stacking"]


@dataclass(frozen=True)
class Stacking:
    """Options of growth in depth alone.

    Args:
        depth: depth rule: ``"stack"`` (whole copies, StackBERT), ``"stack_top"`` (the rest from the
            top blocks, bert2BERT), ``"interlace"`` (each block several times in a row), ``"solar"``
            (two overlapping copies), ``"interpolate"`` (between neighbours), or any other rule of
            :mod:`weightinit.inherit.depth`.

    Examples:
        >>> import timm, torch, weightinit as wi
        >>> old, new = (timm.create_model("vit_tiny_patch16_224", depth=n) for n in (2, 4))
        >>> _ = wi.project_from(old, new, method=wi.Stacking())
        >>> bool(torch.equal(new.blocks[3].mlp.fc1.weight, old.blocks[1].mlp.fc1.weight))
        True
    """

    depth: Depth = "stack"

    def plan(
        self, source: Source, target: Anatomy, *, seed: int = 0, calibration: object = None
    ) -> Inheritance:
        """Return a part for every piece of a target of the same width.

        Raises:
            ProjectionError: if the target is shallower, or of another width, head count or MLP.
        """
        old = source.anatomy
        if target.depth < old.depth:
            raise ProjectionError(
                f"stacking only grows, and the target has {target.depth} of {old.depth} blocks: "
                "use method='weight_selection', which shrinks"
            )
        depth = mixes(self.depth, old, target)
        differing = sorted(set(_differing(old, target, depth)))
        if differing:
            raise ProjectionError(
                f"stacking grows depth alone, and the target differs in {', '.join(differing)}: "
                "use method='bert2bert' or 'ligo', which grow width and depth"
            )
        how = f"stacked by {self.depth!r}" if isinstance(self.depth, str) else "stacked"
        transfer = Transfer(lambda label, place: None, depth, how)
        return Inheritance(transfer_parts(source, target, transfer, seed=seed))


def _differing(old: Anatomy, new: Anatomy, depth: list[Mix]) -> Iterator[str]:
    """Yield what is not alike in the blocks: axes of other lengths, or other heads of that length.

    Head counts that a bare state dict does not tell are not compared.
    """
    for label in ("h", "k"):
        if label in old.sizes and label in new.sizes and old.sizes[label] != new.sizes[label]:
            yield f"{label} ({old.sizes[label]} -> {new.sizes[label]})"
    for block, mix in zip(new.blocks, depth, strict=True):
        for piece in block.values():
            for index, _ in mix:
                own = old.blocks[index].get(piece.role)
                if own is None or own.size == piece.size or piece.facts.kind == "table":
                    continue
                for labels, before, after in zip(piece.axes, own.size, piece.size, strict=False):
                    if before != after:
                        yield f"{labels} ({before} -> {after})"
