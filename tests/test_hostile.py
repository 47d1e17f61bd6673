"""Every hostile bundle is refused, by a BundleError that says why, before anything is allocated."""

import tracemalloc
import warnings

import pytest
from helpers.bundles import make_bundle
from hostile import ATTACKS
from hostile.base import write_sound

import weightinit.files.checks as checks
from weightinit.errors import BundleError
from weightinit.templates.bundle import TemplateBundle


def test_the_bundle_that_attacks_start_from_is_sound(tmp_path):
    write_sound(tmp_path)
    assert set(TemplateBundle.from_pretrained(tmp_path).tensors) == set(
        make_bundle(fitted=(2,)).tensors
    )


@pytest.mark.parametrize("name", ATTACKS)
def test_refused(name, tmp_path):
    builder, words = ATTACKS[name]
    write_sound(tmp_path)
    builder(tmp_path)
    # A header may be read whole, and json holds its text and its objects beside it.
    budget = 5 * min(checks.MAX_HEADER, _length(tmp_path / "model.safetensors")) + 2**24
    tracemalloc.start()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(BundleError, match=words) as raised:
                TemplateBundle.from_pretrained(tmp_path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < budget
    assert len(str(raised.value)) < 2_000
    assert str(raised.value).isprintable()


def _length(path):
    return path.stat().st_size if path.is_file() else 0


@pytest.mark.parametrize("name", [name for name in ATTACKS if name.startswith("tensors_expansion")])
def test_bombs_are_refused_before_the_weights_are_read(name, tmp_path, monkeypatch):
    write_sound(tmp_path)
    ATTACKS[name][0](tmp_path)

    def frombuffer(*args, **kwargs):
        raise AssertionError("a tensor was read")

    monkeypatch.setattr("torch.frombuffer", frombuffer)
    with pytest.raises(BundleError, match="expansion bomb"):
        TemplateBundle.from_pretrained(tmp_path)


def test_a_model_over_max_bytes_is_refused_and_can_be_allowed(tmp_path):
    write_sound(tmp_path, depth=400)
    assert (tmp_path / "model.safetensors").stat().st_size < 100_000
    with pytest.raises(BundleError, match=r"expansion bomb.*max_bytes=100000\b"):
        TemplateBundle.from_pretrained(tmp_path, max_bytes=100_000)
    assert TemplateBundle.from_pretrained(tmp_path, max_bytes=2**21).config.depth == 400


def test_a_large_weights_file_needs_max_bytes(tmp_path):
    write_sound(tmp_path)
    with pytest.raises(BundleError, match="pass max_bytes="):
        TemplateBundle.from_pretrained(tmp_path, max_bytes=100)
