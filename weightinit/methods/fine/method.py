"""FINE: singular vectors shared by all blocks, and a spectrum for each.

Xie et al., "FINE: Factorizing Knowledge for Initialization of Variable-sized Diffusion Models",
https://arxiv.org/abs/2409.19289: W_l = U diag(s_l) V^T, with U and V of one role in all blocks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from weightinit.anatomy import Anatomy, Difference, Piece
from weightinit.errors import ProjectionError
from weightinit.files.operator import Operator, OperatorBundle
from weightinit.inherit.depth import mixes
from weightinit.inherit.transfer import Place, Source, Transfer, transfer_parts
from weightinit.plan import Inheritance

__all__ = ["FINE", "Factors", "Spectra", "factorize", "matrices"]

SWEEPS = 50
#: A sweep that explains less than this much more of the matrices is the last.
GAIN = 1e-3
#: Below this ratio of its least eigenvalue to its largest, a Gram matrix says too little.
FULL = 1e-4
#: What :class:`Factors` holds, in order.
PARTS = ("left", "right", "spectra")


@dataclass(frozen=True)
class Factors:
    """The matrices of one role in all blocks, W_l = left diag(spectra_l) right^T.

    Args:
        left: U ``[out, r]``, orthonormal columns.
        right: V ``[in, r]``, likewise.
        spectra: ``[depth, r]``, of either sign.
        error: what is left over, as a part of the norm of what was factorized.
    """

    left: Tensor
    right: Tensor
    spectra: Tensor
    error: float = 0.0

    def weight(self, spectrum: Tensor) -> Tensor:
        """Return the matrix of one spectrum ``[..., r]``, as ``[..., out, in]``."""
        return (self.left * spectrum[..., None, :]) @ self.right.mT


def factorize(weights: Tensor, rank: int | None = None) -> Factors:
    """Return shared singular vectors of several matrices, and a spectrum for each.

    Least squares over orthonormal U and V. They start as singular vectors of the matrices side by
    side and on top of one another, or of the mean where these explain more, and are then refined in
    turns: with V and the spectra fixed the best U is the polar factor of sum_l W_l V diag(s_l), and
    likewise V; the spectra are the diagonals of U^T W_l V. Every turn explains more of the
    matrices, the last sweep less than a thousandth more. Matrices that have shared singular vectors
    are recovered.

    Args:
        weights: ``[depth, out, in]``.
        rank: r, at most the smaller of out and in, which is what None takes.

    Examples:
        >>> import torch
        >>> weights = torch.stack([torch.diag(torch.tensor([2.0, 1.0])), torch.eye(2)])
        >>> factorize(weights).error < 1e-6
        True
    """
    number = min(rank or min(weights.shape[1:]), *weights.shape[1:])
    starts = [(left[:, :number], right[:, :number]) for left, right in _starts(weights)]
    found = [(left * (weights @ right)).sum(1) for left, right in starts]
    best = max(range(len(found)), key=lambda i: float(found[i].square().sum()))
    (left, right), spectra = starts[best], found[best]
    total, explained = float(weights.square().sum()), 0.0
    for _ in range(SWEEPS):
        across = weights @ right
        left = _polar((across * (left * across).sum(1, keepdim=True)).sum(0))
        along = weights.mT @ left
        right = _polar((along * (right * along).sum(1, keepdim=True)).sum(0))
        spectra = (right * along).sum(1)
        before, explained = explained, float(spectra.square().sum())
        if explained - before <= GAIN * total:
            break
    rest = weights - Factors(left, right, spectra).weight(spectra)
    error = float(rest.norm()) / total**0.5 if total else 0.0
    return Factors(left, right, spectra, error)


def _starts(weights: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield singular vectors of the matrices stacked either way, and of their mean."""
    squares = (weights @ weights.mT).sum(0), (weights.mT @ weights).sum(0)
    left, right = (torch.linalg.eigh(square).eigenvectors.flip(1) for square in squares)
    yield left, right
    u, _, vh = torch.linalg.svd(weights.mean(0), full_matrices=False)
    yield u, vh.mT


def _polar(matrix: Tensor) -> Tensor:
    """Return the nearest matrix with orthonormal columns."""
    values, vectors = torch.linalg.eigh((matrix.mT @ matrix).double())
    if values[0] > FULL * values[-1]:  # a third of the time of the decomposition below
        return matrix @ (vectors * values.rsqrt() @ vectors.mT).to(matrix)
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    return u @ vh


class FINEBundle(OperatorBundle):
    """FINE's factors as files."""

    kind, method = "fine", "FINE"


