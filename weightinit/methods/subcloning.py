"""Weight subcloning: keep the channels that a pretrained network's activations rank first.

Samragh et al., "Weight subcloning: direct initialization of transformers using larger pretrained
ones", https://arxiv.org/abs/2312.09299.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from weightinit.anatomy import Anatomy, Difference, Labels, Piece, label_of
from weightinit.errors import ProjectionError
from weightinit.inherit.axis import Axis
from weightinit.inherit.calibration import Calibration
from weightinit.inherit.depth import Depth, mixes
from weightinit.inherit.method import Runnable
from weightinit.inherit.running import Running, exact, watching
from weightinit.inherit.transfer import Place, Transfer, transfer_parts
from weightinit.init.operators import along, joint_index
from weightinit.recipes import Inheritance

__all__ = ["Subcloning", "check_shrinking", "mean_inputs", "ranks"]

#: What a head consists of.
_WHOLE = {
    "k": "the head dim (embed_dim / num_heads)",
    "e": "the number of key heads",
    "j": "the head dim of a map",
    "kp": "the head dim of the attention pool",
}
#: Labels of heads, and the axis of their channels.
_HEADS = {"h": ("h", "k"), "hp": ("hp", "kp")}


@dataclass(frozen=True)
class Subcloning:
    """Rank channels by their mean absolute activation, and keep the first.

    The residual stream has one ranking that all blocks share, over all that reads it; hidden
    neurons and whole heads have one a block. The method needs ``calibration=``, a few unlabelled
    batches. No code was published; what the paper leaves open is as said here.

    Args:
        depth: blocks to keep: ``"uniform"`` keeps the first and the last and drops evenly between;
            or their numbers, ``[0, 2, 4]``.
        rescale: whether to multiply what reads a shortened axis by the root of the ratio of its
            lengths, to make up for the summands that are gone.

    Examples:
        >>> import timm, torch, weightinit as wi
        >>> old, new = (
        ...     timm.create_model("vit_tiny_patch16_224", depth=2, embed_dim=d, num_heads=d // 32,
        ...                       img_size=32, num_classes=5) for d in (96, 64))
        >>> batches = [torch.randn(2, 3, 32, 32)]
        >>> wi.project_from(old, new, method=wi.Subcloning(), calibration=batches) is new
        True
    """

    depth: Depth = "uniform"
    rescale: bool = True

    def plan(
        self, source: Runnable, target: Anatomy, *, seed: int = 0, calibration: Calibration = None
    ) -> Inheritance:
        """Return a part for every piece of a target that is no larger on any axis.

        Raises:
            ProjectionError: if the target is larger or differs in what has no ranking, or if there
                is no calibration.
        """
        check_shrinking(source.anatomy, target, "weight subcloning")
        means = mean_inputs(Running(source, calibration))
        difference = Difference(source.anatomy, target)

        def axes(labels: Labels, place: Place) -> Axis | None:
            sizes = difference.along(labels)
            if sizes is None:
                return None
            size, number = sizes[0]
            unit = sizes[1][0] if len(sizes) > 1 else 1
            mean = _mean(means, labels, place.source, size, number)
            order = mean.sort(descending=True, stable=True).indices[:number]
            index = joint_index(order, torch.arange(unit), unit)
            if not self.rescale:
                return Axis(index, index)
            factor = (size / number) ** 0.5
            return Axis(index, lambda tensor, dim: along(tensor, dim, index) * factor)

        transfer = Transfer(axes, mixes(self.depth, source.anatomy, target), "ranked by activation")
        return Inheritance(transfer_parts(source, target, transfer, seed=seed))


def _mean(
    means: Mapping[tuple[int, Labels], Tensor], labels: Labels, block: int, size: int, number: int
) -> Tensor:
    """Return the mean activation of what an axis of a block is chosen by, ``[size]``."""
    # Tables and gates of heads alone are chosen as the heads' channels are.
    ranked = Labels(_HEADS.get(labels[0], labels))
    matching = [
        mean / mean.mean().clamp_min(torch.finfo(mean.dtype).tiny)
        for (place, others), mean in means.items()
        if others == ranked and (labels.stream or place == block)
    ]
    if not matching:
        raise ProjectionError(
            f"nothing tells which of {labels} to keep ({size} -> {number}): use "
            "method='weight_selection', which needs no activations"
        )
    mean = torch.stack(matching).mean(0)
    return mean.view(size, -1).mean(1) if labels[0] in _HEADS else mean


def mean_inputs(running: Running) -> dict[tuple[int, Labels], Tensor]:
    """Return the mean absolute value of each channel of what matrices read, in float64.

    The keys are the block of the main stack, or -1 outside, and the labels of the axis; the means
    ``[channels]`` are over batches, and over matrices that read the same axis there.
    """
    totals: dict[tuple[int, Labels], list[Tensor]] = {}
    watched: dict[nn.Module, list[tuple[int, Piece]]] = {}
    for index, piece in _readers(running.anatomy):
        if running.bare(piece):
            continue
        watched.setdefault(running.owner(piece), []).append((index, piece))

    def see(module: nn.Module, x: Tensor) -> None:
        x = exact(x.movedim(1, -1) if isinstance(module, nn.Conv2d) else x).abs()
        start = 0
        for index, piece in watched[module]:
            width = piece.size[1]
            # Matrices stored side by side read one after the other.
            begin = start if start + width <= x.shape[-1] and x.shape[-1] != width else 0
            start = begin + width
            mean = x[..., begin:start].flatten(0, -2).sum(0), x[..., 0].numel()
            key = index, piece.axes[1]
            entry = totals.setdefault(key, [torch.zeros_like(mean[0]), torch.zeros(())])
            entry[0] += mean[0]
            entry[1] += mean[1]

    with watching({module: lambda x, m=module: see(m, x) for module in watched}):
        for number in range(len(running.calls)):
            running.run(number)
    return {key: running.check(total / count).cpu() for key, (total, count) in totals.items()}


def _readers(old: Anatomy) -> Iterator[tuple[int, Piece]]:
    """Yield the matrices that read channels, each with its block of the main stack or -1."""
    places = [(-1, old.outside), *((-1, block) for _, block in old.extra_blocks)]
    for index, pieces in (*places, *enumerate(old.blocks)):
        for piece in pieces.values():
            matrix = len(piece.axes) > 1 and piece.side(1) == "columns"
            kinds = {label_of(label).kind for labels in piece.axes for label in labels}
            if matrix and "patch" not in kinds:
                yield index, piece


def ranks(old: Anatomy, new: Anatomy) -> bool:
    """Return whether something is left out of the target, and activations tell what."""
    try:
        check_shrinking(old, new, "weight subcloning")
    except ProjectionError:
        return False
    difference = Difference(old, new)
    read = {(index >= 0, piece.axes[1]) for index, piece in _readers(old)}
    # What all blocks share has no ranking of its own but for the stream.
    places = [(True, block) for block in old.blocks]
    places += [(False, pieces) for pieces in (old.outside, *(x for _, x in old.extra_blocks))]
    shorter = {
        (inside, Labels(_HEADS.get(labels[0], labels)))
        for inside, pieces in places
        for piece in pieces.values()
        for labels in piece.axes
        if difference.along(labels)
    }
    return bool(shorter) and all(labels.stream or (x, labels) in read for x, labels in shorter)


def check_shrinking(old: Anatomy, new: Anatomy, method: str) -> None:
    """Raise ProjectionError if a target is larger anywhere, or its heads are of another size."""
    difference = Difference(old, new)
    difference.forbid_growth(method)
    for label, name in _WHOLE.items():
        before, after = (model.sizes.get(label) or model.widths.get(label) for model in (old, new))
        if before is not None and after is not None and before != after:
            raise ProjectionError(
                f"{method} keeps whole heads, and {name} {before} -> {after} differs: "
                "keep the ancestor's in the target, or use method='weight_selection'"
            )
    if "e" in difference.widths and "h" in difference.shrunk:
        raise ProjectionError(
            f"{method} keeps whole heads, and the ancestor's share keys and values: keep its "
            f"{old.sizes['h']} heads in the target"
        )
