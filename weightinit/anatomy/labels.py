"""What every axis label means: said here once, and read by every method.

From a label's kind follows what may become of an axis that has another length in the target.
Channels are chosen, repeated or mixed; positions and kernels are resampled; an index table keeps
its common rows; anything else keeps its length.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

__all__ = ["LABELS", "LOCAL_LABELS", "Label", "Labels", "label_of"]

Kind = Literal[
    "channel", "block", "position", "index", "class", "patch", "kernel", "input", "fixed"
]


@dataclass(frozen=True)
class Label:
    """What is true of every axis of one label.

    Args:
        meaning: the meaning in words.
        kind: kind of the axis, which decides what may become of the axis.
        stream: whether it is the residual stream, or a stage's.
        shared: whether the layers of the whole model have that axis in common.
        width: whether its size says how wide the network is, as heads of any size do not.
        local: whether its size is each parameter's own.
    """

    meaning: str
    kind: Kind
    stream: bool = False
    shared: bool = False
    width: bool = False
    local: bool = False


#: A label may have a number behind it, that of a stage: ``d2``, ``m2``.
LABELS: dict[str, Label] = {
    "d": Label("residual stream", "channel", stream=True, shared=True, width=True),
    "h": Label("heads", "channel"),
    "k": Label("head dim", "channel"),
    "e": Label("key-value heads", "channel", local=True),
    "m": Label("MLP hidden", "channel", width=True),
    "z": Label("a width of its own, as of a neck", "channel", shared=True),
    "hp": Label("heads of the attention pool", "channel"),
    "kp": Label("head dim of the attention pool", "channel"),
    "mp": Label("MLP hidden of the attention pool", "channel"),
    "b": Label("blocks that one table serves", "block"),
    "t": Label("positions", "position"),
    "gh": Label("rows of the grid of positions", "position"),
    "gw": Label("columns of the grid of positions", "position"),
    "u": Label("offsets of relative positions", "position", local=True),
    "v": Label("vocabulary", "index"),
    "r": Label("tokens, or their types", "index", local=True),
    "n": Label("classes", "class"),
    "l": Label("labels that a model is given, the last one for none", "class"),
    "p": Label("rows of a patch", "patch"),
    "q": Label("columns of a patch", "patch"),
    "w": Label("frames of a patch", "patch"),
    "y": Label("rows of a kernel", "kernel", local=True),
    "x": Label("columns of a kernel", "kernel", local=True),
    "c": Label("input channels", "input"),
    "i": Label("channels that a layer of the stem reads", "fixed", local=True),
    "o": Label("channels that a layer of the stem makes", "fixed", local=True),
    "a": Label("hidden channels of a position MLP", "fixed"),
    "j": Label("half a head dim, one of two differential maps", "fixed"),
    "f": Label("rotary frequencies", "fixed"),
    "s": Label("sines and cosines of a timestep", "fixed"),
    "g": Label("numbers that a patch of the output holds", "fixed"),
}
#: Labels whose size is each parameter's own.
LOCAL_LABELS = frozenset(name for name, label in LABELS.items() if label.local)
_OWN = Label("one's own", "fixed")


def label_of(name: str) -> Label:
    """Return what is true of a label; an unknown one keeps its length."""
    return LABELS.get(name) or LABELS.get(name.rstrip("0123456789"), _OWN)


class Labels(tuple[str, ...]):
    """The labels of one canonical axis, outermost first; it equals a plain tuple of them."""

    __slots__ = ()

    def __new__(cls, names: Iterable[str] = ()) -> Labels:
        """Make the labels of an axis from their names."""
        return super().__new__(cls, names)

    def __str__(self) -> str:
        return " ".join(self)

    @property
    def channel(self) -> bool:
        """Whether all of them are channels, which may be chosen, repeated and mixed.

        A number among them is of channels, too.
        """
        labels = [name for name in self if not name.isdigit()]
        return bool(labels or not self) and all(label_of(x).kind == "channel" for x in labels)

    @property
    def stream(self) -> bool:
        """Whether the axis is the residual stream, or a stage's."""
        return any(label_of(name).stream for name in self)

    @property
    def shared(self) -> bool:
        """Whether the layers of the whole model have the axis in common."""
        return any(label_of(name).shared for name in self)

    @property
    def block(self) -> bool:
        """Whether the axis counts the blocks that one table serves."""
        return any(label_of(name).kind == "block" for name in self)

    @property
    def position(self) -> bool:
        """Whether the axis holds positions or their offsets, which are resampled."""
        return any(label_of(name).kind == "position" for name in self)
