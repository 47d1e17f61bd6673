"""What initializers that read another tensor share: checks, and the dtype they compute in."""

from collections.abc import Callable

import torch
from torch import Tensor

from weightinit.errors import WeightInitError

__all__ = ["changed_dims", "fill", "skipped"]


def changed_dims(tensor: Tensor, source: Tensor) -> list[tuple[int, int, int]]:
    """Return dim, length in the source and in the tensor of each dim where the two differ.

    Raises:
        WeightInitError: if they have not as many dims, or the source is not floating.
    """
    if tensor.dim() != source.dim() or not source.is_floating_point():
        raise WeightInitError(
            f"source {list(source.shape)} of {source.dtype} does not fit tensor "
            f"{list(tensor.shape)}: pass a floating tensor of as many dims"
        )
    lengths = zip(source.shape, tensor.shape, strict=True)
    return [(dim, old, new) for dim, (old, new) in enumerate(lengths) if old != new]


def skipped(tensor: Tensor) -> bool:
    """Return whether there is nothing to fill: a meta tensor, or one without elements."""
    return tensor.is_meta or tensor.numel() == 0


def fill(tensor: Tensor, source: Tensor, rule: Callable[[Tensor], Tensor]) -> Tensor:
    """Write ``rule(source)`` into a tensor, computed in fp32 or fp64 on the tensor's device."""
    if not skipped(tensor):
        dtype = torch.promote_types(source.dtype, tensor.dtype)
        with torch.no_grad():
            value = rule(source.to(tensor.device, torch.promote_types(dtype, torch.float32)))
            if value.shape != tensor.shape:  # copy_ would broadcast
                raise WeightInitError(
                    f"the result has shape {list(value.shape)} and the tensor "
                    f"{list(tensor.shape)}: pass operands that make the tensor's shape"
                )
            tensor.copy_(value)
    return tensor
