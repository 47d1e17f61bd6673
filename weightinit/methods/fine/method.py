"""FINE: singular vectors shared by all blocks, and a spectrum for each.

Xie et al., "FINE: Factorizing Knowledge for Initialization of Variable-sized Diffusion Models",
https://arxiv.org/abs/2409.19289: W_l = U diag(s_l) V^T, with U and V of one role in all blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from weightinit.anatomy import Anatomy, Difference, Piece
from weightinit.errors import ProjectionError
from weightinit.files.operator import Operator, OperatorBundle
from weightinit.inherit.depth import mixes
from weightinit.inherit.fitting import fit
from weightinit.inherit.method import Source
from weightinit.inherit.transfer import Transfer, transfer_parts
from weightinit.init.operators import Mix
from weightinit.methods.fine.factors import Factors, factorize
from weightinit.methods.learning import LearnedModel
from weightinit.recipes import Inheritance, Part

if TYPE_CHECKING:
    from weightinit.api import AncestorLike

__all__ = ["FINE", "fit_fine", "matrices"]

#: What :class:`Factors` holds, in order.
PARTS = ("left", "right", "spectra")


class FINEBundle(OperatorBundle):
    """FINE's factors as files."""

    kind, method = "fine", "FINE"


@dataclass(frozen=True)
class FINE(Operator):
    """Options of FINE, and its factors once their spectra are fitted.

    Every matrix of the ancestor's blocks is replaced by its factors' product (:func:`factorize`);
    for another depth the spectra are interpolated, and so are biases and norms, which the paper
    does not mention. FINE learns U and V under that constraint; of a network trained without it
    they explain about a third, so that a target is of little use before :func:`weightinit.fit_fine`
    has fitted its spectra. Only the depth changes. Fitted factors are a bundle for
    :meth:`save_pretrained`, :meth:`from_pretrained` and :meth:`push_to_hub`.

    Args:
        rank: rank of U and V; None is the smaller side's length.
        factors: factors by :func:`matrices`' keys, with spectra of the target's depth; None
            factorizes the ancestor.

    Raises:
        ProjectionError: if the rank is not positive.

    Examples:
        >>> import timm, torch, weightinit as wi
        >>> sizes = {"img_size": 32, "embed_dim": 32, "num_heads": 2, "num_classes": 5}
        >>> old, new = (
        ...     timm.create_model("vit_tiny_patch16_224", depth=n, **sizes) for n in (3, 5))
        >>> wi.project_from(old, new, method=wi.FINE(rank=16)) is new
        True
        >>> int(torch.linalg.matrix_rank(new.blocks[4].mlp.fc1.weight)) <= 16
        True
    """

    bundle: ClassVar[type[OperatorBundle]] = FINEBundle

    rank: int | None = None
    factors: Mapping[str, Factors] | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Check the rank."""
        if self.rank is not None and self.rank < 1:
            raise ProjectionError(f"rank={self.rank}: use a positive number, or None for all")

    def plan(
        self, source: Source, target: Anatomy, *, seed: int = 0, calibration: object = None
    ) -> Inheritance:
        """Return a part for every piece of a target of the ancestor's widths."""
        depth, factors, new = self._factors(source, target)
        fitted = "" if self.factors is None else ", fitted spectra"
        how = f"shared singular vectors of rank {self.rank or 'all'}{fitted}"
        transfer = Transfer(lambda labels, place: None, depth, how)
        parts = transfer_parts(source, target, transfer, seed=seed)

        def composed(part: Part, key: str, place: int) -> Part:
            def fill(out: Tensor) -> None:
                found = factors(key)
                out.copy_(found.weight(found.spectra[place]))

            return replace(part, fill=fill)

        for key, members in new.items():
            for place, piece in enumerate(members.values()):
                parts[piece] = composed(parts[piece], key, place)
        return Inheritance(parts)

    def start(self, source: Source, target: Anatomy) -> FINE:
        """Return these options with the factors that they hold, or with those of the ancestor."""
        _, factors, new = self._factors(source, target)
        return replace(self, factors={key: factors(key) for key in new})

    def _factors(
        self, source: Source, target: Anatomy
    ) -> tuple[list[Mix], Callable[[str], Factors], dict[str, dict[int, Piece]]]:
        """Return a mix for each block, the factors by key, and the target's matrices that have any.

        Raises:
            ProjectionError: if the two differ in more than depth, or the factors are of another
                model.
        """
        depth = mixes("interpolate", source.anatomy, target)
        old, new = matrices(source.anatomy), matrices(target)
        if wider := Difference(source.anatomy, target).wider:
            raise ProjectionError(
                f"FINE changes depth only, and the target differs in {Difference.text(wider)}: use "
                "a target of the ancestor's widths, or method='auto'"
            )
        for key, factors in (self.factors or {}).items():
            members = new.get(key, {})
            size = (len(factors.left), len(factors.right)), len(factors.spectra)
            if any(size != (piece.size, len(members)) for piece in members.values()):
                raise ProjectionError(
                    f"the fitted factors of {key} are of size and depth {size}, and the model has "
                    f"{len(members)} blocks of it: fit them for it with weightinit.fit_fine"
                )

        @cache
        def of(key: str) -> Factors:
            if held := (self.factors or {}).get(key):
                return held
            weights = torch.stack([source.part(piece) for piece in old[key].values()])
            found = factorize(weights, self.rank)
            blocks = {block: dict(depth[block]) for block in new[key]}
            coefficients = [[mix.get(i, 0.0) for i in old[key]] for mix in blocks.values()]
            mixing = torch.tensor(coefficients, dtype=torch.float64).to(found.spectra)
            return replace(found, spectra=mixing @ found.spectra)

        return depth, of, {key: members for key, members in new.items() if key in old}

    def contents(self) -> tuple[dict[str, Any], Mapping[str, Tensor], int]:
        """Return the rank and each matrix's error, the factors, and the depth of a stage."""
        if self.factors is None:
            raise ProjectionError("there are no factors to save: fit some with fit_fine")
        own = {"rank": self.rank, "errors": {key: f.error for key, f in self.factors.items()}}
        tensors = {
            f"{key}.{part}": getattr(factors, part)
            for key, factors in self.factors.items()
            for part in PARTS
        }
        return own, tensors, max((len(f.spectra) for f in self.factors.values()), default=1)

    @classmethod
    def of_contents(cls, own: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> FINE:
        """Return the rank with factors."""
        factors = {}
        for key, error in own["errors"].items():
            parts = [tensors[f"{key}.{part}"] for part in PARTS]
            if len({part.shape[1] for part in parts}) != 1:
                raise ValueError(f"the ranks of {key} differ")
            factors[key] = Factors(*parts, error=float(error))
        return cls(own["rank"], factors)


def matrices(anatomy: Anatomy) -> dict[str, dict[int, Piece]]:
    """Return the matrices of a model's blocks, by key and index of the block.

    A key is a role, after the number of the stage where there are several.
    """
    stacks = anatomy.traits.main_stacks
    pieces: dict[str, dict[int, Piece]] = {}
    for index, block in enumerate(anatomy.blocks):
        for role, piece in block.items():
            if piece.facts.kind == "matrix" and len(piece.size) == 2:
                stage = f"{stacks.index(piece.spec.stack)}." if len(stacks) > 1 else ""
                pieces.setdefault(stage + role, {})[index] = piece
    return pieces


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
    model = LearnedModel(
        ancestor, target, options.start, learns=lambda name: name.rpartition(".")[2] == PARTS[-1]
    )
    groups: list[dict[str, Any]] = [{"params": model.fresh}] if model.fresh else []
    for spectra in model.learned.values():
        size = float(spectra.detach().square().mean().sqrt()) or 1.0
        groups.append({"params": [spectra], "lr": lr * size})
    optimizer = torch.optim.AdamW(groups, lr=lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    fit(model, train_step, optimizer, schedule, steps=steps, progress=progress)
    return model.options()
