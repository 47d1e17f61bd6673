"""What every canonical role means: said here once, and read by every method.

A role is a path such as ``attn.q.weight``. Its facts follow from the path alone, so that a role of
the user's own (``adapter.weight``) has facts too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, TypeVar

__all__ = ["Role", "facts", "scale_of", "token_roles"]

Kind = Literal[
    "matrix", "bias", "norm", "scale", "table", "token", "position", "embedding", "head", "stem"
]
Side = Literal["rows", "columns", "gain"]
T = TypeVar("T")

Place = Literal["", "before", "first norm", "final norm", "reads"]

#: Tokens that stand before the patches, in their order.
_TOKENS = ("token.cls", "token.dist", "token.reg")
_W = r"\.(weight|bias)"
#: The first pattern that fits a role tells its kind; a role that none fits is a matrix or a bias.
_KINDS: dict[str, Kind] = {
    r"head\w*\..+": "head",
    r"(.+\.)?(ls\d?|gamma\w*)": "scale",
    r"attn\.(rel_table|rel_pos_[hw])|rel_pos\.table": "table",
    r"(.+\.)?(\w*norm\w*|bn\d?)(\.(weight|bias))?": "norm",
    r"stem\..+": "stem",
    r"pos": "position",
    r"token\..+": "token",
    r"embed\..+": "embedding",
}
_PLACES: dict[str, Place] = {
    rf"(norm_pre|patch\.norm){_W}": "first norm",
    rf"(patch|stem\.(proj|\d+\.conv)){_W}|pos(\..*)?|(token|embed)\..*": "before",
    rf"(norm|fc_norm){_W}": "final norm",
    rf"(head|head_dist|pre_logits|pool\.fc|final){_W}": "reads",
}
_END = rf"(.+\.)?(proj|fc2){_W}"
_ESSENTIAL = r"(patch|norm|embed\.token|stem\..+|down\.\d+(\.norm)?)\.weight|pos|token\.cls"
_CENTRAL = r"(patch(\.norm)?|norm_pre|stem\..+|embed\.\w+)\.weight|pos(\.\w+)?"
_DISPENSABLE = r"(head|pre_logits|pool\.fc|fc_norm|final).*|(embed|decoder)\.mask"
_PROVEN = (
    rf"norm[12]{_W}|ls[12]?|(attn|attns\.\d+)\.([qkv]|proj|[qk]_norm|norm){_W}"
    rf"|(mlp|ffns\.\d+)\.(fc1|up|fc2|norm){_W}|(attns|ffns)\.\d+\.ls"
    rf"|attn\.(rel_table|(talk_[lw]|rel_pos\.fc[12]){_W})"
    rf"|patch{_W}|pos|token\.\w+|(norm_pre|norm|fc_norm|patch\.norm){_W}"
    rf"|head\w*{_W}|embed\.(\w+\.(weight|bias)|mask)|rope\.freqs|pre_logits(\.norm)?{_W}"
    rf"|(norm|conv_dw|mlp\.grn|stem\.\d+|down\.\d+(\.norm)?|rel_pos\.fc2){_W}|ls"
    rf"|pool\.(latent|([qkv]|[qk]_norm|proj|norm|fc|mlp\.fc[12]){_W})"
    rf"|(final\.)?ada\.\w+{_W}|cond\.\w+{_W}|final{_W}"
)
#: What a condition makes of adaLN's shifts, scales and gates, and what ends such a network.
_ADA = rf"(final\.)?ada\.\w+{_W}|final{_W}"
#: ConvNeXt V2's response normalisation adds to the identity.
_RESPONSE = rf"(.+\.)?grn{_W}"
#: Talking heads, which mix the attention maps.
_MIXING = r"attn\.talk_[lw]\.weight"
_BRANCH = r"(attn|mlp|attns\.\d+|ffns\.\d+)\..+"
_AROUND = r"(norm|ls)([12])(\..+)?"
_LETTER = r"(.*\.)?([qkv])(_norm)?\.(weight|bias)"


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
        central: whether all blocks stand on it: embeddings, positions, the stem and its norm.
        dispensable: whether the rest computes the same without it: heads, what is between them and
            the stream, mask tokens.
        proven: whether tests prove that its growth keeps the function.
    """

    name: str
    kind: Kind
    bias: bool
    branch: str
    serves: str
    end: bool
    letter: str
    place: Place
    essential: bool
    central: bool
    dispensable: bool
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
        zero = self.bias or self.kind == "table" or re.fullmatch(_RESPONSE, self.name)
        return 0.0 if zero else None

    @property
    def start(self) -> Literal["ones", "zeros", "identity", "kaiming", "trunc_normal"]:
        """How it is drawn where no source covers it."""
        if self.gain:
            return "ones"
        if self.neutral == 0 or re.fullmatch(_ADA, self.name):
            return "zeros"
        if re.fullmatch(_MIXING, self.name):
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
    def pooling(self) -> bool:
        """Whether it belongs to what makes one vector of all tokens."""
        return self.name.startswith("pool.")

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
        if self.name == "head.weight":  # a language model's, where the two are one matrix
            return ("embed.token.weight",)
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
    inside, around, letter = (re.fullmatch(x, role) for x in (_BRANCH, _AROUND, _LETTER))
    bias = role.endswith("bias")
    branch = inside[1] if inside else ""
    return Role(
        name=role,
        kind=_first(_KINDS, role, "bias" if bias else "matrix"),
        bias=bias,
        branch=branch,
        serves={"1": "attn", "2": "mlp"}[around[2]] if around else branch,
        end=re.fullmatch(_END, role) is not None,
        letter=letter[2] if letter else "",
        place=_first(_PLACES, role, ""),
        essential=re.fullmatch(_ESSENTIAL, role) is not None,
        central=re.fullmatch(_CENTRAL, role) is not None,
        dispensable=re.fullmatch(_DISPENSABLE, role) is not None,
        proven=re.fullmatch(_PROVEN, role) is not None,
    )


def _first(table: Mapping[str, T], role: str, default: T) -> T:
    return next((fact for pattern, fact in table.items() if re.fullmatch(pattern, role)), default)


def token_roles(roles: Iterable[str]) -> list[str]:
    """Return which of some roles are tokens before the patches, in the order of the sequence."""
    return [role for role in _TOKENS if role in set(roles)]


def scale_of(role: str, block: Mapping[str, T]) -> T | None:
    """Return the layer scale of the layer that a role belongs to, looked up in a block, or None."""
    fact = facts(role)
    if not fact.end:
        return None
    # A parallel block has one layer scale for both of its branches.
    names = {"attn": ("ls1",), "mlp": ("ls2", "ls1", "ls")}.get(fact.branch, (f"{fact.branch}.ls",))
    return next((block[name] for name in names if name in block), None)
