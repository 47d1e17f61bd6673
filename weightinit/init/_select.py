"""Fewer channels: a subset of a larger tensor's."""

from collections.abc import Sequence

import torch
from torch import Tensor

from weightinit.errors import WeightInitError
from weightinit.init._source import changed_dims, fill, skipped
from weightinit.init.operators import SELECTIONS, Elements, select_indices

__all__ = ["select_"]


def select_(
    tensor: Tensor,
    source: Tensor,
    *,
    elements: Elements | Sequence[Tensor | None] = "uniform",
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Fill the input Tensor with a subset of a larger tensor's elements, dim by dim.

    The rule of `Initializing Models with Larger Ones`, Xu et al. (2024), arXiv 2311.18823. With
    indices of one's own it is that of `Weight subcloning`, Samragh et al. (2023), arXiv 2312.09299:
    the most active channels, the same wherever a dim occurs.

    Args:
        tensor: ``[*new]``.
        source: ``[*old]``, no shorter along any dim.
        elements: ``"uniform"``: every old/new-th, or where that is not whole the rounded linspace;
            ``"consecutive"``: the first; ``"random"``: sorted draws, the same for dims of the same
            two lengths where the generator starts from the same seed; or for each dim an int64
            ``[new]`` of indices, None where it stays.
        generator: source of the ``"random"`` draws; None is torch's global one.

    Returns:
        The same tensor.

    Raises:
        WeightInitError: if the shapes do not fit, or `elements` is none of these.

    Examples:
        >>> import torch
        >>> w, larger = torch.empty(2, 3), torch.arange(12.0).view(4, 3)
        >>> select_(w, larger)
        tensor([[0., 1., 2.],
                [6., 7., 8.]])
        >>> select_(w, larger, elements=[torch.tensor([3, 0]), None])
        tensor([[ 9., 10., 11.],
                [ 0.,  1.,  2.]])
    """
    dims = changed_dims(tensor, source)
    if isinstance(elements, str):
        if elements not in SELECTIONS:
            raise WeightInitError(f"elements={elements!r}: use one of {SELECTIONS}, or indices")
        if any(new > old for _, old, new in dims):
            raise WeightInitError(
                f"tensor {list(tensor.shape)} is larger than source {list(source.shape)}: "
                "selecting only shrinks; use widen_ or pad_"
            )
        if skipped(tensor):
            return tensor
        base = _seed(generator) if elements == "random" else 0
        chosen = [
            # of the lengths alone, so that a dim gets the same channels in every tensor
            (dim, select_indices(old, new, elements, _seeded(base + (old << 20) + new)))
            for dim, old, new in dims
        ]
    else:
        chosen = [(dim, index) for dim, index in enumerate(elements) if index is not None]
        lengths = [len(index) == tensor.shape[dim] for dim, index in chosen if dim < tensor.dim()]
        inside = [
            0 <= int(index.min()) and int(index.max()) < source.shape[dim]
            for dim, index in chosen
            if dim < tensor.dim() and len(index)
        ]
        if len(elements) != tensor.dim() or not all(lengths) or not all(inside):
            raise WeightInitError(
                f"these indices do not make {list(tensor.shape)} of {list(source.shape)}: pass one "
                "int64 tensor a dim, as long as the tensor's, or None"
            )

    def rule(value: Tensor) -> Tensor:
        for dim, index in chosen:
            value = value.index_select(dim, index.to(value.device))
        return value

    return fill(tensor, source, rule)


def _seed(generator: torch.Generator | None) -> int:
    device = None if generator is None else generator.device
    return int(torch.empty((), dtype=torch.int64, device=device).random_(generator=generator))


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed % 2**63)
