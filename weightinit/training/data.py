"""Image data by name or path: scikit-learn's digits, CIFAR-10, safetensors, folders of files."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor
from torchvision.datasets import CIFAR10
from torchvision.datasets.folder import IMG_EXTENSIONS, find_classes, make_dataset

from weightinit.errors import WeightInitError
from weightinit.training.images import ImageData, ImageFiles, Split

__all__ = ["assemble", "load_data", "split_off"]

#: Data whose images change their meaning when mirrored.
NO_FLIP = ("digits", "gtsrb", "omniglot", "mnist", "spoken", "svhn", "text")
#: Tensors of a file of images.
PACK = ("images_train", "labels_train", "images_test", "labels_test")


def load_data(
    source: str | os.PathLike[str],
    *,
    seed: int = 0,
    image_size: int | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> ImageData:
    """Load a data set by name or path.

    Args:
        source: ``"digits"`` (scikit-learn's bundled 1,797 images of 8x8); the path of a
            ``*.safetensors`` file of ``images_train`` (uint8 ``[N, H, W, C]``), ``labels_train``,
            ``images_test`` and ``labels_test``; a folder of one sub-folder a class, or of ``train``
            and ``test`` (or ``val``) so; the name of such a file or folder in ``$WEIGHTINIT_DATA``;
            or ``"cifar10"``, which torchvision downloads.
        seed: base seed for the split into train and validation images (and test images, where the
            data set has none of its own).
        image_size: side of the images of a folder in pixels (default 224); others keep their own.
        cache_dir: where downloads are kept (default ``~/.cache/weightinit``).

    Raises:
        WeightInitError: if there is no such data, or a file is not of a known layout.

    Examples:
        >>> from weightinit.training.data import load_data
        >>> data = load_data("digits")
        >>> len(data.train), len(data.val), len(data.test), data.classes
        (1259, 179, 359, 10)
    """
    name = os.fspath(source)
    if name == "digits":
        return _digits(seed)
    root = Path(os.environ.get("WEIGHTINIT_DATA", "."))
    for path in (Path(name), root / name, root / f"{name}.safetensors"):
        if path.is_dir():
            return _folder(path, seed, image_size or 224)
        if path.is_file() and path.suffix == ".safetensors":
            return _pack(path, seed)
    if name == "cifar10":
        return _cifar10(seed, Path(cache_dir or Path.home() / ".cache" / "weightinit"))
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


def _pack(path: Path, seed: int) -> ImageData:
    try:
        with safe_open(path, framework="pt") as file:
            described = json.loads((file.metadata() or {}).get("metadata", "{}"))
            names = set(file.keys())
        if not names.issuperset(PACK):
            raise WeightInitError(
                f"{path} holds {sorted(names)[:8]}: a pack needs {', '.join(PACK[:3])} "
                f"and {PACK[3]}"
            )
        tensors = load_file(path)
    except SafetensorError as error:
        raise WeightInitError(
            f"{path} is not a safetensors file ({error}): name another"
        ) from error
    source = {k: described[k] for k in ("source", "commit", "licence") if k in described}
    pool, test = (
        Split(tensors[f"images_{part}"], tensors[f"labels_{part}"].long())
        for part in ("train", "test")
    )
    name, groups = str(described.get("name", path.stem)), tensors.get("track_train")
    return assemble(name, pool, test, seed=seed, source=source, groups=groups)


def _cifar10(seed: int, cache: Path) -> ImageData:
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
    tests = [path / part for part in ("test", "val") if root != path and (path / part).is_dir()]
    try:
        names, labels = find_classes(root)
        pool, *test = (_files(folder, labels, size) for folder in (root, *tests[:1]))
    except FileNotFoundError as error:
        raise WeightInitError(
            f"{root} holds no images in sub-folders of one class each ({', '.join(IMG_EXTENSIONS)})"
            ": name a folder that is laid out as class/image.png"
        ) from error
    source = {"classes": names[:1000]}
    return assemble(path.name, pool, test[0] if test else None, seed=seed, source=source)


def _files(root: Path, labels: dict[str, int], size: int) -> Split:
    found = make_dataset(root, labels, extensions=IMG_EXTENSIONS, allow_empty=True)
    if not found:
        raise FileNotFoundError(root)
    paths, targets = zip(*found, strict=True)
    return Split(ImageFiles(tuple(map(Path, paths)), size), torch.tensor(targets))


def split_off(
    labels: Tensor, part: float, generator: torch.Generator, groups: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return (kept, held out) indices: ``part`` of every class, whole groups on one side."""
    held = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        rows = (labels == label).nonzero().flatten()
        if groups is None:
            order = rows[torch.randperm(len(rows), generator=generator)]
            held[order[: round(part * len(rows))]] = True
        else:
            names = groups[rows].unique()
            names = names[torch.randperm(len(names), generator=generator)]
            held |= torch.isin(groups, names[: max(1, round(part * len(names)))])
    return (~held).nonzero().flatten(), held.nonzero().flatten()


def assemble(
    name: str,
    pool: Split,
    test: Split | None,
    *,
    seed: int,
    source: dict[str, Any],
    groups: Tensor | None = None,
) -> ImageData:
    """Split validation (a tenth, 5,000 at most) and, where there are none, test images off."""
    generator = torch.Generator().manual_seed(seed)
    if test is None:
        rest, held = split_off(pool.labels, 0.2, generator)
        pool, test = pool.rows(rest), pool.rows(held)
        rest, held = split_off(pool.labels, 0.125, generator)
    else:
        part = min(0.1, 5000 / len(pool))
        rest, held = split_off(pool.labels, part, generator, groups)
    train, val = pool.rows(rest), pool.rows(held)
    sample = train.images[torch.arange(0, len(train), max(1, len(train) // 5000))]
    flat = sample.flatten(0, 2).double() / 255
    return ImageData(
        name=name,
        train=train,
        val=val,
        test=test,
        classes=int(torch.cat([train.labels, val.labels, test.labels]).max()) + 1,
        mean=tuple(round(float(v), 4) for v in flat.mean(0)),
        std=tuple(round(float(v), 4) for v in flat.std(0)),
        flip=not any(word in name.lower() for word in NO_FLIP),
        source={"split_seed": seed} | source,
    )
