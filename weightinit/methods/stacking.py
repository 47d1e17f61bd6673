"""Stacking: a deeper network of the same width, from the blocks of a shallower one.

Gong et al., "Efficient Training of BERT by Progressively Stacking", ICML 2019
(http://proceedings.mlr.press/v97/gong19a.html), and its successors: see the rules of
:mod:`weightinit.inherit.depth`.
"""

from __future__ import annotations

from dataclasses import dataclass

from weightinit.anatomy import Anatomy, Difference
from weightinit.errors import ProjectionError
from weightinit.inherit.depth import Depth, mixes
from weightinit.inherit.method import Source
from weightinit.inherit.transfer import Transfer, transfer_parts
from weightinit.recipes import Inheritance

__all__ = ["Stacking"]


@dataclass(frozen=True)
class Stacking:
    """Options of growth in depth alone.

    Args:
        depth: depth rule: ``"stack"`` (whole copies, StackBERT), ``"stack_top"`` (the rest from the
            top blocks, bert2BERT), ``"interlace"`` (each block several times in a row), ``"solar"``
            (two overlapping copies), ``"interpolate"`` (between neighbours), or any other rule of
            :mod:`weightinit.inherit.depth`, or the ancestor's block for each, ``[0, 1, 0, 1]``.

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
        difference = Difference(old, target)
        if any(after < before for before, after in difference.depths.values()):
            raise ProjectionError(
                f"stacking only grows, and the target has {target.depth} of {old.depth} blocks: "
                "use method='weight_selection', which shrinks"
            )
        depth = mixes(self.depth, old, target)
        if wider := difference.wider:
            raise ProjectionError(
                f"stacking grows depth alone, and the target differs in {Difference.text(wider)}: "
                "use method='bert2bert' or 'ligo', which grow width and depth"
            )
        how = f"stacked by {self.depth!r}" if isinstance(self.depth, str) else "stacked"
        transfer = Transfer(lambda label, place: None, depth, how)
        copied = "Stacking is not lossless here: blocks are repeated, which changes the function"
        notes = [copied] if difference.grown else []
        return Inheritance(transfer_parts(source, target, transfer, seed=seed), notes)
