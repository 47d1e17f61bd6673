"""What a module says of itself where names and shapes are silent."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weightinit.errors import AnatomyError

__all__ = [
    "Form",
    "ModuleFacts",
    "Traits",
    "activation",
    "heads_of",
    "infer",
    "inspect_module",
    "note_config",
    "note_mlp",
    "type_name",
]

#: Where the norms of a block are: ``x + f(norm(x))``, ``x + norm(f(x))``, ``norm(x + f(x))``, and
#: ``x + gate * f((1 + scale) * norm(x) + shift)``, all three made from a condition.
Form = Literal["pre_norm", "branch_norm", "post_norm", "adaLN"]
#: An activation by value, and how else it is called, in small letters without "_" and "-".
_ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "gelu": (F.gelu, "gelupython"),
    "gelu_tanh": (
        partial(F.gelu, approximate="tanh"),
        "gelutanh gelunew newgelu gelufast fastgelu gelupytorchtanh pytorchgelutanh "
        "geluapproximate",
    ),
    "quick_gelu": (lambda x: x * torch.sigmoid(1.702 * x), "quickgelu"),
    "silu": (F.silu, "swish"),
    "relu": (F.relu, ""),
    "relu_squared": (lambda x: F.relu(x).square(), "relu2 squaredrelu relusquared"),
    "tanh": (torch.tanh, ""),
}


@dataclass(frozen=True)
class Traits:
    """What a model computes besides its weights, as far as it is known; None where it is not.

    Args:
        library: the library whose module it is; None for a state dict.
        form: where the norms of its blocks are.
        main_stacks: names of the stacks that make up the depth, in order.
        depths: number of blocks of each of them.
        grid: rows and columns of patches.
        grid_assumed: whether nothing tells the grid but that its positions make a square.
        first_position: row of the first position of a text, behind those of the padding.
        prefix_tokens: number of tokens before the patches.
        pos_prefix: number of them that have a row among the positions.
        pool: how tokens become features.
        act: name of the function that the activation computes, such as ``"gelu"``.
        norm: type of the norms.
        rope: type of the rotary embedding, ``"none"`` if there is none.
        glu: order of a gated MLP's halves, ``"none"`` if it is not gated.
        proven: whether tests prove that models of its family grow without loss.
    """

    library: str | None = None
    form: Form | None = None
    main_stacks: tuple[str, ...] = ()
    depths: tuple[int, ...] = ()
    grid: tuple[int, int] | None = None
    grid_assumed: bool = False
    first_position: int | None = None
    prefix_tokens: int = 0
    pos_prefix: int | None = None
    pool: str | None = None
    act: str | None = None
    norm: str | None = None
    rope: str | None = None
    glu: str | None = None
    proven: bool = False

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Traits:
        """Return the traits that plain JSON values tell; what is unknown is passed over."""
        known: dict[str, Any] = {}
        for name in (trait.name for trait in fields(cls) if trait.name in values):
            value = values[name]
            known[name] = tuple(value) if isinstance(value, list) else value
        if isinstance(known.get("act"), str):
            known["act"] = activation(known["act"])
        return cls(**known)

    def to_dict(self) -> dict[str, Any]:
        """Return what is known as plain JSON values."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in vars(self).items()
            if value is not None and name != "proven" and (name != "grid_assumed" or value)
        }

    @property
    def positions(self) -> tuple[tuple[int, int], int] | None:
        """The grid of the positions and the number of rows before it, where both are known."""
        if self.grid is None or self.pos_prefix is None:
            return None
        return self.grid, self.pos_prefix

    @property
    def centred(self) -> bool:
        """Whether the norms subtract a mean, which means of squares do not."""
        return "rms" not in (self.norm or "").lower()


@dataclass(frozen=True)
class ModuleFacts:
    """What a module says: sizes that no shape gives, flags on which rules depend, and traits."""

    sizes: dict[str, int] = field(default_factory=dict)
    flags: dict[str, bool] = field(default_factory=dict)
    traits: dict[str, Any] = field(default_factory=dict)


def inspect_module(
    module: nn.Module, library: str, read: Callable[[Any, ModuleFacts], None]
) -> ModuleFacts:
    """Return what ``read`` notes of a module, which must be like its library's models."""
    noted = ModuleFacts(traits={"library": library})
    try:
        read(module, noted)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise AnatomyError(
            f"a {type(module).__name__} has the parameter names of {library}'s models but not "
            f"their attributes ({error}): pass its state dict, with sizes={{'h': ...}}"
        ) from error
    return noted


