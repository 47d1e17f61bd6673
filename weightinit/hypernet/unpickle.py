"""Reads what torch.save and joblib.dump write, without running any of it.

Python's unpickler imports and calls whatever a file names. Here a file may describe tensors, arrays
and plain values, by the names of a list; see :mod:`weightinit.hypernet.unpickle_machine`.
"""

from __future__ import annotations

import bz2
import lzma
import mmap
import os
import zipfile
import zlib
from pathlib import Path
from typing import Any

from weightinit.errors import BundleError
from weightinit.hypernet.unpickle_machine import Machine
from weightinit.hypernet.unpickle_values import (
    GLOBALS,
    STORAGES,
    Array,
    Budget,
    Global,
    Storage,
    Wrapper,
)

__all__ = ["read_pickle"]

MAX_BYTES = 8 * 2**30
MAX_STEPS = 1_000_000
MAX_DEPTH = 32
MAX_ENTRIES = 100_000  # of a zip file
MAX_NAME = 200
MAX_RATIO, FREE = 20, 2**26  # numbers compress little: what expands more is a bomb
CHUNK = 2**20
MAGIC = 0x1950A86A20F9469CFC6C  # of torch's format before its zip files
VERSION = 1001
ENTRY, ZIP64 = 46, 0xFFFFFFFF
STORAGE = "torch.storage._load_from_bytes"


def read_pickle(path: str | os.PathLike[str], *, max_bytes: int = MAX_BYTES) -> Any:
    r"""Return the value in a file of torch.save (zip or older), joblib.dump or pickle.

    Args:
        path: of the file; joblib's compression by zlib, gzip, bz2, lzma or xz is undone.
        max_bytes: largest file that is read, compressed and not.

    Returns:
        Dicts, lists, tuples, texts, numbers and None; a Namespace as a dict; a tensor or array as
        an :class:`~weightinit.hypernet.unpickle_values.Array`, whose ``tensor()`` reads it.

    Raises:
        BundleError: if the file names or does anything else, or is not sound.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder) / "old.pt"
        ...     _ = file.write_bytes(b"cos\nsystem\n).")
        ...     read_pickle(file)
        Traceback (most recent call last):
        weightinit.errors.BundleError: .../old.pt cannot be read: it names 'os.system', which ...
    """
    path = Path(path)
    try:
        data = _buffer(path, max_bytes)
        if data[:4] == b"PK\x03\x04":
            return _archive(path, data)
        data = _unpacked(data, max_bytes)
        return _stream(data, Budget(MAX_STEPS, 2 * len(data)))
    except BundleError as error:
        raise BundleError(f"{path} cannot be read: {error}") from error
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error}. Check the path") from error


