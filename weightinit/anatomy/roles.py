"""What every canonical role means: said here once, and read by every method.

A role is a path such as ``attn.q.weight``. Its facts follow from the path alone, so that a role of
the user's own (``adapter.weight``) has facts too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, TypeVar

__all__ = ["Role", "facts", "scale_of"]

Kind = Literal[
    "matrix", "bias", "norm", "scale", "table", "token", "position", "embedding", "head", "stem"
]
Side = Literal["rows", "columns", "gain"]
T = TypeVar("T")

_HEAD = re.compile(r"head\w*\..+")
_SCALE = re.compile(r"(.+\.)?(ls\d?|gamma\w*)")
_NORM = re.compile(r"(.+\.)?(\w*norm\w*|bn\d?)(\.(weight|bias))?")
#: ConvNeXt V2's response normalisation adds to the identity.
_RESPONSE = re.compile(r"(.+\.)?grn\.(weight|bias)")
_TABLE = re.compile(r"attn\.(rel_table|rel_pos_[hw])|rel_pos\.table")
#: Kinds of roles; the first that fits holds, and what none fits is a matrix or a bias.
_KINDS: tuple[tuple[re.Pattern[str], Kind], ...] = (
    (_HEAD, "head"),
    (_SCALE, "scale"),
    (_TABLE, "table"),
    (_NORM, "norm"),
    (re.compile(r"stem\..+"), "stem"),
    (re.compile(r"pos"), "position"),
    (re.compile(r"token\..+"), "token"),
    (re.compile(r"embed\..+"), "embedding"),
)
#: Talking heads, which mix the attention maps.
_MIXING = re.compile(r"attn\.talk_[lw]\.weight")
_END = re.compile(r"(.+\.)?(proj|fc2)\.(weight|bias)")
_BRANCH = re.compile(r"(attn|mlp|attns\.\d+|ffns\.\d+)\..+")
_AROUND = re.compile(r"(norm|ls)([12])(\..+)?")
_LETTER = re.compile(r"(.*\.)?([qkv])(_norm)?\.(weight|bias)")
#: What is before the blocks and writes into the stream, itself or through a norm.
_BEFORE = re.compile(r"(patch|stem\.(proj|\d+\.conv))\.(weight|bias)|pos(\..*)?|(token|embed)\..*")
_FIRST_NORM = re.compile(r"(norm_pre|patch\.norm)\.(weight|bias)")
#: What is behind the blocks: the final norm, and what reads the stream then.
_FINAL = re.compile(r"(norm|fc_norm)\.(weight|bias)")
_READS = re.compile(r"(head|head_dist|pre_logits|pool\.fc)\.(weight|bias)")
#: What a whole checkpoint cannot be without, if the target has it.
_ESSENTIAL = re.compile(r"(patch|norm|embed\.token|stem\..+|down\.\d+)\.weight|pos|token\.cls")
#: Roles whose growth tests prove to keep the function.
_PROVEN = re.compile(
    r"norm[12]\.(weight|bias)|ls[12]?|(attn|attns\.\d+)\.([qkv]|proj|[qk]_norm|norm)\.(weight|bias)"
    r"|(mlp|ffns\.\d+)\.(fc1|up|fc2|norm)\.(weight|bias)|(attns|ffns)\.\d+\.ls"
    r"|attn\.(rel_table|(talk_[lw]|rel_pos\.fc[12])\.(weight|bias))"
    r"|patch\.(weight|bias)|pos|token\.\w+|(norm_pre|norm|fc_norm|patch\.norm)\.(weight|bias)"
    r"|head(_dist)?\.(weight|bias)|embed\.token\.weight|rope\.freqs"
)


@dataclass(frozen=True)
class Role:
    """What is true of every parameter of a role.

    Args:
        name: the role.
        kind: kind of tensor.
        bias: whether it is the bias of a layer or of a norm.
        branch: the branch of a block that holds it: ``"attn"``, ``"mlp"``, ``"attns.0"``, ...;
            ``""`` outside the branches.
        serves: the branch that holds it, or whose norm or layer scale it is.
        end: whether it belongs to the last layer of a branch, whose rows are the stream.
        letter: ``"q"``, ``"k"`` or ``"v"`` of an attention, else ``""``.
        place: its place outside the blocks: ``"before"`` them it writes into the stream, which the
            ``"first norm"`` normalises; after them stands the ``"final norm"``, whose result
            another ``"reads"``; else ``""``.
        essential: whether every whole checkpoint holds it if the target does.
        proven: whether tests prove that its growth keeps the function.
    """

    name: str
    kind: Kind
    bias: bool
    branch: str
    serves: str
    end: bool
    letter: str
    place: Literal["", "before", "first norm", "final norm", "reads"]
    essential: bool
    proven: bool

    @property
    def gain(self) -> bool:
        """Whether it multiplies channels one by one: a norm's weight or a layer scale."""
        return self.kind in ("norm", "scale") and not self.bias

    @property
    def neutral(self) -> float | None:
        """The value at which it does nothing, if there is one."""
        if self.kind == "scale":
            return 1.0
        zero = self.bias or self.kind == "table" or _RESPONSE.fullmatch(self.name)
        return 0.0 if zero else None

    @property
    def start(self) -> Literal["ones", "zeros", "identity", "kaiming", "trunc_normal"]:
        """How it is drawn where no source covers it."""
        if self.gain:
            return "ones"
        if self.neutral == 0:
            return "zeros"
        if _MIXING.fullmatch(self.name):
            return "identity"
        return "kaiming" if self.kind == "stem" else "trunc_normal"

    @property
    def branch_norm(self) -> bool:
        """Whether it is of the norm of a branch: before it, or on it, as the block's form says."""
        return self.kind == "norm" and self.serves in ("attn", "mlp") and not self.branch

    @property
    def loose(self) -> bool:
        """Whether a block without it is a block of the same kind: biases and layer scales."""
        return self.kind == "scale" or self.bias

    @property
    def module(self) -> str:
        """The layer that it belongs to: the role without its last part."""
        return self.name.removesuffix(".weight").removesuffix(".bias")

    @property
    def parent(self) -> str:
        """The path of what its layer is part of: ``"attn"`` of ``attn.q.weight``."""
        return self.module.rpartition(".")[0]

    @property
    def representation(self) -> bool:
        """Whether it belongs to the layer between the stream and the classifier."""
        return self.name.startswith("pre_logits")

    @property
    def bias_role(self) -> str:
        """The role of the bias beside a weight."""
        return f"{self.name.removesuffix('weight')}bias"

    @property
    def substitutes(self) -> tuple[str, ...]:
        """Roles that serve as this one where a source lacks it."""
        first, _, rest = self.name.partition(".")
        if self.place == "final norm":
            return (f"{'norm' if first == 'fc_norm' else 'fc_norm'}.{rest}",)
        if first == "head_dist":
            return (f"head.{rest}",)
        return ("token.cls",) if self.name == "token.dist" else ()

    def side(self, dim: int, dims: int) -> Side:
        """Return whether it makes (rows), reads (columns) or scales (gain) one of its axes.

        Examples:
            >>> [facts("attn.proj.weight").side(dim, 2) for dim in (0, 1)]
            ['rows', 'columns']
            >>> facts("norm1.weight").side(0, 1)
            'gain'
        """
        if dims == 1:
            return "gain" if self.gain else "rows"
        reads = dim == 1 and self.name.endswith("weight") and self.kind != "embedding"
        return "columns" if reads else "rows"


