"""Checks of files from strangers: strict JSON and safetensors, before anything large is allocated.

The safetensors library checks types, shapes and offsets. It accepts duplicate keys, unknown keys of
an entry, any tensor name, any number of tensors and NaN, which are refused here.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open

from weightinit.errors import BundleError
from weightinit.text import some

__all__ = [
    "DTYPES",
    "check_blob",
    "check_name",
    "check_shape",
    "digest_of",
    "opened",
    "parse_json",
    "read_text",
    "read_weights",
]

MAX_HEADER = 10_000_000  # bytes
MAX_TENSORS = 10_000
MAX_RANK = 6
MAX_HEADER_ENTRIES = 10 * MAX_TENSORS + 1_000  # a tensor takes nine, the rest is metadata
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
NAME = re.compile(r"[A-Za-z0-9_.]{1,128}")
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".tar", ".npz")
PICKLES = (b"PK\x03\x04", b"\x80")  # torch.save's archive, and the pickle protocol itself

Shape = tuple[int, ...]


def digest_of(path: Path) -> str:
    """Return the sha256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def check_blob(path: Path) -> None:
    """Raise BundleError if a file of the Hub's cache is not what it is named by, its sha256.

    Small files, and caches without links, have no such name; a file is read once a process.
    """
    blob = path.resolve()
    if re.fullmatch("[0-9a-f]{64}", blob.name) and blob.parent.name == "blobs":
        found = blob.stat()
        if _remembered(blob, found.st_size, found.st_mtime_ns) != blob.name:
            raise BundleError(
                f"{path.name} in the cache is not what was downloaded: its sha256 differs. "
                f"Delete {blob} and load again"
            )


@cache
def _remembered(path: Path, size: int, changed: int) -> str:
    return digest_of(path)


def check_name(name: str) -> None:
    """Raise BundleError unless ``name`` is a tensor's name that is safe to print and to split."""
    if not NAME.fullmatch(name) or ".." in name:
        raise BundleError(
            f"tensor name {name[:64]!r} is not allowed: use 1 to 128 of A-Z a-z 0-9 _ . and no '..'"
        )


def check_shape(name: str, shape: Iterable[Any]) -> Shape:
    """Return ``shape`` as a tuple, or raise BundleError: at most 6 axes, all of them positive."""
    axes = tuple(shape)
    if len(axes) > MAX_RANK or not all(type(n) is int and n > 0 for n in axes):
        raise BundleError(
            f"tensor {name} has shape {list(axes[:8])}: use at most {MAX_RANK} axes, "
            "each a positive whole number"
        )
    return axes


def parse_json(data: bytes, what: str, limit: int) -> dict[str, Any]:
    """Return the JSON object in ``data``, with unique keys and finite numbers of a sane length.

    ``what`` names it in messages, and ``limit`` bounds the entries in all its lists and objects.
    """
    # Every entry but the first of a list takes a comma: this bounds what json builds.
    if data.count(b",") > limit:
        raise BundleError(
            f"{what} has more than {limit} entries, which no bundle needs: do not use this file"
        )
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_int=_integer,
            parse_float=_finite,
            parse_constant=_finite,
        )
    except (ValueError, RecursionError) as error:
        raise BundleError(
            f"{what} is not sound JSON ({str(error)[:200]}): download or save the bundle again"
        ) from error
    if not isinstance(value, dict):
        raise BundleError(f"{what} holds a JSON {type(value).__name__}: expected an object")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"key {twice[:64]!r} appears twice")
    return result


def _integer(text: str) -> int:
    if len(text) > 19:
        raise ValueError(f"number {text[:20]}... is too long")
    return int(text)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"number {text[:20]} is not finite")
    return number


def read_text(path: Path, limit: int) -> bytes:
    """Return the bytes of a regular file of at most ``limit`` bytes, or raise BundleError."""
    size = _regular(path)
    if size > limit:
        raise BundleError(f"{path} has {size} bytes, over the limit of {limit}: shorten it")
    return path.read_bytes()


