"""Training the smaller networks inside a constrained model with it: WeiT's prefix masks.

A network of fewer blocks and fewer channels takes the first blocks with their own scalers, the
first channels of every template, and the first channels of what is outside the blocks. Which size
is trained at a step is ours: the paper's sampling is not known.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Literal

import torch
from torch import Tensor, nn

from weightinit.anatomy import Anatomy, Rule, anatomy, label_of
from weightinit.errors import ProjectionError
from weightinit.inherit.fitting import ComposedModel
from weightinit.inherit.fresh import sub_generator
from weightinit.init.operators import corner
from weightinit.templates.compose import Composer
from weightinit.templates.constrained import ConstrainedModel, Slots
from weightinit.templates.kinds import head_dims
from weightinit.templates.narrow import Narrowing

__all__ = ["NestedModel", "Size", "Sizes"]


@dataclass(frozen=True)
class Size:
    """The size of one network: what ``build`` is called with.

    Args:
        stages: number of blocks of each stack.
        widths: sizes of the channels by axis label, such as ``d``, ``h`` and ``m`` of a ViT.
        fraction: part of the full width.

    Examples:
        >>> size = Size((3,), {"d": 32, "h": 2, "k": 16, "m": 128}, 0.5)
        >>> size.depth, size.width, size.heads
        (3, 32, 2)
    """

    stages: tuple[int, ...]
    widths: Mapping[str, int] = field(hash=False)
    fraction: float = 1.0

    @property
    def depth(self) -> int:
        """The number of blocks."""
        return sum(self.stages)

    @property
    def width(self) -> int:
        """The width of the residual stream, of the first stage's where there are several."""
        return self.dims[0]

    @property
    def dims(self) -> tuple[int, ...]:
        """The width of the residual stream in each stage."""
        streams = sorted(label for label in self.widths if label_of(label).stream)
        return tuple(self.widths[label] for label in streams)

    @property
    def heads(self) -> int:
        """The number of heads of attention; 0 where there are none."""
        return self.widths.get("h", 0)

    def __str__(self) -> str:
        return f"{'-'.join(map(str, self.stages))} blocks of width {self.width}"


@dataclass(frozen=True)
class Sizes:
    """The sizes that a constrained model is trained at: every depth at every width.

    Args:
        depths: numbers of blocks, or tuples of one number a stage; the model's own is always among
            them.
        widths: fractions of its width; 1 is always among them.
        policy: ``"half"``: every forward in training takes the full size or, as likely, any of the
            depths and widths; ``"sandwich"``: forwards take turns between the full size and a
            smaller one, for two forwards a step.
        seed: base seed of the draws.

    Raises:
        ProjectionError: if a depth or a width is none, or the policy is unknown.
    """

    depths: Iterable[int | tuple[int, ...]] = ()
    widths: Iterable[float] = (1,)
    policy: Literal["half", "sandwich"] = "half"
    seed: int = 0

    def __post_init__(self) -> None:
        """Check every field."""
        object.__setattr__(self, "depths", tuple(self.depths))
        object.__setattr__(self, "widths", tuple(self.widths))
        if self.policy not in ("half", "sandwich"):
            raise ProjectionError(f"policy={self.policy!r}: use 'half' or 'sandwich'")
        for width in self.widths:
            if not isinstance(width, (int, float)) or not 0 < width <= 1:
                raise ProjectionError(
                    f"widths={self.widths}: use fractions of the model's width, above 0 and up to 1"
                )

    def of(self, model: Anatomy) -> tuple[Size, ...]:
        """Return all sizes of a model, the full one first.

        Raises:
            ProjectionError: if a depth is none of the model's, or a width leaves no whole channels
                or heads.
        """
        full, inside = model.stages, head_dims(model)
        depths = [full]
        for depth in self.depths:
            stages = tuple(depth) if isinstance(depth, Iterable) else (depth,)
            fits = [type(n) is int and 1 <= n <= m for n, m in zip(stages, full, strict=False)]
            if len(stages) != len(full) or not all(fits):
                raise ProjectionError(
                    f"depth {depth} is not inside the model's {list(full)}: use 1 block or more, "
                    "up to its own number, and one number for each stage"
                )
            depths.append(stages)
        sizes = []
        for width in (1, *self.widths):
            fraction = Fraction(width).limit_denominator(4096)
            widths = {x: n * (1 if x in inside else fraction) for x, n in model.widths.items()}
            odd = [f"{x}={model.widths[x]}" for x, n in widths.items() if int(n) != n]
            if odd:
                raise ProjectionError(
                    f"width {width} does not leave whole channels and heads of {', '.join(odd)}: "
                    "use another fraction"
                )
            whole = {x: int(n) for x, n in widths.items()}
            sizes += [Size(stages, whole, float(fraction)) for stages in depths]
        return tuple(dict.fromkeys(sizes))


