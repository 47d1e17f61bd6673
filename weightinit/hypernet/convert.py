"""Checkpoints of the published GHN-3, LoGAH, TAL and PITH code as bundles of safetensors."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from weightinit.errors import BundleError
from weightinit.files.checks import MAX_TENSORS, check_name, some
from weightinit.hypernet.config import HyperConfig
from weightinit.hypernet.infer import inferred
from weightinit.hypernet.unpickle import MAX_BYTES, read_pickle
from weightinit.hypernet.unpickle_values import Array

__all__ = ["Converted", "convert"]

STATE = "state_dict"
PREFIXES = ("module.", "_orig_mod.")
#: Of the public GHN-3 checkpoints, which hold them beside the layers.
TABLES = ("centrality_embed_in.weight", "centrality_embed_out.weight", "input_dist_embed.weight")
#: The published low-rank decoders register their last layers twice.
ALIAS = re.compile(r"(decoder(?:pq)?)\.seq\.(\d)\.(weight|bias)")


@dataclass(frozen=True)
class Converted:
    """What was read, and what became of it.

    Args:
        source: name of the file.
        folder: where the bundle is.
        config: of the hypernetwork.
        parameters: their number.
        assumed: fields of the config that the file does not state, and nobody else did.
        moved: keys by their names in the file.
        dropped: keys that hold the same tensor as another.
        ignored: what else was in the file.
    """

    source: str
    folder: str
    config: HyperConfig
    parameters: int
    assumed: tuple[str, ...]
    moved: Mapping[str, str]
    dropped: tuple[str, ...]
    ignored: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "source": self.source,
            "folder": self.folder,
            "config": self.config.to_dict(),
            "parameters": self.parameters,
            "assumed": list(self.assumed),
            "moved": dict(self.moved),
            "dropped": list(self.dropped),
            "ignored": list(self.ignored),
        }

    def __str__(self) -> str:
        sizes = ", ".join(f"{name} {value}" for name, value in self.config.to_dict().items())
        lines = [f"{self.source}: {self.parameters:,} parameters; {sizes}"]
        if self.assumed:
            values = ", ".join(f"{name} {getattr(self.config, name)}" for name in self.assumed)
            lines.append(f"not stated in the file, assumed: {values}")
        if self.moved:
            lines.append(f"renamed: {some(f'{old} to {new}' for old, new in self.moved.items())}")
        if self.dropped:
            lines.append(f"dropped, the same tensors again: {some(self.dropped, 16)}")
        if self.ignored:
            lines.append(f"not used: {some(self.ignored)}")
        return "\n".join([*lines, f"written to {self.folder}"])


def convert(
    path: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    kind: str | None = None,
    max_shape: int | None = None,
    num_classes: int | None = None,
    softmax: bool = False,
    key: str | None = None,
    licence: str = "other",
    max_bytes: int = MAX_BYTES,
) -> Converted:
    """Write the bundle of a checkpoint of joblib.dump or torch.save, running nothing of it.

    Args:
        path: of the file: a state dict, or a dict that holds one, with a ``config`` maybe.
        folder: of the bundle.
        kind: which hypernetwork it must be; default: whichever it is.
        max_shape: rows and columns that a low-rank decoder was trained to predict, which its
            weights do not say. Default: the file's config, else 2048, or 4096 for PITH.
        num_classes: of the images it was trained on, likewise. Default: the file's, else 1000.
        softmax: whether its graphs had nodes for attention's softmax, as those made by torch 1 had;
            nothing in the file says so.
        key: of the state dict in the file, e.g. ``"ema_state_dict"``. Default: ``state_dict``.
        licence: SPDX identifier of the weights.
        max_bytes: largest file that is read.

    Returns:
        What was inferred, renamed and dropped.

    Raises:
        BundleError: if the file is not sound, does anything but describe tensors, or holds another
            network. Nothing is written then.

    Examples:
        >>> import tempfile, torch
        >>> from weightinit.hypernet.network import Hypernet
        >>> tiny = Hypernet(HyperConfig(hid=16, heads=2, layers=1, rank=2, max_ck=32))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save({"state_dict": tiny.state_dict()}, f"{folder}/old.pt")
        ...     done = convert(f"{folder}/old.pt", f"{folder}/new", max_shape=512)
        >>> done.config.hid, done.config.max_shape, done.assumed
        (16, (512, 512, 16), ('num_classes',))
    """
    from weightinit.hypernet.files import HyperNetwork
    from weightinit.hypernet.network import Hypernet

    path, folder = Path(path), Path(folder)
    value = read_pickle(path, max_bytes=max_bytes)
    state, config, ignored = _find(value, key)
    arrays, moved, dropped = _named(state)
    shapes = {name: array.shape for name, array in arrays.items()}
    found, assumed = inferred(
        shapes, config, max_shape=max_shape, num_classes=num_classes, softmax=softmax
    )
    if kind not in (None, found.kind):
        raise BundleError(f"{path} holds a hypernetwork of kind {found.kind!r}, not {kind!r}")
    with torch.device("meta"):
        network = Hypernet(found)
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    _check(shapes, expected, found)
    storages = {id(array.storage): array.storage for array in arrays.values()}
    held = sum(storage.numel * storage.dtype.itemsize for storage in storages.values())
    if sum(array.nbytes for array in arrays.values()) > held:
        raise BundleError(f"tensors of {path} share their numbers: do not use this file")
    tensors = {name: _tensor(name, array) for name, array in arrays.items()}
    network.load_state_dict(tensors, assign=True)
    provenance = {
        "converted_from": path.name,
        "sha256": _digest(path),
        "assumed": list(assumed),
        "dropped": list(dropped),
    }
    HyperNetwork.of(network, licence=licence, provenance=provenance).save_pretrained(folder)
    count = sum(tensor.numel() for tensor in tensors.values())
    return Converted(
        path.name, os.fspath(folder), found, count, assumed, moved, dropped, tuple(ignored)
    )


def _find(value: Any, key: str | None) -> tuple[dict[str, Any], Mapping[str, Any], list[str]]:
    """Return the state dict, the config beside it, and the names of what else there is."""
    if not isinstance(value, dict):
        raise BundleError(f"the file holds a {type(value).__name__}: pass a state dict's")
    if key is None and any(isinstance(item, Array) for item in value.values()):
        return value, {}, []
    key = STATE if key is None else key
    state, config = value.get(key), value.get("config")
    if not isinstance(state, dict):
        dicts = [str(name)[:64] for name, item in value.items() if isinstance(item, dict)]
        raise BundleError(f"the file holds no dict {key!r}: pass key=, one of {dicts[:8]}")
    ignored = [str(name)[:64] for name in value if name not in (key, "config")]
    return state, config if isinstance(config, dict) else {}, ignored


def _named(
    state: Mapping[Any, Any],
) -> tuple[dict[str, Array], dict[str, str], tuple[str, ...]]:
    """Return tensors by the names of the network, what was renamed, and what was dropped."""
    if len(state) > MAX_TENSORS:
        raise BundleError(f"the state dict has {len(state)} entries: allowed are {MAX_TENSORS}")
    for name, value in state.items():
        check_name(str(name))
        if not isinstance(name, str) or not isinstance(value, Array):
            raise BundleError(f"entry {str(name)!r} of the state dict is no tensor: pass another")
    arrays: dict[str, Array] = dict(state)
    while prefix := next((p for p in PREFIXES if all(n.startswith(p) for n in arrays)), None):
        if not arrays:
            break
        arrays = {name.removeprefix(prefix): value for name, value in arrays.items()}
    if any(name.startswith("gnn.gru.") for name in arrays):
        raise BundleError(
            "this is a GHN-2 (it has gnn.gru.*), which is not supported: use a GHN-3 checkpoint"
        )
    moved, dropped = {}, []
    result: dict[str, Array] = {}
    for old, value in arrays.items():
        new = f"gnn.0.{old}" if old in TABLES else old
        if match := ALIAS.fullmatch(old):
            decoder, index, part = match.groups()
            step = f"_step{int(index) // 2 + 1}" if _expanded(decoder, arrays) else ""
            new = f"{decoder}.l2{step}.{part}"
        if new != old and new in arrays:
            if not _same(value, arrays[new]):
                raise BundleError(f"{old} and {new} differ, and are one tensor: check the file")
            dropped.append(old)
            continue
        if new != old:
            moved[old] = new
        result[new] = _squeezed(value) if new.startswith("decoder.") else value
    return result, moved, tuple(dropped)


def _expanded(decoder: str, arrays: Mapping[str, Array]) -> bool:
    return f"{decoder}.seq.3.weight" in arrays


def _same(first: Array, second: Array) -> bool:
    return first.shape == second.shape and torch.equal(first.tensor(), second.tensor())


def _squeezed(array: Array) -> Array:
    """Return a 1x1 convolution, as early checkpoints have them, as a linear layer's weight."""
    if len(array.shape) == 4 and array.shape[2:] == (1, 1):
        return Array(array.storage, array.offset, array.shape[:2], array.stride[:2])
    return array


def _check(
    shapes: Mapping[str, tuple[int, ...]],
    expected: Mapping[str, tuple[int, ...]],
    config: HyperConfig,
) -> None:
    missing, unknown = expected.keys() - shapes.keys(), shapes.keys() - expected.keys()
    wrong = [
        f"{name} {list(shapes[name])} for {list(expected[name])}"
        for name in expected.keys() & shapes.keys()
        if shapes[name] != expected[name]
    ]
    if not missing and not unknown and not wrong:
        return
    text = "; ".join(
        f"{what}: {some(names)}"
        for what, names in (("missing", missing), ("unknown", unknown), ("of another shape", wrong))
        if names
    )
    raise BundleError(
        f"the tensors are not those of a {config.kind}, hid {config.hid}, {config.layers} layers, "
        f"{config.num_classes} classes. {text}. Pass num_classes= and max_shape= of training if "
        "shape_enc differs; variants of the published code cannot be converted"
    )


def _tensor(name: str, array: Array) -> torch.Tensor:
    if not array.storage.dtype.is_floating_point:
        raise BundleError(f"tensor {name} is {array.storage.dtype}: weights are floating point")
    return array.tensor().float()


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()