@lru_cache(maxsize=4096)
def facts(role: str) -> Role:
    """Return what is true of a role."""
    inside, around, letter = (pattern.fullmatch(role) for pattern in (_BRANCH, _AROUND, _LETTER))
    branch = inside[1] if inside else ""
    return Role(
        name=role,
        kind=_kind(role),
        bias=role.endswith("bias"),
        branch=branch,
        serves={"1": "attn", "2": "mlp"}[around[2]] if around else branch,
        end=_END.fullmatch(role) is not None,
        letter=letter[2] if letter else "",
        place=_place(role),
        essential=_ESSENTIAL.fullmatch(role) is not None,
        proven=_PROVEN.fullmatch(role) is not None,
    )


def _kind(role: str) -> Kind:
    for pattern, kind in _KINDS:
        if pattern.fullmatch(role):
            return kind
    return "bias" if role.endswith("bias") else "matrix"


def _place(role: str) -> Literal["", "before", "first norm", "final norm", "reads"]:
    if _FIRST_NORM.fullmatch(role):
        return "first norm"
    if _BEFORE.fullmatch(role):
        return "before"
    if _FINAL.fullmatch(role):
        return "final norm"
    return "reads" if _READS.fullmatch(role) else ""


def scale_of(role: str, block: Mapping[str, T]) -> T | None:
    """Return the layer scale of the layer that a role belongs to, looked up in a block, or None."""
    fact = facts(role)
    if not fact.end:
        return None
    # A parallel block has one layer scale for both of its branches.
    names = {"attn": ("ls1",), "mlp": ("ls2", "ls1", "ls")}.get(fact.branch, (f"{fact.branch}.ls",))
    return next((block[name] for name in names if name in block), None)
