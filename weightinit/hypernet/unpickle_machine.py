"""A small machine for the opcodes of a pickle that describes data; it can call nothing else."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Any

from weightinit.errors import BundleError
from weightinit.hypernet.unpickle_values import (
    Array,
    Budget,
    Dtype,
    Global,
    Namespace,
    Ordered,
    Unbuilt,
    Wrapper,
)

__all__ = ["Machine"]

MAX_LINE = 256  # bytes of a name
MAX_PROTOCOL = 5
NAMES = {
    ord("("): "MARK", ord("."): "STOP", ord("i"): "INST", ord("o"): "OBJ", ord("P"): "PERSID",
    0x82: "EXT1", 0x83: "EXT2", 0x84: "EXT4", 0x92: "NEWOBJ_EX", 0x97: "NEXT_BUFFER",
    0x98: "READONLY_BUFFER", 0x8B: "LONG4", 0x8F: "EMPTY_SET", 0x90: "ADDITEMS", 0x91: "FROZENSET",
}  # fmt: skip
MAX_KEY = 2**31  # larger ones can be made to have the same hash
HELP = (
    "only tensors, arrays, plain values and argparse.Namespace are read, and nothing is run. If "
    "you trust the file, load it where it was made and save its state dict alone, with torch.save"
)


class Machine:
    r"""Interprets one pickle in a buffer.

    A file from a stranger is read by it, so it differs from Python's own: a name makes one of the
    inert values of ``globals_`` or is refused, nothing is imported or called, bytes stay views of
    the buffer, and values are not looked into, so that none can be too deep.

    Args:
        data: the buffer.
        position: where the pickle begins; after :meth:`run` where it ends.
        globals_: the names that are allowed.
        budget: of the file.
        persistent: returns the value of a persistent id.

    Examples:
        >>> from weightinit.hypernet.unpickle_values import GLOBALS
        >>> data = memoryview(b"\x80\x02}X\x01\x00\x00\x00aK\x07s.")
        >>> Machine(data, 0, GLOBALS, Budget(100, 100)).run()
        {'a': 7}
        >>> data = memoryview(b"cposix\nsystem\nX\x02\x00\x00\x00ls\x85R.")
        >>> Machine(data, 0, GLOBALS, Budget(100, 100)).run()
        Traceback (most recent call last):
        weightinit.errors.BundleError: it names 'posix.system', which is not allowed: only ...
    """

    def __init__(
        self,
        data: memoryview,
        position: int,
        globals_: Mapping[str, Global],
        budget: Budget,
        persistent: Callable[[Any], Any] | None = None,
    ) -> None:
        self.data, self.position, self.globals = data, position, globals_
        self.budget, self.persistent = budget, persistent
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        """Return the value of the pickle; again, of the one after it.

        Raises:
            BundleError: if it names or does anything that is not allowed, or is malformed.
        """
        self.memo.clear()
        try:
            while (code := self.number(1)) != ord("."):
                self.budget.step()
                operation = OPERATIONS.get(code)
                if operation is None:
                    name = NAMES.get(code, f"0x{code:02x}")
                    raise BundleError(f"it uses pickle opcode {name}, which is not allowed: {HELP}")
                operation(self)
            value = self.pop()
            if self.stack or self.marks:
                raise BundleError("it leaves values on the stack: the file is damaged")
        except (LookupError, TypeError, ValueError, OverflowError) as error:
            raise BundleError(
                f"it is no sound pickle ({type(error).__name__} at byte {self.position}): the file "
                "is damaged or cut off, download or save it again"
            ) from error
        return value

    def take(self, count: int) -> memoryview:
        """Return the next bytes of the buffer."""
        end = self.position + count
        if not 0 <= count <= len(self.data) - self.position:
            raise BundleError("it is cut off: download or save it again")
        taken, self.position = self.data[self.position : end], end
        return taken

    def number(self, size: int, *, signed: bool = False) -> int:
        """Return the next little-endian number of ``size`` bytes."""
        return int.from_bytes(self.take(size), "little", signed=signed)

    def pop(self) -> Any:
        """Return the top of the stack; of an array built in place, the array."""
        value = self.stack.pop()
        return value.array if isinstance(value, Unbuilt) and value.array else value

    def top(self) -> Any:
        """Return the top of the stack, which stays."""
        return self.stack[-1]

    def items(self) -> list[Any]:
        """Return the values since the last mark."""
        found, self.stack = self.stack, self.marks.pop()
        return [v.array if isinstance(v, Unbuilt) and v.array else v for v in found]

    def line(self) -> str:
        """Return the text up to a newline."""
        piece = bytes(self.data[self.position : self.position + MAX_LINE])
        line, newline, _ = piece.partition(b"\n")
        if not newline:
            raise BundleError("it has a name without an end: the file is damaged")
        self.position += len(line) + 1
        return line.decode()

    def text(self, size: int) -> None:
        """Push text whose length takes ``size`` bytes."""
        data = self.take(self.number(size))
        self.budget.copy(len(data))
        self.stack.append(str(data, "utf-8"))

    def find(self, module: Any, name: Any) -> None:
        """Push what a name stands for."""
        full = f"{module}.{name}"
        if type(module) is not str or type(name) is not str or full not in self.globals:
            raise BundleError(f"it names {full[:80]!r}, which is not allowed: {HELP}")
        self.stack.append(self.globals[full])

    def instance(self) -> None:
        """Refuse INST, by the name of what it would make."""
        self.find(self.line(), self.line())
        raise BundleError(f"it uses pickle opcode INST, which is not allowed: {HELP}")

    def stack_global(self) -> None:
        """Push what two texts on the stack name."""
        name, module = self.pop(), self.pop()
        self.find(module, name)

    def reduce(self) -> None:
        """Push what an allowed name makes of its arguments."""
        arguments, function = self.pop(), self.pop()
        if not isinstance(function, Global) or not isinstance(arguments, tuple):
            raise BundleError(f"it calls a value, which is not allowed: {HELP}")
        if function.make is None:
            raise BundleError(f"it calls {function.name!r}, which is not allowed: {HELP}")
        self.stack.append(function.make(self.budget, *arguments))

    def new(self) -> None:
        """Push an empty value of an allowed class."""
        arguments, cls = self.pop(), self.pop()
        if not isinstance(cls, Global) or cls.new is None or arguments != ():
            name = cls.name if isinstance(cls, Global) else "a value"
            raise BundleError(f"it makes an object of {name!r}, which is not allowed: {HELP}")
        self.stack.append(cls.new())

    def build(self) -> None:
        """Give the value on top its state, where such values have one."""
        state, value = self.pop(), self.stack[-1]
        if isinstance(value, (Dtype, Unbuilt)):
            value.build(state)
        elif isinstance(value, Namespace) and isinstance(state, dict):
            value.update(state)
        elif isinstance(value, Wrapper) and isinstance(state, dict):
            self.stack[-1] = self.wrapped(state)
        elif not isinstance(value, Ordered) or not isinstance(state, dict):
            raise BundleError(f"it sets the state of a value, which is not allowed: {HELP}")

    def wrapped(self, state: dict[Any, Any]) -> Array:
        """Return the array whose bytes follow joblib's wrapper."""
        dtype, shape, kind = state.get("dtype"), state.get("shape"), state.get("subclass")
        plain = isinstance(kind, Global) and kind.name == "numpy.ndarray"
        if not isinstance(dtype, Dtype) or not isinstance(shape, tuple) or not plain:
            raise BundleError("an array in it is no plain array of numbers: save plain arrays")
        if state.get("numpy_array_alignment_bytes") is not None:
            self.take(self.number(1))
        count = dtype.torch.itemsize
        for size in shape:
            count *= size if type(size) is int else -1
        return dtype.array(shape, self.take(count), state.get("order") == "F")

    def persist(self) -> None:
        """Push the value of a persistent id."""
        if self.persistent is None:
            raise BundleError(f"it refers to values outside itself, which is not allowed: {HELP}")
        self.stack.append(self.persistent(self.pop()))

    def put(self, index: int) -> None:
        """Remember the top of the stack."""
        self.memo[index] = self.top()

    def append(self, values: list[Any]) -> None:
        """Append to the list on top."""
        if type(self.top()) is not list:
            raise BundleError("it appends to what is no list: the file is damaged")
        self.top().extend(values)

    def update(self, items: list[Any]) -> None:
        """Set items of the dict on top."""
        if type(self.top()) not in (dict, Ordered) or len(items) % 2:
            raise BundleError("it sets items of what is no dict: the file is damaged")
        for key in items[::2]:
            number = type(key) is int and 0 <= key < MAX_KEY
            if not number and type(key) not in (str, bool, type(None)):
                raise BundleError("a dict has keys other than texts and counts: save a state dict")
        self.top().update(zip(items[::2], items[1::2], strict=True))

    def tuple_of(self, count: int) -> None:
        """Push a tuple of the values on top."""
        values = [self.pop() for _ in range(count)]
        self.stack.append(tuple(reversed(values)))

    def protocol(self) -> None:
        """Check the protocol."""
        if (found := self.number(1)) > MAX_PROTOCOL:
            raise BundleError(f"it is of pickle protocol {found}: save with {MAX_PROTOCOL} at most")

    def mark(self) -> None:
        """Begin a new stack."""
        self.marks.append(self.stack)
        self.stack = []


