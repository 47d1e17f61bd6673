"""Classification of CIFAR-10 by small ViTs and ConvNeXt-V2s."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional
from trials.data import load

import weightinit as wi
from domains.domain import Domain, Loss, Part, Shape

PAD = 4


class Pictures:
    """CIFAR-10 on a device, with random crops and mirror images."""

    def __init__(self, device: torch.device, cache: Path) -> None:
        data = load("cifar10", cache_dir=cache)
        self.mean, self.std = (
            torch.tensor(values, device=device)[:, None, None] for values in (data.mean, data.std)
        )
        self.parts = {
            name: (
                torch.as_tensor(part.images).permute(0, 3, 1, 2).to(device),
                part.labels.to(device),
            )
            for name, part in (("train", data.train), ("val", data.val), ("test", data.test))
        }
        self.side = self.parts["train"][0].shape[-1]
        self.padded = functional.pad(self.parts["train"][0], (PAD,) * 4)

    def normalised(self, images: Tensor) -> Tensor:
        """Return uint8 images as floats of mean 0 and variance 1."""
        return (images / 255 - self.mean) / self.std

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return random training images and their labels."""
        device, side = self.padded.device, self.side

        def draw(high: int) -> Tensor:
            return torch.randint(high, (size,), generator=generator, device=device)

        rows, axis = draw(len(self.padded)), torch.arange(side, device=device)
        down, right = (draw(2 * PAD + 1)[:, None] + axis for _ in "yx")
        right = torch.where(draw(2)[:, None].bool(), right.flip(1), right)
        images = self.padded[rows[:, None, None], :, down[:, :, None], right[:, None, :]]
        return self.normalised(images.permute(0, 3, 1, 2)), self.parts["train"][1][rows]


class Classification(Domain):
    """Cross-entropy on labels, or on a teacher's soft labels too."""

    def __init__(self, device: str, cache: Path) -> None:
        super().__init__(device, cache)
        self.pictures = Pictures(self.device, cache)

    def loss(
        self, model: nn.Module, generator: torch.Generator, teacher: nn.Module | None = None
    ) -> Tensor:
        """Return the cross-entropy, with the KL divergence to a teacher (WAVE, Eq. 7)."""
        images, labels = self.pictures.batch(self.batch, generator)
        logits = model(images)
        loss = functional.cross_entropy(logits, labels)
        if teacher is None:
            return loss
        with torch.no_grad():
            soft = teacher(images).log_softmax(1)
        return loss + functional.kl_div(
            logits.log_softmax(1), soft, log_target=True, reduction="batchmean"
        )

    def taught(self, teacher: nn.Module) -> Loss:
        """Return the loss on labels and a teacher's soft labels."""
        return partial(self.loss, teacher=teacher)

    @torch.no_grad()
    def scores(self, model: nn.Module, part: Part) -> dict[str, float]:
        """Return the accuracy in percent."""
        images, labels = self.pictures.parts[part]
        guesses = [model(self.pictures.normalised(some)).argmax(1) for some in images.split(1000)]
        return {"accuracy": 100 * (torch.cat(guesses) == labels).double().mean().item()}


class ViT(Classification):
    """Patches of 8 pixels, heads of 16 channels."""

    full = Shape((6,), 64)
    sizes = wi.Sizes(depths=(3, 4, 5, 6), widths=(1, 0.5))
    targets = tuple(Shape((depth,), 64) for depth in (3, 4, 8, 12)) + tuple(
        Shape((6,), width) for width in (32, 48, 96, 128)
    )
    long = Shape((4,), 48)

    def build(self, shape: Shape) -> nn.Module:
        """Return a ViT in timm's names."""
        return timm.create_model(
            "vit_tiny_patch16_224",
            img_size=32,
            patch_size=8,
            num_classes=10,
            depth=shape.depths[0],
            embed_dim=shape.width,
            num_heads=shape.width // 16,
        )

    def teacher(self) -> nn.Module:
        """Return an untrained ResNet-18 for images of 32 pixels."""
        net = timm.create_model("resnet18", num_classes=10)
        net.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        net.maxpool = nn.Identity()
        return net


class ConvNeXt(Classification):
    """ConvNeXt-V2 of four stages, a quarter as wide as the smallest published one."""

    full = Shape((2, 2, 6, 2), 16)
    sizes = wi.Sizes(depths=((1, 1, 3, 1), (2, 2, 4, 2), (2, 2, 6, 2)), widths=(1, 0.5))
    targets = (
        *(Shape(depths, 16) for depths in ((1, 1, 3, 1), (2, 2, 4, 2), (3, 3, 9, 3))),
        *(Shape((2, 2, 6, 2), width) for width in (8, 12, 24, 32)),
        Shape((2, 2, 4, 2), 8),
    )
    long = Shape((2, 2, 4, 2), 8)

    def build(self, shape: Shape) -> nn.Module:
        """Return a ConvNeXt-V2 in timm's names."""
        return timm.create_model(
            "convnextv2_atto",
            num_classes=10,
            patch_size=4,
            drop_path_rate=0.05,
            depths=shape.depths,
            dims=tuple(shape.width * 2**stage for stage in range(4)),
        )
