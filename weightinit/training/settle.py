"""A start for low-rank decoders that are trained from nothing: matrices of unit scale."""

from __future__ import annotations

import torch

from weightinit.hypernet.decoders import LowRankDecoder
from weightinit.hypernet.graph import Graph
from weightinit.hypernet.network import Hypernet

__all__ = ["settle_"]


@torch.no_grad()
def settle_(hypernet: Hypernet, graph: Graph) -> Hypernet:
    """Scale every low-rank decoder in place so that its matrices have a root mean square of 1.

    The published start gives 0.1 or less, which the decoders' normalisation then multiplies by
    sqrt(2 / fan-in) as if it were 1; what PITH inherits, P W_P Q, is smaller still by that squared.

    Args:
        hypernet: untrained.
        graph: of a typical target.

    Returns:
        ``hypernet``.

    Examples:
        >>> import timm, weightinit as wi
        >>> from weightinit.hypernet.graph import graph_of
        >>> model = timm.create_model("vit_tiny_patch16_224", depth=2, embed_dim=64, num_heads=2)
        >>> logah = Hypernet(wi.HyperConfig(hid=16, layers=1, heads=2, rank=4))
        >>> settle_(logah, graph_of(wi.anatomy(model))) is logah
        True
    """
    x = hypernet.encode(graph)
    for decoder in hypernet.modules():
        if isinstance(decoder, LowRankDecoder):
            for head in range(len(decoder.names)):
                size = min(64, decoder.max_ck)
                rms = decoder(x, size, size, head).square().mean().sqrt()
                last = decoder.last(head)
                last.weight /= rms.sqrt()
                last.bias /= rms.sqrt()
    return hypernet
