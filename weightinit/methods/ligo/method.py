"""LiGO: a larger network by a linear operator, factored into depth and width, that can be trained.

Wang et al., "Learning to Grow Pretrained Models for Efficient Transformer Training", ICLR 2023,
https://arxiv.org/abs/2303.00980 (Eq. 8): W'_l = B (sum_j w_lj W_j) A^T for every module.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from weightinit.anatomy import Anatomy, Piece, facts
from weightinit.errors import ProjectionError
from weightinit.files.operator import Operator, OperatorBundle
from weightinit.inherit.fitting import fit
from weightinit.inherit.fresh import base_seed
from weightinit.inherit.method import Source, check_options
from weightinit.inherit.transfer import Transfer, transfer_parts
from weightinit.methods.learning import LearnedModel
from weightinit.methods.ligo.operator import (
    DEPTH_INITS,
    WIDTH_INITS,
    DepthInit,
    WidthInit,
    draw_operator,
    levels,
    operator_axes,
    operator_shapes,
)
from weightinit.recipes import Inheritance

if TYPE_CHECKING:
    from weightinit.api import AncestorLike

__all__ = ["LiGO", "fit_ligo"]


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
        >>> old, new = (
        ...     timm.create_model("vit_tiny_patch16_224", depth=n, embed_dim=32 * n, num_heads=n)
        ...     for n in (2, 3))
        >>> wi.project_from(old, new, method=wi.LiGO(width_init="sel")) is new
        True
    """

    bundle: ClassVar[type[OperatorBundle]] = LiGOBundle

    depth_init: DepthInit = "stackbert_noisy"
    width_init: WidthInit = "rand"
    tied: bool = True
    operator: Mapping[str, Tensor] | None = field(default=None, repr=False, compare=False)
    noise: float = 0.03

    def __post_init__(self) -> None:
        """Check the values."""
        check_options(self, depth_init=DEPTH_INITS, width_init=WIDTH_INITS)

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
        operator = self.start(source.anatomy, target, seed=seed).operator or {}
        mixture = Mixture(source, target, operator)
        axes = operator_axes(operator, target, tied=self.tied)
        transfer = Transfer(axes, [((index, 1.0),) for index in range(target.depth)], "LiGO")
        parts = transfer_parts(mixture, target, transfer, seed=seed)
        for piece in (piece for block in target.blocks for piece in block.values()):
            if parts[piece].action == "written":
                text = f"{piece.role} of all blocks, mixed and widened (LiGO)"
                parts[piece] = replace(parts[piece], text=text)
        return Inheritance(parts)

    def contents(self) -> tuple[dict[str, Any], Mapping[str, Tensor], int]:
        """Return the options, the operator, and the number of blocks of the target."""
        operator = self.operator
        if operator is None:
            raise ProjectionError("there is no operator to save: train one with fit_ligo")
        blocks = {name.split(".")[1] for name in operator if name.startswith("depth.")}
        fields = ("depth_init", "width_init", "tied", "noise")
        return {name: getattr(self, name) for name in fields}, operator, len(blocks) or 1

    @classmethod
    def of_contents(cls, own: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> LiGO:
        """Return the options with an operator."""
        inits = own["depth_init"], own["width_init"]
        return cls(*inits, bool(own["tied"]), tensors, float(own["noise"]))


class Mixture:
    """An ancestor as deep as a target, each block a mixture of its own: LiGO's depth operator."""

    def __init__(self, source: Source, target: Anatomy, operator: Mapping[str, Tensor]) -> None:
        self._source, self._operator = source, operator
        self._device = next(iter(operator.values())).device if operator else torch.device("cpu")
        self._levels = levels(source.anatomy, target)
        self.anatomy = source.anatomy.reshaped({}, target.stages)
        self._others = {
            (spec.stack, spec.block, piece.role): piece
            for spec in source.anatomy.specs
            if source.anatomy.index(spec) is None
            for piece in source.anatomy.pieces(spec)
        }
        self._stacked, self._other = cache(self._stack), cache(self._read)  # read once in training

    def part(self, piece: Piece) -> Tensor:
        """Return a canonical part of the mixture; it has a gradient where the operator has one."""
        block = self.anatomy.index(piece.spec)
        if block is None:
            return self._other(self._others[piece.spec.stack, piece.spec.block, piece.role])
        level = self._levels[block]
        present, stacked = self._stacked(level.first, level.old, piece.role)
        weights = self._operator[f"depth.{block}.{piece.role}"].to(stacked)
        return torch.tensordot(weights[present], stacked, 1)

    def _stack(self, first: int, number: int, role: str) -> tuple[list[int], Tensor]:
        """Return which blocks of a stage have a role, and their tensors of it."""
        stage = self._source.anatomy.blocks[first : first + number]
        present = [i for i, block in enumerate(stage) if role in block]
        return present, torch.stack([self._read(stage[i][role]) for i in present])

    def _read(self, piece: Piece) -> Tensor:
        return self._source.part(piece).detach().to(self._device)


def fit_ligo(
    ancestor: AncestorLike,
    target: nn.Module,
    train_step: Callable[[nn.Module], Tensor],
    *,
    steps: int = 100,
    lr: float = 2e-4,
    weight_decay: float = 0.1,
    options: LiGO | None = None,
    generator: torch.Generator | None = None,
    progress: bool | None = None,
) -> LiGO:
    """Train LiGO's operator between two models, and return its options with the trained operator.

    The target's weights follow from the frozen ancestor and the operator at every forward. A head
    that the ancestor lacks (other classes) is trained along and not kept. Neither the ancestor nor
    ``target`` changes; fill the target afterwards::

        operator = wi.fit_ligo(ancestor, model, step)
        wi.project_from(ancestor, model, method=operator)

    As in the published code, AdamW has an epsilon of 1e-6, gradients are clipped to a norm of 1,
    and the learning rate falls linearly to zero. Depth weights of biases and norms have no weight
    decay, as the published code intends (its name patterns match no operator, so it decays them).

    Args:
        ancestor: anything that :func:`weightinit.project_from` takes.
        target: the larger model, on the device to train on; a meta model is trained on the CPU.
        train_step: maps the module to a scalar loss on a batch of its own choosing.
        steps: number of optimizer steps; the paper takes 100.
        lr: learning rate at the start.
        weight_decay: weight decay of the expansion matrices and the depth weights of matrices.
        options: start and tying of the operator; or options with an operator to train further.
        generator: source of all random draws; None is a fixed seed.
        progress: whether to show a bar; None shows it on a terminal.

    Returns:
        The options with the trained operator, fp32 on the CPU.

    Raises:
        AnatomyError: if a parameter of the target or the ancestor is not explained.
        BundleError: if the ancestor cannot be had or is not sound.
        ProjectionError: if the two do not fit, the target is smaller in any way, or the loss is not
            finite.

    Examples:
        >>> import timm, torch, weightinit as wi
        >>> old, new = (
        ...     timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=5,
        ...                       depth=n, embed_dim=32 * n, num_heads=n) for n in (1, 2))
        >>> images, labels = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 3])
        >>> step = lambda m: torch.nn.functional.cross_entropy(m(images), labels)
        >>> operator = wi.fit_ligo(old, new, step, steps=2)
        >>> wi.project_from(old, new, method=operator) is new
        True
    """
    seed = base_seed(generator)
    model = LearnedModel(
        ancestor,
        target,
        lambda old, new: (options or LiGO()).start(old.anatomy, new, seed=seed),
        seed=seed,
    )
    groups = [
        {"params": [value for name, value in model.learned.items() if _decays(name)]},
        {
            "params": [value for name, value in model.learned.items() if not _decays(name)]
            + model.fresh,
            "weight_decay": 0.0,
        },
    ]
    optimizer = torch.optim.AdamW(groups, lr=lr, eps=1e-6, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / max(steps, 1))
    fit(model, train_step, optimizer, schedule, steps=steps, max_norm=1.0, progress=progress)
    return model.options()


def _decays(name: str) -> bool:
    """Return whether weight decay acts on a tensor of the operator."""
    group, _, rest = name.partition(".")
    role = facts(rest.partition(".")[2])
    return group == "width" or not (role.bias or role.kind == "norm")
