"""More channels that are new: the smaller tensor in a corner."""

from collections.abc import Sequence

from torch import Tensor

from weightinit.errors import WeightInitError
from weightinit.init._source import changed_dims, fill, skipped
from weightinit.init.operators import corner

__all__ = ["pad_"]


def pad_(tensor: Tensor, source: Tensor, *, zero: Sequence[int] = ()) -> Tensor:
    r"""Fill the first entries of the input Tensor with a smaller one; zero the rest, or leave it.

    The rule of `Composable Function-preserving Expansions`, Gesmundo & Maile (2023), arXiv
    2308.06103: of a hidden layer's two weights, what makes the new channels is free and what reads
    them is zero (``pad_(fc1, w1)``, ``pad_(fc2, w2, zero=[1])``); of the residual stream, what
    writes new channels is zero and what reads them free. New zeros change the mean of a
    LayerNorm: there, `widen_` with ``pattern="average"`` keeps the function. Tensors on the meta
    device and tensors without elements are left as they are.

    Args:
        tensor: ``[*new]``; its new entries keep their values where `zero` does not name their dim.
        source: ``[*old]``, no longer along any dim.
        zero: dims along which new entries become 0.

    Returns:
        The same tensor.

    Raises:
        WeightInitError: if the shapes do not fit, or `zero` names a dim that is not there.

    Examples:
        >>> import torch
        >>> pad_(torch.full((2, 3), 7.0), torch.ones(1, 2), zero=[1])
        tensor([[1., 1., 0.],
                [7., 7., 0.]])
    """
    dims = changed_dims(tensor, source)
    if any(new < old for _, old, new in dims) or any(
        not -tensor.dim() <= dim < tensor.dim() for dim in zero
    ):
        raise WeightInitError(
            f"source {list(source.shape)} does not fit into tensor {list(tensor.shape)} with "
            f"zero={list(zero)}: pass a smaller source, and dims of the tensor"
        )
    if skipped(tensor):
        return tensor
    for dim in zero:
        old = source.shape[dim]
        tensor.detach().narrow(dim, old, tensor.shape[dim] - old).zero_()
    fill(corner(tensor.detach(), source.shape), source, lambda value: value)
    return tensor
