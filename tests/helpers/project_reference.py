"""What project must equal, and inputs for it."""

import torch
from torch import Tensor

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def reference(source, left=None, right=None):
    """P W_P Q^T as it is written, every factor multiplied out, in float64."""
    result = source.double().clone()
    if left is not None:
        result = whole(left) @ result
    if right is not None:
        result = result @ whole(right).mT
    return result


def whole(factor):
    """A factor as one matrix."""
    if isinstance(factor, Tensor):
        return factor.double()
    return factor[0].double() @ factor[1].double()


def make(
    sizes=(5, 7, 4, 6),
    ranks=("dense", "dense"),
    leads=((), (), ()),
    *,
    dtype=torch.float64,
    device="cpu",
    seed=0,
):
    """Source, left and right.

    Args:
        sizes: new rows, rows, columns, new columns
        ranks: of left and right: a number, "dense" or None
        leads: leading axes of source, left and right
        dtype: of all
        device: of all
        seed: of the draws
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)

    def factor(rank, lead, new, old):
        if rank is None or rank == "dense":
            return rank and draw(*lead, new, old)
        return draw(*lead, new, rank), draw(*lead, rank, old)

    new_rows, rows, columns, new_columns = sizes
    return (
        draw(*leads[0], rows, columns),
        factor(ranks[0], leads[1], new_rows, rows),
        factor(ranks[1], leads[2], new_columns, columns),
    )


def tensors(case):
    """All tensors of source, left and right."""
    parts = [[part] if isinstance(part, Tensor) else part for part in case if part is not None]
    return [tensor for part in parts for tensor in part]


def rebuilt(case, values):
    """Source, left and right with other tensors in place of their own."""
    values = iter(values)
    return [
        part
        if part is None
        else next(values)
        if isinstance(part, Tensor)
        else (next(values), next(values))
        for part in case
    ]


def close(result, expected, dtype, slack=1):
    """Assert that two are equal up to roundings of the largest value."""
    steps = 64 if dtype.itemsize >= 4 else 1
    largest = expected.abs().max().item() if expected.numel() else 0
    tolerance = slack * steps * torch.finfo(dtype).eps * (1 + largest)
    torch.testing.assert_close(result.double(), expected, atol=tolerance, rtol=0)


def gradients(function, case, weight):
    """To every tensor of a case, of its product with a weight."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in tensors(case)]
    return torch.autograd.grad(function(*rebuilt(case, leaves)), leaves, weight)
