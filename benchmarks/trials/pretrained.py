"""Networks that people really trained, and targets of other sizes in their architecture."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import safe_open
from torch import nn

from weightinit.errors import WeightInitError

__all__ = ["Pretrained", "Target", "folder", "words"]

os.environ.setdefault("WEIGHTINIT_ANCESTORS", "../shared/ancestors")
#: Architectures, in timm's names, of files that do not say theirs.
ARCHITECTURES = {"dinov2_small_focus": "vit_small_patch14_dinov2"}
#: What is written as "192x6", "192x6p16", "192x6@112" or "192x6p16@112".
SIZE = re.compile(r"(\d+)x(\d+)(?:p(\d+))?(?:@(\d+))?")


def folder() -> Path:
    """Return the folder of ancestors' files."""
    return Path(os.environ["WEIGHTINIT_ANCESTORS"])


def words(message: object) -> str:
    """Return a message without the folders of this machine."""
    return re.sub(r"(?<![\w.])[/~][^\s:'\",]*/", "", " ".join(str(message).split()))


@dataclass(frozen=True)
class Target:
    """A size to start.

    Args:
        width: of the stream.
        depth: blocks.
        patch: side of a patch in pixels; 0 is the ancestor's.
        side: of the images in pixels; 0 is the suite's.
    """

    width: int
    depth: int
    patch: int = 0
    side: int = 0

    @classmethod
    def parse(cls, text: str) -> Target:
        """Return the target of a text such as ``192x6p16@112``."""
        found = SIZE.fullmatch(text)
        if found is None:
            raise WeightInitError(
                f"target {text!r} is no size: use widthxdepth, with p and a patch size or @ and an "
                "image size behind it, as in 192x6p16@112"
            )
        return cls(*(int(number or 0) for number in found.groups()))

    def __str__(self) -> str:
        """Name the target in tables and files."""
        patch, side = f"p{self.patch}" * bool(self.patch), f"@{self.side}" * bool(self.side)
        return f"{self.width}x{self.depth}{patch}{side}"


class Pretrained:
    """A vision transformer of timm's with its weights, of a file or by its name.

    Args:
        name: of a safetensors file in ``$WEIGHTINIT_ANCESTORS``, or of a pretrained model of timm's
            (``hf-hub:`` names too), which timm downloads.
    """

    def __init__(self, name: str) -> None:
        file = folder() / f"{name}.safetensors"
        self.name, self.file = name, file if file.is_file() else None
        self.architecture, self.arguments = ARCHITECTURES.get(name, name), {}
        if self.file:
            with safe_open(self.file, framework="pt") as opened:
                said = opened.metadata() or {}
            self.architecture = said.get("architecture", self.architecture)
            self.arguments = json.loads(said.get("model_args", "{}"))

    def build(self, **arguments: Any) -> nn.Module:
        """Return a model of the ancestor's architecture with random weights."""
        return timm.create_model(self.architecture, **{**self.arguments, **arguments})

    @cached_property
    def sizes(self) -> tuple[int, int, int, int]:
        """Width, blocks, heads and patch size."""
        with torch.device("meta"):
            model: Any = self.build(num_classes=0)
        patch = model.patch_embed.patch_size[0]
        return model.embed_dim, len(model.blocks), model.blocks[0].attn.num_heads, patch

    @cached_property
    def normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of the images that it takes, by channel."""
        with torch.device("meta"):
            config: Any = self.build(num_classes=0).pretrained_cfg
        return config["mean"], config["std"]

    def side(self, side: int) -> int:
        """Return the largest image side up to ``side`` that the ancestor's patches divide."""
        return side // self.sizes[3] * self.sizes[3]

    def model(self, side: int) -> nn.Module:
        """Return the ancestor with its weights, for images of ``side`` pixels, without a head."""
        options: dict[str, Any] = {"num_classes": 0, "img_size": side, "pretrained": True}
        if self.file:
            options["pretrained_cfg_overlay"] = {"file": str(self.file), "custom_load": False}
        return self.build(**options).eval()

    def target(self, target: Target, side: int, *, classes: int = 0, seed: int = 0) -> nn.Module:
        """Return an untrained model of a target's size, with heads of the ancestor's size."""
        width, _, heads, patch = self.sizes
        head = width // heads
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.build(
                num_classes=classes,
                img_size=target.side or side,
                patch_size=target.patch or patch,
                embed_dim=target.width,
                depth=target.depth,
                num_heads=heads if target.width % head else target.width // head,
            )