class NestedModel(ConstrainedModel):
    """What :func:`weightinit.constrain` makes of several sizes.

    In training every forward draws its size from the seed and the number of forwards so far, which
    the state dict holds: a resumed run draws the same sizes, and so do all ranks. In evaluation it
    is the full size, or what :meth:`at` says. The smaller networks are built by the user's
    ``build``, and read their weights from this model's parameters.

    Args:
        model: a model on a device; it is copied.
        composer: composes its blocks.
        templates: start values by kind, ``[N, *shape]``.
        scalers: start values by kind, ``[depth, N, *scaler_shape]``.
        sizes: the sizes to train.
        build: makes the model of a size.
        rules: rules by which their parameters are explained.

    Attributes:
        sizes: all sizes, the full one first.
        passes: number of forwards in one step of the policy, whose gradients are accumulated.
        calls: number of forwards in training so far.
        last: the size of the last forward.
    """

    def __init__(
        self,
        model: nn.Module,
        composer: Composer,
        templates: Mapping[str, Tensor],
        scalers: Mapping[str, Tensor],
        sizes: Sizes,
        build: Callable[[Size], nn.Module] | None,
        rules: Iterable[Rule] = (),
    ) -> None:
        super().__init__(model, composer, templates, scalers)
        self._choice, self.sizes = sizes, sizes.of(composer.target)
        if len(self.sizes) > 1 and build is None:
            raise ProjectionError(
                "sizes= needs build=, which makes the model of a size: build=lambda size: "
                "timm.create_model(name, depth=size.depth, embed_dim=size.width, "
                "num_heads=size.heads)"
            )
        if not self.config.trained:
            raise ProjectionError(
                f"templates of {self.config.method} are whole layers: train them at one size, or "
                "use a config of method 'weit'"
            )
        like = next(p for p in self.model.parameters() if p.is_floating_point())
        self.passes = 2 if sizes.policy == "sandwich" and len(self.sizes) > 1 else 1
        self.calls, self.last, self._fixed = 0, self.full, None
        with torch.random.fork_rng(devices=[]):
            models = [build(size) for size in self.sizes[1:] if build]
        self._inner = [
            _Inner(composer, size, model, rules)
            for size, model in zip(self.sizes[1:], models, strict=True)
        ]
        self.shells = nn.ModuleList(_shell(model, like) for model in models)

    @property
    def full(self) -> Size:
        """The full size."""
        return self.sizes[0]

    def drawn(self, call: int) -> Size:
        """Return the size of one forward in training, by its number."""
        generator = sub_generator(self._choice.seed, f"size {call}")
        smaller = self.sizes[1:]
        if self.passes == 2:
            full, among = call % 2 == 0, smaller
        else:
            full, among = float(torch.rand((), generator=generator)) < 0.5, self.sizes
        if full or not smaller:
            return self.full
        return among[int(torch.randint(len(among), (), generator=generator))]

    @contextlib.contextmanager
    def at(
        self, size: Size | None = None, *, depth: int | None = None, width: float | None = None
    ) -> Iterator[Size]:
        """Run every forward inside at one size, in training and evaluation.

        Args:
            size: one of :attr:`sizes`; or
            depth: number of its blocks; None is all.
            width: its fraction of the width; None is 1.

        Raises:
            ProjectionError: if there is no such size.
        """
        depth = self.full.depth if depth is None else depth
        found = [s for s in self.sizes if s.depth == depth and s.fraction == (width or 1)]
        wanted = size or (found[0] if found else None)
        if wanted not in self.sizes:
            raise ProjectionError(
                f"size {size or (depth, width)} is not trained: use one of "
                f"{[str(own) for own in self.sizes]}"
            )
        before, self._fixed = self._fixed, wanted
        try:
            yield wanted
        finally:
            self._fixed = before

    @torch.compiler.disable
    def _next(self) -> int:
        """Return the index of this forward's size, and count it."""
        size = self._fixed or (self.drawn(self.calls) if self.training else self.full)
        self.calls += self.training and self._fixed is None
        self.last = size
        return self.sizes.index(size)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Compose the weights of one size, then call its model."""
        index: Any = self._next()  # pyright: ignore[reportCallIssue]
        if index == 0:
            return super().forward(*args, **kwargs)
        shell, inner = self.shells[index - 1], self._inner[index - 1]
        assert isinstance(shell, ComposedModel)
        shell.put(inner.weights(self))
        return shell.model(*args, **kwargs)

    def get_extra_state(self) -> Tensor:
        """Return the number of forwards in training so far."""
        return torch.tensor(self.calls)

    def set_extra_state(self, state: Tensor) -> None:
        """Set the number of forwards in training so far."""
        self.calls = int(state)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Switch activation checkpointing of the models of all sizes, where they have it."""
        for model in (self.model, *(shell.model for shell in self.shells)):
            model.set_grad_checkpointing(enable)  # type: ignore[operator]

    def traits(self) -> dict[str, Any]:
        """Return what a bundle says of the sizes that were trained."""
        stages = sorted({size.stages for size in self.sizes})
        return {
            "trained_depths": [list(s) if len(s) > 1 else sum(s) for s in stages],
            "trained_widths": sorted({size.fraction for size in self.sizes}),
        }


