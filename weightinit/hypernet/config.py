"""What a hypernetwork looks like: its kind, and the sizes of encoder and decoders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, get_args

from weightinit.errors import BundleError

__all__ = ["HyperConfig"]

Kind = Literal["ghn3", "logah", "tal", "pith"]
CHOICES: Mapping[str, tuple[Any, ...]] = {
    "kind": get_args(Kind),
    "pathway": ("dual", "shared"),
    "expansion": ("none", "original", "both"),
    "start": ("scratch", "rule"),
    "alignment": ("uniform", "first"),
    "primitives": (15, 18),
    **dict.fromkeys(("layernorm", "dead_layer", "separate", "softmax", "faithful"), (True, False)),
    "language": ("none", "gpt", "llm"),
}
#: The largest sizes: a config may come from a stranger's file, and a network is built from it.
LARGEST = {
    "hid": 2**13,
    "layers": 2**8,
    "heads": 2**10,
    "rank": 2**12,
    "num_classes": 2**20,
    "max_ck": 2**20,
    "task_dim": 2**20,
}
LARGEST_SHAPE = (2**16, 2**16, 2**10)


@dataclass(frozen=True)
class HyperConfig:
    """The sizes of a hypernetwork; the defaults are LoGAH-Small's, of which TAL and PITH are made.

    Args:
        kind: ``ghn3``, ``logah``, ``tal``, ``pith``.
        hid: width of the node embeddings.
        layers: number of encoder layers.
        heads: number of attention heads of the encoder.
        max_shape: rows, columns and kernel size that the published rules clip at; of GHN-3 also the
            size of the decoder.
        num_classes: number of classes it was trained on, which has a row of the shape embedding; of
            GHN-3 also the size of its class layer.
        layernorm: whether a norm follows the encoder.
        primitives: rows of the embedding of node types: 15, or 18 for language models.
        rank: r, of the low-rank decoders.
        max_ck: rows and columns that they can decode.
        task_dim: length of TAL's task embedding; 0 conditions on no task, which kind tal does not.
        dead_layer: whether decoders hold the published layer that nothing uses.
        pathway: PITH: ``"dual"`` decodes P and Q by a decoder of their own, ``"shared"`` by another
            head of one MLP.
        expansion: PITH: which decoders widen their latents progressively, r to 2 r to 4 r.
        separate: PITH: whether P and Q have factors of their own, as the paper writes; the released
            code crops both out of one matrix.
        alignment: PITH from scratch: which of the ancestor's blocks a block inherits from:
            ``"uniform"`` steps, or the ``"first"`` ones, as released.
        softmax: whether attention's softmax is a node of its own in the graphs it reads, as torch 1
            showed it to the published code; torch 2 hides it.
        start: PITH: ``"scratch"`` is published; ``"rule"`` adds what is generated to the matrices
            of a closed-form projection.
        language: LoGAH: which of the released classes for language models it is of: ``"gpt"`` has a
            bin for GPT-2's vocabulary, and divides what ends a branch by sqrt(2 L); ``"llm"``, the
            later one, has bins for three, and gives every matrix one standard deviation.
        faithful: whether it was trained by the released code's rules, which then are its default;
            see :func:`weightinit.init_from_hypernet`.

    Raises:
        BundleError: if a value is not one of the allowed ones, or the sizes do not fit each other.

    Examples:
        >>> HyperConfig("ghn3", hid=64, layers=3, heads=8, max_shape=(64, 64, 16)).rank
        0
    """

    kind: Kind = "logah"
    hid: int = 128
    layers: int = 5
    heads: int = 16
    max_shape: tuple[int, int, int] = (2048, 2048, 16)
    num_classes: int = 1000
    layernorm: bool = True
    primitives: int = 15
    rank: int = 0
    max_ck: int = 32768
    task_dim: int = 0
    dead_layer: bool = True
    pathway: Literal["dual", "shared"] = "dual"
    expansion: Literal["none", "original", "both"] = "none"
    separate: bool = False
    alignment: Literal["uniform", "first"] = "uniform"
    softmax: bool = False
    start: Literal["scratch", "rule"] = "scratch"
    language: Literal["none", "gpt", "llm"] = "none"
    faithful: bool = False

    def __post_init__(self) -> None:
        """Check every field."""
        for name, choices in CHOICES.items():
            value = getattr(self, name)
            if type(value) is not type(choices[0]) or value not in choices:
                raise BundleError(f"{name} {value!r} is unknown: use one of {choices}")
        if self.kind != "ghn3" and not self.rank:
            object.__setattr__(self, "rank", 90)
        if not isinstance(self.max_shape, (tuple, list)) or len(self.max_shape) != 3:
            raise BundleError(f"max_shape is {self.max_shape!r}: use rows, columns, kernel size")
        object.__setattr__(self, "max_shape", tuple(self.max_shape))
        least = {"rank": self.kind != "ghn3", "task_dim": self.kind == "tal"}
        limits = [(name, getattr(self, name), most) for name, most in LARGEST.items()]
        limits += [("max_shape", *pair) for pair in zip(self.max_shape, LARGEST_SHAPE, strict=True)]
        for name, value, most in limits:
            first = int(least.get(name, 1))
            if type(value) is not int or not first <= value <= most:
                raise BundleError(f"{name} is {value!r}: use a whole number of {first} to {most}")
        if self.language != "none" and self.kind != "logah":
            raise BundleError(f"language {self.language!r} of kind {self.kind!r}: use kind 'logah'")
        if self.faithful and self.start == "rule":
            raise BundleError("no released code starts at a rule: use faithful=False, or 'scratch'")
        if self.hid % self.heads or self.hid % 4:
            raise BundleError(f"hid {self.hid}: use a multiple of 4 and of heads, {self.heads}")

    @classmethod
    def pith(cls, **changes: Any) -> HyperConfig:
        """Return PITH as released: the first blocks, and the original path alone expands.

        Examples:
            >>> HyperConfig.pith(separate=True, expansion="both").max_shape
            (4096, 4096, 16)
        """
        own = cls("pith", max_shape=(4096, 4096, 16), expansion="original", alignment="first")
        return replace(own, **changes)

    def as_stored(self, faithful: bool) -> bool:
        """Return whether a language model's matrices are predicted as they are stored: LoGAH's."""
        return self.language != "none" or (faithful and self.kind == "logah")

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {**asdict(self), "max_shape": list(self.max_shape)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> HyperConfig:
        """Return the config of :meth:`to_dict`'s values.

        Raises:
            BundleError: if a key is unknown, or a value is not sound.
        """
        values = dict(values)
        apart = values.pop("heads_apart", False)
        # Networks that start at the rule have this flag and never read it.
        unread = apart is False or (apart is True and values.get("start") == "rule")
        if not unread or values.get("alignment") == "learned":
            raise BundleError(
                "heads that are projected apart and learned alignment are no longer there, as they "
                "measured worse than what PITH's paper states: use the version of weightinit that "
                "trained this hypernetwork, or train it again"
            )
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise BundleError(f"unknown options {unknown[:5]}: use {sorted(known)}")
        return cls(**values)
