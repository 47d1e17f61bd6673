"""What a set of weight templates looks like: its kinds, their number and their shapes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from weightinit.errors import BundleError
from weightinit.templates.kinds import (
    TemplateKind,
    blocks_of,
    folded,
    kind_of,
    kind_roles,
    kinds_of,
)

if TYPE_CHECKING:
    from weightinit.anatomy import Anatomy, Piece

__all__ = ["TemplateConfig"]

#: Methods that train the scalers too; those of the others are closed forms.
TRAINED = ("wave", "weit")
METHODS = (*TRAINED, "tleg", "share", "heur_lg", "auto_lg")
ORDERS = ("block", "paper")


@dataclass(frozen=True)
class TemplateConfig:
    """A template set, by kind of parameter; :meth:`wave` is the published one.

    Args:
        method: ``wave`` or ``weit``, whose scalers are trained, or ``tleg``, ``share``, ``heur_lg``
            or ``auto_lg``, whose scalers are the closed forms of WAVE's appendix A.
        width: embed_dim of the auxiliary model.
        kinds: templates by kind (``"attn.qkv.weight"``).
        order: ``"block"`` concatenates scaled templates (block (a, b) of W is S[a, b] T);
            ``"paper"`` is the literal T (x) S of Eq. 4, which interleaves them.

    Raises:
        BundleError: if a field is not one of the allowed values.

    Examples:
        >>> import weightinit as wi
        >>> config = wi.TemplateConfig.wave(192)
        >>> config.kinds["attn.qkv.weight"]
        TemplateKind(number=6, shape=(192, 192), parts=1, stack='')
    """

    method: str
    width: int
    kinds: Mapping[str, TemplateKind] = field(default_factory=dict)
    order: Literal["block", "paper"] = "block"

    def __post_init__(self) -> None:
        """Check every field: a config may come from a stranger's file."""
        for name, value, allowed in (
            ("method", self.method, METHODS),
            ("order", self.order, ORDERS),
        ):
            if value not in allowed:
                raise BundleError(f"{name} {value!r} is not supported: use one of {allowed}")
        for name, kind in self.kinds.items():
            numbers = (self.width, kind.number, kind.parts, *kind.shape)
            sound = all(isinstance(n, int) and 1 <= n < 2**31 for n in numbers)
            if not isinstance(kind.stack, str) or not name.startswith(kind.stack):
                raise BundleError(
                    f"kind {name!r} is of stack {kind.stack!r}: its name must begin with its stack"
                )
            roles = len(self.roles(name))
            known = len(kind.shape) in (1, 2) and kind.parts in (1, roles)
            if not sound or not known or kind.shape[0] % kind.parts:
                raise BundleError(
                    f"kind {name!r} of width {self.width} is unsound ({kind}): use positive sizes, "
                    f"one or two axes, and parts of 1 or {roles}"
                )

    @property
    def trained(self) -> bool:
        """Whether the scalers are trained, and not a closed form."""
        return self.method in TRAINED

    def roles(self, kind: str) -> tuple[str, ...]:
        """Return the canonical roles that a kind covers, in the order of its rows."""
        stack = self.kinds[kind].stack
        return kind_roles(kind[len(stack) + 1 :] if stack else kind)

    def kind(self, role: str, stack: str = "") -> str:
        """Return the kind of which a role in a stack of blocks is composed."""
        own = f"{stack}.{kind_of(role)}"
        return own if own in self.kinds else kind_of(role)

    @classmethod
    def wave(
        cls, width: int, *, mlp_ratio: int = 4, head_dim: int = 64, buckets: int = 49
    ) -> TemplateConfig:
        """Return WAVE's template set (Table C.2): 24 square templates, two layers' worth.

        Args:
            width: embed_dim w of the auxiliary model.
            mlp_ratio: hidden size of its MLP over w.
            head_dim: rows of its contextual relative-position tables, used where a model has them.
            buckets: their columns.
        """
        kinds = {}
        for name, units in _layer(mlp_ratio).items():
            kinds[name] = (
                TemplateKind(4, (units[0] * width,), len(kind_roles(name)))
                if len(units) == 1
                else TemplateKind(2 * math.prod(units), (width, width))
            )
        for part, shape in (
            ("q", (head_dim, buckets)),
            ("k", (head_dim, buckets)),
            ("v", (buckets, head_dim)),
        ):
            kinds[f"attn.rpe_{part}.weight"] = TemplateKind(6, shape)
        return cls("wave", width, kinds)

    @classmethod
    def layers(cls, method: str, width: int, number: int, *, mlp_ratio: int = 4) -> TemplateConfig:
        """Return a set whose templates are whole layers, as in the special cases of appendix A.

        Args:
            method: ``tleg`` (2 layers: base and slope), ``share`` (1), ``heur_lg`` or ``auto_lg``.
            width: embed_dim of the auxiliary model or ancestor.
            number: how many layers the set holds.
            mlp_ratio: hidden size of its MLP over ``width``.
        """
        kinds = {
            name: TemplateKind(number, tuple(n * width for n in units), len(kind_roles(name)))
            for name, units in _layer(mlp_ratio).items()
        }
        return cls(method, width, kinds)

    @classmethod
    def of(
        cls,
        anatomy: Anatomy,
        *,
        layers: int | None = 2,
        width: int | None = None,
        method: Literal["weit", "wave"] = "weit",
    ) -> TemplateConfig:
        """Return a template set for every role in the blocks of a model of any family.

        Matrices are cut into square tiles as wide as the residual stream, with as many templates
        as ``layers`` blocks have tiles; vectors get 2 ``layers`` templates of their own length, and
        so do depthwise convolutions, whose taps lie along the second axis. For a plain ViT that is
        WAVE's set. Stages of several widths get kinds of their own, in shallow stages one layer's
        worth. WeiT's sets are not known: all but the ViT's is ours.

        Args:
            anatomy: anatomy of the auxiliary model.
            layers: how many blocks' worth of templates each kind has; None is all blocks', which
                can hold any weights.
            width: width of the templates (in the first stage); default: the model's own.
            method: ``"weit"`` or ``"wave"``.

        Raises:
            BundleError: if the blocks stand on no residual stream, or ``width`` does not divide
                their sizes.

        Examples:
            >>> import timm, torch, weightinit as wi
            >>> with torch.device("meta"):
            ...     vit = timm.create_model("vit_tiny_patch16_224")
            >>> config = wi.TemplateConfig.of(wi.anatomy(vit))
            >>> config.kinds == wi.TemplateConfig.wave(192).restricted_to(wi.anatomy(vit)).kinds
            True
        """
        own, kinds = kinds_of(anatomy, layers, width)
        return cls(method, own, kinds)

    def pieces(self, anatomy: Anatomy) -> dict[str, Piece]:
        """Return the first parameter of every kind that the blocks of a model have."""
        found = {}
        for name, kind in self.kinds.items():
            blocks, roles = blocks_of(anatomy, kind.stack), self.roles(name)
            found[name] = next((b[r] for b in blocks for r in roles if r in b), None)
        return {name: piece for name, piece in found.items() if piece is not None}

    def restricted_to(self, anatomy: Anatomy) -> TemplateConfig:
        """Return this config without the kinds that a model's blocks lack."""
        return replace(self, kinds={name: self.kinds[name] for name in self.pieces(anatomy)})

    def num_scalers(self, anatomy: Anatomy) -> int:
        """Return how many scalers a model needs: 84 r^2 + 32 r a block for WAVE at ratio r.

        Blocks with contextual relative-position tables need 18 more. Kinds that the model lacks
        (biases, say) are not counted.

        Examples:
            >>> import timm, torch, weightinit as wi
            >>> with torch.device("meta"):
            ...     deit = timm.create_model("deit_base_patch16_224")
            >>> wi.TemplateConfig.wave(768).num_scalers(wi.anatomy(deit))
            1392
        """
        total = 0
        for name, kind in self.kinds.items():
            for block in blocks_of(anatomy, kind.stack):
                sizes = [folded(block[role]) for role in self.roles(name) if role in block]
                if sizes:
                    total += kind.number * math.prod(self.scaler_shape(name, sizes[0]))
        return total

    def scaler_shape(self, kind: str, size: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of one scaler: how many templates cover one role's size."""
        spec = self.kinds[kind]
        rows, *columns = (math.ceil(n / w) for n, w in zip(size, spec.unit, strict=True))
        return (len(self.roles(kind)) // spec.parts * rows, *columns)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, the ``options`` of a bundle's config."""
        return asdict(self)

    @classmethod
    def from_dict(cls, options: Mapping[str, Any]) -> TemplateConfig:
        """Return the config of :meth:`to_dict`; unknown or malformed entries raise BundleError."""
        try:
            kinds = {
                str(name): TemplateKind(
                    entry["number"], tuple(entry["shape"]), entry["parts"], entry.get("stack", "")
                )
                for name, entry in options["kinds"].items()
            }
            extra = set(options) - {"method", "width", "kinds", "order"}
            if extra:
                raise BundleError(f"template options {sorted(extra)} are unknown: remove them")
            return cls(options["method"], options["width"], kinds, options["order"])
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise BundleError(
                f"template options are malformed ({error!r}): expected method, width, order and "
                "kinds of {number, shape, parts, stack}, as TemplateConfig.to_dict writes them"
            ) from error


def _layer(mlp_ratio: int) -> dict[str, tuple[int, ...]]:
    """Return the sizes of the kinds of one layer, in units of its width."""
    return {
        "attn.qkv.weight": (3, 1),
        "attn.proj.weight": (1, 1),
        "mlp.fc1.weight": (mlp_ratio, 1),
        "mlp.fc2.weight": (1, mlp_ratio),
        "attn.qkv.bias": (3,),
        "mlp.fc1.bias": (mlp_ratio,),
        "attn.proj.bias": (1,),
        "mlp.fc2.bias": (1,),
        **{f"norm{i}.{which}": (1,) for i in (1, 2) for which in ("weight", "bias")},
    }
