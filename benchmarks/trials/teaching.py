"""Features of a pretrained network for small images, and batches that carry them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from trials.pretrained import Pretrained
from weightinit.files.writing import atomic
from weightinit.training.images import ImageData

__all__ = ["Lesson", "describe", "lessons", "warped"]

#: Side of the enlarged images; blocks of the teacher that are run: its last two know saliency.
SIDE, BLOCKS = 98, 10
#: Side of the map that its patches are pooled to, and of a file's rows.
GRID, ROWS = 4, 500
#: Numbers of a whitened image and of a whitened patch.
WHOLE, PART = 128, 48


class _Teacher:
    """The first blocks of a pretrained vision transformer."""

    def __init__(self, name: str) -> None:
        teacher = Pretrained(name)
        self.model: Any = teacher.model(SIDE)
        self.mean, self.std = (torch.tensor(v).view(3, 1, 1) for v in teacher.normalisation)
        self.side = SIDE // teacher.sizes[3]

    def __call__(self, images: Any) -> tuple[Tensor, Tensor]:
        """Return class tokens ``[B, d]`` and patches ``[B, GRID^2, d]`` of images, in half."""
        x = images.permute(0, 3, 1, 2).float() / 255
        x = functional.interpolate(x, (SIDE, SIDE), mode="bicubic", antialias=True)
        with torch.autocast("cpu", torch.bfloat16):
            x = self.model.patch_embed((x.clamp(0, 1) - self.mean) / self.std)
            x = self.model._pos_embed(x)
            for block in self.model.blocks[:BLOCKS]:
                x = block(x)
        patches = x.float()[:, 1:].transpose(1, 2).unflatten(2, (self.side, self.side))
        patches = functional.interpolate(patches, (GRID, GRID), mode="area")
        return x[:, 0].half(), patches.flatten(2).transpose(1, 2).half().contiguous()


@torch.no_grad()
def describe(
    name: str, pack: str, data: ImageData, images: int, out: Path
) -> tuple[Tensor, Tensor, Tensor]:
    """Return rows ``[N]``, class tokens ``[N, d]`` and patches ``[N, GRID^2, d]`` of a network.

    A random choice of the training images is described, and what is in ``out`` is not made again.
    """
    generator = torch.Generator().manual_seed(0)
    parts = torch.randperm(len(data.train), generator=generator)[:images].split(ROWS)
    files = [out / f"{pack}-{number}.safetensors" for number in range(len(parts))]
    missing = [pair for pair in zip(parts, files, strict=True) if not pair[1].exists()]
    out.mkdir(parents=True, exist_ok=True)
    seen = _Teacher(name) if missing else None
    for rows, file in missing:
        assert seen is not None
        found = [seen(data.train.images[index]) for index in rows.split(50)]
        tokens, patches = map(torch.cat, zip(*found, strict=True))
        with atomic(file) as part:
            save_file({"rows": rows.clone(), "tokens": tokens, "patches": patches}, part)
        print(f"{pack}: described {len(rows)} images", flush=True)
    loaded = [load_file(file) for file in files]
    return tuple(torch.cat([t[key] for t in loaded]) for key in ("rows", "tokens", "patches"))  # pyright: ignore[reportReturnType]


@dataclass(frozen=True)
class Lesson:
    """A pack, and what a teacher says of its training images.

    Args:
        data: the pack.
        share: images of a batch.
        known: whether an image was described, ``[N]``.
        whole: whitened features of the images ``[N, WHOLE]``, 0 where not described.
        parts: those of their patches ``[N, PART, GRID, GRID]``, in half precision.
    """

    data: ImageData
    share: int
    known: Tensor
    whole: Tensor
    parts: Tensor


def lessons(
    packs: Mapping[str, tuple[ImageData, int]], found: Mapping[str, tuple[Tensor, Tensor, Tensor]]
) -> dict[str, Lesson]:
    """Return the lessons of packs and their shares, features whitened over all of them."""
    flat = {
        name: (torch.cat([tokens, patches.mean(1)], 1).float(), patches.float().flatten(0, 1))
        for name, (_, tokens, patches) in found.items()
    }
    over, inside = (
        _whitening(torch.cat([values[i][:rows] for values in flat.values()]), numbers)
        for i, rows, numbers in ((0, 6000, WHOLE), (1, 3000 * GRID**2, PART))
    )
    made = {}
    for name, (data, share) in packs.items():
        count = len(data.train)
        known, whole = torch.zeros(count, dtype=torch.bool), torch.zeros(count, WHOLE)
        parts = torch.zeros(count, PART, GRID, GRID, dtype=torch.float16)
        if name in found:
            rows = found[name][0]
            known[rows], whole[rows] = True, _whitened(flat[name][0], over)
            maps = _whitened(flat[name][1], inside).unflatten(0, (-1, GRID, GRID))
            parts[rows] = maps.permute(0, 3, 1, 2).half()
        made[name] = Lesson(data, share, known, whole, parts)
    return made


Whitening = tuple[Tensor, Tensor, Tensor]


def _whitening(values: Tensor, numbers: int) -> Whitening:
    """Return mean, deviation and the leading directions, their variances made nearly equal."""
    mean, std = values.mean(0), values.std(0).clamp_min(1e-4)
    scaled = (values - mean) / std
    variances, directions = torch.linalg.eigh(scaled.T @ scaled / len(scaled))
    variances, directions = variances.flip(0)[:numbers], directions.flip(1)[:, :numbers]
    return mean, std, directions / variances.clamp_min(1e-3).pow(0.4)


def _whitened(values: Tensor, by: Whitening) -> Tensor:
    mean, std, directions = by
    return ((values - mean) / std) @ directions


def warped(
    images: Tensor, maps: Tensor, flip: Tensor, size: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return random crops of images at another size, mirrored where allowed, and of maps alike."""
    b = len(images)

    def draw() -> Tensor:
        return torch.rand(b, generator=generator)

    scale, ratio = 1 - 0.35 * draw() ** 1.5, 1 + 0.2 * (draw() - 0.5)
    theta = torch.zeros(b, 2, 3)
    sides = [(scale * ratio).clamp(max=1.08), (scale / ratio).clamp(max=1.08)]
    for axis, side in enumerate(sides):
        theta[:, axis, axis] = side
    for axis, side in enumerate(sides):
        theta[:, axis, 2] = (1.12 - side).clamp_min(0) * (2 * draw() - 1)
    theta[:, 0, 0] *= torch.where((draw() < 0.5) & flip, -1.0, 1.0)
    grids = [
        functional.affine_grid(theta, [b, 1, side, side], align_corners=False)
        for side in (size, GRID)
    ]
    options: Any = {"mode": "bilinear", "align_corners": False}
    return (
        functional.grid_sample(images, grids[0], padding_mode="reflection", **options),
        functional.grid_sample(maps, grids[1], padding_mode="border", **options),
    )
