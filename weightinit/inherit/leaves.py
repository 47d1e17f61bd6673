"""Pictures with the statistics of photographs, drawn at random: dead leaves with 1/f textures."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["dead_leaves"]

#: Most leaves of a picture, and the least and greatest radius of one, where it has side 1.
LEAVES, RADII = 20, (0.08, 0.6)
#: Mean brightness; the deviation of leaves' brightness, and of each colour channel about it.
MEAN, LIGHT, COLOUR = 0.45, 0.28, 0.07
#: Greatest deviation of a leaf's texture and shading.
TEXTURE, SHADE = 0.3, 0.2
#: Greatest deviation of the blur, where the picture has side 1.
BLUR = 0.04


def dead_leaves(
    number: int, channels: int, height: int, width: int, *, generator: torch.Generator
) -> Tensor:
    """Return pictures ``[N, C, H, W]`` in fp32 on the CPU, with values between 0 and 1.

    Many small or a few large ellipses, rectangles and triangles hide one another, their radii
    distributed as r^-3 (Lee, Mumford & Huang, IJCV 2001: such pictures have edges, scales and a
    spectrum like those of photographs). Each has a colour, a shading and a 1/f texture of its own,
    and the whole picture is blurred by little or much.

    Args:
        number: number of pictures.
        channels: number of channels, which are alike but for a little: grey, RGB, or others.
        height: height in pixels.
        width: width in pixels.
        generator: source of all random draws, on the CPU.

    Examples:
        >>> pictures = dead_leaves(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))
        >>> pictures.shape, bool(0 <= pictures.min() < pictures.max() <= 1)
        (torch.Size([2, 3, 32, 48]), True)
    """

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(number, *shape, generator=generator) * (high - low) + low

    def normal(*shape: int) -> Tensor:
        return torch.randn(number, *shape, generator=generator)

    draws, count = uniform(0, 1, 7, LEAVES, 1, 1), uniform(1, LEAVES, 1, 1)
    leaf, shade = _leaves(draws, count, height, width)
    light, colour = normal(LEAVES, 1) + normal(1, 1) / 2, normal(LEAVES, channels)
    colours = MEAN + LIGHT * light + COLOUR * (colour + normal(1, channels) / 2)
    picture = torch.arange(number).view(-1, 1, 1)
    value = colours[picture, leaf].permute(0, 3, 1, 2)
    texture = _noise(uniform(0.5, 1.5, 1, 1), height, width, generator)
    strength = TEXTURE * uniform(0, 1, LEAVES).square()[picture, leaf] * texture
    strength += SHADE * normal(LEAVES)[picture, leaf] * shade
    tint = 1 + normal(channels, 1, 1) / 4
    blurred = _blur(value + strength.unsqueeze(1) * tint, BLUR * uniform(0, 1))
    return blurred.clamp(0, 1)


def _leaves(draws: Tensor, count: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Return which leaf is seen at each pixel ``[N, H, W]``, and a ramp across that leaf.

    ``draws`` are seven uniform numbers for each leaf, ``[N, 7, leaves, 1, 1]``, and ``count`` is
    how many of the leaves fall, ``[N, 1, 1]``; the ground is leaf 0.
    """
    x, y, angle, size, stretch, shape, light = draws.unbind(1)
    down, right = torch.arange(height).view(-1, 1), torch.arange(width)
    side = max(height, width)
    small, large = (radius**-2 for radius in RADII)
    radius = (small + (large - small) * size).rsqrt() * (LEAVES / count).sqrt().unsqueeze(1)
    leaf = torch.zeros(len(draws), height, width, dtype=torch.long)
    ramp = torch.zeros(leaf.shape)
    for index in range(draws.shape[2]):
        across = (right + 0.5 - width * (1.2 * x[:, index] - 0.1)) / side
        along = (down + 0.5 - height * (1.2 * y[:, index] - 0.1)) / side
        turn, long = 2 * math.pi * angle[:, index], (stretch[:, index] - 0.5).exp()
        u = (turn.cos() * across + turn.sin() * along) * long / radius[:, index]
        v = (turn.cos() * along - turn.sin() * across) / long / radius[:, index]
        ellipse, box = torch.hypot(u, v), torch.maximum(u.abs(), v.abs()) * 1.2
        triangle = torch.maximum(u.abs() * 1.7 - v, v * 1.4)
        kind = shape[:, index]
        far = torch.where(kind < 0.5, ellipse, torch.where(kind < 0.8, box, triangle))
        inside = (far < 1) & (index < count)
        leaf = torch.where(inside, index, leaf)
        lit = 2 * math.pi * light[:, index]
        ramp = torch.where(inside, lit.cos() * u + lit.sin() * v, ramp)
    return leaf, ramp


def _noise(exponent: Tensor, height: int, width: int, generator: torch.Generator) -> Tensor:
    """Return noise ``[N, H, W]`` of deviation 1, its amplitude falling as f^-exponent."""
    white = torch.randn(len(exponent), height, width, generator=generator)
    frequency = _frequencies(height, width).sqrt()
    frequency[0, 0] = math.inf
    coloured = torch.fft.irfft2(torch.fft.rfft2(white) * frequency**-exponent, s=(height, width))
    return coloured / coloured.std((1, 2), correction=0, keepdim=True).clamp_min(1e-12)


def _blur(pictures: Tensor, deviation: Tensor) -> Tensor:
    """Return pictures blurred by Gaussians; ``deviation`` is in sides of the picture, ``[N]``."""
    height, width = pictures.shape[-2:]
    pixels = deviation.view(-1, 1, 1, 1) * max(height, width)
    gain = (-2 * (math.pi * pixels).square() * _frequencies(height, width)).exp()
    return torch.fft.irfft2(torch.fft.rfft2(pictures) * gain, s=(height, width))


def _frequencies(height: int, width: int) -> Tensor:
    """Return squared frequencies in cycles a pixel, ``[H, W // 2 + 1]``."""
    return torch.fft.fftfreq(height).view(-1, 1).square() + torch.fft.rfftfreq(width).square()
