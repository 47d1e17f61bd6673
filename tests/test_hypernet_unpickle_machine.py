"""The machine agrees with Python's own unpickler wherever both read, and refuses the rest."""

import math
import pickle
import pickletools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightinit.errors import BundleError
from weightinit.hypernet.unpickle_machine import OPERATIONS, Machine
from weightinit.hypernet.unpickle_values import GLOBALS, Budget

PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**200), 2**200)
    | st.floats(allow_nan=False)
    | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text(max_size=5) | st.integers(0, 2**31 - 1), inner, max_size=4)
    ),
    max_leaves=20,
)


def read(data, **options):
    machine = Machine(memoryview(data), 0, GLOBALS, Budget(10**6, 10**6), **options)
    value = machine.run()
    assert machine.position == len(data)
    return value


@given(PLAIN, st.integers(2, 5))
def test_plain_values_are_those_of_pickle(value, protocol):
    assert read(pickle.dumps(value, protocol)) == value


@given(st.binary(max_size=400), st.integers(3, 5))
def test_bytes_are_views_of_the_buffer(value, protocol):
    data = pickle.dumps({"b": value, "again": value}, protocol)
    found = read(data)
    assert bytes(found["b"]) == value and bytes(found["again"]) == value
    assert found["b"].obj is data


def test_shared_and_long_values():
    row = [1.5, math.inf, -(2**31), "x" * 70_000]
    value = {"rows": [row, row], "n": list(range(3000)), **{str(i): i for i in range(3000)}}
    for protocol in range(2, 6):
        found = read(pickle.dumps(value, protocol))
        assert found == value and found["rows"][0] is found["rows"][1]


def test_every_opcode_of_the_machine_is_one_of_pickle_and_the_rest_is_refused():
    known = {ord(op.code): op for op in pickletools.opcodes}
    assert set(OPERATIONS) < set(known)
    for code, op in known.items():
        if code not in OPERATIONS and op.name != "STOP":
            with pytest.raises(BundleError, match=op.name if code > 127 else "opcode"):
                read(bytes([code]) + b"1\n1\n")


@given(st.binary(max_size=60))
def test_any_bytes_are_a_value_or_refused(data):
    try:
        Machine(memoryview(data), 0, GLOBALS, Budget(1000, 1000)).run()
    except BundleError as error:
        assert str(error).isprintable()


@given(st.lists(st.sampled_from(sorted(OPERATIONS)), max_size=30), st.binary(max_size=8))
def test_any_opcodes_are_a_value_or_refused(codes, rest):
    data = bytes([*b"\x80\x02", *codes]) + rest + b"."
    try:
        Machine(memoryview(data), 0, GLOBALS, Budget(1000, 1000), lambda key: key).run()
    except BundleError as error:
        assert str(error).isprintable()


def test_memory_of_one_pickle_is_not_that_of_the_next():
    data = b"\x80\x02K\x07q\x00.\x80\x02h\x00."
    machine = Machine(memoryview(data), 0, GLOBALS, Budget(100, 100))
    assert machine.run() == 7
    with pytest.raises(BundleError, match="no sound pickle"):
        machine.run()
