"""What the kernels' public functions share: the choice of a backend and the checks of `out`."""

import importlib
import importlib.util
from collections.abc import Sequence
from functools import lru_cache
from types import ModuleType

import torch
from torch import Tensor

from weightinit.errors import WeightInitError


@lru_cache
def triton_module(name: str) -> ModuleType | None:
    """Return a module of this package that holds Triton kernels; None where there is no Triton."""
    if importlib.util.find_spec("triton") is None:  # not on every platform
        return None
    return importlib.import_module(f"weightinit.kernels.{name}")


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype that sums are kept in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def destinations(
    out: Tensor | Sequence[Tensor], shape: tuple[int, ...], axes: int, on: torch.device, inputs: str
) -> tuple[Tensor, ...]:
    """Return the tensors of `out`; raise if they do not fit.

    Args:
        out: one tensor for the whole result, or one for each index of its single leading axis.
        shape: shape of the result.
        axes: number of axes of one weight: 1 for vectors, 2 for matrices.
        on: the inputs' device.
        inputs: the inputs in words, with their shapes.

    Raises:
        WeightInitError: if their number, shapes, dtypes or devices do not fit.
    """
    outs = (out,) if isinstance(out, Tensor) else tuple(out)
    expected = shape if isinstance(out, Tensor) else shape[1:]
    if not isinstance(out, Tensor) and (len(shape) != axes + 1 or len(outs) != shape[0]):
        raise WeightInitError(
            f"out has {len(outs)} tensors, but {inputs} make {list(shape)}; pass one tensor for "
            "each index of a single leading axis, or one tensor for all"
        )
    for tensor in outs:
        if tuple(tensor.shape) != expected or not tensor.is_floating_point():
            raise WeightInitError(
                f"out is {tensor.dtype} {list(tensor.shape)}, but {inputs} make "
                f"{list(expected)}; pass a floating tensor of that shape"
            )
        if tensor.device != on:
            raise WeightInitError(
                f"out is on {tensor.device} and the inputs on {on}; move them to one device"
            )
    return outs


def matrices(tensor: Tensor) -> list[Tensor]:
    """Return every matrix of ``[..., rows, columns]`` as a view."""
    if tensor.ndim == 2:
        return [tensor]
    return [matrix for part in tensor.unbind(0) for matrix in matrices(part)]
