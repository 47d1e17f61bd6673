"""Generated data on which an ancestor is run where nobody passes any of its own."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from weightinit.errors import ProjectionError
from weightinit.inherit.calibration import Calibration, Generated
from weightinit.inherit.fresh import sub_generator
from weightinit.inherit.leaves import dead_leaves
from weightinit.inherit.method import Runnable
from weightinit.inherit.tokens import token_batches

__all__ = ["generated_batches", "given"]

#: Tokens that the ancestor sees for each of its channels, and the least and most images.
TOKENS, LEAST, MOST = 32, 64, 512
#: Images that it sees at a time.
BATCH = 32
#: What ``calibration=`` takes besides batches.
WORDS = ("generated", "none")
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def given(
    calibration: Calibration | str, source: Runnable, *, seed: int
) -> tuple[Calibration, list[str]]:
    """Return the batches that ``calibration=`` asks for, and what to say of them.

    Raises:
        ProjectionError: on a word that is none of ``"generated"`` and ``"none"``, and if data are
            asked for that cannot be generated for the ancestor.
    """
    if not isinstance(calibration, str):
        return calibration, []
    if calibration not in WORDS:
        raise ProjectionError(
            f"calibration={calibration!r} is a str: pass an iterable of batches, or one of {WORDS}"
        )
    if calibration == "none":
        return None, []
    batches, text = generated_batches(source, seed=seed)
    if batches is None:
        raise ProjectionError(f"calibration='generated' has no data for this ancestor: {text}")
    return batches, [f"the ancestor is run on {text}"]


def generated_batches(source: Runnable, *, seed: int) -> tuple[Generated | None, str]:
    """Return calibration batches for an ancestor and what they are, or None and why there are none.

    Of images there are so many that the ancestor sees several times as many tokens as it has
    channels; what takes no images of one size is given tokens of its vocabulary, if it has one.
    ``seed`` is the base seed for all random draws.
    """
    seen = source.anatomy
    sizes, grid = seen.sizes, seen.traits.grid
    if grid is None or not {"p", "q", "c"} <= sizes.keys():
        return token_batches(source, seed=seed)
    try:
        module: Any = source.module()
    except ProjectionError as error:
        return None, str(error)
    channels, size = sizes["c"], (grid[0] * sizes["p"], grid[1] * sizes["q"])
    mean, std, whose = _normalisation(module, channels)
    number = min(max(math.ceil(TOKENS * sizes["d"] / math.prod(grid)), LEAST), MOST)
    generator = sub_generator(seed, "generated images")
    batches = Generated(
        (dead_leaves(len(batch), channels, *size, generator=generator) - mean) / std
        for batch in torch.arange(number).split(BATCH)
    )
    return batches, f"{number} generated images of {size[0]} x {size[1]}, normalised by {whose}"


def _normalisation(module: Any, channels: int) -> tuple[Tensor, Tensor, str]:
    """Return mean and deviation ``[C, 1, 1]`` of a module's images, and whose they are."""
    config = getattr(module, "pretrained_cfg", None)
    known: Mapping[str, Any] = config if isinstance(config, Mapping) else {}
    both, whose = (known.get("mean"), known.get("std")), "the mean and deviation of its timm config"
    if not all(isinstance(values, (tuple, list)) and values for values in both):
        both, whose = IMAGENET, "ImageNet's mean and deviation, its own being unknown"
    mean, std = (torch.tensor(values) for values in both)
    if not len(mean) == len(std) == channels:
        mean, std = mean.mean().expand(channels), std.mean().expand(channels)
    return mean.view(-1, 1, 1), std.view(-1, 1, 1), whose
