"""Calibration batches from a folder of images, as the ancestor's own data looked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weightinit.ancestor.ancestor import Ancestor
from weightinit.errors import WeightInitError

__all__ = ["image_batches"]

#: Images that are looked at, and those of a batch.
IMAGES, BATCH = 512, 64


def image_batches(folder: Path, ancestor: Ancestor) -> list[Tensor]:
    """Return batches ``[B, C, H, W]`` of images spread evenly over a folder and all below it.

    They are resized, cropped and normalised by timm, to the ancestor's size and by the mean and
    deviation that its timm config states (those of ImageNet where it has none).

    Raises:
        WeightInitError: if the folder holds no images, or the ancestor takes none.
    """
    sizes, grid = ancestor.anatomy.sizes, ancestor.anatomy.traits.grid
    if grid is None or not {"p", "q"} <= set(sizes) or sizes.get("c") not in (1, 3):
        raise WeightInitError(
            f"--calibration {folder}: {ancestor.source} takes no images of one size with 1 or 3 "
            "channels; call weightinit.project_from(..., calibration=batches) with its own data"
        )
    try:
        from PIL import Image
        from timm.data.config import resolve_data_config
        from timm.data.readers.img_extensions import is_img_extension
        from timm.data.transforms_factory import create_transform
    except ImportError as error:
        raise WeightInitError(
            f"--calibration needs {error.name}, which reads and resizes images: pip install "
            "torchvision pillow"
        ) from error
    found = sorted(p for p in folder.expanduser().rglob("*") if is_img_extension(p.suffix))
    if not found:
        raise WeightInitError(f"--calibration {folder} holds no images: name a folder of some")
    channels, size = sizes["c"], (grid[0] * sizes["p"], grid[1] * sizes["q"])
    known = getattr(ancestor.module(), "pretrained_cfg", None) or {}
    config = resolve_data_config({"input_size": (channels, *size)}, pretrained_cfg=dict(known))
    if channels == 1:
        config |= {key: (sum(config[key]) / len(config[key]),) for key in ("mean", "std")}
    transform: Any = create_transform(**config)
    pictures = []
    for path in found[:: -(-len(found) // IMAGES)]:
        try:
            with Image.open(path) as picture:
                pictures.append(transform(picture.convert("RGB" if channels == 3 else "L")))
        except OSError as error:
            raise WeightInitError(
                f"--calibration: {path} cannot be read ({error}): repair or remove it"
            ) from error
    return list(torch.stack(pictures).split(BATCH))
