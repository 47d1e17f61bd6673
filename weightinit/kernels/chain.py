"""A product of several matrices in eager torch: the cheapest order, forward and backward.

Factors are ``[rows, columns]``, or ``[layers, rows, columns]`` with one number of layers; what is
made of two-dimensional factors alone is made once for all layers. A product of two is a node of a
tree, whose leaves are the factors' numbers. Differentiating that tree costs twice its forward pass,
so that the order which is cheapest forward is cheapest backward too.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import TypeAlias, cast

import torch
from torch import Tensor

from weightinit.kernels.kron import accumulator

Node: TypeAlias = "tuple[Tree, Tree]"
Tree: TypeAlias = "int | Node"


@lru_cache(maxsize=1024)
def cheapest(sizes: tuple[int, ...], layers: tuple[int, ...]) -> Tree:
    """The order with the fewest multiplications; among equals, with the smallest intermediates.

    Args:
        sizes: factor f is a matrix ``[sizes[f], sizes[f + 1]]``
        layers: how many matrices each factor holds: a common number, or 1
    """
    number = len(layers)
    best: dict[tuple[int, int], tuple[int, int, Tree]] = {
        (f, f + 1): (0, 0, f) for f in range(number)
    }
    for length in range(2, number + 1):
        for start in range(number - length + 1):
            stop = start + length
            held = max(layers[start:stop]) * sizes[start] * sizes[stop]
            options: list[tuple[int, int, Tree]] = []
            for middle in range(start + 1, stop):
                left, right = best[start, middle], best[middle, stop]
                work = left[0] + right[0] + held * sizes[middle]
                options.append((work, left[1] + right[1] + held, (left[2], right[2])))
            best[start, stop] = min(options, key=lambda option: option[:2])
    return best[0, number][2]


def order(factors: Sequence[Tensor]) -> Node:
    """The cheapest tree of two factors or more."""
    sizes = (factors[0].shape[-2], *(factor.shape[-1] for factor in factors))
    layers = (factor.shape[0] if factor.ndim == 3 else 1 for factor in factors)
    return cast(Node, cheapest(tuple(map(int, sizes)), tuple(map(int, layers))))


def forward(factors: Sequence[Tensor]) -> list[Tensor]:
    """The product of two factors or more, then the other nodes of its tree, for `backward`."""
    *below, tree = _products(order(factors))
    values = _evaluate(factors, [*below, tree])
    return [values[tree].to(factors[0].dtype), *(values[node] for node in below)]


def forward_into(factors: Sequence[Tensor], out: Sequence[Tensor]) -> None:
    """Write the product, in place, into one tensor of its shape or one matrix for each layer."""
    *below, tree = _products(order(factors))
    values = _evaluate(factors, below)
    left, right = (values[side] for side in tree)
    if out[0].ndim == 3:
        _write(left, right, out[0])
        return
    lefts, rights = (side.expand(len(out), *side.shape[-2:]) for side in (left, right))
    for layer in zip(lefts, rights, out, strict=True):
        _write(*layer)


def backward(
    grad: Tensor, factors: Sequence[Tensor], saved: Sequence[Tensor], need: Sequence[bool]
) -> list[Tensor | None]:
    """Gradients to the needed factors; what `forward` returned beside the product may be left out.

    The gradient to a factor that all layers share is the sum over the layers.
    """
    *below, tree = _products(order(factors))
    values = _evaluate(factors, [] if saved else below)
    values.update(zip(below, saved, strict=False))
    grads: dict[Tree, Tensor] = {tree: _working(grad)}
    for node in (tree, *reversed(below)):
        left, right = node
        if _needs(left, need):
            grads[left] = _product_like(values[left], grads[node], values[right].mT)
        if _needs(right, need):
            grads[right] = _product_like(values[right], values[left].mT, grads[node])
    return [
        grads[number].to(factor.dtype) if need[number] else None
        for number, factor in enumerate(factors)
    ]


def _products(tree: Tree) -> list[Node]:
    """Every product of a tree, each after those that go into it."""
    if isinstance(tree, int):
        return []
    left, right = tree
    return [*_products(left), *_products(right), tree]


def _needs(tree: Tree, need: Sequence[bool]) -> bool:
    return need[tree] if isinstance(tree, int) else any(_needs(side, need) for side in tree)


def _evaluate(factors: Sequence[Tensor], nodes: Sequence[Node]) -> dict[Tree, Tensor]:
    values: dict[Tree, Tensor] = dict(enumerate(map(_working, factors)))
    for node in nodes:
        values[node] = _product(values[node[0]], values[node[1]])
    return values


def _working(tensor: Tensor) -> Tensor:
    """In the dtype that products are kept in: half precision stays as it is only on a GPU.

    There its matmuls are an order of magnitude faster than those of float32, and sum in float32.
    """
    return tensor.to(accumulator(tensor.dtype)) if tensor.device.type == "cpu" else tensor


def _product(left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
    if left.ndim == right.ndim == 2:
        return torch.mm(left, right, out=out)
    if right.ndim == 2 and left.is_contiguous() and out is None:  # layers one above another
        return torch.mm(left.flatten(0, 1), right).unflatten(0, left.shape[:2])
    layers = left.shape[0] if left.ndim == 3 else right.shape[0]
    left, right = (side.expand(layers, *side.shape[-2:]) for side in (left, right))
    return torch.bmm(left, right, out=out)


def _write(left: Tensor, right: Tensor, out: Tensor) -> None:
    if out.dtype == left.dtype:
        _product(left, right, out)
    else:
        out.copy_(_product(left, right))


def _product_like(like: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """The product, summed over the layers where `like` has none."""
    if like.ndim == 3 or left.ndim == right.ndim == 2:
        return _product(left, right)
    if left.device.type == "cpu":
        return torch.addbmm(left.new_zeros(like.shape), left, right)
    return _summed(left, right)


def _summed(left: Tensor, right: Tensor) -> Tensor:
    """The sum over the layers as one large product, at the cost of a copy, to fill a GPU."""
    return torch.mm(left.transpose(0, 1).flatten(1), right.flatten(0, 1))
