"""Read the pickles that torch.save and joblib.dump write, without running any of them.

Python's unpickler imports and calls whatever a file names. This one knows a short list of opcodes
and names, makes values of its own from them, and counts what it does. ``torch.load`` with
``weights_only=True`` is no substitute: deeply nested keys end its process, colliding ones take it
hours, and it reads views that repeat one number a billion times.
"""

from __future__ import annotations

import math
import mmap
import pickle
import pickletools
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import torch
from torch import Tensor

from weightinit.errors import BundleError

__all__ = ["numbers_of", "value_of"]

MAX_STEPS = 1_000_000
MAX_COPIES = 4  # of the bytes of a file
MAX_DEPTH = 32
MAX_AXES = 8
MAX_KEY = 2**31  # larger integers can be made to have the same hash
MAGIC = 0x1950A86A20F9469CFC6C  # of torch's format before its zip files
VERSION = 1001
STORAGES = {
    f"torch.{name}Storage": dtype
    for name, dtype in (
        ("Double", torch.float64), ("Float", torch.float32), ("Half", torch.float16),
        ("BFloat16", torch.bfloat16), ("Long", torch.int64), ("Int", torch.int32),
        ("Short", torch.int16), ("Char", torch.int8), ("Byte", torch.uint8), ("Bool", torch.bool),
    )
}  # fmt: skip
Find = Callable[[str, torch.dtype, int], Tensor]
ARRAYS = ("f8", "f4", "f2", "i8", "i4", "i2", "i1", "u1", "b1")


def value_of(file: mmap.mmap | BytesIO, nbytes: int, find: Find | None = None) -> Any:
    """Return the value of a pickle, of joblib or plain, or of torch's older format.

    Args:
        file: where it begins; it is read to its end, what stands behind that is left.
        nbytes: bytes of the file, which limit what is copied.
        find: returns the numbers of a storage ``[numel]`` by its name, dtype and length, where they
            stand elsewhere; None where the file has none, or is of torch's older format.

    Returns:
        Dicts, lists, tuples, texts, numbers, bytes and None; a Namespace as a dict; tensors and
        arrays as tensors, which may share memory with one another.

    Raises:
        BundleError: if the pickle names or does anything else, or is not sound.
    """
    budget = _Budget(MAX_STEPS, MAX_COPIES * nbytes)
    value = _Unpickler(file, budget, find).value()
    if find is None and type(value) is int and value == MAGIC:
        value = _older(file, budget)
    return _plain(value)


@dataclass
class _Budget:
    """What one file may still spend: steps of all its pickles, and bytes that they copy."""

    steps: int
    nbytes: int

    def copy(self, nbytes: int) -> None:
        """Count bytes that a value takes beside those of the file."""
        self.nbytes -= nbytes
        if self.nbytes < 0:
            raise BundleError("it copies its bytes over and over, or states more than it has")

    def __getitem__(self, code: int) -> Callable[[Any], None]:
        """Return what an opcode does, and count the step."""
        self.steps -= 1
        if self.steps < 0:
            raise BundleError("it takes more steps than any state dict")
        if code not in OPCODES:
            name = next((op.name for op in pickletools.opcodes if ord(op.code) == code), hex(code))
            raise BundleError(f"it uses pickle opcode {name}, which is not allowed")
        return OPCODES[code]


class _Name(str):
    """A name that the file may use. It stands for itself: nothing is imported."""


@dataclass(eq=False)
class _Storage:
    """Numbers in a row ``[numel]``."""

    numbers: Tensor


@dataclass(eq=False)
class _Built:
    """A value that a state completes, which comes after it."""

    build: Callable[[Any], Any]
    value: Any = None