class _Inner:
    """How the parameters of one smaller network follow from those of the full one.

    Args:
        whole: composes the full network's blocks.
        size: size of the smaller one.
        model: model of that size.
        rules: rules by which its parameters are explained.

    Raises:
        ProjectionError: if it is of another size or family.
    """

    def __init__(
        self, whole: Composer, size: Size, model: nn.Module, rules: Iterable[Rule]
    ) -> None:
        seen, full = anatomy(model, rules=tuple(rules)), whole.target
        fraction = Fraction(size.fraction).limit_denominator(4096)
        self.cut = Narrowing(whole.config, whole.pieces, fraction, head_dims(full))
        self._check(seen, full, size)
        self.slots = Slots(Composer(self.cut.narrow, seen, whole.head_dim))
        self.depths = {
            kind: len(self.slots.composer.blocks(kind)) for kind in self.cut.narrow.kinds
        }
        places = {
            (spec.stack, spec.block, piece.role): piece
            for spec in full.specs
            for piece in full.pieces(spec)
        }
        composed = set(self.slots.names)
        self.rest = [
            (spec, [(places[spec.stack, spec.block, p.role], p.size) for p in seen.pieces(spec)])
            for spec in seen.specs
            if spec.name not in composed
        ]

    def _check(self, seen: Anatomy, full: Anatomy, size: Size) -> None:
        """Raise ProjectionError unless a model is the first part of the full one."""
        pairs = [(seen.outside, full.outside)]
        for stack, blocks in full.stacks.items():
            pairs += zip(seen.stacks.get(stack, ()), blocks, strict=False)
        odd: list[object] = []
        if (seen.family, seen.stages) != (full.family, size.stages):
            odd.append(f"a {seen.family} of {list(seen.stages)} blocks")
        inside = {x for block in full.blocks for p in block.values() for a in p.axes for x in a}
        for label in inside & size.widths.keys() & seen.widths.keys():
            if seen.widths[label] != size.widths[label]:
                odd.append(f"{label}={seen.widths[label]}")
        for inner, outer in pairs:
            odd += sorted(inner.keys() ^ outer.keys())
            for role in inner.keys() & outer.keys():
                axes = zip(inner[role].size, outer[role].size, outer[role].axes, strict=False)
                for own, whole, labels in axes:
                    fits = {whole * self.cut.fraction if self.cut.scales(labels) else whole}
                    if inner is seen.outside and not labels.stream:
                        fits.add(whole)  # it may be a width of its own
                    if own not in fits:
                        odd.append(f"{role} of {list(inner[role].size)}")
                        break
        if odd:
            raise ProjectionError(
                f"build= gave {', '.join(map(str, odd[:5]))} for {size}, where the full model is a "
                f"{full.family} of {full.depth} blocks and {size.fraction:g} of its width is "
                f"{dict(size.widths)}: build the model of the size that it is called with, heads "
                "and all, and everything else as in the full one"
            )

    def weights(self, full: NestedModel) -> dict[str, Tensor]:
        """Return all parameters by name, from the parameters of the full network."""
        templates = {k: self.cut.template(k, t) for k, t in full.template_values().items()}
        scalers = {k: s[: self.depths[k]] for k, s in full.scaler_values().items()}
        values = self.slots.weights(templates, scalers)
        for spec, pieces in self.rest:
            parts = []
            for piece, size in pieces:
                stored = full.model.get_parameter(piece.spec.name)
                part = piece.spec.layout.split(stored)[piece.spec.parts.index(piece.role)]
                parts.append(corner(part, size))
            value = spec.layout.merge(parts)
            values |= dict.fromkeys((spec.name, *spec.tied), value)
        return values


def _shell(model: nn.Module, like: Tensor) -> ComposedModel:
    """Return a smaller network without parameters of its own."""
    meta = [name for name, buffer in model.named_buffers() if buffer.is_meta]
    if meta:
        raise ProjectionError(f"build= gave buffers {meta} on meta: build the model on a device")
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    return ComposedModel(model, names).to(like.device, like.dtype)
