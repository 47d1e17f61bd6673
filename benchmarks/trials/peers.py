"""Libraries that users would pick instead, each as a way to start a target."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable
from typing import Any

import torch
from timm.layers.attention import Attention
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["pruned"]


def pruned(
    ancestor: nn.Module, target: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]
) -> dict[str, Tensor]:
    """Return a state dict for ``target`` by Torch-Pruning: channels and heads by Taylor importance.

    It gets the labels of the calibration images too, for the gradients that it goes by.

    Args:
        ancestor: a timm ViT.
        target: the same, narrower, of the same depth.
        batches: of images and labels.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch_pruning as tp  # pyright: ignore[reportMissingImports]  # of an extra of its own
    model: Any = copy.deepcopy(ancestor).eval()
    small: Any = target
    images = torch.zeros(1, *next(iter(batches))[0].shape[1:])
    heads = {}
    for module in model.modules():
        if isinstance(module, Attention):
            heads[module.qkv] = module.num_heads
            module.forward = _plain.__get__(module)
    ratio = 1 - small.embed_dim / model.embed_dim
    pruner = tp.pruner.BasePruner(
        model,
        images,
        importance=tp.importance.GroupTaylorImportance(),
        pruning_ratio=ratio,
        ignored_layers=[model.head],
        num_heads=heads,
        prune_num_heads=True,
        prune_head_dims=False,
        head_pruning_ratio=ratio,
    )
    for inputs, labels in batches:
        functional.cross_entropy(model(inputs), labels).backward()
    pruner.step()
    return model.state_dict()


def _plain(self: Any, x: Tensor, *args: object, **kwargs: object) -> Tensor:
    """Compute attention of any width: timm's own forward reshapes to the input's."""
    batch, tokens, _ = x.shape
    q, k, v = self.qkv(x).reshape(batch, tokens, 3, -1, self.head_dim).permute(2, 0, 3, 1, 4)
    scores = (q * self.scale) @ k.transpose(-2, -1)
    return self.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, tokens, -1))