def _regular(path: Path) -> int:
    """Return a file's size; a folder, device or pipe in its place raises, links are followed."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise BundleError(f"{path} is not a regular file: save or download the bundle again")
    return status.st_size


def read_weights(
    path: Path,
    sha256: str,
    check: Callable[[Mapping[str, Shape], int], None],
    *,
    max_bytes: int,
) -> dict[str, torch.Tensor]:
    """Return the tensors of a safetensors file, in the dtypes stored, in memory of their own.

    The digest ``sha256`` is of the whole file, and computed while it is read. ``check`` is called
    with every tensor's shape and their bytes in all, before any is read.

    Raises:
        BundleError: if the file is malformed, over a limit, of another digest, or not finite.
    """
    size = _regular(path)
    if size > max_bytes:
        raise BundleError(
            f"{path} has {size} bytes, over the limit of {max_bytes}: pass max_bytes= to allow it"
        )
    with path.open("rb") as file:
        start, header = _read_header(path, file, size)
        check({name: tuple(entry["shape"]) for name, entry in header.items()}, size - len(start))
        digest = hashlib.sha256(start)
        tensors = {}
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            begin, end = entry["data_offsets"]
            buffer = bytearray(end - begin)
            file.readinto(buffer)
            digest.update(buffer)
            values = torch.frombuffer(buffer, dtype=DTYPES[entry["dtype"]])
            tensors[name] = values.view(entry["shape"])
    if digest.hexdigest() != sha256:
        raise BundleError(
            f"{path} has sha256 {digest.hexdigest()}, config.json states {sha256}: the file is "
            f"damaged or was replaced. Delete {path.resolve()} and load again"
        )
    wrong = [name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]
    if wrong:
        raise BundleError(
            f"tensors {some(wrong)} hold NaN or infinity: ask the author for a sound bundle"
        )
    return tensors


def _read_header(path: Path, file: BinaryIO, size: int) -> tuple[bytes, dict[str, Any]]:
    """Return the bytes before the data, and the entry of each tensor, checked."""
    prefix = file.read(8)
    length = int.from_bytes(prefix, "little")
    if len(prefix) < 8 or length > min(MAX_HEADER, size - 8):
        if prefix.startswith(PICKLES):
            raise BundleError(
                f"{path} is a pickle, not safetensors: weightinit never reads pickles, which can "
                "run code. Ask for the bundle as safetensors"
            )
        raise BundleError(
            f"{path} is not safetensors or is cut off: it has {size} bytes and states a header of "
            f"{length} (limit {MAX_HEADER}). Download or save it again"
        )
    data = file.read(length)
    # Counted before json builds ten thousand objects, which may set off a full garbage collection.
    if (count := data.count(b'"dtype"')) > MAX_TENSORS:
        raise BundleError(f"{path} holds {count} tensors: allowed are 1 to {MAX_TENSORS}")
    header = parse_json(data, f"the header of {path}", MAX_HEADER_ENTRIES)
    header.pop("__metadata__", None)
    if not 0 < len(header) <= MAX_TENSORS:
        raise BundleError(f"{path} holds {len(header)} tensors: allowed are 1 to {MAX_TENSORS}")
    with opened(path):  # types, shapes and offsets are those of the format
        pass
    for name, entry in header.items():
        check_name(name)
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise BundleError(f"tensor {name} must have dtype, shape and data_offsets and no more")
        dtype = str(entry["dtype"])  # the library takes {"F32": null} too
        if dtype not in DTYPES:
            raise BundleError(f"tensor {name} has dtype {dtype[:32]!r}: use one of {list(DTYPES)}")
        check_shape(name, entry["shape"])
    return prefix + data, header


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """Open a safetensors file by the format's own reader; BundleError if it cannot be read."""
    try:
        with safe_open(path, "pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise BundleError(
            f"cannot read {path} ({str(error)[:200]}): it is damaged, cut off, or no safetensors "
            "file. Delete it, and download or save it again"
        ) from error
