"""What a module says of itself where names and shapes are silent."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from torch import nn

from weightinit.errors import AnatomyError

__all__ = ["Form", "Look", "Traits", "infer", "look"]

#: Where the norms of a block are: ``x + f(norm(x))``, ``x + norm(f(x))``, ``norm(x + f(x))``.
Form = Literal["pre_norm", "branch_norm", "post_norm"]
_BRANCH_NORM = ("ResPostBlock", "ResPostRelPosBlock", "EvaBlockPostNorm")


@dataclass(frozen=True)
class Traits:
    """What a model computes besides its weights, as far as it is known; None where it is not.

    Args:
        library: the library whose module it is; None for a state dict.
        form: where the norms of its blocks are.
        main_stacks: names of the stacks that make up the depth, in order.
        depths: number of blocks of each of them.
        grid: rows and columns of patches.
        prefix_tokens: number of tokens before the patches.
        pos_prefix: how many of them have a row of their own among the positions.
        no_embed_class: whether positions are added before the tokens are.
        pool: how tokens become features.
        act: name of the activation.
        norm: type of the norms.
        rope: type of the rotary embedding, ``"none"`` if there is none.
        glu: order of a gated MLP's halves, ``"none"`` if it is not gated.
    """

    library: str | None = None
    form: Form | None = None
    main_stacks: tuple[str, ...] = ()
    depths: tuple[int, ...] = ()
    grid: tuple[int, int] | None = None
    prefix_tokens: int = 0
    pos_prefix: int | None = None
    no_embed_class: bool | None = None
    pool: str | None = None
    act: str | None = None
    norm: str | None = None
    rope: str | None = None
    glu: str | None = None

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Traits:
        """Return the traits that plain JSON values tell; what is unknown is passed over."""
        known: dict[str, Any] = {
            field.name: values[field.name] for field in fields(cls) if field.name in values
        }
        for name, value in known.items():
            known[name] = tuple(value) if isinstance(value, list) else value
        return cls(**known)

    def to_dict(self) -> dict[str, Any]:
        """Return what is known as plain JSON values."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in ((field.name, getattr(self, field.name)) for field in fields(self))
            if value is not None
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
class Look:
    """What a module says: sizes that no shape gives, flags on which rules depend, and traits."""

    sizes: dict[str, int] = field(default_factory=dict)
    flags: dict[str, bool] = field(default_factory=dict)
    traits: dict[str, Any] = field(default_factory=dict)


def look(module: nn.Module, library: str, family: str) -> Look:
    """Return what a module of a library says of itself.

    Args:
        module: inside its wrappers.
        library: whose it is, as the rules name it.
        family: of the model, as the rules name it.

    Raises:
        AnatomyError: if it lacks what models of that library have.
    """
    found = Look()
    try:
        _READERS[library, family](module, found)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise AnatomyError(
            f"a {type(module).__name__} has the parameter names of {library}'s models but not "
            f"their attributes ({error}): pass its state dict, with sizes={{'h': ...}}"
        ) from error
    return found


def infer(traits: dict[str, Any], sizes: Mapping[str, int], prefix: int) -> None:
    """Fill in what follows from sizes: the grid of the positions and the prefix rows inside them.

    Args:
        traits: to complete, in place.
        sizes: solved.
        prefix: number of prefix tokens, counted from their parameters.
    """
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
        for rows in (prefix, 0):
            side = math.isqrt(max(tokens - rows, 0))
            if side * side == tokens - rows:
                traits.update(grid=(side, side), pos_prefix=rows)
                return