@dataclass(frozen=True)
class FINE(Operator):
    """Options of FINE, and its factors once their spectra are fitted.

    Every matrix of the ancestor's blocks is replaced by its part of U diag(s_l) V^T
    (:func:`factorize`); for another depth the spectra are interpolated, and so are biases and
    norms, which the paper does not mention. FINE learns U and V under that constraint; of a network
    trained without it they explain about a third, so that a target is of little use before
    :func:`weightinit.fit_fine` has fitted its spectra. Depth only. Fitted factors are a bundle for
    :meth:`save_pretrained`, :meth:`from_pretrained` and :meth:`push_to_hub`.

    Args:
        rank: of U and V; None is all of the smaller side.
        factors: by :func:`matrices`' keys, with spectra of the target's depth; None factorizes the
            ancestor.

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
        spectra = Spectra(self, source, target)
        fitted = "" if self.factors is None else ", fitted spectra"
        transfer = Transfer(
            lambda label, place: None,
            spectra.depth,
            f"shared singular vectors of rank {self.rank or 'all'}{fitted}",
            finish=spectra.finish,
        )
        return Inheritance(transfer_parts(source, target, transfer, seed=seed))

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


def matrices(seen: Anatomy) -> dict[str, dict[int, Piece]]:
    """Return the matrices of a model's blocks by role, and by stage where there are several.

    Args:
        seen: anatomy of the model.

    Returns:
        From key to the piece of each block that has it, by the block's index.
    """
    stacks = seen.traits.main_stacks
    found: dict[str, dict[int, Piece]] = {}
    for index, block in enumerate(seen.blocks):
        for role, piece in block.items():
            if piece.facts.kind == "matrix" and len(piece.size) == 2:
                stage = f"{stacks.index(piece.spec.stack)}." if len(stacks) > 1 else ""
                found.setdefault(stage + role, {})[index] = piece
    return found


class Spectra:
    """The factors of an ancestor's matrices, and each target block's spectrum.

    Args:
        options: with fitted factors, or none.
        source: of the weights.
        target: anatomy of a model of its widths.

    Attributes:
        depth: a mix of the ancestor's blocks for each block of the target.
        places: of each matrix, by role and block of the target: its key, and its place there.

    Raises:
        ProjectionError: if the two differ in more than depth, or the factors are of another model.
    """

    def __init__(self, options: FINE, source: Source, target: Anatomy) -> None:
        self.depth = mixes("interpolate", source.anatomy, target)
        self._options, self._source = options, source
        self._known: dict[str, Factors] = {}
        self._read, self._wanted = matrices(source.anatomy), matrices(target)
        self.places = {
            (piece.role, index): (key, place)
            for key, members in self._wanted.items()
            for place, (index, piece) in enumerate(members.items())
            if key in self._read
        }
        _check_widths(source.anatomy, target)
        for key, factors in (options.factors or {}).items():
            members = self._wanted.get(key, {})
            found = (len(factors.left), len(factors.right)), len(factors.spectra)
            if any(found != (piece.size, len(members)) for piece in members.values()):
                raise ProjectionError(
                    f"the fitted factors of {key} are of size and depth {found}, and the model has "
                    f"{len(members)} blocks of it: fit them for it with weightinit.fit_fine"
                )

    def all(self) -> dict[str, Factors]:
        """Return the factors of every matrix that the ancestor has, by :func:`matrices`' keys."""
        return {key: self.of(key) for key in dict.fromkeys(key for key, _ in self.places.values())}

    def of(self, key: str) -> Factors:
        """Return the factors of one matrix, with the spectra of the target's blocks."""
        if key not in self._known:
            self._known[key] = (self._options.factors or {}).get(key) or self._interpolated(key)
        return self._known[key]

    def _interpolated(self, key: str) -> Factors:
        members = self._read[key]
        weights = torch.stack([self._source.part(piece) for piece in members.values()])
        found = factorize(weights, self._options.rank)
        place = {index: i for i, index in enumerate(members)}
        coefficients = torch.zeros(len(self._wanted[key]), len(members)).to(found.spectra)
        for row, index in enumerate(self._wanted[key]):
            for i, coefficient in self.depth[index]:
                if i in place:
                    coefficients[row, place[i]] = coefficient
        return replace(found, spectra=coefficients @ found.spectra)

    def finish(self, place: Place, out: Tensor, _: torch.Generator) -> None:
        """Write a matrix of the target's blocks; leave everything else as it was interpolated."""
        if (place.role, place.target) in self.places:
            key, index = self.places[place.role, place.target]
            factors = self.of(key)
            out.copy_(factors.weight(factors.spectra[index]))


def _check_widths(old: Anatomy, new: Anatomy) -> None:
    wider = Difference(old, new).wider
    if wider:
        raise ProjectionError(
            f"FINE changes depth only, and the target differs in {Difference.text(wider)}: use a "
            "target of the ancestor's widths, or method='auto'"
        )
