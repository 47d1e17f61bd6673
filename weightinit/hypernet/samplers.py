"""The architectures that hypernetworks are trained on, as data and one function that draws them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from weightinit.errors import WeightInitError

__all__ = ["SAMPLERS", "Sampler", "get_sampler", "micro", "sample"]

#: Numbers of heads that may go with a width.
HEADS: Mapping[str, Callable[[int], tuple[int, ...]]] = {
    "divisors": lambda width: next(
        (heads for n, heads in ((12, (3, 6, 12)), (6, (3, 6)), (3, (3,))) if width % n == 0), (4, 8)
    ),
    "eight": lambda width: (8,),
    "sixteenths": lambda width: (width // 16,),
}


@dataclass(frozen=True)
class Sampler:
    """A distribution of architectures: depth first, then width, heads and patch, each uniform.

    Args:
        name: name of the distribution.
        widths: widths that go with each depth.
        heads: ``"divisors"`` is the ViT generators' rule: 3, 6 or 12 if the width divides by 12, 3
            or 6 if by 6, 3 if by 3, else 4 or 8; ``"eight"`` is always 8; ``"sixteenths"`` makes
            heads of 16.
        patches: patch sizes for each size of images in pixels.
        family: ``"vit"``, or ``"gpt2"``, which has no patches.
        class_token: whether the classifier reads a class token, or the average of all patches.

    Examples:
        >>> SAMPLERS["vits-1k"].widths[3]
        (384, 416, 448, 480, 512)
    """

    name: str
    widths: Mapping[int, tuple[int, ...]]
    heads: Literal["divisors", "eight", "sixteenths"]
    patches: Mapping[int, tuple[int, ...]]
    family: Literal["vit", "gpt2"] = "vit"
    class_token: bool = True

    def kwargs(
        self, depth: int, width: int, heads: int, patch: int = 0, image_size: int = 0
    ) -> dict[str, Any]:
        """Return what builds a model: of ``timm.create_model`` or of transformers' GPT2Config."""
        if self.family == "gpt2":
            sizes = {"n_layer": depth, "n_embd": width, "n_head": heads}
            return sizes | {"tie_word_embeddings": False}
        return {
            "img_size": image_size,
            "patch_size": patch,
            "embed_dim": width,
            "depth": depth,
            "num_heads": heads,
            "mlp_ratio": 4.0,
            **({} if self.class_token else {"fc_norm": False}),
            "class_token": self.class_token,
            "global_pool": "token" if self.class_token else "avg",
        }


def _widths(*rows: tuple[Iterable[int], Iterable[int]]) -> dict[int, tuple[int, ...]]:
    return {depth: tuple(widths) for depths, widths in rows for depth in depths}


_PATCHES = {32: (2, 4), 224: (16, 32)}
_LOGAH = _widths(
    (range(3, 4), range(384, 513, 32)),
    (range(4, 6), range(256, 385, 32)),
    (range(6, 10), range(128, 257, 32)),
)
_TAL_SMALL = _widths(
    (range(3, 4), range(192, 513, 32)),
    (range(4, 6), range(256, 513, 32)),
    (range(6, 10), range(256, 769, 32)),
)
_TAL = _widths((range(3, 13), range(192, 769, 64)))
# The generator's limit of 50M parameters refuses none of these: the largest has 28.4M.
_GPT = _widths(
    (range(3, 4), range(176, 257, 8)),
    (range(4, 6), range(128, 177, 8)),
    (range(6, 10), range(72, 177, 8)),
)
#: Widths 80 and 112 and depths 5 and 8 are kept for testing.
_MICRO = _widths(((3, 4, 6, 7, 9), (48, 64, 96, 128)))

#: ViTs-1K and GPTs-1K of LoGAH, ViTs+-1K of TAL as in its code, the ViTs-1K that TAL's file has as
#: a comment, and the one that trains on two cores.
SAMPLERS: dict[str, Sampler] = {
    found.name: found
    for found in (
        Sampler("vits-1k", _LOGAH, "divisors", _PATCHES),
        Sampler("vits+-1k", _TAL, "divisors", _PATCHES),
        Sampler("tal-vits-1k", _TAL_SMALL, "divisors", _PATCHES),
        Sampler("gpts-1k", _GPT, "eight", {}, family="gpt2"),
        Sampler("micro", _MICRO, "sixteenths", {8: (2,), 32: (8,)}, class_token=False),
    )
}


def get_sampler(name: str | Sampler) -> Sampler:
    """Return a sampler by name.

    Raises:
        WeightInitError: if there is none of that name.
    """
    if isinstance(name, Sampler):
        return name
    if name not in SAMPLERS:
        raise WeightInitError(f"sampler {name!r} is unknown: use one of {sorted(SAMPLERS)}")
    return SAMPLERS[name]


def sample(
    name: str | Sampler, generator: torch.Generator, *, image_size: int = 32
) -> dict[str, Any]:
    """Draw one architecture.

    Args:
        name: name of a sampler, or one of your own.
        generator: source of all random draws.
        image_size: size of the images in pixels, which decides the patch sizes.

    Returns:
        Keyword arguments of ``timm.create_model("vit_tiny_patch16_224", ...)``, or of transformers'
        ``GPT2Config`` (``"gpts-1k"``); classes and channels are the data's.

    Raises:
        WeightInitError: if the sampler is unknown, or has no patches for images of that size.

    Examples:
        >>> drawn = sample("micro", torch.Generator().manual_seed(0))
        >>> drawn["embed_dim"] == 16 * drawn["num_heads"], drawn["patch_size"]
        (True, 8)
    """
    found = get_sampler(name)
    depth = _one(tuple(found.widths), generator)
    width = _one(found.widths[depth], generator)
    heads = _one(HEADS[found.heads](width), generator)
    if found.family == "gpt2":
        return found.kwargs(depth, width, heads)
    if image_size not in found.patches:
        raise WeightInitError(
            f"sampler {found.name!r} has no patches for images of {image_size} pixels: resize them "
            f"to one of {sorted(found.patches)}"
        )
    patch = _one(found.patches[image_size], generator)
    return found.kwargs(depth, width, heads, patch, image_size)


def micro(width: int, depth: int, *, image_size: int = 32) -> dict[str, Any]:
    """Return one architecture of the ``"micro"`` family, of any width in steps of 16."""
    found = SAMPLERS["micro"]
    return found.kwargs(depth, width, width // 16, found.patches[image_size][0], image_size)


def _one(choices: tuple[int, ...], generator: torch.Generator) -> int:
    return choices[int(torch.randint(len(choices), (), generator=generator))]
