"""The sound bundle that every attack starts from, as plain data, and the registry of attacks."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from helpers.bundles import make_bundle
from safetensors.torch import save

#: From the attack's name to its builder and the words of its refusal.
ATTACKS = {}


def attack(words):
    """Register a builder: it gets a folder that holds a sound bundle, and spoils it."""

    def register(builder):
        name = f"{builder.__module__.rpartition('.')[2]}_{builder.__name__}"
        assert name not in ATTACKS
        ATTACKS[name] = (builder, words)
        return builder

    return register


def write_sound(folder: Path, **changes):
    make_bundle(fitted=(2,), **changes).save_pretrained(folder)


def edit_config(folder: Path, change):
    """Let ``change`` edit the config in place, or return another value for it."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    result = change(config)
    path.write_text(json.dumps(config if result is None else result))


def seal(folder: Path):
    """State the sha256 of the weights as they are: an attacker can."""
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    edit_config(folder, lambda config: config.update(sha256=digest))


def write_weights(folder: Path, header, data: bytes = b"", *, length=None):
    """Write a safetensors file by hand: header as an object or as raw bytes."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = len(raw) if length is None else length
    (folder / "model.safetensors").write_bytes(size.to_bytes(8, "little") + raw + data)
    seal(folder)


def edit_header(folder: Path, change):
    """Let ``change`` edit the header (an object) in place, or return raw bytes for it."""
    path = folder / "model.safetensors"
    raw = path.read_bytes()
    end = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:end])
    result = change(header)
    write_weights(folder, header if result is None else result, raw[end:])


def edit_tensors(folder: Path, change, **options):
    """Let ``change`` edit the dict of tensors in place, then write it by the format's library."""
    tensors = dict(make_bundle(fitted=(2,), **options).tensors)
    change(tensors)
    (folder / "model.safetensors").write_bytes(save(tensors))
    seal(folder)
