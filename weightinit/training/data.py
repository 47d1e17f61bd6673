"""Real images for training: scikit-learn's digits, safetensors packs, folders of image files."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from weightinit.errors import WeightInitError
from weightinit.training.images import ImageData, ImageFiles, Split, assemble, pixels

__all__ = ["load_data"]

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".tif", ".tiff")


def load_data(
    source: str | os.PathLike[str],
    *,
    seed: int = 0,
    image_size: int | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> ImageData:
    """Load a data set by name or path.

    Args:
        source: ``"digits"`` (scikit-learn's bundled 1,797 images of 8x8), the path of a
            ``*.safetensors`` pack, the name of one in ``$WEIGHTINIT_DATA`` (default
            ``../shared/data``), ``"cifar10"`` (downloaded by torchvision where there is no pack),
            or a folder of one sub-folder a class, or of ``train`` and ``test`` (or ``val``) so.
        seed: of the split into train and validation images (and test images, where the data set
            has none of its own).
        image_size: of the images of a folder, in pixels (default 224); packs keep their own.
        cache_dir: where decoded packs are kept (default ``~/.cache/weightinit``).

    Raises:
        WeightInitError: if there is no such data, or a pack is not of a known layout.

    Examples:
        >>> from weightinit.training.data import load_data
        >>> data = load_data("digits")
        >>> len(data.train), len(data.val), len(data.test), data.classes
        (1259, 179, 359, 10)
    """
    cache = Path(cache_dir or Path.home() / ".cache" / "weightinit")
    name = os.fspath(source)
    if name == "digits":
        return _digits(seed)
    path = Path(name)
    root = Path(os.environ.get("WEIGHTINIT_DATA", "../shared/data"))
    for pack in (path, root / f"{name}.safetensors", root / f"{name}_compact.safetensors"):
        if pack.is_file() and pack.suffix == ".safetensors":
            return _pack(pack, seed, cache)
    if path.is_dir():
        return _folder(path, seed, image_size or 224)
    if name == "cifar10":
        return _torchvision_cifar10(seed, cache)
    packs = sorted(p.stem for p in root.glob("*.safetensors"))
    raise WeightInitError(
        f"data {name!r} is not found: use 'digits', 'cifar10', a folder of images, the path of a "
        f"*.safetensors pack, or the name of one in {root} ({', '.join(packs) or 'none there'})"
    )


def _digits(seed: int) -> ImageData:
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    images = torch.from_numpy(bunch.images * 255 / 16).round().to(torch.uint8).unsqueeze(-1)
    labels = torch.from_numpy(bunch.target).long()
    source = {"source": "scikit-learn load_digits (UCI optical recognition of digits)"}
    return assemble("digits", Split(images, labels), None, seed=seed, source=source)


def _pack(path: Path, seed: int, cache: Path) -> ImageData:
    try:
        with safe_open(path, framework="pt") as file:
            meta, names = file.metadata() or {}, set(file.keys())
        if {"header", "body", "offsets", "labels", "split"} <= names:
            return _jpeg_pack(path, meta, seed, cache)
        if {"images_train", "labels_train", "images_test", "labels_test"} <= names:
            tensors = load_file(path)
            described = json.loads(meta.get("metadata", "{}"))
            source = {k: described[k] for k in ("source", "commit", "licence") if k in described}
            pool, test = (
                Split(tensors[f"images_{part}"], tensors[f"labels_{part}"].long())
                for part in ("train", "test")
            )
            name = str(described.get("name", path.stem))
            groups = tensors.get("track_train")
            return assemble(name, pool, test, seed=seed, source=source, groups=groups)
    except SafetensorError as error:
        raise WeightInitError(
            f"{path} is not a safetensors file ({error}): name another"
        ) from error
    raise WeightInitError(
        f"{path} holds {sorted(names)[:8]}: a pack needs images_train, labels_train, images_test "
        "and labels_test, or JPEG files as header, body, offsets, labels and split"
    )


def _jpeg_pack(path: Path, meta: dict[str, str], seed: int, cache: Path) -> ImageData:
    """Decode a pack of JPEG files that share one header, once."""
    stat = path.stat()
    tag = f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}"
    decoded = cache / f"{path.stem}-{hashlib.sha256(tag.encode()).hexdigest()[:16]}.safetensors"
    if not decoded.is_file():
        from PIL import Image

        t = load_file(path)
        header, body = t["header"].numpy().tobytes(), t["body"].numpy().tobytes()
        starts = t["offsets"].tolist()
        images = torch.stack(
            [
                pixels(Image.open(io.BytesIO(header + body[a:b])).convert("RGB"))
                for a, b in itertools.pairwise(starts)
            ]
        )
        cache.mkdir(parents=True, exist_ok=True)
        part = decoded.with_suffix(f".{os.getpid()}.part")
        save_file({"images": images, "labels": t["labels"], "split": t["split"]}, part)
        part.replace(decoded)
    t = load_file(decoded)
    pool, test = (
        Split(t["images"][rows].contiguous(), t["labels"][rows].long())
        for rows in (t["split"] == 0, t["split"] == 1)
    )
    name = meta.get("name", path.stem)
    source = {k: meta[k] for k in ("source", "commit", "licence") if k in meta}
    return assemble(name, pool, test, seed=seed, source=source | {"layout": "jpeg"})


def _torchvision_cifar10(seed: int, cache: Path) -> ImageData:
    from torchvision.datasets import CIFAR10

    try:
        parts = [CIFAR10(str(cache), train=train, download=True) for train in (True, False)]
    except (OSError, RuntimeError) as error:
        raise WeightInitError(
            f"cifar10 cannot be downloaded ({error}): set WEIGHTINIT_DATA to a folder that holds "
            "cifar10.safetensors, or name a pack or a folder of images"
        ) from error
    pool, test = (Split(torch.from_numpy(part.data), torch.tensor(part.targets)) for part in parts)
    return assemble("cifar10", pool, test, seed=seed, source={"source": "torchvision CIFAR10"})


def _folder(path: Path, seed: int, size: int) -> ImageData:
    root = path / "train" if (path / "train").is_dir() else path
    names = sorted(p.name for p in root.iterdir() if p.is_dir())
    pool = _files(root, names, size)
    tests = [path / part for part in ("test", "val") if root != path and (path / part).is_dir()]
    test = _files(tests[0], names, size) if tests else None
    return assemble(path.name, pool, test, seed=seed, source={"classes": names[:1000]})


def _files(root: Path, names: Sequence[str], size: int) -> Split:
    found = [
        (p, label)
        for label, name in enumerate(names)
        for p in sorted((root / name).rglob("*"))
        if p.suffix.lower() in SUFFIXES
    ]
    if not found:
        raise WeightInitError(
            f"{root} holds no images in sub-folders of one class each ({', '.join(SUFFIXES)}): "
            "name a folder that is laid out as class/image.png"
        )
    images = ImageFiles(tuple(p for p, _ in found), size)
    return Split(images, torch.tensor([label for _, label in found]))
