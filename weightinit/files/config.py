"""What a bundle's config.json states, checked field by field."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from weightinit.errors import BundleError
from weightinit.files.checks import parse_json
from weightinit.text import some

__all__ = ["MAX_CONFIG", "BundleConfig"]

SCHEMA = 1
MAX_CONFIG = 2**20  # bytes of config.json, and of README.md
MAX_CONFIG_ENTRIES = 10_000
MAX_SIZE = 2**24
MAX_DEPTH = 10_000
MAX_ENTRIES = 256  # of sizes, and of fitted


@dataclass(frozen=True)
class BundleConfig:
    """What config.json states; the kind gives ``options``, ``sizes`` and ``depth`` a meaning.

    Args:
        kind: kind of the bundle, such as ``"templates"``.
        method: name of the method.
        options: options of the method, plain JSON.
        sizes: sizes by name; templates state those of the auxiliary model by axis label.
        depth: number of blocks; templates state that of the auxiliary model.
        licence: SPDX identifier of the weights' licence.
        traits: traits of the auxiliary model (prefix tokens, pooling, ...), plain JSON.
        fitted: ``{"depth": int, "sizes": {...}}`` for each further size that has scalers; only
            templates have them.
        provenance: where the weights come from, plain JSON.
        sha256: hex digest of model.safetensors; empty for a bundle that was never saved.

    Raises:
        BundleError: if a field is of another type or out of bounds.
    """

    kind: str
    method: str
    options: Mapping[str, Any]
    sizes: Mapping[str, int]
    depth: int
    licence: str
    traits: Mapping[str, Any] = field(default_factory=dict)
    fitted: tuple[Mapping[str, Any], ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    sha256: str = ""

    def __post_init__(self) -> None:
        """Check every field: a config may come from a stranger's file."""
        for name in ("kind", "method", "licence"):
            value = getattr(self, name)
            sound = isinstance(value, str) and re.fullmatch(r"[\w.+-]{1,64}", value, re.ASCII)
            _expect(name, sound, value, "1 to 64 of A-Z a-z 0-9 . _ + -")
        for name in ("options", "traits", "provenance"):
            value = getattr(self, name)
            _expect(name, isinstance(value, Mapping), value, "an object")
        _check_sizes("", self.depth, self.sizes)
        sound = isinstance(self.fitted, (tuple, list)) and len(self.fitted) <= MAX_ENTRIES
        _expect("fitted", sound, self.fitted, f"a list of at most {MAX_ENTRIES}")
        for i, entry in enumerate(self.fitted):
            sound = isinstance(entry, Mapping) and set(entry) == {"depth", "sizes"}
            _expect(f"fitted[{i}]", sound, entry, "an object of depth and sizes")
            _check_sizes(f"fitted[{i}].", entry["depth"], entry["sizes"])
        sound = isinstance(self.sha256, str) and re.fullmatch(r"([0-9a-f]{64})?", self.sha256)
        _expect("sha256", sound, self.sha256, "64 hexadecimal digits")

    def to_json(self) -> str:
        """Return the text of config.json; BundleError if a value is not plain and finite JSON."""
        try:
            text = json.dumps({"schema": SCHEMA, **asdict(self)}, indent=2, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise BundleError(
                f"the bundle's config is not plain JSON ({error}): use dicts, lists, strings, "
                "finite numbers, booleans and None in options, traits and provenance"
            ) from error
        return text + "\n"

    @classmethod
    def from_json(cls, data: bytes, what: str = "config.json") -> BundleConfig:
        """Return the config in the bytes of a config.json; ``what`` names it in errors."""
        raw = parse_json(data, what, MAX_CONFIG_ENTRIES)
        schema = raw.pop("schema", None)
        if type(schema) is not int or schema != SCHEMA:
            raise BundleError(
                f"{what} has schema {str(schema)[:32]!r}, this version reads {SCHEMA}: upgrade "
                "weightinit if the schema is newer; otherwise this is no weightinit bundle"
            )
        known = set(cls.__dataclass_fields__)
        if set(raw) != known:
            raise BundleError(
                f"{what} has unknown keys [{some(key[:64] for key in set(raw) - known)}] and lacks "
                f"[{some(known - set(raw))}]: use exactly {sorted(known | {'schema'})}"
            )
        _expect("sha256", raw["sha256"] != "", "", "64 hexadecimal digits")
        _expect("fitted", isinstance(raw["fitted"], list), raw["fitted"], "a list")
        try:
            json.dumps(raw, ensure_ascii=False).encode()
        except ValueError as error:
            raise BundleError(f"{what} has text that is not Unicode: {error}") from error
        return cls(**{**raw, "fitted": tuple(raw["fitted"])})


def _expect(name: str, sound: object, value: object, allowed: str) -> None:
    if not sound:
        raise BundleError(f"{name} of the bundle is {repr(value)[:80]}: it must be {allowed}")


def _check_sizes(prefix: str, depth: object, sizes: object) -> None:
    sound = type(depth) is int and 1 <= depth <= MAX_DEPTH
    _expect(f"{prefix}depth", sound, depth, f"a whole number from 1 to {MAX_DEPTH}")
    sound = isinstance(sizes, Mapping) and len(sizes) <= MAX_ENTRIES
    _expect(f"{prefix}sizes", sound, sizes, f"an object of at most {MAX_ENTRIES}")
    assert isinstance(sizes, Mapping)
    for label, size in sizes.items():
        named = isinstance(label, str) and re.fullmatch(r"[A-Za-z]\w{0,31}", label, re.ASCII)
        sound = named and type(size) is int and 1 <= size <= MAX_SIZE
        allowed = f"an axis label with a whole number from 1 to {MAX_SIZE}"
        _expect(f"{prefix}sizes", sound, {label: size}, allowed)
