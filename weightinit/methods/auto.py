"""The method that a pair of sizes needs: lossless growth, selection, or both at once."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field

from weightinit.anatomy import Anatomy, Difference
from weightinit.errors import ProjectionError
from weightinit.inherit.calibration import Calibration
from weightinit.inherit.generated import generated_batches
from weightinit.inherit.method import Method, Runnable
from weightinit.methods.activation.method import LOW_RATE, ActivationAware, obstacle
from weightinit.methods.bert2bert import Bert2BERT
from weightinit.methods.each import EachAxis
from weightinit.methods.halfway import ShrinkThenGrow, smaller
from weightinit.methods.lemon import LEMON
from weightinit.methods.selection import WeightSelection
from weightinit.methods.subcloning import Subcloning, ranks
from weightinit.recipes import Inheritance

__all__ = ["SELECTION", "Auto"]

#: The method that shrinks without data, and the one that shrinks what cannot be fitted to data.
SELECTION = WeightSelection(depth="first_last", rescale=True)
RANKED = Subcloning(depth="first_last")


@dataclass(frozen=True)
class Auto:
    """Pick the method by what the pair needs.

    A target that is nowhere smaller grows without loss (:class:`LEMON`). A target that is nowhere
    larger is fitted to what the ancestor does (:class:`ActivationAware`): on the calibration
    batches, or without them, if it is narrower, on generated images or tokens. If its blocks cannot
    be fitted, the channels are kept that the batches make most active (:class:`Subcloning`).
    Without batches, it keeps the first blocks and the last, whole heads and evenly chosen channels,
    rescaled (:class:`WeightSelection`): if only blocks are left out, if the ancestor cannot be run,
    or if its blocks cannot be fitted. A target that is both, on different axes, is shrunk in that
    way and then grown (:class:`ShrinkThenGrow`). A model
    of several widths (ConvNeXt) grows without loss in depth and to whole multiples of its widths;
    else each axis has its own rule (:class:`EachAxis`). Post-norm blocks (BERT), to which none can
    be added without loss, are stacked (:class:`Bert2BERT`). The report says what was picked, and
    whether it is lossless; calibration batches of which no method has use are warned about.

    Args:
        generate: whether the ancestor is run on generated data where there is no ``calibration=``;
            False takes its weights alone.

    Examples:
        >>> import timm, weightinit as wi
        >>> old, new = (
        ...     wi.anatomy(timm.create_model("vit_tiny_patch16_224", depth=n, embed_dim=d))
        ...     for n, d in ((2, 96), (3, 192)))
        >>> type(Auto().choose(old, new)).__name__
        'LEMON'
    """

    generate: bool = field(default=True, repr=False)

    def choose(self, old: Anatomy, new: Anatomy, calibration: object = None) -> Method:
        """Return the method, with its options; without batches, that for the weights alone."""
        difference = Difference(old, new)
        grows, shrinks = bool(difference.grown), bool(difference.shrunk)
        if "depth" in difference.grown and new.traits.form == "post_norm":
            return EachAxis() if shrinks else Bert2BERT()
        uneven = any(after % before for before, after in difference.wider.values())
        if grows and len(new.stages) > 1 and (shrinks or uneven):
            return EachAxis()
        if grows and not shrinks:
            return LEMON()
        least = smaller(old, new) if grows else new
        method: Method = SELECTION
        if calibration is not None and shrinks and not obstacle(old, least):
            method = ActivationAware()
        elif calibration is not None and ranks(old, least):
            method = RANKED
        return ShrinkThenGrow(method) if grows else method

    def plan(
        self, source: Runnable, target: Anatomy, *, seed: int = 0, calibration: Calibration = None
    ) -> Inheritance:
        """Return what the method that was picked makes of the target, and say which it is."""
        said: list[str] = []
        if calibration is None and self.generate:
            planned, said = self._on_generated(source, target, seed)
            if planned is not None:
                return planned
        chosen = self.choose(source.anatomy, target, calibration)
        unused = calibration is not None and not _looks(chosen)
        reason = ", which has no use for calibration=" if unused else ""
        shrinks = bool(Difference(source.anatomy, target).shrunk)
        if not isinstance(_shrinking(chosen), ActivationAware):
            said += [*self._unfitted(source.anatomy, target, calibration), LOW_RATE]
        if unused and shrinks:
            warnings.warn(
                f"method 'auto' picked {type(chosen).__name__}{reason} for these models: leave it "
                "out, or choose another method=",
                stacklevel=5,
            )
        planned = chosen.plan(source, target, seed=seed, calibration=calibration)
        return _named(chosen, planned, reason, said)

    def _unfitted(self, old: Anatomy, new: Anatomy, calibration: Calibration) -> list[str]:
        """Return why a smaller target is not fitted to data, where one would expect it to be."""
        shrunk = Difference(old, new).shrunk.keys() - ({"depth"} if calibration is None else set())
        asked = shrunk and (self.generate or calibration is not None) and len(new.stages) == 1
        grown = Difference(old, new).grown
        text = obstacle(old, smaller(old, new) if grown else new) if asked else ""
        if asked and "depth" in grown and new.traits.form == "post_norm":
            text = "it has more blocks, and to post-norm blocks none is added without loss"
        return [f"not fitted to data: {text}"] if text else []

    def _on_generated(
        self, source: Runnable, target: Anatomy, seed: int
    ) -> tuple[Inheritance | None, list[str]]:
        """Return what a fit on generated data makes of the target, or None and why there is none.

        A target that is not to be fitted has no reason. One that only has fewer blocks keeps more
        by the weights alone, which then are whole blocks.
        """
        chosen = self.choose(source.anatomy, target, ())
        narrower = Difference(source.anatomy, target).shrunk.keys() - {"depth"}
        if not (narrower and isinstance(_shrinking(chosen), ActivationAware)):
            return None, []
        batches, text = generated_batches(source, seed=seed)
        if batches is not None:
            try:
                planned = chosen.plan(source, target, seed=seed, calibration=batches)
            except ProjectionError as error:
                text = f"a fit on {text} failed: {error}"
            else:
                note = f"fitted on {text}: pass calibration= with real data for better"
                return _named(chosen, planned, "", [note]), []
        return None, [f"made of the ancestor's weights alone, which keeps less ({text})"]


def _shrinking(method: Method) -> Method:
    return getattr(method, "shrink", method)


def _looks(method: Method) -> bool:
    """Return whether a method looks at data."""
    return isinstance(_shrinking(method), (ActivationAware, Subcloning))


def _named(chosen: Method, planned: Inheritance, reason: str, said: list[str]) -> Inheritance:
    """Return a plan with a note on the method that was picked."""
    picked = f"method 'auto' picked {chosen}{reason}"
    return Inheritance(planned.parts, [picked, *said, *planned.notes])
