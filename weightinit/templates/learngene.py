"""The special cases of WAVE's appendix A: Heur-LG, Auto-LG, TLEG and Share Init.

Their templates are whole layers and their scalers closed forms of the block's place:

- TLEG (Xia et al., AAAI 2024, https://arxiv.org/abs/2312.05614): W_l = base + (l / L) slope, with
  l = 0 .. L - 1 as in its code (WAVE's Eq. A.5 prints l = 1 .. L).
- Share Init: one layer, repeated; TLEG without a slope.
- Heur-LG (Wang et al., AAAI 2022, https://arxiv.org/abs/2106.06788): the last layers of an ancestor
  on top of random ones (A.3).
- Auto-LG (Wang et al., 2023, https://arxiv.org/abs/2305.02279): its first layers below random ones
  (A.4).

TLEG's and Share Init's templates are trained by :func:`weightinit.constrain`; the other two are cut
out of an ancestor here.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from weightinit.anatomy import anatomy
from weightinit.errors import ProjectionError
from weightinit.templates.bundle import TemplateBundle, as_bundle
from weightinit.templates.config import TemplateConfig, kind_roles

__all__ = ["auto_lg", "closed_form", "heur_lg"]


def closed_form(method: str, number: int, depth: int) -> Tensor:
    """Return the scalers that a method gives to its layers, ``[depth, number]``.

    Args:
        method: ``tleg``, ``share``, ``heur_lg`` or ``auto_lg``.
        number: of template layers.
        depth: L of the target.

    Returns:
        One row a block; a row of zeros is a block that the method leaves random.

    Examples:
        >>> closed_form("tleg", 2, 4)[:, 1].tolist()
        [0.0, 0.25, 0.5, 0.75]
        >>> closed_form("heur_lg", 2, 3).tolist()
        [[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]
    """
    if method == "tleg":
        return torch.stack([torch.ones(depth), torch.arange(depth) / depth], 1)
    if method == "share":
        return torch.ones(depth, 1)
    first = depth - number if method == "heur_lg" else 0
    return (torch.arange(depth)[:, None] - first == torch.arange(number)).float()


def heur_lg(ancestor: nn.Module, *, layers: int = 3) -> TemplateBundle:
    """Return the last ``layers`` blocks of an ancestor as a bundle: Heuristic learngene (A.3).

    Args:
        ancestor: a trained model; it is only read.
        layers: N_l; WAVE's tables use 3.
    """
    return _cut(ancestor, "heur_lg", layers)


def auto_lg(ancestor: nn.Module, *, layers: int = 4) -> TemplateBundle:
    """Return the first ``layers`` blocks of an ancestor as a bundle: Auto-learngene (A.4).

    Args:
        ancestor: a trained model; it is only read.
        layers: N_l; WAVE's tables use 4.
    """
    return _cut(ancestor, "auto_lg", layers)


def _cut(ancestor: nn.Module, method: str, layers: int) -> TemplateBundle:
    """Return the first or last blocks of an ancestor, and what is outside its blocks."""
    seen = anatomy(ancestor)
    if not 1 <= layers <= seen.depth:
        raise ProjectionError(
            f"layers={layers} cannot be taken from {seen.depth} blocks: use 1 to {seen.depth}"
        )
    config = TemplateConfig.layers(method, seen.sizes["d"], layers)
    chosen = seen.blocks[-layers:] if method == "heur_lg" else seen.blocks[:layers]
    values = dict(ancestor.named_parameters())
    kinds, tensors = {}, {}
    for kind, spec in config.kinds.items():
        roles = [role for role in kind_roles(kind) if role in seen.blocks[0]]
        if not roles:
            continue
        stacked = torch.stack(
            [
                torch.cat(
                    [
                        seen.split(block[role].spec, values[block[role].spec.name].detach())[role]
                        for role in roles
                    ]
                )
                for block in chosen
            ]
        )
        kinds[kind] = replace(spec, shape=tuple(stacked.shape[1:]))
        tensors[f"templates.{kind}"] = stacked
    return as_bundle(
        seen,
        replace(config, kinds=kinds),
        tensors,
        values,
        depth=seen.depth,
        licence="other",
        provenance={"ancestor": type(ancestor).__name__, "layers": layers},
    )
