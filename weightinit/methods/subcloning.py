"""Weight subcloning: keep the channels that a pretrained network's activations rank first.

Samragh et al., "Weight subcloning: direct initialization of transformers using larger pretrained
ones", https://arxiv.org/abs/2312.09299.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from weightinit.anatomy import Anatomy, Difference, Labels, Piece, label_of
from weightinit.errors import ProjectionError
from weightinit.inherit.axis import Axis
from weightinit.inherit.depth import Depth, mixes
from weightinit.inherit.running import Runnable, Running, exact, watching
from weightinit.inherit.transfer import Axes, Place, Transfer, transfer_parts
from weightinit.init.operators import along, joint_index
from weightinit.plan import Inheritance

__all__ = ["Subcloning", "check_shrinking", "mean_inputs"]


@dataclass(frozen=True)
class Subcloning:
    """Rank channels by their mean absolute activation, and keep the first.

    The residual stream has one ranking that all blocks share, over all that reads it; hidden
    neurons and whole heads have one a block. Needs ``calibration=``, a few unlabelled batches. No
    code was published; what the paper leaves open is as said here.

    Args:
        depth: which blocks: ``"uniform"`` keeps the first and the last and drops evenly between.
        rescale: multiplies what reads a shortened axis by the root of the ratio of its lengths, to
            make up for the summands that are gone.

    Examples:
        >>> import timm, torch, weightinit as wi
        >>> old, new = (
        ...     timm.create_model("vit_tiny_patch16_224", depth=2, embed_dim=d, num_heads=d // 32,
        ...                       img_size=32, num_classes=5) for d in (96, 64))
        >>> batches = [torch.randn(2, 3, 32, 32)]
        >>> wi.project_from(old, new, method=Subcloning(), calibration=batches) is new
        True
    """

    depth: Depth = "uniform"
    rescale: bool = True

    def plan(
        self,
        source: Runnable,
        target: Anatomy,
        *,
        seed: int = 0,
        calibration: Iterable[Any] | None = None,
    ) -> Inheritance:
        """Return a part for every piece of a target that is no larger on any axis.

        Raises:
            ProjectionError: if it is larger, differs in what has no ranking, or if there is no
                calibration.
        """
        check_shrinking(source.anatomy, target, "weight subcloning")
        running = Running(source, calibration)
        axes = self._axes(mean_inputs(running), source.anatomy, target)
        depth = mixes(self.depth, source.anatomy, target)
        transfer = Transfer(axes, depth, "ranked by activation")
        return Inheritance(transfer_parts(source, target, transfer, seed=seed))

    def _axes(self, means: Mapping[tuple[int, Labels], Tensor], old: Anatomy, new: Anatomy) -> Axes:
        known: dict[tuple[int, Labels], Axis | None] = {}

        def find(labels: Labels, place: Place) -> Axis | None:
            key = (-1 if labels.stream else place.source), labels
            if key not in known:
                known[key] = self._axis(means, *key, old, new)
            return known[key]

        return find

    def _axis(
        self,
        means: Mapping[tuple[int, Labels], Tensor],
        index: int,
        labels: Labels,
        old: Anatomy,
        new: Anatomy,
    ) -> Axis | None:
        if any(label not in old.sizes or label not in new.sizes for label in labels):
            return None
        if all(old.sizes[label] == new.sizes[label] for label in labels):
            return None
        unit = old.sizes[labels[1]] if len(labels) > 1 else 1
        # Of heads alone, their tables and gates are chosen as their channels are.
        heads = labels[0] == "h"
        ranked = Labels(("h", "k")) if heads else labels
        found = [
            mean / mean.mean().clamp_min(torch.finfo(mean.dtype).tiny)
            for (block, others), mean in means.items()
            if others == ranked and (labels.stream or block == index)
        ]
        if not found:
            raise ProjectionError(
                f"nothing tells which of {labels} to keep ({old.sizes[labels[0]]} -> "
                f"{new.sizes[labels[0]]}): use method='weight_selection', which needs no "
                "activations"
            )
        mean = torch.stack(found).mean(0)
        if heads:
            mean = mean.view(old.sizes["h"], -1).mean(1)
        size = new.sizes[labels[0]]
        order = mean.sort(descending=True, stable=True).indices[:size]
        chosen = joint_index(order, torch.arange(unit), unit)
        scale = (old.sizes[labels[0]] / size) ** 0.5
        if not self.rescale:
            return Axis(chosen, chosen)
        return Axis(chosen, lambda tensor, dim: along(tensor, dim, chosen) * scale)


def mean_inputs(running: Running) -> dict[tuple[int, Labels], Tensor]:
    """Return the mean absolute value of each channel of what matrices read, in float64.

    Args:
        running: the ancestor.

    Returns:
        From (block of the main stack, or -1 outside, and the labels of the axis) to
        ``[channels]``, averaged over batches, and over matrices that read the same axis there.
    """
    totals: dict[tuple[int, Labels], list[Tensor]] = {}
    seen = running.anatomy
    places = [(-1, piece) for piece in seen.outside.values()]
    places += [(i, piece) for i, block in enumerate(seen.blocks) for piece in block.values()]
    watched: dict[nn.Module, list[tuple[int, Piece]]] = {}
    for index, piece in places:
        matrix = len(piece.axes) > 1 and piece.side(1) == "columns"
        if matrix and not any(label_of(label).kind == "patch" for x in piece.axes for label in x):
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


def check_shrinking(old: Anatomy, new: Anatomy, method: str) -> None:
    """Raise ProjectionError if a target is larger on some axis, or its heads are of another size.

    Args:
        old: anatomy of the ancestor.
        new: anatomy of the target.
        method: the method in words.
    """
    difference = Difference(old, new)
    difference.forbid_growth(method)
    for label, name in _WHOLE.items():
        before, after = (seen.sizes.get(label) or seen.widths.get(label) for seen in (old, new))
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


#: What a head consists of.
_WHOLE = {
    "k": "the head dim (embed_dim / num_heads)",
    "e": "the number of key heads",
    "j": "the head dim of a map",
}
