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

from torch import nn

from weightinit.ancestor.ancestor import Ancestor
from weightinit.errors import ProjectionError
from weightinit.templates.bundle import TemplateBundle, as_bundle
from weightinit.templates.config import TemplateConfig
from weightinit.templates.extract import kind_values

__all__ = ["auto_lg", "heur_lg"]


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
    source = Ancestor.open(ancestor)
    anatomy = source.anatomy
    if not 1 <= layers <= anatomy.depth:
        raise ProjectionError(
            f"layers={layers} cannot be taken from {anatomy.depth} blocks: use 1 to {anatomy.depth}"
        )
    config = TemplateConfig.layers(method, anatomy.sizes["d"], layers).restricted_to(anatomy)
    blocks = anatomy.blocks[-layers:] if method == "heur_lg" else anatomy.blocks[:layers]
    kinds, tensors = {}, {}
    for kind, spec in config.kinds.items():
        whole = kind_values(source, kind, blocks).flatten(1, 2)
        kinds[kind] = replace(spec, shape=tuple(whole.shape[1:]))
        tensors[f"templates.{kind}"] = whole
    return as_bundle(
        anatomy,
        replace(config, kinds=kinds),
        tensors,
        {role: source.part(piece) for role, piece in anatomy.outside.items()},
        depth=anatomy.depth,
        licence="other",
        provenance={"ancestor": type(ancestor).__name__, "layers": layers},
    )
