"""Checkpoints of the published GHN-3, LoGAH, TAL and PITH code as bundles of safetensors."""

from __future__ import annotations

import hashlib
import mmap
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weightinit.errors import BundleError
from weightinit.files.checks import MAX_TENSORS, check_name
from weightinit.hypernet.config import HyperConfig
from weightinit.hypernet.infer import Shapes, inferred
from weightinit.hypernet.pickle_file import MAX_BYTES, read_pickle
from weightinit.text import some

__all__ = ["Converted", "convert"]

STATE = "state_dict"
PREFIXES = ("module.", "_orig_mod.")
#: Of the public GHN-3 checkpoints, which hold them beside the layers.
TABLES = ("centrality_embed_in.weight", "centrality_embed_out.weight", "input_dist_embed.weight")
#: The published low-rank decoders register their last layers twice.
ALIAS = re.compile(r"(decoder(?:pq)?)\.seq\.(\d)\.(weight|bias)")


@dataclass(frozen=True)
class Converted:
    """What was read from the file ``source``, and what became of it.

    Args:
        source: name of the file.
        folder: folder of the bundle.
        config: configuration of the hypernetwork.
        parameters: number of parameters.
        assumed: fields of the config that the file does not state, and nobody else did.
        moved: keys by their names in the file.
        dropped: keys that hold the same tensor as another.
        ignored: names of what else the file holds.
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
        return {**vars(self), "config": self.config.to_dict()}

    def __str__(self) -> str:
        sizes = ", ".join(f"{name} {value}" for name, value in self.config.to_dict().items())
        lines = {
            self.source: f"{self.parameters:,} parameters; {sizes}",
            "not stated in the file, assumed": ", ".join(
                f"{name} {getattr(self.config, name)}" for name in self.assumed
            ),
            "renamed": some(f"{old} to {new}" for old, new in self.moved.items()),
            "dropped, the same tensors again": some(self.dropped, 16),
            "not used": some(self.ignored),
        }
        told = [f"{what}: {text}" for what, text in lines.items() if text]
        return "\n".join([*told, f"written to {self.folder}"])


def convert(
    path: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    kind: str | None = None,
    max_shape: int | None = None,
    num_classes: int | None = None,
    softmax: bool | None = None,
    key: str | None = None,
    licence: str = "other",
    max_bytes: int = MAX_BYTES,
) -> Converted:
    """Write the bundle of a checkpoint of joblib.dump or torch.save, running nothing of it.

    Args:
        path: the file: a state dict, or a dict that holds one, with a ``config`` maybe.
        folder: folder of the bundle.
        kind: kind of hypernetwork that it must be. Default: any.
        max_shape: rows and columns that a low-rank decoder was trained to predict, which its
            weights do not say. Default: the file's config, else 2048, or 4096 for PITH.
        num_classes: number of classes it was trained on, likewise. Default: the file's, else 1000.
        softmax: whether its graphs had nodes for attention's softmax, as those made by torch 1 had,
            GHN-3's own probably; nothing in the file says so. Default: they had not.
        key: key of the state dict in the file, e.g. ``"ema_state_dict"``. Default: ``state_dict``.
        licence: SPDX identifier of the weights.
        max_bytes: largest file that is read.

    Returns:
        What was inferred, renamed and dropped.

    Raises:
        BundleError: if the file is not sound, does anything but describe tensors, or holds another
            network. Nothing is written then.

    Examples:
        >>> import tempfile, torch
        >>> from weightinit.hypernet.network import GraphHyperNetwork
        >>> tiny = GraphHyperNetwork(HyperConfig(hid=16, heads=2, layers=1, rank=2, max_ck=32))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save({"state_dict": tiny.state_dict()}, f"{folder}/old.pt")
        ...     done = convert(f"{folder}/old.pt", f"{folder}/new", max_shape=512)
        >>> done.config.hid, done.config.max_shape, done.assumed
        (16, (512, 512, 16), ('num_classes', 'softmax'))
    """
    from weightinit.hypernet.files import HyperNetwork
    from weightinit.hypernet.network import GraphHyperNetwork

    path = Path(path)
    state, stated, ignored = _find(read_pickle(path, max_bytes=max_bytes), key)
    tensors, moved, dropped = _named(state)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    config, assumed = inferred(
        shapes, stated, max_shape=max_shape, num_classes=num_classes, softmax=softmax
    )
    if kind not in (None, config.kind):
        raise BundleError(f"{path} holds a hypernetwork of kind {config.kind!r}, not {kind!r}")
    with torch.device("meta"):
        network = GraphHyperNetwork(config)
    _check(shapes, {name: tuple(t.shape) for name, t in network.state_dict().items()}, config)
    storages = {value.untyped_storage().data_ptr(): value for value in tensors.values()}
    held = sum(value.untyped_storage().nbytes() for value in storages.values())
    if sum(value.nbytes for value in tensors.values()) > held:
        raise BundleError(f"tensors of {path} share their numbers: do not use this file")
    network.load_state_dict(
        {name: value.float().contiguous() for name, value in tensors.items()}, assign=True
    )
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        digest = hashlib.sha256(data).hexdigest()
    names = {"assumed": list(assumed), "dropped": list(dropped)}
    provenance = {"converted_from": path.name, "sha256": digest, **names}
    HyperNetwork.of(network, licence=licence, provenance=provenance).save_pretrained(folder)
    count = sum(value.numel() for value in tensors.values())
    return Converted(
        path.name, os.fspath(folder), config, count, assumed, moved, dropped, tuple(ignored)
    )


def _find(value: Any, key: str | None) -> tuple[dict[str, Any], Mapping[str, Any], list[str]]:
    """Return the state dict, the config beside it, and the names of what else there is."""
    if not isinstance(value, dict):
        raise BundleError(f"the file holds a {type(value).__name__}: pass a state dict's")
    if key is None and any(isinstance(item, Tensor) for item in value.values()):
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
) -> tuple[dict[str, Tensor], dict[str, str], tuple[str, ...]]:
    """Return tensors by the names of the network, what was renamed, and what was dropped."""
    if len(state) > MAX_TENSORS:
        raise BundleError(f"the state dict has {len(state)} entries: allowed are {MAX_TENSORS}")
    for name, value in state.items():
        check_name(str(name))
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise BundleError(f"entry {str(name)!r} of the state dict is no tensor: pass another")
        if not value.is_floating_point():
            raise BundleError(f"tensor {name} is {value.dtype}: weights are floating point")
    found: dict[str, Tensor] = dict(state)
    for prefix in PREFIXES:
        while found and all(name.startswith(prefix) for name in found):
            found = {name.removeprefix(prefix): value for name, value in found.items()}
    if any(name.startswith("gnn.gru.") for name in found):
        raise BundleError(
            "this is a GHN-2 (it has gnn.gru.*), which is not supported: use a GHN-3 checkpoint"
        )
    moved, dropped = {}, []
    result: dict[str, Tensor] = {}
    for old, value in found.items():
        new = f"gnn.0.{old}" if old in TABLES else old
        if match := ALIAS.fullmatch(old):
            decoder, index, part = match.groups()
            expanded = f"{decoder}.seq.3.weight" in found
            new = f"{decoder}.l2{f'_step{int(index) // 2 + 1}' if expanded else ''}.{part}"
        if new == old or new not in found:
            moved |= {old: new} if new != old else {}
            # Early checkpoints have convolutions of 1x1 where there are linear layers.
            result[new] = value.flatten(1) if value.shape[2:] == (1, 1) else value
        elif value.shape == found[new].shape and torch.equal(value, found[new]):
            dropped.append(old)
        else:
            raise BundleError(f"{old} and {new} differ, and are one tensor: check the file")
    return result, moved, tuple(dropped)


def _check(shapes: Shapes, expected: Shapes, config: HyperConfig) -> None:
    """Raise BundleError if these are not the tensors of the network."""
    faults = {
        "missing": expected.keys() - shapes.keys(),
        "unknown": shapes.keys() - expected.keys(),
        "of another shape": [
            f"{name} {list(shapes[name])} for {list(expected[name])}"
            for name in expected.keys() & shapes.keys()
            if shapes[name] != expected[name]
        ],
    }
    text = "; ".join(f"{what}: {some(names)}" for what, names in faults.items() if names)
    if text:
        raise BundleError(
            f"the tensors are not those of a {config.kind}, hid {config.hid}, {config.layers} "
            f"layers, {config.num_classes} classes. {text}. Pass num_classes= and max_shape= of "
            "training if shape_enc differs; variants of the published code cannot be converted"
        )
