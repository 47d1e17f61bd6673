"""Activation-aware projection: a smaller network that does on a few batches what its ancestor does.

Ours. No training, no labels: principal directions of the residual stream (as in SliceGPT, Ashkboos
et al., https://arxiv.org/abs/2401.15024), one matrix for all blocks here, and least squares.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from weightinit.anatomy import Anatomy, Labels, Piece, facts
from weightinit.errors import ProjectionError
from weightinit.inherit.axis import Axis
from weightinit.inherit.calibration import Calibration, Generated
from weightinit.inherit.method import Runnable
from weightinit.inherit.running import Running
from weightinit.inherit.transfer import Place, Transfer, transfer_parts
from weightinit.init.operators import Mix, along
from weightinit.methods.activation.blocks import Blocks, Values
from weightinit.methods.activation.head import fit_head, readers
from weightinit.methods.activation.observation import Observation, picks
from weightinit.methods.activation.pace import Pace
from weightinit.methods.activation.pool import fit_pool, pools
from weightinit.methods.activation.postnorm import fit_post_norm, unlike
from weightinit.methods.activation.stream import (
    Entry,
    Stream,
    centres,
    groups_of,
    principal,
)
from weightinit.methods.subcloning import check_shrinking
from weightinit.recipes import Inheritance, Part
from weightinit.text import first

__all__ = ["LOW_RATE", "ActivationAware", "obstacle"]

#: What a block must hold; all else must belong to one of its two branches.
NEEDED = {f"{role}.weight" for role in ("norm1", "norm2", "attn.proj", "mlp.fc1", "mlp.fc2")}
#: Where outside the blocks a parameter may touch a stream that is rotated.
PLACES = ("before", "final norm", "reads")
#: By what the ridge is stronger on generated data, which say less of what a network is used for.
DOUBT = 2.0
#: What the report says besides.
LARGER = (
    "the residual stream between blocks is {:.3g} times the ancestor's; norms undo that, so the "
    "function is the same, but features taken from between the blocks are that much larger"
)
PACED = (
    "train what was fitted with AdamW at about the learning rate of random weights, 3e-4 to 1e-3, "
    "and a new head too: its weights are large enough for that"
)
LOW_RATE = (
    "train what was inherited with a low learning rate: start with about 2e-5 to 1e-4 (AdamW), "
    "where random weights want about ten times as much, and a new head too"
)


@dataclass(frozen=True)
class ActivationAware:
    """Fit the target to what the ancestor does on a few unlabelled batches, in closed form.

    The residual stream is projected onto its principal directions, by one matrix P for all blocks;
    heads and neurons are kept by how much of their block's output they explain; neighbouring blocks
    become one where the stream changes least; and all that reads and writes the stream is repaired
    by ridge regression, block after block, on what the smaller network itself computes
    (:class:`~weightinit.methods.activation.blocks.Blocks`). Gains, biases and layer scales end up
    in the matrices beside them. At full size the function is the ancestor's.

    The method needs ``calibration=``, for which ``"generated"`` serves too: 5 to 20 batches of 128
    images do, several times as many samples (of images, for the head) as the ancestor has channels.
    The regressions look at 32 tokens a channel, drawn from all batches. It holds the streams of all
    batches, the ancestor's and the target's, that is batches x tokens x (embed_dim of both) x 4
    bytes, and what the regressions look at. The ancestor's blocks run once on all batches and once
    more on part of them, the target's twice in part; the choice of neurons and the regressions come
    on top, and cost no more with more batches than those tokens need. The method serves blocks with
    a norm before attention and MLP, and those of BERT with a norm after each
    (:func:`~weightinit.methods.activation.postnorm.fit_post_norm`), of which whole encoders become
    narrower, with pooling layers and heads; those whose words are tied to a head keep embed_dim.
    Attention pools (SigLIP's, :func:`~weightinit.methods.activation.pool.fit_pool`) are fitted as
    one block more. The report says which learning rate the weights want.

    Args:
        ridge: strength of the regressions' ridge towards the ancestor's own weights, relative to
            the inputs' mean variance; twice as much on generated data.
        paced: whether a smaller target's weights are made so large, its function being the same,
            that steps of AdamW at the rate of random weights do not overwrite them
            (:class:`~weightinit.methods.activation.pace.Pace`); for SGD, pass False.

    Raises:
        ProjectionError: if ``ridge`` is not positive.

    Examples:
        >>> import timm, torch, weightinit as wi
        >>> old, new = (
        ...     timm.create_model("vit_tiny_patch16_224", depth=n, embed_dim=d, num_heads=d // 32,
        ...                       img_size=32, num_classes=5) for n, d in ((4, 96), (3, 64)))
        >>> batches = [torch.randn(8, 3, 32, 32) for _ in range(5)]
        >>> wi.project_from(old, new, method=wi.ActivationAware(), calibration=batches) is new
        True
    """

    ridge: float = 0.1
    paced: bool = True

    def __post_init__(self) -> None:
        """Check the values."""
        if not self.ridge > 0:
            raise ProjectionError(f"ridge={self.ridge}: pass a positive number, such as 0.1")

    def plan(
        self, source: Runnable, target: Anatomy, *, seed: int = 0, calibration: Calibration = None
    ) -> Inheritance:
        """Return a part for every piece of a target that is no larger on any axis.

        Raises:
            ProjectionError: if the target is larger, if the blocks are of another kind, or if there
                is no calibration.
        """
        old = source.anatomy
        check_shrinking(old, target, "activation-aware projection")
        _check(old, target)
        ridge = self.ridge * (DOUBT if isinstance(calibration, Generated) else 1.0)
        fit = _fit(Running(source, calibration), target, ridge, paced=self.paced)
        narrower = old.sizes["d"] != target.sizes["d"]
        read, write, shift = fit.stream.read.T.cpu(), fit.stream.write.cpu(), fit.shift

        def axes(labels: Labels, place: Place) -> Axis | None:
            if not labels.stream:
                return None
            if fit.entry is not None and place.facts.place == "before":
                return Axis(_cast(fit.entry.write.cpu()), _cast(read))
            if fit.pace.stream != 1.0 and place.facts.place == "before":
                return Axis(_cast(write * fit.pace.stream), _cast(read))
            if fit.entry is not None and place.facts.place == "first norm":
                gain, bias = (x.cpu() * fit.pace.stream for x in (fit.entry.gain, fit.entry.shift))
                return Axis(_constant(bias), read, _constant(gain))
            if shift is not None and place.facts.place == "final norm":
                return Axis(_constant(shift), read, _constant(torch.ones_like(shift)))
            return Axis(_cast(write), _cast(read)) if narrower else None

        depth: list[Mix] = [((group[0], 1.0),) for group in fit.groups]
        transfer = Transfer(axes, depth, "principal directions")
        parts = transfer_parts(source, target, transfer, seed=seed)
        parts |= _fitted(target.outside, fit.head, "")
        for group, block, values in zip(fit.groups, target.blocks, fit.blocks, strict=True):
            where = f" of block{'s' * (len(group) > 1)} {', '.join(map(str, group))}"
            parts |= _fitted(block, values, where)
        said = [LARGER.format(fit.pace.stream)] if fit.pace.stream != 1.0 else []
        return Inheritance(parts, [*said, PACED if fit.pace.reached else LOW_RATE])


def _constant(values: Tensor) -> Callable[[Tensor, int], Tensor]:
    return lambda tensor, _: values.to(tensor)


def _cast(matrix: Tensor) -> Callable[[Tensor, int], Tensor]:
    return lambda tensor, dim: along(tensor, dim, matrix.to(tensor))


def _fitted(pieces: Mapping[str, Piece], values: Values, where: str) -> dict[Piece, Part]:
    """Return the parts of the pieces whose values were fitted."""

    def part(role: str) -> Part:
        how = "fitted on data"
        text = f"{role}{where} ({how})"
        return Part("written", text, lambda out: out.copy_(values[role]), how=how)

    return {piece: part(role) for role, piece in pieces.items() if role in values}


def obstacle(old: Anatomy, new: Anatomy) -> str:
    """Return why a target is better not fitted; nothing if blocks, heads and tables can be."""
    heads = [
        (old.sizes[x], new.sizes[x]) for x in ("k", "kp") if {x} <= {*old.sizes} & {*new.sizes}
    ]
    for before, after in heads:
        if before != after:
            return f"heads have {before} channels, and {after} here"
    if text := _unlike(old, new):
        return text
    # Tables of relative positions are neither resampled nor, where all blocks share one, chosen.
    inside, shared = (
        any(piece.facts.kind == "table" for piece in pieces.values())
        for pieces in (old.blocks[0], old.outside)
    )
    if (inside or shared) and old.traits.grid != new.traits.grid:
        return "tables of relative positions are not resampled by a fit"
    if shared and old.sizes["h"] != new.sizes["h"]:
        return "all blocks share a table of relative positions for each head"
    return "several heads share one key head" if "e" in old.widths else ""


def _check(old: Anatomy, new: Anatomy) -> None:
    """Raise ProjectionError if blocks or stream are of a kind that P cannot be put into."""
    if text := _unlike(old, new):
        raise ProjectionError(f"{text}; or use method='subcloning'")


def _unlike(old: Anatomy, new: Anatomy) -> str:
    """Return what of blocks or stream is of a kind that P cannot be put into."""
    roles = {role for block in (*old.blocks, *new.blocks) for role in block}
    wrong = sorted(role for role in roles if facts(role).serves not in ("attn", "mlp"))
    wrong += [f"no {role}" for role in sorted(NEEDED - roles)]
    wrong += sorted({stack for stack, _ in (*old.extra_blocks, *new.extra_blocks)})
    if old.traits.form == "post_norm":
        wrong += [f"no {role}" for role in unlike(old, new)]
    elif old.traits.form not in (None, "pre_norm"):
        wrong.append("norms after attention and MLP")
    if wrong:
        return (
            "activation-aware projection needs blocks with a norm before attention and before the "
            f"MLP, and these have {first(wrong)}"
        )
    changed = [x for x in ("hp", "kp", "mp") if old.sizes.get(x) != new.sizes.get(x)]
    if old.sizes["d"] == new.sizes["d"] and changed and not pools(old, new):
        return f"an attention pool of this kind does not follow a change of {', '.join(changed)}"
    wrong = _unfollowed(old, new) if old.sizes["d"] != new.sizes["d"] else []
    if wrong:
        return (
            f"{first(wrong)} cannot follow a rotation of the stream's channels: keep embed_dim = "
            f"{old.sizes['d']}"
        )
    return ""


def _unfollowed(old: Anatomy, new: Anatomy) -> list[str]:
    """Return what touches the stream outside the blocks, and cannot follow a rotation of it."""
    first = {"norm_pre.weight", "norm_pre.bias"} & new.outside.keys()
    pooled = {r for r, piece in old.outside.items() if piece.facts.pooling and pools(old, new)}
    return [
        role
        for role, piece in old.outside.items()
        if any(labels.stream for labels in piece.axes)
        and piece.facts.place not in PLACES
        and role not in first | pooled
    ] + [f"tied {role}" for role, piece in old.outside.items() if piece.spec.tied]


@dataclass(frozen=True)
class _Fit:
    """The outcome of the fit on the calibration batches."""

    stream: Stream
    groups: list[list[int]]  # the ancestor's blocks that each block of the target is made of
    blocks: list[Values]
    head: Values  # values of what reads the stream after the blocks
    shift: Tensor | None  # the final norm's bias, its gain being 1; None leaves the norm alone
    entry: Entry | None = None  # the norm before the blocks of a narrower target
    pace: Pace = field(default_factory=Pace)


@torch.no_grad()
def _fit(running: Running, target: Anatomy, ridge: float, *, paced: bool) -> _Fit:
    """Return all that a target is made of."""
    old, width, depth = running.anatomy, target.sizes["d"], target.depth
    if old.traits.form == "post_norm":
        post = fit_post_norm(running, target, ridge=ridge)
        return _Fit(post.stream, post.groups, post.blocks, post.outside, None)
    observed = Observation(running, most=-(-old.depth // depth))
    norm = running.owner(old.blocks[0]["norm1.weight"])
    stream = principal(running.check(observed.moment), width, centred=centres(norm))
    groups = groups_of(observed.similarity, depth)
    streams = observed.streams
    apart = bool(_unfollowed(old, target) or _unfollowed(target, old))
    pace = Pace.of(running, target, stream, observed, apart=apart) if paced else Pace()
    blocks = Blocks(running, target, stream, observed.calls, picks(streams), ridge, pace)
    entry = None if width == old.sizes["d"] else _entry(running, stream, streams)
    values, ours = blocks.shrink(groups, streams, entry)
    pooled = pools(old, target)
    if pooled:
        stays = old.sizes["mp"] == target.sizes["mp"]
    else:
        stays = bool(not readers(old, target) or _unfollowed(old, target))
    if width == old.sizes["d"] and stays:
        # What is after the blocks reads the final norm as it is.
        return _Fit(stream, groups, values, {}, None, pace=pace)
    fit_reader = fit_pool if pooled else fit_head
    head, shift = fit_reader(running, target, stream, streams, ours, ridge=ridge)
    return _Fit(stream, groups, values, head, shift, entry, pace)


def _entry(running: Running, stream: Stream, streams: list[Tensor]) -> Entry | None:
    """Return the norm of the stream before the blocks, if the ancestor has one."""
    outside = running.anatomy.outside
    pieces = [piece for piece in outside.values() if piece.facts.place == "first norm"]
    if not pieces:
        return None
    gain, bias = torch.ones_like(stream.write[0]), torch.zeros_like(stream.write[0])
    for piece in pieces:
        (bias if piece.facts.bias else gain).copy_(running.part(piece))
    centred = centres(running.owner(pieces[0]))
    return Entry.of(stream, gain, bias, streams, centred=centred)
