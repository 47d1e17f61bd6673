"""BoT: the weights of all blocks as one volume, cut to or grown from the low-pass band of wavelets.

Shen et al., "A Unified Framework for Knowledge Transfer in Bidirectional Model Scaling", CVPR 2026,
https://arxiv.org/abs/2603.07506. The three-dimensional transform is separable, so it is one
operator an axis (depth, out, in) and never leaves this library's machinery.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from weightinit.anatomy import Anatomy, Difference, Labels
from weightinit.errors import ProjectionError, WeightInitError
from weightinit.inherit.axis import Axis
from weightinit.inherit.depth import mixes
from weightinit.inherit.method import Source
from weightinit.inherit.transfer import Place, Transfer, transfer_parts
from weightinit.init._wavelet import Normalize, check_wavelet, resized, steps
from weightinit.init.operators import Mix
from weightinit.recipes import Inheritance

__all__ = ["BoT"]


@dataclass(frozen=True)
class BoT:
    """Options of BoT.

    The weights of one role (q, k and v apart) are a volume over depth, out and in; biases and norms
    are planes over depth and channel. An axis that shrinks is cut to the low-pass band of a
    discrete wavelet transform, once for each factor of two; an axis that grows is taken as that
    band, with details of zero. Powers of two are exact: from one size to twice that and back
    nothing is lost. At other ratios as many steps are taken as leave the axis long enough, and then
    its first entries; an axis of odd length repeats its last entry. The report says both.
    Boundaries are periodic.

    Args:
        wavelet: name of a discrete wavelet of PyWavelets (``pip install 'weightinit[wavelets]'``).
        normalize: norm of the filters. ``"ortho"`` has orthonormal filters: a step down an axis
            multiplies a constant by the root of 2, and a step up divides it. Every axis counts: at
            half the width and half the depth a norm's gain of 1 becomes 2, and a matrix 2.83 times
            as large. With ``"mean"`` every step keeps constants. The paper leaves it open.

    Raises:
        ProjectionError: if a value is not one of these, or PyWavelets is missing.

    Examples:
        >>> import timm, weightinit as wi
        >>> ancestor = timm.create_model("vit_tiny_patch16_224", depth=4, num_classes=5)
        >>> model = timm.create_model(
        ...     "vit_tiny_patch16_224", depth=2, embed_dim=96, num_heads=3, num_classes=5)
        >>> plan = wi.plan_projection(ancestor, model, method=wi.BoT())
        >>> print(plan.recipes["blocks.0.norm1.bias"].source.split("; ")[-1])
        depth 4 to 2 in 1 step)
    """

    wavelet: str = "haar"
    normalize: Normalize = "ortho"

    def __post_init__(self) -> None:
        """Check the values."""
        try:
            check_wavelet(self.wavelet, self.normalize)
        except WeightInitError as error:
            raise ProjectionError(str(error)) from error

    def plan(
        self, source: Source, target: Anatomy, *, seed: int = 0, calibration: object = None
    ) -> Inheritance:
        """Return a part for every piece of a target of any size."""
        depth = mixes(self._depth, source.anatomy, target)
        how = f"{self.wavelet} wavelets{_changes(source.anatomy, target)}"

        def axes(labels: Labels, place: Place) -> Axis | None:
            if not (labels.channel and target.widths.keys() >= {*labels}):
                return None  # tokens, patches and classes are no signal
            size = math.prod(target.widths[label] for label in labels)

            def resize(tensor: Tensor, dim: int) -> Tensor:
                return resized(tensor, dim, size, self.wavelet, self.normalize)

            return Axis(resize, resize)

        transfer = Transfer(axes, depth, how)
        return Inheritance(transfer_parts(source, target, transfer, seed=seed))

    def _depth(self, old: int, new: int) -> list[Mix]:
        """Return the transform along depth as the weights of the ancestor's blocks."""
        eye = torch.eye(old, dtype=torch.float64)
        weights = resized(eye, 0, new, self.wavelet, self.normalize)
        return [
            tuple((i, weight) for i, weight in enumerate(row) if abs(weight) > 1e-12)
            for row in weights.tolist()
        ]


def _changes(old: Anatomy, new: Anatomy) -> str:
    """Return what becomes of each axis, for the report."""
    sizes = dict(Difference(old, new).widths)
    if "h" in sizes and "k" in sizes:
        heads, dims = sizes.pop("h"), sizes.pop("k")
        sizes["h k"] = heads[0] * dims[0], heads[1] * dims[1]
    sizes["depth"] = old.depth, new.depth
    texts = []
    for label, (before, after) in sizes.items():
        count = steps(before, after)
        whole = before << count if count >= 0 else -(-before >> -count)
        if before != after:
            cut = f", cut from {whole}" if whole != after else ""
            times = f"{abs(count)} step{'' if abs(count) == 1 else 's'}"
            texts.append(f"{label} {before} to {after} in {times}{cut}")
    return f"; {'; '.join(texts)}" if texts else ""