def _push(get: Callable[[Machine], Any]) -> Callable[[Machine], None]:
    def push(machine: Machine) -> None:
        value = get(machine)  # which may replace the stack
        machine.stack.append(value)

    return push


OPERATIONS: dict[int, Callable[[Machine], Any]] = {
    0x80: Machine.protocol,
    0x95: lambda m: m.take(8),
    ord("("): Machine.mark,
    ord("0"): Machine.pop,
    ord("1"): Machine.items,
    ord("N"): _push(lambda m: None),
    0x88: _push(lambda m: True),
    0x89: _push(lambda m: False),
    ord("J"): _push(lambda m: m.number(4, signed=True)),
    ord("K"): _push(lambda m: m.number(1)),
    ord("M"): _push(lambda m: m.number(2)),
    0x8A: _push(lambda m: m.number(m.number(1), signed=True)),
    ord("G"): _push(lambda m: struct.unpack(">d", m.take(8))[0]),
    ord("C"): _push(lambda m: m.take(m.number(1))),
    ord("B"): _push(lambda m: m.take(m.number(4))),
    0x8E: _push(lambda m: m.take(m.number(8))),
    0x96: _push(lambda m: m.take(m.number(8))),
    0x8C: lambda m: m.text(1),
    ord("X"): lambda m: m.text(4),
    0x8D: lambda m: m.text(8),
    ord("q"): lambda m: m.put(m.number(1)),
    ord("r"): lambda m: m.put(m.number(4)),
    0x94: lambda m: m.put(len(m.memo)),
    ord("h"): _push(lambda m: m.memo[m.number(1)]),
    ord("j"): _push(lambda m: m.memo[m.number(4)]),
    ord("}"): _push(lambda m: {}),
    ord("]"): _push(lambda m: []),
    ord(")"): _push(lambda m: ()),
    ord("t"): _push(lambda m: tuple(m.items())),
    0x85: lambda m: m.tuple_of(1),
    0x86: lambda m: m.tuple_of(2),
    0x87: lambda m: m.tuple_of(3),
    ord("a"): lambda m: m.append([m.pop()]),
    ord("e"): lambda m: m.append(m.items()),
    ord("s"): lambda m: m.update([m.pop(), m.pop()][::-1]),
    ord("u"): lambda m: m.update(m.items()),
    ord("c"): lambda m: m.find(m.line(), m.line()),
    ord("i"): Machine.instance,
    0x93: Machine.stack_global,
    ord("R"): Machine.reduce,
    0x81: Machine.new,
    ord("b"): Machine.build,
    ord("Q"): Machine.persist,
}
