"""A diffusion transformer (Peebles & Xie 2023) with the parameter names of the published one."""

import math

import torch
from timm.layers import PatchEmbed
from timm.models.vision_transformer import Attention, Mlp
from torch import nn


def modulate(x, shift, scale):
    return x * (1 + scale[:, None]) + shift[:, None]


class Timesteps(nn.Module):
    def __init__(self, width, sines=256):
        super().__init__()
        self.sines = sines
        self.mlp = nn.Sequential(nn.Linear(sines, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t):
        rates = torch.exp(-math.log(10000) * torch.arange(self.sines // 2) / (self.sines // 2))
        angles = t[:, None] * rates
        return self.mlp(torch.cat([angles.cos(), angles.sin()], -1).to(self.mlp[0].weight.dtype))


class Labels(nn.Module):
    def __init__(self, classes, width):
        super().__init__()
        self.embedding_table = nn.Embedding(classes + 1, width)  # the last one is no class at all

    def forward(self, y):
        return self.embedding_table(y)


class Block(nn.Module):
    def __init__(self, width, heads, ratio, eps):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=eps)
        self.attn = Attention(width, num_heads=heads, qkv_bias=True)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=eps)
        self.mlp = Mlp(width, int(width * ratio), act_layer=lambda: nn.GELU(approximate="tanh"))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x, c):
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(c).chunk(6, -1)
        x = x + gate1[:, None] * self.attn(modulate(self.norm1(x), shift1, scale1))
        return x + gate2[:, None] * self.mlp(modulate(self.norm2(x), shift2, scale2))


class FinalLayer(nn.Module):
    def __init__(self, width, numbers, eps):
        super().__init__()
        self.norm_final = nn.LayerNorm(width, elementwise_affine=False, eps=eps)
        self.linear = nn.Linear(width, numbers)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x, c):
        return self.linear(modulate(self.norm_final(x), *self.adaLN_modulation(c).chunk(2, -1)))


class DiT(nn.Module):
    """Predicts the noise in images ``[b, c, h, w]`` at timesteps ``[b]``, given labels ``[b]``."""

    def __init__(self, size=16, patch=2, channels=3, width=32, depth=2, heads=4, ratio=4.0,
                 classes=10, eps=1e-6):  # fmt: skip
        super().__init__()
        self.x_embedder = PatchEmbed(size, patch, channels, width)
        self.t_embedder = Timesteps(width)
        self.y_embedder = Labels(classes, width)
        pos = torch.randn(1, self.x_embedder.num_patches, width)
        self.pos_embed = nn.Parameter(pos, requires_grad=False)
        self.blocks = nn.ModuleList(Block(width, heads, ratio, eps) for _ in range(depth))
        self.final_layer = FinalLayer(width, patch * patch * channels, eps)
        self.patch, self.channels = patch, channels

    def forward(self, x, t, y):
        side = x.shape[-1] // self.patch
        x = self.x_embedder(x) + self.pos_embed
        c = self.t_embedder(t) + self.y_embedder(y)
        for block in self.blocks:
            x = block(x, c)
        x = self.final_layer(x, c).view(-1, side, side, self.patch, self.patch, self.channels)
        return x.permute(0, 5, 1, 3, 2, 4).reshape(len(x), self.channels, *2 * [side * self.patch])
