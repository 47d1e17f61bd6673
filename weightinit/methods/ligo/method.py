"""LiGO: a larger network by a linear operator, factored into depth and width, that can be trained.

Wang et al., "Learning to Grow Pretrained Models for Efficient Transformer Training", ICLR 2023,
https://arxiv.org/abs/2303.00980 (Eq. 8): W'_l = B (sum_j w_lj W_j) A^T for every module.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import save_file
from torch import Tensor

from weightinit.anatomy import Anatomy, Piece
from weightinit.errors import BundleError, ProjectionError
from weightinit.files.bundle import copies
from weightinit.files.checks import opened
from weightinit.files.operator import Operator, OperatorBundle
from weightinit.files.writing import atomic
from weightinit.inherit.transfer import Source, Transfer, transfer_parts
from weightinit.methods.ligo.operator import (
    DEPTH_INITS,
    WIDTH_INITS,
    draw_operator,
    levels,
    operator_axes,
    operator_shapes,
)
from weightinit.plan import Inheritance

__all__ = ["LiGO", "Mixture"]

FORMAT = "weightinit-ligo-1"


class LiGOBundle(OperatorBundle):
    """LiGO's operator as files."""

    kind, method = "ligo", "LiGO"


@dataclass(frozen=True)
class LiGO(Operator):
    """Options of LiGO, and the operator once it is trained.

    Every expansion matrix is [I; C]: the old channels stay, and the added ones are mixtures of all
    of them, across heads too. The function is not preserved; the method needs some hundred steps of
    training by :func:`weightinit.fit_ligo`. It only grows. A trained operator is a bundle for
    :meth:`save_pretrained`, :meth:`from_pretrained` and :meth:`push_to_hub`.

    Args:
        depth_init: start of the depth weights: ``"stackbert"`` (one-hot at l mod L),
            ``"interlace"`` (one-hot at l L / L'; the published code has l // 2, which is the same
            for twice the depth), either with ``"_noisy"``, ``"rand"`` or ``"rand_softmax"``.
        width_init: start of the rows of C: ``"rand"`` (uniform, summing to 1), ``"rand_softmax"``,
            ``"sel"`` (one-hot at random) or ``"sel_noisy"``.
        tied: whether there is one matrix for the residual stream, and for each layer one for q, k,
            v and the MLP, as published; False gives every module its own.
        operator: trained tensors by name (see
            :func:`weightinit.methods.ligo.operator.operator_shapes`); None draws them.
        noise: upper end of the uniform noise of the ``noisy`` schemes.

    Raises:
        ProjectionError: if a scheme is unknown.

    Examples:
        >>> import timm, weightinit as wi
        >>> from weightinit.methods.ligo.method import LiGO
        >>> old, new = (
        ...     timm.create_model("vit_tiny_patch16_224", depth=n, embed_dim=32 * n, num_heads=n)
        ...     for n in (2, 3))
        >>> wi.project_from(old, new, method=LiGO(width_init="sel")) is new
        True
    """

    bundle: ClassVar[type[OperatorBundle]] = LiGOBundle

    depth_init: str = "stackbert_noisy"
    width_init: str = "rand"
    tied: bool = True
    operator: Mapping[str, Tensor] | None = field(default=None, repr=False, compare=False)
    noise: float = 0.03

    def __post_init__(self) -> None:
        """Check the values."""
        for name, allowed in (("depth_init", DEPTH_INITS), ("width_init", WIDTH_INITS)):
            if getattr(self, name) not in allowed:
                raise ProjectionError(f"{name}={getattr(self, name)!r}: use one of {allowed}")

    def start(self, ancestor: Anatomy, target: Anatomy, *, seed: int = 0) -> LiGO:
        """Return these options with the operator that they hold, or with a drawn one.

        Raises:
            ProjectionError: if the target is smaller in any way, or the operator held is of
                another pair of models.
        """
        if self.operator is None:
            drawn = draw_operator(
                ancestor, target, self.depth_init, self.width_init,
                tied=self.tied, noise=self.noise, seed=seed,
            )  # fmt: skip
            return replace(self, operator=drawn)
        expected = operator_shapes(ancestor, target, tied=self.tied)
        given = {name: tuple(value.shape) for name, value in self.operator.items()}
        wrong = sorted(n for n in expected.keys() | given if expected.get(n) != given.get(n))
        if wrong:
            raise ProjectionError(
                f"the operator is of another pair of models: {wrong[0]} and {len(wrong) - 1} more "
                f"differ (it has {given.get(wrong[0])} there, and {expected.get(wrong[0])} is "
                "needed). Train one for this pair with weightinit.fit_ligo"
            )
        return self

    def plan(
        self, source: Source, target: Anatomy, *, seed: int = 0, calibration: object = None
    ) -> Inheritance:
        """Return a part for every piece of a target that is no smaller in any way."""
        started = self.start(source.anatomy, target, seed=seed)
        return started.grown(Mixture(source, target, started.operator or {}), target, seed=seed)

    def grown(self, mixture: Mixture, target: Anatomy, *, seed: int = 0) -> Inheritance:
        """Return what the operator that is held makes of a target."""
        axes = operator_axes(self.operator or {}, target, tied=self.tied)
        transfer = Transfer(axes, [((index, 1.0),) for index in range(target.depth)], "LiGO")
        parts = transfer_parts(mixture, target, transfer, seed=seed)
        for piece in (piece for block in target.blocks for piece in block.values()):
            if parts[piece].action == "written":
                text = f"{piece.role} of all blocks, mixed and widened (LiGO)"
                parts[piece] = replace(parts[piece], text=text)
        return Inheritance(parts)

    def contents(self) -> tuple[dict[str, Any], Mapping[str, Tensor], int]:
        """Return the options, the operator, and the number of blocks of the target."""
        operator = self._held()
        blocks = {name.split(".")[1] for name in operator if name.startswith("depth.")}
        fields = ("depth_init", "width_init", "tied", "noise")
        return {name: getattr(self, name) for name in fields}, operator, len(blocks) or 1

    @classmethod
    def of_contents(cls, own: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> LiGO:
        """Return the options with an operator."""
        inits = own["depth_init"], own["width_init"]
        return cls(*inits, bool(own["tied"]), tensors, float(own["noise"]))

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write options and operator into one file; :meth:`save_pretrained` writes a bundle.

        Raises:
            ProjectionError: if no operator is held.
            BundleError: if the file cannot be written.
        """
        operator, file = self._held(), Path(path)
        options = {
            "format": FORMAT, "depth_init": self.depth_init, "width_init": self.width_init,
            "tied": str(self.tied), "noise": repr(self.noise),
        }  # fmt: skip
        try:
            with atomic(file) as part:
                save_file(copies(operator), part, options)
        except OSError as error:
            raise BundleError(
                f"cannot save the operator to {file} ({error}): choose a place that can be "
                "written to"
            ) from error
        return file

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> LiGO:
        """Return the options and the operator of a file that :meth:`save` wrote.

        Raises:
            BundleError: if it is not such a file.
        """
        try:
            with opened(Path(path)) as file:
                options = file.metadata() or {}
                operator = {name: file.get_tensor(name) for name in file.keys()}
            if options.get("format") != FORMAT:
                raise ValueError(f"its format is {options.get('format')!r}")
            tied, noise = {"True": True, "False": False}[options["tied"]], float(options["noise"])
            return cls(options["depth_init"], options["width_init"], tied, operator, noise)
        except (BundleError, KeyError, ValueError, ProjectionError) as error:
            raise BundleError(
                f"{path} holds no LiGO operator ({error}): pass a file that LiGO.save wrote"
            ) from error

    def _held(self) -> Mapping[str, Tensor]:
        if self.operator is None:
            raise ProjectionError("there is no operator to save: train one with fit_ligo")
        return self.operator


class Mixture:
    """An ancestor as deep as a target, each block a mixture of its own: LiGO's depth operator.

    Args:
        source: source of the ancestor's weights.
        target: anatomy of the target.
        operator: LiGO's operator; ``depth.<block>.<role>`` is read whenever a part is asked for.
        device: where parts are mixed and returned; None is where they are.
        hold: whether to keep the ancestor's tensors once they are read, for training.
    """

    def __init__(
        self,
        source: Source,
        target: Anatomy,
        operator: Mapping[str, Tensor],
        *,
        device: torch.device | None = None,
        hold: bool = False,
    ) -> None:
        self._source, self._operator, self._device = source, operator, device
        self._held: dict[tuple[object, ...], Tensor] | None = {} if hold else None
        old = source.anatomy
        self._levels = levels(old, target)
        self.anatomy = old.reshaped({}, target.stages)
        self._others = {
            (spec.stack, spec.block, piece.role): piece
            for spec in old.specs
            if old.index(spec) is None
            for piece in old.pieces(spec)
        }

    def part(self, piece: Piece) -> Tensor:
        """Return a canonical part of the mixture; it has a gradient where the operator has one."""
        block = self.anatomy.index(piece.spec)
        if block is None:
            own = self._others[piece.spec.stack, piece.spec.block, piece.role]
            return self._read((piece.spec.name, piece.role), lambda: self._source.part(own))
        level = self._levels[block]
        stage = self._source.anatomy.blocks[level.first : level.first + level.old]
        present = [i for i, other in enumerate(stage) if piece.role in other]
        stacked = self._read(
            (level.first, piece.role),
            lambda: torch.stack([self._source.part(stage[i][piece.role]) for i in present]),
        )
        weights = self._operator[f"depth.{block}.{piece.role}"].to(stacked)
        return torch.tensordot(weights[present], stacked, 1)

    def _read(self, key: tuple[object, ...], read: Callable[[], Tensor]) -> Tensor:
        if self._held is None:
            return read().to(self._device)
        if key not in self._held:
            self._held[key] = read().detach().to(self._device)
        return self._held[key]
