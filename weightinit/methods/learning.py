"""What LiGO and FINE learn: trained on the target's own loss, the ancestor frozen."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from weightinit.anatomy import Anatomy, anatomy
from weightinit.ancestor.ancestor import Ancestor
from weightinit.ancestor.folding import folded
from weightinit.inherit.fitting import ComposedModel
from weightinit.inherit.method import Method
from weightinit.inherit.pairs import check_pair
from weightinit.numerics import plain_numerics
from weightinit.plan import Plan

if TYPE_CHECKING:
    from typing_extensions import Self

    from weightinit.api import AncestorLike

__all__ = ["LearnedModel"]


class Learner(Method, Protocol):
    """The options of a method and what it learned: an Operator of files."""

    def contents(self) -> tuple[dict[str, Any], Mapping[str, Tensor], int]:
        """Return options, learned tensors by name and the depth."""
        ...

    @classmethod
    def of_contents(cls, own: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """Return the options with what was learned."""
        ...


T = TypeVar("T", bound=Learner)


class LearnedModel(ComposedModel, Generic[T]):
    """A copy of a target whose weights follow from an ancestor and what a method learns.

    Args:
        ancestor: anything that :func:`weightinit.project_from` takes; it is frozen.
        target: the model; a meta model is built on the CPU.
        start: returns the method with something to train.
        learns: whether a tensor of :meth:`Operator.contents` is trained, by its name.
        seed: base seed for all random draws.

    Attributes:
        learned: what is trained, by name.
        fresh: parameters that the ancestor lacks (a head of other classes), trained along.
    """

    @plain_numerics()
    def __init__(
        self,
        ancestor: AncestorLike,
        target: nn.Module,
        start: Callable[[Ancestor, Anatomy], T],
        *,
        learns: Callable[[str], bool] = lambda name: True,
        seed: int = 0,
    ) -> None:
        model = copy.deepcopy(target)
        new = anatomy(model)
        source, _ = folded(Ancestor.open(ancestor), new)
        check_pair(source.anatomy, new)
        options = start(source, new)
        recipes = options.plan(source, new, seed=seed).recipes(new)
        Plan(model, new, recipes, source=str(options)).commit().requires_grad_(False)
        fresh = {recipe.spec.name for recipe in recipes if recipe.action == "fresh"}
        self._dtypes = {name: p.dtype for name, p in model.named_parameters()}
        self._device = next(model.parameters()).device
        own, tensors, _ = options.contents()
        held = {name: value.detach().to(self._device, copy=True) for name, value in tensors.items()}
        self.learned = {
            name: value.requires_grad_() for name, value in held.items() if learns(name)
        }
        self._options = type(options).of_contents(own, held)
        made = self._options.plan(source, new, seed=seed).recipes(new)
        self._recipes = [recipe for recipe in made if recipe.spec.name not in fresh]
        names = {name: value.requires_grad for name, value in self.weights().items()}
        self._recipes = [recipe for recipe in self._recipes if names[recipe.spec.name]]
        super().__init__(model, [name for name, learning in names.items() if learning])
        self.fresh = [p.requires_grad_() for name, p in model.named_parameters() if name in fresh]

    def weights(self) -> dict[str, Tensor]:
        """Return the parameters that follow from what is learned, as a projection writes them."""
        made: dict[str, Tensor] = {}
        for recipe in self._recipes:
            spec = recipe.spec
            dtype = self._dtypes[spec.name]
            wide = torch.float64 if dtype == torch.float64 else torch.float32
            value = torch.empty(spec.shape, dtype=wide, device=self._device)
            assert recipe.fill is not None
            recipe.fill(value)
            made |= dict.fromkeys((spec.name, *spec.tied), value.to(dtype))
        return made

    def options(self) -> T:
        """Return the method with what was learned, on the CPU."""
        own, tensors, _ = self._options.contents()
        return type(self._options).of_contents(
            own, {name: value.detach().cpu().clone() for name, value in tensors.items()}
        )
