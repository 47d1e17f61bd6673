"""Views are accepted where torch has them and they repeat nothing; names make inert values only."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from weightinit.errors import BundleError
from weightinit.hypernet.unpickle_values import GLOBALS, Array, Budget, Storage, array

SIZES = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 6)), max_size=3)


def numbers(count):
    storage = Storage(torch.int64, count)
    storage.place(memoryview(torch.arange(count).numpy()).cast("B"))
    return storage


@given(st.integers(0, 30), st.integers(0, 12), SIZES)
def test_a_view_is_that_of_torch_or_refused(count, offset, axes):
    shape, stride = tuple(a for a, _ in axes), tuple(b for _, b in axes)
    try:
        wanted = torch.arange(count).as_strided(shape, stride, offset)
    except RuntimeError:
        wanted = None
    elements = math.prod(shape)
    sound = (wanted is not None or not elements) and elements <= count
    if not sound:
        with pytest.raises(BundleError, match="does not lie in its storage"):
            array(numbers(count), offset, shape, stride)
        return
    found = array(numbers(count), offset, shape, stride).tensor()
    assert found.is_contiguous() and found.shape == shape
    if wanted is not None:
        assert torch.equal(found, wanted)


def test_big_endian_numbers_are_turned():
    storage = Storage(torch.int16, 2, swapped=True)
    storage.place(memoryview(b"\x01\x02\x00\x01"))
    assert storage.tensor().tolist() == [258, 1]


def test_a_storage_without_numbers_says_so():
    with pytest.raises(BundleError, match="not in the file"):
        Storage(torch.float32, 2).tensor()
    with pytest.raises(BundleError, match="takes 3 bytes"):
        Storage(torch.float32, 2).place(memoryview(b"abc"))


ODD = [
    None,
    3,
    "os",
    b"",
    (),
    [],
    {},
    memoryview(b"ab"),
    2.5,
    numbers(4),
    array(numbers(2), 0, (2,), (1,)),
]


@given(
    st.sampled_from(sorted(name for name, value in GLOBALS.items() if value.make)),
    st.lists(st.sampled_from([*ODD, GLOBALS["numpy.ndarray"], GLOBALS["torch.FloatStorage"]])),
)
def test_no_name_makes_anything_that_can_be_called(name, arguments):
    make = GLOBALS[name].make
    try:
        value = make(Budget(100, 100), *arguments)
    except (BundleError, TypeError, ValueError):
        return
    assert not isinstance(value, Callable)
    assert not isinstance(value, Array) or value.tensor() is not None


def test_budgets_end():
    budget = Budget(1, 10)
    budget.step()
    with pytest.raises(BundleError, match="more steps"):
        budget.step()
    with pytest.raises(BundleError, match="over and over"):
        budget.copy(11)