class _Unpickler(pickle._Unpickler):
    """Reads one pickle of data, from where it begins; ``find`` returns the numbers of a storage."""

    stack: list[Any]
    metastack: list[list[Any]]
    append: Callable[[Any], None]
    read: Callable[[int], bytes]
    pop_mark: Callable[[], list[Any]]

    def __init__(
        self,
        file: mmap.mmap | BytesIO,
        budget: _Budget,
        find: Find | None = None,
    ) -> None:
        super().__init__(file)
        self.budget, self.find = budget, find
        self.dispatch = budget  # pyright: ignore[reportAttributeAccessIssue]
        self.storages: dict[str, _Storage] = {}

    def value(self) -> Any:
        """Return the value of the pickle."""
        try:
            value = self.load()
        except BundleError:
            raise
        except Exception as error:  # whatever hostile bytes make of Python's own handlers
            raise BundleError(
                f"it is no sound pickle, damaged or cut off ({type(error).__name__})"
            ) from error
        if self.stack or self.metastack:
            raise BundleError("it leaves values on the stack")
        return value

    def find_class(self, module: str, name: str) -> _Name:
        """Return an allowed name."""
        found = _Name(f"{module}.{name}")
        if found not in NAMES:
            raise BundleError(f"it names {found[:80]!r}, which is not allowed")
        return found

    def persistent_load(self, pid: Any) -> _Storage:
        """Return the storage that the file refers to."""
        match pid:
            case ("storage", _Name() as kind, str() as name, _, int() as numel, *rest) if (
                kind in STORAGES and numel >= 0 and rest in ([], [None]) and self.find
            ):
                dtype = STORAGES[kind]
                if name not in self.storages:
                    self.storages[name] = _Storage(self.find(name, dtype, numel))
                numbers = self.storages[name].numbers
                if (numbers.dtype, len(numbers)) != (dtype, numel):
                    raise BundleError(f"it describes storage {name[:32]!r} in two ways")
                return self.storages[name]
        raise BundleError("it refers to something other than a storage in it")

    def load_proto(self) -> None:
        """Check the protocol."""
        if (found := self.read(1)[0]) > 5:
            raise BundleError(f"it is of pickle protocol {found}")

    def load_reduce(self) -> None:
        """Push what an allowed name makes of its arguments."""
        arguments, name = self.stack.pop(), self.stack.pop()
        make = NAMES.get(name) if type(name) is _Name else None
        if make is None or type(arguments) is not tuple:
            what = repr(str(name)) if type(name) is _Name else "a value"
            raise BundleError(f"it calls {what}, which is not allowed")
        self.append(make(self, *arguments))

    def load_build(self) -> None:
        """Give the value on top its state; that of a state dict is dropped."""
        state, value = self.stack.pop(), self.stack[-1]
        if isinstance(value, _Built):
            value.value = value.build(state)
        elif type(value) is not OrderedDict:
            raise BundleError("it sets the state of a value, which is not allowed")

    def load_setitem(self) -> None:
        """Set one item of the dict on top."""
        value, key = self.stack.pop(), self.stack.pop()
        self._set([key, value])

    def load_setitems(self) -> None:
        """Set items of the dict on top."""
        self._set(self.pop_mark())

    def _set(self, items: list[Any]) -> None:
        if type(self.stack[-1]) not in (dict, OrderedDict):
            raise BundleError("it sets items of what is no dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            number = type(key) is int and 0 <= key < MAX_KEY
            if not number and type(key) not in (str, bool, type(None)):
                raise BundleError("a dict has keys other than texts and counts")
            self.stack[-1][key] = value


def _tensor(
    reader: _Unpickler, storage: Any, offset: Any, shape: Any, stride: Any, *rest: Any
) -> Tensor:
    """Return a view of a storage, unless it reaches outside, or repeats numbers."""
    # The rest is requires_grad and hooks, which mean nothing here; then marks, which would.
    if len(rest) > 2 and rest[2]:
        raise BundleError("a tensor is marked as a conjugate or negative view")
    sound = isinstance(storage, _Storage) and type(shape) is tuple and type(stride) is tuple
    sound = sound and len(shape) == len(stride) <= MAX_AXES
    if not sound or not all(type(n) is int and n >= 0 for n in (offset, *shape, *stride)):
        raise BundleError("a tensor is not described by a storage, an offset, sizes and strides")
    count, numel = math.prod(shape), len(storage.numbers)
    last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
    if count and (last >= numel or count > numel):
        raise BundleError(
            f"a tensor of shape {str(shape)[:80]}, strides {str(stride)[:80]}, offset "
            f"{str(offset)[:20]} does not lie in its storage of {numel}"
        )
    return storage.numbers.as_strided(shape, stride, offset if count else 0)


def _from_bytes(reader: _Unpickler, data: bytes) -> _Storage:
    """Return the storage of a tensor that was pickled outside torch.save."""
    reader.budget.copy(len(data))
    file = BytesIO(data)
    if _Unpickler(file, reader.budget).value() != MAGIC:
        raise BundleError("a storage is not of torch's older format")
    value = _older(file, reader.budget)
    if not isinstance(value, _Storage):
        raise BundleError("bytes that should be a storage are something else")
    return value


def _encode(reader: _Unpickler, text: str, encoding: str) -> bytes:
    """Return bytes as protocol 2 writes them."""
    reader.budget.copy(len(text))
    return text.encode("latin1")


def _dtype(reader: _Unpickler, code: Any, *rest: Any) -> _Built:
    """Return a dtype of plain numbers; its byte order is its state."""
    if type(code) is not str or code not in ARRAYS:
        name = code[:16] if type(code) is str else "of another form"
        raise BundleError(f"numpy dtype {name!r} is not allowed, {', '.join(ARRAYS)} are")
    dtype = np.dtype(code)
    return _Built(lambda state: dtype.newbyteorder(state[1]), dtype)


def _array(reader: _Unpickler, data: Any, dtype: Any, shape: Any, order: Any) -> Tensor:
    """Return numpy's array of bytes; None are those that joblib writes behind its description."""
    if type(dtype) is not _Built or not isinstance(dtype.value, np.dtype):
        raise BundleError("a numpy array holds no plain numbers")
    if type(shape) is not tuple or len(shape) > MAX_AXES:
        raise BundleError("a numpy array has no sound shape")
    if data is None:
        data = reader.read(math.prod(shape) * dtype.value.itemsize)
    reader.budget.copy(len(data))
    array = np.frombuffer(data, dtype.value).reshape(shape, order="F" if order == "F" else "C")
    return torch.from_numpy(array.astype(dtype.value.newbyteorder("="), order="C"))


def _scalar(reader: _Unpickler, dtype: Any, data: Any) -> Any:
    return _array(reader, data, dtype, (), "C").item()


def _reconstruct(reader: _Unpickler, *rest: Any) -> _Built:
    """Return an array before its state."""

    def build(state: Any) -> Tensor:
        _, shape, dtype, columns_first, data = state
        return _array(reader, data, dtype, shape, "F" if columns_first is True else "C")

    return _Built(build)


def _wrapper(reader: _Unpickler) -> _Built:
    """Return joblib's description of an array before its state."""

    def build(state: Any) -> Tensor:
        if state.get("numpy_array_alignment_bytes") is not None:
            reader.read(reader.read(1)[0])
        return _array(reader, None, state["dtype"], state["shape"], state["order"])

    return _Built(build)


#: Everything that a file may name, and what a call of it makes. None of it is torch's or numpy's.
NAMES: dict[str, Callable[..., Any] | None] = {
    **dict.fromkeys((*STORAGES, *map(str, STORAGES.values()), "numpy.ndarray")),
    **dict.fromkeys(("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"), _scalar),
    **dict.fromkeys(
        ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct"), _reconstruct
    ),
    **dict.fromkeys(("numpy.core.numeric._frombuffer", "numpy._core.numeric._frombuffer"), _array),
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": lambda reader, data, *rest: data,
    "torch.storage._load_from_bytes": _from_bytes,
    "torch.device": lambda reader, *parts: None,
    "torch.Size": lambda reader, sizes: sizes,
    "numpy.dtype": _dtype,
    "joblib.numpy_pickle.NumpyArrayWrapper": _wrapper,
    "argparse.Namespace": lambda reader: _Built(lambda state: state),
    "collections.OrderedDict": lambda reader: OrderedDict(),
    "_codecs.encode": _encode,
    "__builtin__.bytes": lambda reader: b"",
}
_PLAIN = (
    "FRAME MARK POP POP_MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT STOP "
    "SHORT_BINBYTES BINBYTES BINBYTES8 SHORT_BINUNICODE BINUNICODE BINUNICODE8 GLOBAL BINPUT "
    "LONG_BINPUT MEMOIZE BINGET LONG_BINGET EMPTY_DICT EMPTY_LIST EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 "
    "TUPLE3 APPEND APPENDS STACK_GLOBAL BINPERSID"
)
_CODES = {op.name: ord(op.code) for op in pickletools.opcodes}
#: What a file may do, most of it as Python does it; bytes are read before memory is allocated.
OPCODES: dict[int, Callable[[Any], None]] = {
    **{_CODES[name]: pickle._Unpickler.dispatch[_CODES[name]] for name in _PLAIN.split()},
    _CODES["BYTEARRAY8"]: pickle._Unpickler.dispatch[_CODES["BINBYTES8"]],
    _CODES["PROTO"]: _Unpickler.load_proto,
    _CODES["REDUCE"]: _Unpickler.load_reduce,
    _CODES["NEWOBJ"]: _Unpickler.load_reduce,
    _CODES["BUILD"]: _Unpickler.load_build,
    _CODES["SETITEM"]: _Unpickler.load_setitem,
    _CODES["SETITEMS"]: _Unpickler.load_setitems,
}


def _older(file: mmap.mmap | BytesIO, budget: _Budget) -> Any:
    """Return the value of torch's older format, after its magic number; storages follow it."""

    def find(name: str, dtype: torch.dtype, numel: int) -> Tensor:
        budget.copy(numel * dtype.itemsize)
        return torch.empty(numel, dtype=dtype)

    version, system = _Unpickler(file, budget).value(), _Unpickler(file, budget).value()
    endian = system.get("little_endian") if type(system) is dict else None
    if type(version) is not int or version != VERSION or endian is not True:
        raise BundleError("it is of an unknown version, or big-endian")
    reader = _Unpickler(file, budget, find)
    value, keys = reader.value(), _Unpickler(file, budget).value()
    if type(keys) is not list or not all(type(key) is str for key in keys):
        raise BundleError("it does not list its storages")
    if sorted(keys) != sorted(reader.storages):
        raise BundleError("it lists other storages than its tensors use")
    for numbers in (reader.storages[key].numbers for key in keys):
        if int.from_bytes(file.read(8), "little") != len(numbers):
            raise BundleError("a storage has another length than its tensors say")
        data = file.read(numbers.nbytes)
        if len(data) < numbers.nbytes:
            raise BundleError("it is cut off")
        numbers.copy_(numbers_of(data, numbers.dtype))
    return value


def numbers_of(data: bytes, dtype: torch.dtype) -> Tensor:
    """Return the numbers of a storage, ``[numel]``."""
    # frombuffer refuses an empty buffer
    return torch.frombuffer(bytearray(data), dtype=dtype) if data else torch.empty(0, dtype=dtype)


def _plain(value: Any) -> Any:
    """Return the value as plain containers; what is too deep, or holds itself, is refused."""
    left = MAX_STEPS

    def plain(value: Any, depth: int) -> Any:
        nonlocal left
        left -= 1
        if depth > MAX_DEPTH or left < 0:
            raise BundleError("its values are nested too deep, hold themselves or repeat")
        if isinstance(value, _Built):
            return plain(value.value, depth + 1)
        if isinstance(value, dict):
            return {key: plain(item, depth + 1) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(plain(item, depth + 1) for item in value)
        return str(value) if isinstance(value, _Name) else value

    return plain(value, 0)
