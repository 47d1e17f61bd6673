"""Images of the benchmarks: packs by name, those of JPEG files decoded once."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import os
from pathlib import Path

import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torchvision.transforms.v2.functional import pil_to_tensor

from weightinit.files.writing import atomic
from weightinit.training.data import load_data
from weightinit.training.images import ImageData

__all__ = ["decode", "load"]

os.environ.setdefault("WEIGHTINIT_DATA", "../shared/data")
#: Tensors of a pack of JPEG files: image i is ``body[offsets[i]:offsets[i + 1]]``, after ``header``
#: where they share one; ``split`` is 0 for train and 1 for test.
JPEG = {"body", "offsets", "labels", "split"}


def load(name: str, *, cache_dir: Path, image_size: int | None = None) -> ImageData:
    """Return data as ``weightinit.training.data.load_data`` does, packs of JPEG files too.

    Args:
        name: a path, or a name in ``$WEIGHTINIT_DATA`` with or without ``_compact``.
        cache_dir: where decoded packs and downloads are kept.
        image_size: side of the images of a folder in pixels.
    """
    root = Path(os.environ["WEIGHTINIT_DATA"])
    for path in (Path(name), *(root / f"{name}{end}.safetensors" for end in ("", "_compact"))):
        if path.is_file() and path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                jpeg = set(file.keys()) >= JPEG
            return load_data(_decoded(path, cache_dir) if jpeg else path)
    return load_data(name, image_size=image_size, cache_dir=cache_dir)


def _decoded(path: Path, cache_dir: Path) -> Path:
    stat = path.stat()
    tag = f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}"
    digest = hashlib.sha256(tag.encode()).hexdigest()[:16]
    out = cache_dir / f"{path.stem}-{digest}-images.safetensors"
    if not out.is_file():
        decode(path, out)
    return out


def decode(path: Path, out: Path) -> None:
    """Decode a pack of JPEG files to one that ``weightinit train-templates --data`` reads."""
    with safe_open(path, framework="pt") as file:
        meta = file.metadata() or {}
    t = load_file(path)
    header, body = (t[name].numpy().tobytes() if name in t else b"" for name in ("header", "body"))
    files = (header + body[a:b] for a, b in itertools.pairwise(t["offsets"].tolist()))
    images = torch.stack(
        [pil_to_tensor(Image.open(io.BytesIO(f)).convert("RGB")).permute(1, 2, 0) for f in files]
    )
    tensors = {}
    for index, name in enumerate(("train", "test")):
        rows = t["split"] == index
        tensors |= {f"images_{name}": images[rows], f"labels_{name}": t["labels"][rows]}
    described = {key: meta[key] for key in ("source", "commit", "licence") if key in meta}
    described["name"] = meta.get("name", path.stem)
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic(out) as part:
        save_file(tensors, part, metadata={"metadata": json.dumps(described)})
