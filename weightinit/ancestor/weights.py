"""Safetensors files of an ancestor: found in a folder or on the Hub, read one tensor at a time."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weightinit.errors import BundleError
from weightinit.files.checks import (
    PICKLE_SUFFIXES,
    PICKLES,
    Shape,
    check_blob,
    opened,
    parse_json,
    read_text,
)
from weightinit.files.hub import CONFIG, WEIGHTS, Client
from weightinit.text import some

__all__ = ["ADVICE", "Weights", "download", "find_weights", "read_config"]

INDEX = "model.safetensors.index.json"
# timm's configs hold the names of up to 22,000 classes, an index one entry a tensor.
MAX_JSON, MAX_JSON_ENTRIES = 2**25, 10**6  # bytes, entries
SHARD = re.compile(r"[A-Za-z0-9_][\w.-]*\.safetensors", re.ASCII)
ADVICE = (
    "weightinit never reads pickles, which can run code: load the model with its own library and "
    "pass the module, or save it as safetensors"
)


class Weights:
    """The tensors of one or several safetensors files, by name; no tensor is held."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = tuple(paths)
        self.shapes: dict[str, Shape] = {}
        self.dtypes: dict[str, str] = {}
        self.metadata: dict[str, str] = {}
        self._files: dict[str, Path] = {}
        for path in self.paths:
            _check_format(path)
            with opened(path) as file:
                self.metadata.update(file.metadata() or {})
                for name in file.keys():
                    entry = file.get_slice(name)
                    shape = self.shapes[name] = tuple(entry.get_shape())
                    if math.prod(max(length, 1) for length in shape) >= 2**62:
                        raise BundleError(
                            f"{repr(name)[:80]} of {path} has shape {shape[:8]}, which no tensor "
                            "has: download or save it again"
                        )
                    self.dtypes[name] = entry.get_dtype()
                    self._files[name] = path
        if not self.shapes:
            raise BundleError(f"{some(map(str, paths))} holds no tensors: save the model again")

    def meta(self) -> dict[str, Tensor]:
        """Return a state dict of the same names and shapes, on the meta device."""
        return {
            name: torch.empty(
                shape,
                dtype=torch.float32 if self.floating(name) else torch.int64,
                device="meta",
            )
            for name, shape in self.shapes.items()
        }

    def floating(self, name: str) -> bool:
        """Whether a tensor holds floating-point numbers."""
        return self.dtypes[name].startswith(("F", "BF"))

    def read(self, name: str) -> Tensor:
        """Return a tensor as stored, mapped from its file: writing to it never reaches the file."""
        # Opened for each tensor: an open file keeps all pages that were ever read.
        with opened(self._files[name]) as file:
            return file.get_tensor(name)


def _check_format(path: Path) -> None:
    """Raise BundleError for a pickle, whatever it is called, and for what is no file."""
    if not path.is_file():
        raise BundleError(f"{path} is no file: pass a .safetensors file, or the folder that has it")
    start = b""  # of what cannot be read: opening it says why
    with suppress(OSError), path.open("rb") as file:
        start = file.read(16)
    # The header of safetensors is an object: a brace stands where a length has eight bytes.
    if path.suffix in PICKLE_SUFFIXES or (start.startswith(PICKLES) and start[8:9] != b"{"):
        raise BundleError(f"{path} is a pickle or an archive, no safetensors. {ADVICE}")
    if path.suffix != ".safetensors":
        raise BundleError(f"{path} is not called .safetensors: rename it if it is such a file")


def read_config(path: Path) -> dict[str, Any]:
    """Return a JSON object of a model's folder: its config or the index of its shards."""
    try:
        return parse_json(read_text(path, MAX_JSON), str(path), MAX_JSON_ENTRIES)
    except OSError as error:
        raise BundleError(f"cannot read {path} ({error}): save or download it again") from error


def find_weights(folder: Path, what: str) -> Weights:
    """Return the safetensors of a folder: model.safetensors, its shards, or the only file there is.

    ``what`` names the folder in messages.
    """
    if (folder / WEIGHTS).exists():
        return Weights([folder / WEIGHTS])
    if (folder / INDEX).exists():
        shards = _shards(folder / INDEX)
        missing = [name for name in shards if not (folder / name).is_file()]
        if missing:
            raise BundleError(f"{what} lacks {some(missing)}: copy or download all of the files")
        weights = Weights([folder / name for name in shards])
        lost = [
            repr(name)[:80] for name in shards.values() for name in name - weights.shapes.keys()
        ]
        if lost:
            raise BundleError(
                f"{what}: the shards lack {some(lost)}, which {INDEX} states: download them again"
            )
        return weights
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError as error:
        raise BundleError(f"cannot read {folder} ({error}): pass another folder") from error
    found = [name for name in names if name.endswith(".safetensors")]
    if len(found) == 1:
        return Weights([folder / found[0]])
    if found:
        raise BundleError(f"{what} holds {some(found)}: pass the one that is meant, as a file")
    pickles = [name for name in names if name.endswith(PICKLE_SUFFIXES)]
    held = f"; it holds {some(pickles)}" if pickles else ""
    raise BundleError(f"{what} holds no {WEIGHTS} and no {INDEX}{held}. {ADVICE}")


def _shards(index: Path) -> dict[str, set[str]]:
    """Return the files that an index names, each with its tensors."""
    shards: dict[str, set[str]] = {}
    weight_map = read_config(index).get("weight_map")
    for name, file in weight_map.items() if isinstance(weight_map, dict) else ():
        if not isinstance(file, str) or not SHARD.fullmatch(file):
            raise BundleError(
                f"{index} names {repr(file)[:80]}, which is no safetensors file beside it: save or "
                "download the model again"
            )
        shards.setdefault(file, set()).add(name)
    if not shards:
        raise BundleError(f"{index} has no weight_map: save or download the model again")
    return shards


def download(
    client: Client, repo: str, revision: str | None, names: Iterable[str] = ()
) -> tuple[Path, str]:
    """Return the cached folder of a repository with its config and safetensors, and its source.

    ``names`` are the weights files to fetch; by default model.safetensors or its shards.
    """
    names = tuple(names) or (WEIGHTS, INDEX)
    folder = client.download(repo, revision, files=(CONFIG, *names), what="ancestor")
    source = f"{repo}@{folder.name}"
    found = [name for name in names if (folder / name).exists()]
    if found == [INDEX]:
        found = list(_shards(folder / INDEX))
        client.download(repo, folder.name, files=found, what="ancestor")
    elif not found:
        where, advice = (
            (" in the cache", "Load it once while online") if client.offline else ("", ADVICE)
        )
        raise BundleError(f"{source} holds no {' and no '.join(names)}{where}. {advice}")
    for name in found:
        check_blob(folder / name)
    return folder, source