def infer(traits: dict[str, Any], sizes: Mapping[str, int], prefix: int) -> None:
    """Complete traits in place: the grid of the positions and the prefix rows among them."""
    prefix = traits.setdefault("prefix_tokens", prefix)
    if {"gh", "gw"} <= sizes.keys():
        traits.update(grid=(sizes["gh"], sizes["gw"]), pos_prefix=0)
    elif {"t", "p"} <= sizes.keys():
        tokens = sizes["t"]
        if "grid" in traits:
            rows = tokens - math.prod(traits["grid"])
            if 0 <= rows <= prefix:
                traits["pos_prefix"] = rows
            return
        # Where there are registers, the class token alone may have a position.
        for rows in (prefix, min(prefix, 1), 0):
            side = math.isqrt(max(tokens - rows, 0))
            if 0 < side * side == tokens - rows:
                assumed = "library" not in traits
                traits.update(grid=(side, side), pos_prefix=rows, grid_assumed=assumed)
                return


def heads_of(module: nn.Module) -> dict[str, int]:
    """Return the head count that the attributes of a model of the user's own agree on."""
    holders = [getattr(module, "config", None), *module.modules()]
    names = ("num_heads", "n_heads", "n_head", "nhead", "heads", "num_attention_heads")
    found = [getattr(holder, name, None) for holder in holders for name in names]
    counts = {heads for heads in found if isinstance(heads, int) and heads > 0}
    return {"h": counts.pop()} if len(counts) == 1 else {}


def note_mlp(noted: ModuleFacts, mlp: Any) -> None:
    """Note what timm's MLPs say: their activation, and the order of a gated one's halves."""
    glu = "none"
    if hasattr(mlp, "gate_last"):
        noted.flags["gate_last"] = bool(mlp.gate_last)
        glu = "gate_last" if mlp.gate_last else "gate_first"
    elif hasattr(mlp, "fc1_g"):
        glu = "split"
    act = getattr(mlp, "act", None) or getattr(mlp, "mlp_act", None)
    noted.traits.update(act=activation(act), glu=glu)


def note_config(module: Any, noted: ModuleFacts) -> None:
    """Note what the config of a transformers model says: its heads and its activation."""
    config = getattr(module, "config", None)
    heads = getattr(config, "num_attention_heads", None)
    if heads:
        noted.sizes["h"] = int(heads)
    act = getattr(config, "hidden_act", None) or getattr(config, "activation_function", None)
    noted.traits.update(act=activation(act), glu="none")
    size, patch = (
        (value, value) if isinstance(value, int) else value
        for value in (getattr(config, name, None) for name in ("image_size", "patch_size"))
    )
    if size and patch:
        noted.traits["grid"] = (size[0] // patch[0], size[1] // patch[1])
    # RoBERTa's positions begin behind that of the padding, and its table says which that is.
    table = getattr(getattr(module, "embeddings", None), "position_embeddings", None)
    if isinstance(table, nn.Embedding):
        noted.traits["first_position"] = 0 if table.padding_idx is None else table.padding_idx + 1


def activation(act: Any) -> str | None:
    """Return the name of the function that an activation computes, whoever wrote it.

    Examples:
        >>> activation(nn.GELU()), activation("gelu_new"), activation(nn.functional.relu)
        ('gelu', 'gelu_tanh', 'relu')
    """
    if act is None or isinstance(act, str):
        key = (act or "").lower().replace("_", "").replace("-", "").removesuffix("activation")
        known = (x for x, (_, others) in _ACTIVATIONS.items() if key in (x, *others.split()))
        return next(known, act)
    probe = torch.linspace(-4, 4, 33, dtype=torch.float64, device="cpu")
    with suppress(Exception):  # whatever a user's module raises
        value = act(probe)
        for name, (function, _) in _ACTIVATIONS.items():
            if torch.allclose(value, function(probe), atol=1e-5):
                return name
    return getattr(act, "__name__", None) or type_name(act)


def type_name(module: object) -> str | None:
    """Return the name of a module's type; None of None."""
    return None if module is None else type(module).__name__
