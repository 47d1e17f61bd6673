"""What a set of weight templates looks like: its kinds, their number and their shapes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from weightinit.errors import BundleError

if TYPE_CHECKING:
    from weightinit.anatomy import Anatomy

__all__ = ["TemplateConfig", "TemplateKind", "kind_of", "kind_roles"]

#: The canonical roles of kinds that cover more than their own, in the order of their rows.
_ROLES: dict[str, tuple[str, ...]] = {
    f"attn.qkv.{which}": tuple(f"attn.{part}.{which}" for part in "qkv")
    for which in ("weight", "bias")
}
_KINDS = {role: kind for kind, roles in _ROLES.items() for role in roles}
METHODS = ("wave", "tleg", "share", "heur_lg", "auto_lg")
ORDERS = ("block", "paper")


@dataclass(frozen=True)
class TemplateKind:
    """The templates of one kind of parameter.

    Args:
        number: N, how many templates are summed.
        shape: template shape, ``(w1, w2)`` for matrices (stored orientation, out x in) and
            ``(w,)`` for vectors.
        parts: how many of the kind's roles one template spans: 1 where q, k and v each take blocks
            of their own, 3 for WAVE's qkv bias, whose templates are 3 w long.
    """

    number: int
    shape: tuple[int, ...]
    parts: int = 1

    @property
    def unit(self) -> tuple[int, ...]:
        """The shape of what one template gives to one role."""
        return (self.shape[0] // self.parts, *self.shape[1:])


@dataclass(frozen=True)
class TemplateConfig:
    """A template set, by kind of parameter; :meth:`wave` is the published one.

    Args:
        method: ``wave``, ``tleg``, ``share``, ``heur_lg`` or ``auto_lg``: where the scalers come
            from (trained, or the closed forms of WAVE's appendix A).
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
        TemplateKind(number=6, shape=(192, 192), parts=1)
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
            known = len(kind.shape) in (1, 2) and kind.parts in (1, len(kind_roles(name)))
            if not sound or not known or kind.shape[0] % kind.parts:
                raise BundleError(
                    f"kind {name!r} of width {self.width} is unsound ({kind}): use positive sizes, "
                    f"one or two axes, and parts of 1 or {len(kind_roles(name))}"
                )

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

    def restricted_to(self, anatomy: Anatomy) -> TemplateConfig:
        """Return this config without the kinds that a model's blocks lack."""
        present = {role for block in anatomy.blocks for role in block}
        kinds = {k: v for k, v in self.kinds.items() if present & set(kind_roles(k))}
        return replace(self, kinds=kinds)

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
            for block in anatomy.blocks:
                sizes = [block[role].size for role in kind_roles(name) if role in block]
                if sizes:
                    total += kind.number * math.prod(self.scaler_shape(name, sizes[0]))
        return total

    def scaler_shape(self, kind: str, size: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of one scaler: how many templates cover one role's size."""
        spec = self.kinds[kind]
        rows, *columns = (math.ceil(n / w) for n, w in zip(size, spec.unit, strict=True))
        return (len(kind_roles(kind)) // spec.parts * rows, *columns)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, the ``options`` of a bundle's config."""
        return asdict(self)

    @classmethod
    def from_dict(cls, options: Mapping[str, Any]) -> TemplateConfig:
        """Return the config of :meth:`to_dict`; unknown or malformed entries raise BundleError."""
        try:
            kinds = {
                str(name): TemplateKind(entry["number"], tuple(entry["shape"]), entry["parts"])
                for name, entry in options["kinds"].items()
            }
            extra = set(options) - {"method", "width", "kinds", "order"}
            if extra:
                raise BundleError(f"template options {sorted(extra)} are unknown: remove them")
            return cls(options["method"], options["width"], kinds, options["order"])
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise BundleError(
                f"template options are malformed ({error!r}): expected method, width, order and "
                "kinds of {number, shape, parts}, as TemplateConfig.to_dict writes them"
            ) from error


def kind_roles(kind: str) -> tuple[str, ...]:
    """Return the canonical roles that a kind covers, in the order of its rows."""
    return _ROLES.get(kind, (kind,))


def kind_of(role: str) -> str:
    """Return the kind whose templates a canonical role is composed from."""
    return _KINDS.get(role, role)


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
