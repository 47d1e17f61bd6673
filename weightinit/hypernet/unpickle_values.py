"""What a pickle of tensors and arrays may name, and the inert values that each name makes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from weightinit.errors import BundleError

__all__ = ["GLOBALS", "Array", "Budget", "Global", "Namespace", "Ordered", "Storage", "Wrapper"]

MAX_AXES = 8
STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
NUMPY = {
    "f8": torch.float64,
    "f4": torch.float32,
    "f2": torch.float16,
    "i8": torch.int64,
    "i4": torch.int32,
    "i2": torch.int16,
    "i1": torch.int8,
    "u1": torch.uint8,
    "b1": torch.bool,
}


@dataclass
class Budget:
    """What one file may still spend: steps of all its pickles, and bytes that they copy."""

    steps: int
    nbytes: int

    def step(self) -> None:
        """Count one opcode."""
        self.steps -= 1
        if self.steps < 0:
            raise BundleError("it takes more steps than any state dict: do not use this file")

    def copy(self, nbytes: int) -> None:
        """Count bytes that a value takes beside those of the file."""
        self.nbytes -= nbytes
        if self.nbytes < 0:
            raise BundleError("it copies its own bytes over and over: do not use this file")


@dataclass(eq=False)
class Storage:
    """Numbers in a row, at a place in the file that may become known later."""

    dtype: torch.dtype
    numel: int
    data: memoryview | None = None
    swapped: bool = False
    _tensor: torch.Tensor | None = None

    def place(self, data: memoryview) -> None:
        """State where the bytes are; there must be exactly as many as the numbers take."""
        if data.nbytes != self.numel * self.dtype.itemsize:
            raise BundleError(
                f"a storage of {self.numel} {self.dtype} takes {data.nbytes} bytes in the file: "
                "it is damaged, save it again"
            )
        self.data = data

    def tensor(self) -> torch.Tensor:
        """Return the numbers ``[numel]``, in memory of their own."""
        if self._tensor is None:
            if self.data is None:
                raise BundleError("a tensor's numbers are not in the file: save it again")
            raw = torch.empty(0, dtype=torch.uint8)
            if self.numel:  # frombuffer refuses an empty buffer
                raw = torch.frombuffer(bytearray(self.data), dtype=torch.uint8)
            if self.swapped:
                raw = raw.view(-1, self.dtype.itemsize).flip(1).reshape(-1)
            self._tensor = raw.view(self.dtype)
        return self._tensor


@dataclass(frozen=True, eq=False)
class Array:
    """A tensor that is not read yet: a checked view of a storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor itself."""
        return math.prod(self.shape) * self.storage.dtype.itemsize

    def tensor(self) -> torch.Tensor:
        """Return the tensor, contiguous; it may share memory with others of the file."""
        values = self.storage.tensor().as_strided(self.shape, self.stride, self.offset)
        return values.contiguous()


def array(storage: Any, offset: Any, shape: Any, stride: Any) -> Array:
    """Return a view of a storage, or raise BundleError if it reaches outside or repeats numbers."""
    sound = isinstance(storage, Storage) and isinstance(shape, tuple) and isinstance(stride, tuple)
    sound = sound and len(shape) == len(stride) <= MAX_AXES
    if not sound or not all(type(n) is int and n >= 0 for n in (offset, *shape, *stride)):
        raise BundleError("a tensor is not described by a storage, an offset, sizes and strides")
    count = math.prod(shape)
    last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
    if count and (last >= storage.numel or count > storage.numel):
        raise BundleError(
            f"a tensor of shape {str(shape)[:80]}, strides {str(stride)[:80]}, offset "
            f"{str(offset)[:20]} does not lie in its storage of {storage.numel}: save it again"
        )
    return Array(storage, offset if count else 0, shape, stride)


@dataclass(frozen=True, eq=False)
class Global:
    """A name that the file may use. ``make`` returns what calling it makes; None: not callable."""

    name: str
    make: Callable[..., Any] | None = None
    new: type | None = None


class Ordered(dict):
    """A collections.OrderedDict; what was set on it (a state dict's versions) is dropped."""


class Namespace(dict):
    """An argparse.Namespace."""


class Wrapper(dict):
    """joblib's NumpyArrayWrapper: the bytes of an array follow it in the file."""


@dataclass(eq=False)
class Dtype:
    """A numpy dtype of plain numbers."""

    code: str
    swapped: bool = False

    @property
    def torch(self) -> torch.dtype:
        """The same in torch."""
        return NUMPY[self.code]

    def build(self, state: Any) -> None:
        """Take the byte order of the pickled state."""
        if not isinstance(state, tuple) or len(state) < 5 or state[1] not in ("<", ">", "|", "="):
            raise BundleError("a numpy dtype has a state of another form: save arrays of numbers")
        if any(part is not None for part in state[2:5]):
            raise BundleError("a numpy dtype has fields: save plain arrays of numbers")
        self.swapped = state[1] == ">"

    def array(self, shape: Any, data: memoryview, fortran: bool) -> Array:
        """Return the array of these bytes."""
        if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape):
            raise BundleError("a numpy array has no sound shape: the file is damaged")
        storage = Storage(self.torch, math.prod(shape), swapped=self.swapped)
        storage.place(data)
        stride = [1] * len(shape)
        order = range(len(shape)) if fortran else range(len(shape) - 1, -1, -1)
        step = 1
        for axis in order:
            stride[axis], step = step, step * max(shape[axis], 1)
        return array(storage, 0, shape, tuple(stride))


