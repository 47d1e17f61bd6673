"""Layer scales that a target has not, folded into the layers that they scale."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from weightinit.anatomy import Anatomy, ParamSpec, Piece, scale_of
from weightinit.ancestor.ancestor import Ancestor

__all__ = ["folded"]


def folded(ancestor: Ancestor, target: Anatomy) -> tuple[Ancestor, list[str]]:
    """Return an ancestor without the layer scales that a target lacks, and notes on them.

    Each layer is multiplied by its scale, which leaves the function as it is.
    """
    anatomy = ancestor.anatomy
    kept = {role for block in target.all_blocks for role in block}
    gone = {
        piece.role: None
        for block in anatomy.all_blocks
        for piece in block.values()
        if piece.facts.kind == "scale" and piece.role not in kept
    }
    if not gone or anatomy.family != target.family:
        return ancestor, []
    names = ", ".join(gone)
    if anatomy.traits.form != "pre_norm" and anatomy.traits.form is not None:
        return ancestor, [f"the target has no {names}: a norm stands behind them, so they are lost"]
    scales: dict[str, dict[str, Piece]] = {}
    for block in anatomy.all_blocks:
        for role, piece in block.items():
            scale = scale_of(role, block)
            if piece.ends and scale is not None and scale.role in gone:
                scales.setdefault(piece.spec.name, {})[role] = scale
    folding = _Folding(ancestor, scales, set(gone))
    specs = tuple(spec for spec in anatomy.specs if spec.role not in gone)
    bare = Ancestor(replace(anatomy, specs=specs), ancestor.source, folding.read, folding.module)
    return bare, [f"the ancestor's {names} are folded into the layers before them"]


class _Folding:
    """The tensors of an ancestor, some of their parts multiplied by layer scales."""

    def __init__(
        self, ancestor: Ancestor, scales: Mapping[str, Mapping[str, Piece]], gone: set[str]
    ) -> None:
        self.ancestor, self.scales, self.gone = ancestor, scales, gone

    def read(self, name: str) -> Tensor:
        """Return a stored tensor; one that is scaled is fp32, or fp64 if it was."""
        stored = self.ancestor.stored(name)
        if name not in self.scales:
            return stored
        spec = self.ancestor.anatomy.spec(name)
        value = stored.to(torch.promote_types(stored.dtype, torch.float32), copy=True)
        self._scale(spec, value)
        return value

    def module(self) -> nn.Module:
        """Return a runnable copy that computes the same with layer scales of one."""
        module = self.ancestor.module()
        if any(value.dtype in (torch.float16, torch.bfloat16) for value in module.parameters()):
            module = module.float()
        anatomy = self.ancestor.anatomy
        parameters = {anatomy.key(name): value.data for name, value in module.named_parameters()}
        for spec in anatomy.specs:
            if spec.name in self.scales:
                self._scale(spec, parameters[spec.key])
            elif spec.role in self.gone:
                parameters[spec.key].fill_(1)
        return module

    def _scale(self, spec: ParamSpec, value: Tensor) -> None:
        parts = self.ancestor.anatomy.split(spec, value)
        for role, scale in self.scales[spec.name].items():
            by = self.ancestor.part(scale).to(parts[role])
            parts[role].mul_(by.view(-1, *[1] * (parts[role].dim() - 1)))
