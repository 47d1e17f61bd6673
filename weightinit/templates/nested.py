"""Training the smaller networks inside a constrained model with it: WeiT's prefix masks.

A network of fewer blocks and fewer channels takes the first blocks with their own scalers, the
first channels of every template, and the first channels of what is outside the blocks. Which size
is trained at a step is ours: the paper's sampling is not known.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from weightinit.anatomy import Anatomy, Piece, Rule, anatomy
from weightinit.errors import ProjectionError
from weightinit.inherit.fitting import ComposedModel
from weightinit.inherit.fresh import sub_generator
from weightinit.init.operators import corner
from weightinit.templates.compose import Composer
from weightinit.templates.constrained import ConstrainedModel, Slots
from weightinit.templates.narrow import Narrowing
from weightinit.templates.sizes import Size, Sizes, fraction_of

__all__ = ["NestedModel"]


class NestedModel(ConstrainedModel):
    """What :func:`weightinit.constrain` makes of several sizes.

    In training every forward draws its size from the seed and the number of forwards so far, which
    the state dict holds: a resumed run draws the same sizes, and so do all ranks. In evaluation it
    is the full size, or what :meth:`at` says. The smaller networks are built by the user's
    ``build``, and read their weights from this model's parameters. torch.compile compiles each size
    once: with more than 8, raise ``torch._dynamo.config.recompile_limit``.

    Beside the arguments of :class:`ConstrainedModel` it takes the sizes, what builds the model of
    one, and the rules by which their parameters are explained.

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

    Raises:
        ProjectionError: if ``model`` is not of that size, or of another family.
    """

    def __init__(
        self, whole: Composer, size: Size, model: nn.Module, rules: Iterable[Rule]
    ) -> None:
        seen, full = anatomy(model, rules=tuple(rules)), whole.target
        wanted, found = _places(full.reshaped(size.widths, size.stages)), _places(seen)
        odd = [f"{x}={n}" for x, n in seen.widths.items() if size.widths.get(x, n) != n]
        odd += [
            f"{key[-1]} {list(found[key].size) if key in found else 'missing'}"
            for key in (wanted | found)
            if key not in wanted or key not in found or wanted[key].size != found[key].size
        ]
        if odd or seen.family != full.family:
            raise ProjectionError(
                f"build= gave a {seen.family} with {', '.join(odd[:5])} for {size}, which a "
                f"{full.family} of widths {dict(size.widths)} is: build the model of the size that "
                "it is called with, heads and all, and everything else as in the full one"
            )
        self.cut = Narrowing(whole.config, full, fraction_of(size.fraction))
        self.slots = Slots(Composer(self.cut.narrow, seen, whole.head_dim))
        self.depths = {kind: len(self.slots.composer.blocks(kind)) for kind in whole.config.kinds}
        places, composed = _places(full), set(self.slots.names)
        self.rest = [
            (spec, [(places[spec.stack, spec.block, p.role], p.size) for p in seen.pieces(spec)])
            for spec in seen.specs
            if spec.name not in composed
        ]

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
            values |= dict.fromkeys((spec.name, *spec.tied), spec.layout.merge(parts))
        return values


def _places(seen: Anatomy) -> dict[tuple[str, int | None, str], Piece]:
    """Return the pieces of a model by stack, block and role."""
    pairs = ((spec, piece) for spec in seen.specs for piece in seen.pieces(spec))
    return {(spec.stack, spec.block, piece.role): piece for spec, piece in pairs}


def _shell(model: nn.Module, like: Tensor) -> ComposedModel:
    """Return a smaller network without parameters of its own."""
    meta = [name for name, buffer in model.named_buffers() if buffer.is_meta]
    if meta:
        raise ProjectionError(f"build= gave buffers {meta} on meta: build the model on a device")
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    return ComposedModel(model, names).to(like.device, like.dtype)