@dataclass(eq=False)
class Unbuilt:
    """A numpy array before its state; ``array`` after."""

    array: Array | None = None

    def build(self, state: Any) -> None:
        """Take shape, dtype, order and bytes."""
        _, shape, dtype, fortran, data = state
        if not isinstance(dtype, Dtype) or not isinstance(data, memoryview):
            raise BundleError("a numpy array holds no plain numbers: save arrays of numbers")
        self.array = dtype.array(shape, data, fortran is True)


def _tensor(
    budget: Budget, storage: Any, offset: Any, shape: Any, stride: Any, *rest: Any
) -> Array:
    # requires_grad and hooks, which mean nothing here; then marks of views, which would.
    if len(rest) > 2 and rest[2]:
        raise BundleError("a tensor is marked as a conjugate or negative view: save a plain tensor")
    return array(storage, offset, shape, stride)


def _parameter(budget: Budget, data: Any, *rest: Any) -> Array:
    if not isinstance(data, Array):
        raise BundleError("a parameter holds no tensor: the file is damaged")
    return data


def _dtype(budget: Budget, code: Any, *rest: Any) -> Dtype:
    if not isinstance(code, str) or code not in NUMPY:
        raise BundleError(
            f"numpy dtype {str(code)[:16]!r} is not allowed: save arrays of {sorted(NUMPY)}"
        )
    return Dtype(code)


def _reconstruct(budget: Budget, kind: Any, *rest: Any) -> Unbuilt:
    if not isinstance(kind, Global) or kind.name != "numpy.ndarray":
        raise BundleError("an array is of a subclass of numpy.ndarray: save plain arrays")
    return Unbuilt()


def _frombuffer(budget: Budget, data: Any, dtype: Any, shape: Any, order: Any) -> Array:
    if not isinstance(dtype, Dtype) or not isinstance(data, memoryview):
        raise BundleError("a numpy array holds no plain numbers: save arrays of numbers")
    return dtype.array(shape, data, order == "F")


def _scalar(budget: Budget, dtype: Any, data: Any) -> Any:
    if not isinstance(dtype, Dtype) or not isinstance(data, memoryview):
        raise BundleError("a numpy scalar is no plain number: save numbers")
    return dtype.array((), data, False).tensor().item()


def _encode(budget: Budget, text: Any, encoding: Any) -> memoryview:
    # How protocol 2 writes bytes.
    if not isinstance(text, str) or encoding != "latin1":
        raise BundleError("bytes are written in an unknown encoding: save the file again")
    budget.copy(len(text))
    return memoryview(text.encode("latin-1"))


def _text(budget: Budget, *parts: Any) -> str:
    if not all(type(part) in (str, int) for part in parts) or len(parts) > 2:
        raise BundleError("a torch.device is not named by text: the file is damaged")
    return ":".join(str(part)[:32] for part in parts)


def _size(budget: Budget, sizes: Any) -> tuple[Any, ...]:
    if not isinstance(sizes, tuple):
        raise BundleError("a torch.Size holds no tuple: the file is damaged")
    return sizes


def _ordered(budget: Budget, *items: Any) -> Ordered:
    if items:
        raise BundleError("an OrderedDict is made of a list of items: save it with protocol 2 to 5")
    return Ordered()


def _named() -> Mapping[str, Global]:
    makers = {
        "collections.OrderedDict": _ordered,
        "torch._utils._rebuild_tensor": _tensor,
        "torch._utils._rebuild_tensor_v2": _tensor,
        "torch._utils._rebuild_parameter": _parameter,
        "torch.device": _text,
        "torch.Size": _size,
        "numpy.dtype": _dtype,
        "_codecs.encode": _encode,
        "__builtin__.bytes": lambda budget: memoryview(b""),
    }
    for core in ("numpy.core", "numpy._core"):
        makers[f"{core}.multiarray._reconstruct"] = _reconstruct
        makers[f"{core}.multiarray.scalar"] = _scalar
        makers[f"{core}.numeric._frombuffer"] = _frombuffer
    found = {name: Global(name, make) for name, make in makers.items()}
    for name in ("numpy.ndarray", *(f"torch.{name}" for name in STORAGES)):
        found[name] = Global(name)
    for dtype in STORAGES.values():
        found[str(dtype)] = Global(str(dtype))
    for name, new in (
        ("argparse.Namespace", Namespace),
        ("joblib.numpy_pickle.NumpyArrayWrapper", Wrapper),
    ):
        found[name] = Global(name, new=new)
    return found


#: Everything that a file may name.
GLOBALS = _named()