def _timm_vit(module: Any, found: Look) -> None:
    blocks = [
        block
        for stack in ("blocks", "blocks_token_only")
        for block in getattr(module, stack, nn.ModuleList()).children()
    ]
    _describe_heads(found, blocks)
    pool = getattr(module, "attn_pool", None)
    pool_heads = getattr(pool, "num_heads", None)
    if pool_heads:
        found.sizes["hp"] = pool_heads
    stem = getattr(module, "patch_embed", None)
    embeds = getattr(module, "embeds", None)
    if embeds is not None:
        found.sizes["p"], found.sizes["q"] = embeds.patch_size
        found.flags["channels_last"] = bool(getattr(embeds, "channels_last", False))
        stem = embeds
    grid = getattr(stem, "grid_size", None)
    if grid:
        found.traits["grid"] = tuple(grid)
    first = blocks[0] if blocks else None
    mlp = getattr(first, "mlp", None)
    _describe_mlp(found, mlp if mlp is not None else first)
    found.traits.update(
        library="timm",
        prefix_tokens=int(getattr(module, "num_prefix_tokens", 0)),
        pool=getattr(module, "global_pool", None),
        no_embed_class=bool(getattr(module, "no_embed_class", False)),
        form="branch_norm" if type(first).__name__ in _BRANCH_NORM else "pre_norm",
        norm=_type(getattr(first, "norm1", None) or getattr(first, "in_norm", None)),
        rope=_type(getattr(module, "rope", None)) or "none",
    )


def _describe_heads(found: Look, blocks: list[Any]) -> None:
    seen = []
    for block in blocks:
        branches = getattr(block, "attns", None)
        # A parallel-scaling block is its own attention.
        attn = branches[0].attn if branches else getattr(block, "attn", block)
        # Differential attention calls the width of one of a head's two maps its head dim.
        maps = 2 if hasattr(attn, "sub_norm") else 1
        seen.append((getattr(attn, "num_heads", None), maps * getattr(attn, "head_dim", 0)))
    heads = {h for h, _ in seen if h}
    dims = {k for _, k in seen if k}
    if len(heads) > 1 or len(dims) > 1:
        raise AnatomyError(
            f"the blocks differ in heads {sorted(heads)} or head dim {sorted(dims)}: "
            "pass a model whose blocks are alike"
        )
    found.sizes.update([*(("h", h) for h in heads), *(("k", k) for k in dims)])


def _describe_mlp(found: Look, mlp: Any) -> None:
    glu = "none"
    if hasattr(mlp, "gate_last"):
        found.flags["gate_last"] = bool(mlp.gate_last)
        glu = "gate_last" if mlp.gate_last else "gate_first"
    elif hasattr(mlp, "fc1_g"):
        glu = "split"
    act = _type(getattr(mlp, "act", None) or getattr(mlp, "mlp_act", None))
    found.traits.update(act=act, glu=glu)


def _type(module: object) -> str | None:
    return None if module is None else type(module).__name__


def _timm_convnext(module: Any, found: Look) -> None:
    block = next((b for stage in module.stages for b in stage.blocks), None)
    _describe_mlp(found, getattr(block, "mlp", None))
    pool = getattr(getattr(module, "head", None), "global_pool", None)
    found.traits.update(
        library="timm",
        pool=getattr(pool, "pool_type", None),
        norm=_type(getattr(block, "norm", None)),
    )


def _torchvision_vit(module: Any, found: Look) -> None:
    found.sizes["h"] = module.encoder.layers[0].self_attention.num_heads
    side = module.image_size // module.patch_size
    found.traits.update(
        library="torchvision",
        prefix_tokens=1,
        grid=(side, side),
        pool="token",
        act="GELU",
        glu="none",
        form="pre_norm",
    )


def _transformers(module: Any, found: Look) -> None:
    config = getattr(module, "config", None)
    heads = getattr(config, "num_attention_heads", None)
    if heads:
        found.sizes["h"] = int(heads)
    act = getattr(config, "hidden_act", None) or getattr(config, "activation_function", None)
    model_type = getattr(config, "model_type", None)
    found.traits.update(
        library="transformers",
        act=act if isinstance(act, str) else _type(act),
        glu="none",
        form="post_norm" if model_type in ("bert", "roberta") else "pre_norm",
    )
    if model_type in ("vit", "deit"):
        found.traits.update(prefix_tokens=1 + (model_type == "deit"), pool="token")


_READERS = {
    ("timm", "vit"): _timm_vit,
    ("timm", "convnext"): _timm_convnext,
    ("torchvision", "vit"): _torchvision_vit,
    ("transformers", "vit"): _transformers,
    ("transformers", "bert"): _transformers,
    ("transformers", "gpt2"): _transformers,
}
