"""FINE's spectra for one more depth, fitted on a little data with the singular vectors frozen."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from weightinit.anatomy import Anatomy, anatomy
from weightinit.ancestor.ancestor import Ancestor
from weightinit.ancestor.folding import folded
from weightinit.errors import ProjectionError
from weightinit.inherit.fitting import fit
from weightinit.inherit.pairs import check_pair
from weightinit.methods.fine.method import FINE, Factors, Spectra
from weightinit.plan import Plan

if TYPE_CHECKING:
    from weightinit.api import AncestorLike

__all__ = ["fit_fine"]


def fit_fine(
    ancestor: AncestorLike,
    target: nn.Module,
    train_step: Callable[[nn.Module], Tensor],
    *,
    rank: int | None = None,
    steps: int = 400,
    lr: float = 0.2,
    options: FINE | None = None,
    progress: bool | None = None,
) -> FINE:
    """Fit FINE's spectra for a model's depth with AdamW, and return the options with the factors.

    A copy of ``target`` is trained whose matrices follow from singular vectors that all blocks of
    the ancestor share and from one spectrum a block. Only the spectra are trained, and a head that
    the ancestor lacks (other classes), which is not kept. Neither the ancestor nor ``target``
    changes; fill the target afterwards::

        fitted = wi.fit_fine(ancestor, model, step)
        wi.project_from(ancestor, model, method=fitted)

    Args:
        ancestor: anything that :func:`weightinit.project_from` takes.
        target: a model of the ancestor's widths and any depth, on the device to train on; a meta
            model is trained on the CPU.
        train_step: maps the module to a scalar loss on a batch of its own choosing.
        rank: rank of the factors; see :class:`weightinit.FINE`.
        steps: number of optimizer steps.
        lr: learning rate, relative to the size of a role's spectra; it falls to zero along half a
            cosine.
        options: options with fitted factors to go on from; None factorizes the ancestor.
        progress: whether to show a bar; None shows it on a terminal.

    Returns:
        The options with factors of the target's depth, fp32 on the CPU.

    Raises:
        AnatomyError: if a parameter of the target or the ancestor is not explained.
        BundleError: if the ancestor cannot be had or is not sound.
        ProjectionError: if the two differ in more than depth, or the loss is not finite.

    Examples:
        >>> import timm, torch, weightinit as wi
        >>> sizes = {"img_size": 32, "embed_dim": 32, "num_heads": 2, "num_classes": 5}
        >>> old, new = (
        ...     timm.create_model("vit_tiny_patch16_224", depth=n, **sizes) for n in (2, 3))
        >>> images, labels = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 3])
        >>> step = lambda m: torch.nn.functional.cross_entropy(m(images), labels)
        >>> fitted = wi.fit_fine(old, new, step, steps=2)
        >>> wi.project_from(old, new, method=fitted) is new
        True
    """
    if options is not None and rank not in (None, options.rank):
        raise ProjectionError(f"{rank=} and options of rank {options.rank}: pass one of them")
    options = options or FINE(rank)
    model = copy.deepcopy(target)
    seen = anatomy(model)
    source, _ = folded(Ancestor.open(ancestor), seen)
    check_pair(source.anatomy, seen)
    started = replace(options, factors=Spectra(options, source, seen).all())
    plan = Plan(model, seen, started.plan(source, seen).recipes(seen), source="FINE")
    fresh = {name for name, recipe in plan.recipes.items() if recipe.action == "fresh"}
    factored = FactoredModel(plan.commit(), seen, Spectra(started, source, seen))
    for name, parameter in factored.model.named_parameters():
        parameter.requires_grad_(name in fresh)
    trained = [p for p in factored.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    fit(factored, train_step, optimizer, schedule, steps=steps, progress=progress)
    cpu = torch.device("cpu")
    return replace(started, factors={k: _to(f, cpu) for k, f in factored.factors().items()})


class FactoredModel(nn.Module):
    """A model whose matrices follow from frozen singular vectors and its spectra at every forward.

    Attributes:
        model: the inner model, of whose parameters those that hold a matrix are not used.
        spectra: one tensor a key, in units of the root mean square that it starts with.
    """

    def __init__(self, model: nn.Module, seen: Anatomy, spectra: Spectra) -> None:
        super().__init__()
        self.model = model
        self._seen, self._places = seen, spectra.places
        device = next(model.parameters()).device
        self._factors = {key: _to(factors, device) for key, factors in spectra.all().items()}
        starts = [factors.spectra for factors in self._factors.values()]
        self._units = [float(start.square().mean().sqrt()) or 1.0 for start in starts]
        self.spectra = nn.ParameterList(
            start / unit for start, unit in zip(starts, self._units, strict=True)
        )
        self._composed = {
            piece.spec.name: (piece.spec, index)
            for index, block in enumerate(seen.blocks)
            for piece in block.values()
            if (piece.role, index) in self._places
        }

    def factors(self) -> dict[str, Factors]:
        """Return the factors with the spectra as they are."""
        values = zip(self._factors.items(), self.spectra, self._units, strict=True)
        return {key: replace(held, spectra=s * unit) for (key, held), s, unit in values}

    def weights(self) -> dict[str, Tensor]:
        """Return the parameters that hold a matrix."""
        matrices = {key: f.weight(f.spectra).unbind(0) for key, f in self.factors().items()}
        made = {}
        for name, (spec, index) in self._composed.items():
            like = self.model.get_parameter(name)
            parts = self._seen.split(spec, like)
            for role in spec.parts:
                if (role, index) in self._places:
                    key, place = self._places[role, index]
                    parts[role] = matrices[key][place]
            made[name] = self._seen.merge(spec, parts).to(like.dtype)
        return made

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Compose the matrices, then call the inner model with them."""
        return functional_call(self.model, self.weights(), args, kwargs)


def _to(factors: Factors, device: torch.device) -> Factors:
    tensors = (factors.left, factors.right, factors.spectra)
    left, right, spectra = (tensor.detach().to(device) for tensor in tensors)
    return replace(factors, left=left, right=right, spectra=spectra)