def _buffer(path: Path, max_bytes: int) -> memoryview:
    if not path.is_file():
        raise BundleError("it is no file: pass a checkpoint's path")
    size = path.stat().st_size
    if not 0 < size <= max_bytes:
        raise BundleError(
            f"it has {size} bytes, allowed are 1 to {max_bytes}: pass max_bytes= to allow more"
        )
    with path.open("rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _unpacked(data: memoryview, max_bytes: int) -> memoryview:
    """Return the bytes of a file that joblib may have compressed."""
    head = bytes(data[:6])
    if head.startswith(b"\x78"):
        unpack = zlib.decompressobj()
    elif head.startswith(b"\x1f\x8b"):
        unpack = zlib.decompressobj(wbits=31)
    elif head.startswith(b"BZh"):
        unpack = bz2.BZ2Decompressor()
    elif head.startswith((b"\xfd7zXZ", b"\x5d\x00")):
        unpack = lzma.LZMADecompressor(memlimit=2**28)
    elif head.startswith((b"ZF", b"\x04\x22M\x18")):
        raise BundleError(
            "it is compressed in a way that is not read: save with compress=('zlib', 3)"
        )
    else:
        return data
    limit = min(max_bytes, MAX_RATIO * len(data) + FREE)
    result = bytearray()
    try:
        for begin in range(0, len(data), CHUNK):
            piece = data[begin : begin + CHUNK]
            while not unpack.eof:
                if isinstance(unpack, (bz2.BZ2Decompressor, lzma.LZMADecompressor)):
                    found, more = unpack.decompress(piece, CHUNK), not unpack.needs_input
                    piece = memoryview(b"")
                else:
                    found = unpack.decompress(piece, CHUNK)
                    piece = memoryview(unpack.unconsumed_tail)
                    more = len(piece) > 0
                result += found
                if len(result) > limit:
                    raise BundleError(
                        f"it expands to more than {limit} bytes, as no weights do: do not use it"
                    )
                if not more:
                    break
    except (zlib.error, OSError, lzma.LZMAError, EOFError) as error:
        raise BundleError(
            f"its compressed data are damaged ({error}): download it again"
        ) from error
    if not unpack.eof:
        raise BundleError("its compressed data are cut off: download it again")
    return memoryview(result).toreadonly()


def _stream(data: memoryview, budget: Budget) -> Any:
    """Return the value of a pickle, of joblib or plain, or of torch's older format."""
    allowed = {
        **GLOBALS,
        # How a tensor is pickled outside torch.save: its storage in torch's older format.
        STORAGE: Global(STORAGE, lambda budget, data: _storage(data, budget)),
    }
    machine = Machine(data, 0, allowed, budget)
    value = machine.run()
    if type(value) is int and value == MAGIC:
        return _plain(_older(data, machine.position, budget))
    if machine.position != len(data):
        raise BundleError(
            f"it has {len(data) - machine.position} bytes after its end: save it as one file, with "
            "torch.save or joblib.dump"
        )
    return _plain(value)


def _storage(data: Any, budget: Budget) -> Storage:
    if not isinstance(data, memoryview):
        raise BundleError("a storage is made of no bytes: the file is damaged")
    machine = Machine(data, 0, {}, budget)
    if machine.run() != MAGIC:
        raise BundleError("a storage is not of torch's older format: save it again")
    value = _older(data, machine.position, budget)
    if not isinstance(value, Storage):
        raise BundleError("bytes that should be a storage are something else: do not use this file")
    return value


def _older(data: memoryview, position: int, budget: Budget) -> Any:
    """Return the value of torch's older format, after its magic number; storages follow it."""
    storages: dict[str, Storage] = {}
    machine = Machine(data, position, {}, budget)
    version, system = machine.run(), machine.run()
    if (
        version != VERSION
        or not isinstance(system, dict)
        or system.get("little_endian") is not True
    ):
        raise BundleError("it is of an unknown version, or big-endian: save it again")
    machine = Machine(data, machine.position, GLOBALS, budget, _finder(storages))
    value, keys = machine.run(), machine.run()
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise BundleError("it does not list its storages: the file is damaged")
    if sorted(keys) != sorted(storages):
        raise BundleError("it lists other storages than its tensors use: the file is damaged")
    for key in keys:
        storage = storages[key]
        if machine.number(8) != storage.numel:
            raise BundleError("a storage has another length than its tensors say: it is damaged")
        storage.place(machine.take(storage.numel * storage.dtype.itemsize))
    if machine.position != len(data):
        raise BundleError("it has bytes after its end: save it again with torch.save")
    return value


def _finder(storages: dict[str, Storage]) -> Any:
    """Return the function of torch's persistent ids, which fills ``storages``."""

    def find(key: Any) -> Storage:
        sound = isinstance(key, tuple) and len(key) in (5, 6) and key[0] == "storage"
        if not sound or not isinstance(key[1], Global) or key[5:] not in ((), (None,)):
            raise BundleError(
                "it refers to something other than a storage: save a plain state dict again"
            )
        dtype = STORAGES.get(key[1].name.removeprefix("torch."))
        name, numel = key[2], key[4]
        if dtype is None or type(name) is not str or type(numel) is not int or numel < 0:
            raise BundleError("it refers to a storage by unsound values: the file is damaged")
        storage = storages.setdefault(name, Storage(dtype, numel))
        if (storage.dtype, storage.numel) != (dtype, numel):
            raise BundleError(f"it describes storage {name[:32]!r} in two ways: it is damaged")
        return storage

    return find


def _archive(path: Path, data: memoryview) -> Any:
    """Return the value of a zip file of torch.save."""
    entries = _entries(path, data)
    roots = [name.removesuffix("data.pkl") for name in entries if name.endswith("data.pkl")]
    if len(roots) != 1 or f"{roots[0]}constants.pkl" in entries:
        raise BundleError("it is a zip file, but not of torch.save's: save a state dict")
    root = roots[0]
    if bytes(entries.get(f"{root}byteorder", b"little")) != b"little":
        raise BundleError("it is big-endian: save it again on another machine")
    storages: dict[str, Storage] = {}
    pickled = entries[f"{root}data.pkl"]
    machine = Machine(pickled, 0, GLOBALS, Budget(MAX_STEPS, 2 * len(pickled)), _finder(storages))
    value = machine.run()
    for key, storage in storages.items():
        name = f"{root}data/{key}"
        if name not in entries:
            raise BundleError(f"storage {key[:32]!r} is missing: it is cut off or damaged")
        storage.place(entries[name])
    return _plain(value)


def _entries(path: Path, data: memoryview) -> dict[str, memoryview]:
    """Return the bytes of every entry: stored as they are, and apart from each other."""
    tail = bytes(data[-(2**16) :])
    end = tail.rfind(b"PK\x05\x06")
    size = int.from_bytes(tail[end + 12 : end + 16], "little")
    if size == ZIP64:
        end = tail.rfind(b"PK\x06\x06")
        size = int.from_bytes(tail[end + 40 : end + 48], "little")
    # Looked at before zipfile makes an object of each.
    if end < 0 or size > MAX_ENTRIES * (ENTRY + MAX_NAME):
        raise BundleError("it has no directory of a sane length: it is cut off, download it again")
    found: dict[str, memoryview] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            listed = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise BundleError(f"it is a damaged zip file ({error}): download it again") from error
    last = 0
    for info in sorted(listed, key=lambda info: info.header_offset):
        start = info.header_offset
        header = bytes(data[start : start + 30])
        if info.compress_type or info.file_size != info.compress_size or info.flag_bits & 1:
            raise BundleError("its entries are compressed or encrypted: save it with torch.save")
        begin = start + 30 + sum(int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
        if start < last or header[:4] != b"PK\x03\x04" or begin + info.file_size > len(data):
            raise BundleError("its entries overlap or are cut off: download it again")
        last = begin + info.file_size
        if info.filename in found:
            raise BundleError(f"entry {info.filename[:64]!r} is there twice: do not use this file")
        found[info.filename] = data[begin:last]
        if zlib.crc32(found[info.filename]) != info.CRC:
            raise BundleError(f"entry {info.filename[:64]!r} is damaged: download it again")
    return found


def _plain(value: Any) -> Any:
    """Return the value as plain containers; what is too deep, or holds itself, is refused."""
    left = MAX_STEPS

    def plain(value: Any, depth: int) -> Any:
        nonlocal left
        left -= 1
        if depth > MAX_DEPTH or left < 0:
            raise BundleError(
                "its values are nested too deep, hold themselves or repeat: do not use this file"
            )
        if isinstance(value, dict) and not isinstance(value, Wrapper):
            return {key: plain(item, depth + 1) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(plain(item, depth + 1) for item in value)
        if isinstance(value, Global):
            return value.name
        if value is None or isinstance(value, (bool, int, float, str, memoryview, Array, Storage)):
            return value
        raise BundleError("it holds a value that is not finished: the file is damaged")

    return plain(value, 0)
