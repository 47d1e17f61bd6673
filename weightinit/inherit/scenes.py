"""Pictures of things before a ground, drawn at random for an ancestor of photographs."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from weightinit.inherit.leaves import blur, dead_leaves

__all__ = ["scenes"]

#: Most parts of a thing, and the least and greatest radius of its body; the picture has side 1.
PARTS, RADII = 5, (0.17, 0.35)
#: Deviation of a thing's place about the middle, and of waves about an outline.
PLACE, WAVES, HARMONICS = 0.12, 0.35, 6
#: How sharp outlines are, in units of one over the side.
EDGE = 40
#: Share of parts that are there twice, left and right.
MIRRORED = 0.4
#: Greatest deviation of the ground's blur, and of that of the whole.
GROUND, BLUR = 0.09, 0.02


def scenes(
    number: int, channels: int, height: int, width: int, *, generator: torch.Generator
) -> Tensor:
    """Return pictures ``[N, C, H, W]`` in fp32 on the CPU, with values between 0 and 1.

    In each a thing of up to five wavy parts lies near the middle, shaded, with a texture and a
    colour for every part, before a ground out of focus; ground and textures are dead leaves
    (:func:`~weightinit.inherit.leaves.dead_leaves`). Ours.

    Args:
        number: number of pictures.
        channels: number of channels, which are alike but for a little: grey, RGB, or others.
        height: height in pixels.
        width: width in pixels.
        generator: source of all random draws, on the CPU.

    Examples:
        >>> pictures = scenes(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))
        >>> pictures.shape, bool(0 <= pictures.min() < pictures.max() <= 1)
        (torch.Size([2, 3, 32, 48]), True)
    """

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(number, *shape, generator=generator) * (high - low) + low

    def normal(*shape: int) -> Tensor:
        return torch.randn(number, *shape, generator=generator)

    size = number, channels, height, width
    ground, texture = (dead_leaves(*size, generator=generator) for _ in range(2))
    picture = blur(ground, uniform(0.01, GROUND))
    count, places, body = uniform(1, PARTS + 1, 1, 1), PLACE * normal(2), uniform(*RADII)
    down, right = torch.arange(height).view(-1, 1), torch.arange(width)
    side = max(height, width)
    y, x = (down + 0.5 - height / 2) / side, (right + 0.5 - width / 2) / side
    for part in range(PARTS):
        away = 2 * math.pi * uniform(0, 1)
        middle = places + (body * (part > 0))[:, None] * torch.stack([away.cos(), away.sin()], 1)
        radius = body * (uniform(0.25, 0.75) if part else 1.0)
        bent = uniform(0, 1, 2), normal(HARMONICS), uniform(0, 1, HARMONICS)
        inside, u, v = _part(x - _wide(middle[:, 0]), y - _wide(middle[:, 1]), radius, *bent)
        again = torch.maximum(inside, inside.flip(-1))
        twice = (uniform(0, 1, 1, 1) < MIRRORED) & (part > 0)
        mask = (torch.where(twice, again, inside) * (part < count.floor())).unsqueeze(1)
        light = 1 + uniform(0, 0.5, 1, 1) * (0.4 * u - 0.7 * v).clamp(-1.5, 1.5)
        own, much = uniform(0, 1, channels, 1, 1), uniform(0, 0.7, 1, 1, 1)
        shown = texture.roll((part * height // PARTS, part * width // PARTS), (-2, -1))
        colour = ((1 - much) * shown + much * own) * light.unsqueeze(1)
        picture = picture + mask * (colour.clamp(0, 1) - picture)
    grey = picture.mean(1, keepdim=True)
    picture = grey + (picture - grey) * uniform(0, 1.5, 1, 1, 1)
    return blur(picture, uniform(0, BLUR)).clamp(0, 1)


def _part(
    x: Tensor, y: Tensor, radius: Tensor, turns: Tensor, waves: Tensor, phases: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return how far each pixel is inside a part ``[N, H, W]``, and its place along and across it.

    ``x`` and ``y`` are the pixels' places from its middle, ``turns`` two uniform numbers for its
    angle and length, ``waves`` and ``phases`` those of its outline.
    """
    turn, long = 2 * math.pi * _wide(turns[:, 0]), (0.8 * (_wide(turns[:, 1]) - 0.5)).exp()
    u = (turn.cos() * x + turn.sin() * y) * long
    v = (turn.cos() * y - turn.sin() * x) / long
    angle, outline = torch.atan2(v, u), torch.ones(())
    for k in range(1, HARMONICS + 1):
        wave = (k * angle + 2 * math.pi * _wide(phases[:, k - 1])).cos()
        outline = outline + WAVES / k * _wide(waves[:, k - 1]) * wave
    inside = (EDGE * (_wide(radius) * outline - torch.hypot(u, v))).sigmoid()
    return inside, u / _wide(radius), v / _wide(radius)


def _wide(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1)
