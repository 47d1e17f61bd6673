"""Weights of strangers: any byte changed, and no more memory than the file."""

import os
import shutil

import pytest
from helpers.bundles import assert_equal, contents, make_bundle, nbytes
from hostile.base import seal, write_sound
from hypothesis import given, settings
from hypothesis import strategies as st

from weightinit.errors import BundleError
from weightinit.files.checks import parse_json
from weightinit.templates.bundle import TemplateBundle


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sound")
    write_sound(folder)
    return folder, (folder / "config.json").read_text()


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_byte_of_the_weights_changed(sound, data):
    """A changed byte is refused; with the sha256 restated, the templates keep names and shapes."""
    folder, text = sound
    path = folder / "model.safetensors"
    original = path.read_bytes()
    try:
        (folder / "config.json").write_text(text)
        end = 8 + int.from_bytes(original[:8], "little")
        where = data.draw(st.integers(0, end - 1) | st.integers(0, len(original) - 1))
        value = data.draw(st.integers(0, 255).filter(lambda v: v != original[where]))
        path.write_bytes(original[:where] + bytes([value]) + original[where + 1 :])
        with pytest.raises(BundleError):
            TemplateBundle.from_pretrained(folder)
        seal(folder)
        try:
            bundle = TemplateBundle.from_pretrained(folder)
        except BundleError:
            return
        assert shapes_inside(bundle) == shapes_inside(make_bundle(fitted=(2,)))
    finally:
        path.write_bytes(original)


def shapes_inside(bundle):
    """Return the shapes of what belongs to the blocks: a role outside may have another name."""
    items = bundle.tensors.items()
    return {name: tensor.shape for name, tensor in items if not name.startswith("outside.")}


def test_loaded_tensors_are_writable_and_do_not_alias_the_file(saved):
    before = contents(saved)
    one, two = (TemplateBundle.from_pretrained(saved) for _ in range(2))
    for tensor in one.tensors.values():
        tensor.zero_()
    assert contents(saved) == before
    assert all(tensor.any() for tensor in two.tensors.values())


def test_memory_is_the_file_and_no_more(tmp_path):
    bundle = make_bundle(depth=400)
    bundle.save_pretrained(tmp_path)
    again = TemplateBundle.from_pretrained(tmp_path)
    held = sum(tensor.untyped_storage().nbytes() for tensor in again.tensors.values())
    assert held == nbytes(bundle)
    shutil.rmtree(tmp_path)
    assert_equal(bundle, again)  # nothing is mapped


def test_a_key_that_is_there_twice_is_found_in_one_pass():
    keys = ",".join(f'"k{i:06}":0' for i in range(100_000))
    with pytest.raises(BundleError, match="'k099999' appears twice"):
        parse_json(f'{{{keys},"k099999":0}}'.encode(), "the header", 10**6)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads anything")
def test_a_file_that_may_not_be_read(saved):
    (saved / "model.safetensors").chmod(0)
    with pytest.raises(BundleError, match="cannot read"):
        TemplateBundle.from_pretrained(saved)
