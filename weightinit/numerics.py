"""The same bits whatever a caller is inside of: autocast, other defaults, inference mode, TF32."""

from __future__ import annotations

import operator
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor

__all__ = ["finite", "plain_numerics"]

_lock = threading.Lock()
_restore: list[Callable[[], None]] = []
_users = 0


def finite(value: Tensor) -> bool:
    """Return whether all values of a tensor are finite."""
    # The sum is not finite if any value is not; the slow check tells overflow from NaN.
    return bool(torch.isfinite(value.sum())) or bool(torch.isfinite(value).all())


@contextmanager
def plain_numerics() -> Iterator[None]:
    """Compute inside the block as a fresh process does, and put the caller's settings back.

    Autocast and inference mode are off; new tensors are float32 on the CPU; float32 products are
    exact. Nested blocks and threads share the settings: the last one to leave restores them.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        # torch 2.6 does not name the device that a block set; each call inside of one costs time.
        if torch.empty(0).device.type != "cpu":
            stack.enter_context(torch.device("cpu"))
        # torch 2.6 raises where there is none.
        there = torch.accelerator.is_available()
        accelerator = torch.accelerator.current_accelerator() if there else None
        for kind in ("cpu", *([accelerator.type] if accelerator is not None else [])):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        stack.enter_context(_plain_defaults())
        yield


@contextmanager
def _plain_defaults() -> Iterator[None]:
    """Set the process's default dtype and precision of products, until no one needs them."""
    global _users
    with _lock:
        if not _users:
            dtype = torch.get_default_dtype()
            _restore[:] = [_precision_restored(), lambda: torch.set_default_dtype(dtype)]
            torch.set_default_dtype(torch.float32)
            torch.set_float32_matmul_precision("highest")
        _users += 1
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if not _users:
                for restore in _restore:
                    restore()


def _precision_restored() -> Callable[[], None]:
    """Return what puts the present precision of float32 products back."""
    try:
        precision = torch.get_float32_matmul_precision()
    except RuntimeError:  # it was set backend by backend, as torch 2.9 introduced
        products = operator.attrgetter("cuda.matmul", "mkldnn.matmul")
        backends = products(torch.backends)
        values = [backend.fp32_precision for backend in backends]

        def restore() -> None:
            for backend, value in zip(backends, values, strict=True):
                backend.fp32_precision = value

        return restore
    return lambda: torch.set_float32_matmul_precision(precision)
