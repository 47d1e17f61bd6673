"""One tensor of a block from those of several blocks."""

from collections.abc import Sequence

from torch import Tensor

from weightinit.errors import WeightInitError
from weightinit.init._source import changed_dims, fill
from weightinit.init.operators import interpolation, mix

__all__ = ["interpolate_depth_", "mix_"]


def mix_(tensor: Tensor, sources: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    r"""Fill the input Tensor with a weighted sum of others, :math:`W_l = \sum_j w_{lj} W_j`.

    The depth operator of `LiGO`, Wang et al. (2023), arXiv 2303.00980; one weight of 1 copies a
    block, which is stacking, interlacing or `SOLAR` depth up-scaling (Kim et al., 2023, arXiv
    2312.15066), as the block decides.

    Args:
        tensor: ``[*size]``, of one block.
        sources: ``[*size]`` each, of other blocks.
        weights: one a source; sources of weight 0 are not read.

    Returns:
        The same tensor.

    Raises:
        WeightInitError: if the shapes do not fit, or there is not one weight a source.

    Examples:
        >>> import torch
        >>> mix_(torch.empty(2), [torch.tensor([1.0, 2.0]), torch.tensor([3.0, 6.0])], [0.5, 0.5])
        tensor([2., 4.])
    """
    if len(sources) != len(weights) or not sources:
        raise WeightInitError(
            f"{len(sources)} sources and {len(weights)} weights: pass one weight a source"
        )
    for source in sources:
        if changed_dims(tensor, source):
            raise WeightInitError(
                f"source {list(source.shape)} has not the shape of tensor {list(tensor.shape)}: "
                "change its width first, with select_, widen_ or project_"
            )
    parts = [(s, float(w)) for s, w in zip(sources, weights, strict=True) if w != 0]
    (first, weight), *others = parts or [(sources[0], 0.0)]
    return fill(tensor, first, lambda value: mix([(value, weight), *others]))


def interpolate_depth_(tensors: Sequence[Tensor], sources: Sequence[Tensor]) -> list[Tensor]:
    """Fill the input Tensors, one a block, by linear interpolation of another depth's blocks.

    The first and last block keep theirs; a single block takes the middle.

    Args:
        tensors: ``[*size]`` each, of the blocks to fill, in order.
        sources: ``[*size]`` each, of the blocks of another network, in order.

    Returns:
        The same tensors.

    Raises:
        WeightInitError: if the shapes do not fit, or there is no source.

    Examples:
        >>> import torch
        >>> blocks = [torch.empty(1) for _ in range(3)]
        >>> interpolate_depth_(blocks, [torch.tensor([0.0]), torch.tensor([1.0])])
        [tensor([0.]), tensor([0.5000]), tensor([1.])]
    """
    if not sources:
        raise WeightInitError("there are no sources: pass the tensors of one block or more")
    mixes = interpolation(len(sources), len(tensors))
    for tensor, blocks in zip(tensors, mixes, strict=True):
        mix_(tensor, [sources[i] for i, _ in blocks], [weight for _, weight in blocks])
    return list(tensors)
