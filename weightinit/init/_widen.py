"""More channels: repeated where they are made and shared where read, or new ones beside them."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from weightinit.errors import WeightInitError
from weightinit.init._source import changed_dims, fill, skipped
from weightinit.init.operators import Copies, corner, cycle

__all__ = ["pad_", "widen_"]

Side = Literal["rows", "columns"]


def widen_(
    tensor: Tensor,
    source: Tensor,
    *,
    side: Side | Sequence[Side] | None = None,
    pattern: Literal["repeat", "average"] = "repeat",
    index: Sequence[Tensor | None] | None = None,
    uneven: bool = False,
) -> Tensor:
    r"""Fill the input Tensor with a smaller one's channels, so that the function stays the same.

    Channels repeat along a dim that makes them (``"rows"``: the first of a weight, a bias, a norm);
    along one that reads them (``"columns"``) the copies share their weight, which is divided by
    their number: `Net2Net`, Chen et al. (2016), arXiv 1511.05641, and, as its `index` decides, FPI
    of `bert2BERT`, Chen et al. (2022), arXiv 2110.07143, and `HyperCloning`, Samragh et al. (2024),
    arXiv 2409.12903. Equal copies would stay equal in training: `uneven` keeps what the tensor
    holds (small noise, or its own initialisation) as far as the function allows, which is the
    uneven splitting of `LEMON`, Wang et al. (2024), arXiv 2310.07999.

    Args:
        tensor: ``[*new]``.
        source: ``[*old]``, no longer along any dim.
        side: ``"rows"`` or ``"columns"``, of all dims or one a dim; None is rows, and columns for
            the second dim, as in torch.nn.Linear.
        pattern: what fills the channels left where the lengths do not divide: ``"repeat"`` begins
            one more copy; ``"average"`` makes the copies' mean, and reads nothing of it (LEMON's
            residual stream: after a LayerNorm these channels are zero, and the others' gain is
            :math:`\sqrt{new / (k\, old)}` larger, with k whole copies).
        index: which channel each one copies, an int64 ``[new]`` for each dim, None for the
            pattern; the same wherever a dim occurs.
        uneven: keep the tensor's own values where copies, or unread channels, leave a choice.

    Returns:
        The same tensor.

    Raises:
        WeightInitError: if the shapes do not fit, or an option is none of these.

    Examples:
        >>> import torch
        >>> widen_(torch.empty(3, 2), torch.tensor([[2.0], [4.0]]))
        tensor([[1., 1.],
                [2., 2.],
                [1., 1.]])
        >>> widen_(torch.empty(3), torch.tensor([2.0, 4.0]), pattern="average")
        tensor([2., 4., 3.])
        >>> widen_(torch.tensor([[0.5, 0.25]]), torch.tensor([[2.0]]), uneven=True)
        tensor([[1.1250, 0.8750]])
    """
    dims = changed_dims(tensor, source)
    sides = _sides(side, tensor.dim())
    maps = [None] * tensor.dim() if index is None else list(index)
    if pattern not in ("repeat", "average") or len(maps) != tensor.dim():
        raise WeightInitError(
            f"pattern={pattern!r} with {len(maps)} indices for {tensor.dim()} dims: use 'repeat' "
            "or 'average', and one index, or None, a dim"
        )
    if any(new < old for _, old, new in dims):
        raise WeightInitError(
            f"tensor {list(tensor.shape)} is smaller than source {list(source.shape)}: widening "
            "only grows; use select_"
        )
    copies = {dim: _copies(dim, old, new, maps[dim], pattern) for dim, old, new in dims}
    rows = [dim for dim in copies if sides[dim] == "rows"]
    columns = [dim for dim in copies if sides[dim] == "columns"]

    def rule(value: Tensor) -> Tensor:
        for dim in rows:
            rest = value.mean(dim, keepdim=True) if copies[dim].rest else None
            value = copies[dim].repeat(value, dim, rest)
        for dim in columns:
            # Last of all: what the tensor holds has the new channels of every other dim.
            own = tensor.detach().to if uneven and dim == columns[-1] else None
            value = copies[dim].share(value, dim, own)
        return value

    return fill(tensor, source, rule)


def pad_(tensor: Tensor, source: Tensor, *, zero: Sequence[int] = ()) -> Tensor:
    r"""Fill the first entries of the input Tensor with a smaller one; zero the rest, or leave it.

    The rule of `Composable Function-preserving Expansions`, Gesmundo & Maile (2023), arXiv
    2308.06103: of a hidden layer's two weights, what makes the new channels is free and what reads
    them is zero (``pad_(fc1, w1)``, ``pad_(fc2, w2, zero=[1])``); of the residual stream, what
    writes new channels is zero and what reads them free. New zeros change the mean of a LayerNorm:
    there, `widen_` with ``pattern="average"`` keeps the function.

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


def _sides(side: str | Sequence[str] | None, dims: int) -> list[str]:
    default = ["columns" if dim == 1 else "rows" for dim in range(dims)]
    sides = default if side is None else [side] * dims if isinstance(side, str) else list(side)
    if len(sides) != dims or set(sides) - {"rows", "columns"}:
        raise WeightInitError(
            f"side={side!r}: use 'rows', 'columns' or a list of {dims} of them, one a dim"
        )
    return sides


def _copies(dim: int, old: int, new: int, index: Tensor | None, pattern: str) -> Copies:
    place = cycle(old, new) if index is None else index.cpu()
    if place.shape != (new,) or not torch.equal(place.unique(), torch.arange(old)):
        raise WeightInitError(
            f"the index of dim {dim} ({place.tolist()[:8]}, ...) does not map {new} channels onto "
            f"{old}: it must have {new} entries from 0 to {old - 1}, each of these at least once"
        )
    rest = new % old if index is None and pattern == "average" else 0
    return Copies(place[: new - rest], rest)
