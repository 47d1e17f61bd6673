"""What training runs within: seeded generators, evaluation mode, interrupts that wait."""

from __future__ import annotations

import random
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

__all__ = ["evaluating", "postponed_interrupt", "seeded", "subseed"]


def subseed(*parts: int) -> int:
    """Return a seed for ``parts``, well mixed (splitmix64)."""
    state = 0
    for part in parts:
        state = (state + part + 1) * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
        state = (state ^ state >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state >> 1


@contextmanager
def seeded(seed: int, devices: tuple[int, ...] = ()) -> Iterator[None]:
    """Seed torch's, numpy's and Python's global generators inside the block, and put them back."""
    python, numeric = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices):
            torch.manual_seed(seed)
            np.random.seed(seed % 2**32)
            random.seed(seed)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numeric)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[torch.device]:
    """Put ``module`` in eval mode, without gradients, inside the block, and every mode back."""
    modes = [(child, child.training) for child in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            yield next((p.device for p in module.parameters()), torch.device("cpu"))
    finally:
        for child, mode in modes:
            child.training = mode


@contextmanager
def postponed_interrupt(wanted: bool = True) -> Iterator[threading.Event]:
    """Let the first Ctrl-C inside the block only set an event; the second interrupts at once."""
    asked = threading.Event()

    def note(*_: Any) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    own = signal.getsignal(signal.SIGINT)
    ours = threading.current_thread() is threading.main_thread()
    if not (wanted and ours and own is signal.default_int_handler):
        yield asked
        return
    signal.signal(signal.SIGINT, note)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, own)
