"""Bundles in memory and in folders: round trips, and what saving refuses."""

import dataclasses
import hashlib
import math
from pathlib import Path

import pytest
import torch
from helpers.bundles import SIZES, assert_equal, contents, make_bundle, make_tensors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open

import weightinit as wi
from weightinit.errors import BundleError
from weightinit.files.config import BundleConfig
from weightinit.files.locate import names
from weightinit.templates.bundle import TemplateBundle
from weightinit.templates.config import TemplateConfig
from weightinit.templates.kinds import TemplateKind

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
FILES = {"config.json", "model.safetensors", "README.md"}


@pytest.mark.parametrize("dtype", DTYPES)
def test_round_trip(tmp_path, dtype):
    bundle = make_bundle(fitted=(2, 5), dtype=dtype)
    bundle.save_pretrained(tmp_path / "b")
    again = TemplateBundle.from_pretrained(tmp_path / "b")
    assert_equal(bundle, again)
    digest = hashlib.sha256((tmp_path / "b" / "model.safetensors").read_bytes()).hexdigest()
    assert again.config == dataclasses.replace(
        BundleConfig.from_json((tmp_path / "b" / "config.json").read_bytes()), sha256=digest
    )
    assert again.template_config == bundle.template_config
    assert again.source == str((tmp_path / "b").resolve())
    assert {path.name for path in (tmp_path / "b").iterdir()} == FILES


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    heads=st.integers(1, 3),
    dim=st.integers(1, 4),
    ratio=st.integers(1, 3),
    template=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    depth=st.integers(1, 4),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**32),
)
def test_round_trip_of_any_shape(tmp_path_factory, heads, dim, ratio, template, depth, dtype, seed):
    width = heads * dim
    sizes = SIZES | {"d": width, "h": heads, "k": dim, "m": ratio * width}
    number = min(2, template[0] * template[1])  # more would be refused as a bomb
    kinds = {
        kind: TemplateKind(number, template) for kind in ("attn.proj.weight", "mlp.fc1.weight")
    }
    kinds["mlp.fc2.weight"] = TemplateKind(1, template[::-1])
    kinds["norm1.weight"] = TemplateKind(3, template[:1])
    options = TemplateConfig("wave", width, kinds)
    tensors = make_tensors(options, sizes, depth=depth, dtype=dtype, seed=seed)
    config = BundleConfig("templates", "wave", options.to_dict(), sizes, depth, "MIT")
    bundle = TemplateBundle(config, tensors)
    folder = tmp_path_factory.mktemp("any")
    bundle.save_pretrained(folder)
    assert_equal(bundle, TemplateBundle.from_pretrained(folder))


def test_the_same_bundle_gives_the_same_bytes(tmp_path):
    make_bundle().save_pretrained(tmp_path / "one")
    make_bundle().save_pretrained(tmp_path / "two")
    one, two = (contents(tmp_path / name) for name in ("one", "two"))
    assert one.pop("README.md") != two.pop("README.md")  # it names the folder
    assert one == two


def test_the_safetensors_library_reads_it_too(saved):
    with safe_open(saved / "model.safetensors", "pt") as file:
        names = set(file.keys())
    assert names == set(make_bundle(fitted=(2,)).tensors)


def test_views_that_share_memory_or_have_strides(tmp_path):
    bundle = make_bundle()
    shared = torch.randn(8)
    strided = torch.randn(8, 2, 3, 8)[:, 0].transpose(0, 1)[:, :, ::2][:, :3, 0]
    bundle.tensors["outside.patch.bias"] = shared
    bundle.tensors["outside.norm.weight"] = shared
    bundle.tensors["outside.token.cls"] = torch.randn(1, 1).expand(1, 8)
    bundle.tensors["outside.head.weight"] = torch.randn(8, 3).t()
    del strided
    bundle.save_pretrained(tmp_path)
    assert_equal(bundle, TemplateBundle.from_pretrained(tmp_path))


def test_requires_grad_is_not_stored(tmp_path):
    bundle = make_bundle()
    for tensor in bundle.tensors.values():
        tensor.requires_grad_()
    bundle.save_pretrained(tmp_path)
    again = TemplateBundle.from_pretrained(tmp_path)
    assert not any(tensor.requires_grad for tensor in again.tensors.values())


def test_repr_is_short(saved):
    text = repr(TemplateBundle.from_pretrained(saved))
    assert "wave" in text
    assert str(saved) in text
    assert len(text) < 400


def test_bundles_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        make_bundle().tensors = {}


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_saving_refuses_what_loading_would(tmp_path, value):
    bundle = make_bundle()
    bundle.tensors["outside.pos"][1, 2] = value
    with pytest.raises(BundleError, match=r"outside\.pos holds NaN or infinity"):
        bundle.save_pretrained(tmp_path / "b")
    bundle.tensors["outside.pos"] = torch.empty(5, 8, device="meta")
    with pytest.raises(BundleError, match=r"outside\.pos is on meta"):
        bundle.save_pretrained(tmp_path / "b")
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    "provenance", [{"loss": math.nan}, {"when": object()}, {"log": "x" * 2**20}, {"a": "\ud800"}]
)
def test_saving_refuses_a_config_that_would_not_load(tmp_path, provenance):
    bundle = make_bundle()
    config = dataclasses.replace(bundle.config, provenance=provenance)
    with pytest.raises(BundleError):
        TemplateBundle(config, bundle.tensors).save_pretrained(tmp_path / "b")
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("name", names())
def test_what_ships_is_saved_again_byte_by_byte(name, tmp_path):
    kind = wi.TemplateBundle if name in names("templates") else wi.HyperNetwork
    bundle = kind.from_pretrained(name)
    assert bundle.source == name
    bundle.save_pretrained(tmp_path)
    assert contents(tmp_path) == contents(Path(wi.__file__).parent / "builtin" / name)
