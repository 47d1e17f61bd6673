"""Class-conditional diffusion of CIFAR-10 at 16 x 16 pixels, by a small DiT of 16 tokens."""

from __future__ import annotations

import math
from pathlib import Path

import timm
import torch
from safetensors.torch import load_model
from timm import layers
from torch import Tensor, nn
from torch.nn import functional
from torchvision.utils import make_grid, save_image

import weightinit as wi
from domains.domain import Domain, Part, Shape
from domains.images import Pictures

SIDE, CLASSES, NOISES = 16, 10, 1000
#: Steps of DDIM, samples, and features of the Frechet distance.
SAMPLING, SAMPLES, FEATURES = 25, 1000, 64


def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Apply adaLN's shift and scale."""
    return x * (1 + scale[:, None]) + shift[:, None]


def sincos(width: int, side: int) -> Tensor:
    """Return fixed positions ``[1, side * side, width]``, half of them for either axis."""
    rates = 10000 ** (-torch.arange(width // 4) / (width // 4))
    angles = torch.arange(side)[:, None] * rates
    axis = torch.cat([angles.sin(), angles.cos()], 1)
    rows, columns = axis[:, None].expand(-1, side, -1), axis[None].expand(side, -1, -1)
    return torch.cat([columns, rows], -1).flatten(0, 1)[None]


class Timesteps(nn.Module):
    """Timesteps as sines, then two layers."""

    def __init__(self, width: int, sines: int = 256) -> None:
        super().__init__()
        self.rates = sines // 2
        self.mlp = nn.Sequential(nn.Linear(sines, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        """Embed timesteps ``[b]``."""
        rates = torch.exp(-math.log(10000) * torch.arange(self.rates, device=t.device) / self.rates)
        angles = t[:, None] * rates
        return self.mlp(torch.cat([angles.cos(), angles.sin()], -1))


class Labels(nn.Module):
    """A table of classes; the last row is no class at all."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(CLASSES + 1, width)

    def forward(self, y: Tensor) -> Tensor:
        """Embed labels ``[b]``."""
        return self.embedding_table(y)


class Block(nn.Module):
    """A transformer block whose norms and gates follow from the condition."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(width, 1e-6, False) for _ in "ab")
        self.attn = layers.Attention(width, num_heads=heads, qkv_bias=True)  # pyright: ignore[reportPrivateImportUsage]
        self.mlp = layers.Mlp(width, 4 * width, act_layer=layers.GELUTanh)  # pyright: ignore[reportPrivateImportUsage]
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Transform tokens ``[b, t, d]`` given conditions ``[b, d]``."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(c).chunk(6, -1)
        x = x + gate1[:, None] * self.attn(modulated(self.norm1(x), shift1, scale1))
        return x + gate2[:, None] * self.mlp(modulated(self.norm2(x), shift2, scale2))


class FinalLayer(nn.Module):
    """The last norm and the noise of every patch."""

    def __init__(self, width: int, numbers: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(width, 1e-6, False)
        self.linear = nn.Linear(width, numbers)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Map tokens to patches."""
        return self.linear(modulated(self.norm_final(x), *self.adaLN_modulation(c).chunk(2, -1)))


class DiT(nn.Module):
    """`Scalable Diffusion Models with Transformers`, Peebles and Xie (2023), in its names."""

    def __init__(self, width: int, depth: int, heads: int, patch: int = 4) -> None:
        super().__init__()
        self.patch = patch
        self.x_embedder = layers.PatchEmbed(SIDE, patch, 3, width)  # pyright: ignore[reportPrivateImportUsage]
        self.t_embedder, self.y_embedder = Timesteps(width), Labels(width)
        self.pos_embed = nn.Parameter(sincos(width, SIDE // patch), requires_grad=False)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.final_layer = FinalLayer(width, patch * patch * 3)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for weight in (self.y_embedder.embedding_table.weight, *self.t_embedder.mlp.parameters()):
            if weight.ndim == 2:
                nn.init.normal_(weight, std=0.02)
        for name, weight in self.named_parameters():
            if name.endswith("adaLN_modulation.1.weight"):
                nn.init.zeros_(weight)
        nn.init.zeros_(self.final_layer.linear.weight)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """Predict the noise in images ``[b, 3, h, w]``."""
        side = SIDE // self.patch
        c = self.t_embedder(t) + self.y_embedder(y)
        x = self.x_embedder(x) + self.pos_embed
        for block in self.blocks:
            x = block(x, c)
        x = self.final_layer(x, c).view(-1, side, side, self.patch, self.patch, 3)
        return x.permute(0, 5, 1, 3, 2, 4).reshape(len(x), 3, SIDE, SIDE)


class Diffusion(Domain):
    """Noise prediction; the score that decides is the loss on held-out images, noise paired."""

    full = Shape((6,), 64)
    sizes = wi.Sizes(depths=(3, 4, 5, 6), widths=(1, 0.5))
    targets = tuple(Shape((depth,), 64) for depth in (3, 4, 8, 12)) + tuple(
        Shape((6,), width) for width in (32, 48, 96, 128)
    )
    long = Shape((4,), 48)
    batch = 64
    weight_decay = 0.0
    rates = (5e-4, 2e-3)
    data = "CIFAR-10 at 16 x 16 pixels"
    source_rate = 2e-3
    metric = ("loss", False)
    judge = True

    def __init__(self, device: str, cache: Path) -> None:
        super().__init__(device, cache)
        pictures = Pictures(self.device, cache)
        self.parts: dict[str, tuple[Tensor, Tensor]] = {}
        for name, (images, labels) in pictures.parts.items():
            # The files are sorted by class, and scores look at the first images.
            order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
            order = order.to(self.device)
            self.parts[name] = functional.avg_pool2d(images[order] / 127.5 - 1, 2), labels[order]
        betas = torch.linspace(1e-4, 0.02, NOISES, dtype=torch.float64)
        self.kept = (1 - betas).cumprod(0).float().to(self.device)

    def build(self, shape: Shape) -> nn.Module:
        """Return a DiT, heads of 16 channels."""
        return DiT(shape.width, shape.depths[0], shape.width // 16)

    def noised(self, images: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Return images with the noise of their timesteps."""
        kept = self.kept[t][:, None, None, None]
        return kept.sqrt() * images + (1 - kept).sqrt() * noise

    def drawn(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return random training images, half of them mirrored, and their labels."""
        images, labels = self.parts["train"]
        rows = torch.randint(len(labels), (self.batch,), generator=generator, device=self.device)
        turned = torch.rand(self.batch, 1, 1, 1, generator=generator, device=self.device) < 0.5
        return torch.where(turned, images[rows].flip(3), images[rows]), labels[rows]

    def loss(self, model: nn.Module, generator: torch.Generator) -> Tensor:
        """Return the mean square error of the noise; a tenth of the labels is dropped."""
        images, labels = self.drawn(generator)
        options = {"generator": generator, "device": self.device}
        t = torch.randint(NOISES, (self.batch,), **options)
        noise = torch.randn(images.shape, **options)
        labels = torch.where(torch.rand(self.batch, **options) < 0.1, CLASSES, labels)
        return functional.mse_loss(model(self.noised(images, noise, t), t, labels), noise)

    def teach(self, model: nn.Module, generator: torch.Generator) -> Tensor:
        """Return the loss of the classifier that judges samples."""
        images, labels = self.drawn(generator)
        return functional.cross_entropy(model(images), labels)

    def teacher(self) -> nn.Module:
        """Return an untrained classifier of images of 16 pixels."""
        net = timm.create_model("resnet18", num_classes=CLASSES, channels=(32, 64, 128, 256))
        net.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        net.maxpool = nn.Identity()
        return net

    @torch.no_grad()
    def scores(self, model: nn.Module, part: Part) -> dict[str, float]:
        """Return the loss of 1,000 held-out images at ten timesteps each, and by thirds of them."""
        images, labels = (values[:1000] for values in self.parts[part])
        generator = torch.Generator(self.device).manual_seed(0)
        found = []
        for level in range(50, NOISES, 100):
            noise = torch.randn(images.shape, generator=generator, device=self.device)
            t = torch.full((len(images),), level, device=self.device)
            made = model(self.noised(images, noise, t), t, labels)
            found.append(functional.mse_loss(made, noise).item())
        bins = {"low": found[:3], "middle": found[3:7], "high": found[7:]}
        named = {f"loss_{name}": sum(some) / len(some) for name, some in bins.items()}
        return {"loss": sum(found) / len(found), **named}

    @torch.no_grad()
    def samples(self, model: nn.Module, labels: Tensor) -> Tensor:
        """Return samples by DDIM, in -1..1."""
        generator = torch.Generator(self.device).manual_seed(1)
        x = torch.randn(len(labels), 3, SIDE, SIDE, generator=generator, device=self.device)
        times = torch.linspace(NOISES - 1, 0, SAMPLING + 1).round().long().tolist()
        for now, then in zip(times, [*times[1:], -1], strict=True):
            kept = self.kept[now]
            left = self.kept[then] if then >= 0 else torch.ones_like(kept)
            noise = model(x, torch.full((len(x),), now, device=self.device), labels)
            clean = ((x - (1 - kept).sqrt() * noise) / kept.sqrt()).clamp(-1, 1)
            x = left.sqrt() * clean + (1 - left).sqrt() * noise
        return x

    def judged(self, model: nn.Module, folder: Path) -> dict[str, float]:
        """Return the Frechet distance and the agreement of samples.

        The distance is to held-out images, in features of a classifier; the agreement is how often
        that classifier sees the class that was asked for, in percent.
        """
        judge = self.teacher().to(self.device)
        load_model(judge, folder / "teacher.safetensors")
        judge.eval()
        labels = torch.arange(SAMPLES, device=self.device) % CLASSES
        made = self.samples(model, labels)
        agreed = (torch.cat([judge(some).argmax(1) for some in made.split(500)]) == labels).double()
        real = self.parts["test"][0]
        return {
            "frechet": frechet(features(judge, made), features(judge, real[:SAMPLES])),
            "agreement": 100 * agreed.mean().item(),
            "frechet_floor": frechet(
                features(judge, real[SAMPLES : 2 * SAMPLES]), features(judge, real[:SAMPLES])
            ),
        }

    def picture(self, model: nn.Module, file: Path) -> None:
        """Write eight samples of each class."""
        labels = torch.arange(CLASSES, device=self.device).repeat(8)
        grid = make_grid(self.samples(model, labels) / 2 + 0.5, nrow=CLASSES, padding=1)
        file.parent.mkdir(parents=True, exist_ok=True)
        save_image(functional.interpolate(grid[None], scale_factor=3), file)


@torch.no_grad()
def features(judge: nn.Module, images: Tensor) -> Tensor:
    """Return a fixed random projection of pooled features, in double precision."""
    kept: list[Tensor] = []
    with judge.get_submodule("global_pool").register_forward_hook(
        lambda *seen: kept.append(seen[2])
    ):
        for some in images.split(500):
            judge(some)
    found = torch.cat(kept)
    generator = torch.Generator().manual_seed(2)
    axes = torch.linalg.qr(torch.randn(found.shape[1], FEATURES, generator=generator))[0]
    return found.double() @ axes.double().to(found.device)


def frechet(one: Tensor, other: Tensor) -> float:
    """Return the Frechet distance of two sets of features, taken for normal distributions."""
    means = (one.mean(0) - other.mean(0)).square().sum()
    a, b = one.T.cov(), other.T.cov()
    values, vectors = torch.linalg.eigh(a)
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ b @ root).clamp_min(0).sqrt().sum()
    return (means + a.trace() + b.trace() - 2 * cross).item()
