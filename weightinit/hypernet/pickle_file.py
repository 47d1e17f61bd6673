"""The files of torch.save and joblib.dump: zip archives, compressed or plain streams of pickles."""

from __future__ import annotations

import lzma
import mmap
import os
import struct
import zipfile
import zlib
from bz2 import BZ2Decompressor
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weightinit.errors import BundleError
from weightinit.hypernet.unpickle import numbers_of, value_of

__all__ = ["MAX_BYTES", "read_pickle"]

MAX_BYTES = 8 * 2**30
MAX_ENTRIES = 100_000  # of a zip file
MAX_NAME = 200
MAX_RATIO, FREE = 20, 2**26  # numbers compress little: what expands more is a bomb
ENTRY, ZIP64 = 46, 0xFFFFFFFF
HELP = (
    "Only tensors, arrays, plain values and argparse.Namespace are read, and nothing is run. "
    "Download the file again if it is damaged. If you trust it, load it where it was made and save "
    "its state dict alone, with torch.save"
)


def read_pickle(path: str | os.PathLike[str], *, max_bytes: int = MAX_BYTES) -> Any:
    r"""Return the value in a file of torch.save (zip or older), joblib.dump or pickle.

    Args:
        path: the file; compression by zlib, gzip, bz2, lzma or xz is undone.
        max_bytes: largest file that is read, compressed and not.

    Returns:
        Dicts, lists, tuples, texts, numbers, bytes and None; a Namespace as a dict; tensors and
        arrays as tensors, which may share memory with one another.

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
    if not path.is_file():
        raise BundleError(f"{path} cannot be read: it is no file: pass a checkpoint's path")
    size = path.stat().st_size
    if not 0 < size <= max_bytes:
        raise BundleError(
            f"{path} cannot be read: it has {size} bytes, allowed are 1 to {max_bytes}: pass "
            "max_bytes= to allow more"
        )
    try:
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        archive = data[:4] == b"PK\x03\x04"
        return _archive(path, data) if archive else _stream(_unpacked(data, max_bytes))
    except (BundleError, OSError) as error:
        raise BundleError(f"{path} cannot be read: {error}. {HELP}") from error


def _unpacked(data: mmap.mmap, max_bytes: int) -> mmap.mmap | bytes:
    """Return the bytes of a file that joblib may have compressed."""
    head = data[:6]
    if head.startswith((b"\x78", b"\x1f\x8b")):
        unpack = zlib.decompressobj(wbits=47)  # zlib or gzip
    elif head.startswith(b"BZh"):
        unpack = BZ2Decompressor()
    elif head.startswith((b"\xfd7zXZ", b"\x5d\x00")):
        unpack = lzma.LZMADecompressor(memlimit=2**28)
    elif head.startswith((b"ZF", b"\x04\x22M\x18")):
        raise BundleError("it is compressed by lz4 or the like, which is not read")
    else:
        return data
    limit = min(max_bytes, MAX_RATIO * len(data) + FREE)
    try:
        found = unpack.decompress(data, limit + 1)
    except (zlib.error, OSError, lzma.LZMAError, EOFError) as error:
        raise BundleError(f"its compressed data are damaged ({error})") from error
    if len(found) > limit:
        raise BundleError(f"it expands to more than {limit} bytes, as no weights do")
    if not unpack.eof:
        raise BundleError("its compressed data are cut off")
    return found


def _stream(data: mmap.mmap | bytes) -> Any:
    """Return the value of a pickle, of joblib or plain, or of torch's older format."""
    file = BytesIO(data) if isinstance(data, bytes) else data
    value = value_of(file, len(data))
    if left := len(data) - file.tell():
        raise BundleError(f"it has {left} bytes after its end")
    return value


def _archive(path: Path, data: mmap.mmap) -> Any:
    """Return the value of a zip file of torch.save, whose entries are stored as they are."""
    tail = data[-(2**16) :]
    end = tail.rfind(b"PK\x05\x06")
    size = int.from_bytes(tail[end + 12 : end + 16], "little")
    if size == ZIP64:
        end = tail.rfind(b"PK\x06\x06")
        size = int.from_bytes(tail[end + 40 : end + 48], "little")
    # Looked at before zipfile makes an object of each.
    if end < 0 or size > MAX_ENTRIES * (ENTRY + MAX_NAME):
        raise BundleError("it has no directory of a sane length")
    try:
        with zipfile.ZipFile(path) as archive:
            return _stored(archive, len(data))
    except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError, struct.error) as error:
        raise BundleError(f"it is a damaged zip file ({error})") from error


def _stored(archive: zipfile.ZipFile, most: int) -> Any:
    """Return the value of an archive of at most so many bytes."""
    entries = {info.filename: info for info in archive.infolist()}
    if len(entries) < len(archive.infolist()):
        raise BundleError("an entry is there twice")
    if any(info.compress_type or info.flag_bits & 1 for info in entries.values()):
        raise BundleError("its entries are compressed or encrypted")
    if sum(info.file_size for info in entries.values()) > most:
        raise BundleError("its entries overlap or are cut off")
    roots = [name.removesuffix("data.pkl") for name in entries if name.endswith("data.pkl")]
    if len(roots) != 1 or f"{roots[0]}constants.pkl" in entries:
        raise BundleError("it is a zip file, but not of torch.save's")
    order = f"{roots[0]}byteorder"
    if order in entries and archive.read(order) != b"little":
        raise BundleError("it is big-endian")

    def find(name: str, dtype: torch.dtype, numel: int) -> Tensor:
        entry = entries.get(f"{roots[0]}data/{name}")
        if entry is None:
            raise BundleError(f"storage {name[:32]!r} is missing")
        if entry.file_size != numel * dtype.itemsize:
            raise BundleError(f"a storage of {numel} {dtype} takes {entry.file_size} bytes in it")
        return numbers_of(archive.read(entry), dtype)

    pickled = archive.read(f"{roots[0]}data.pkl")
    return value_of(BytesIO(pickled), len(pickled), find)
