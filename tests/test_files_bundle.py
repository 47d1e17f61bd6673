"""Template bundles in memory and in folders: round trips, atomic saving, arbitrary configs."""

import dataclasses
import hashlib
import json
import math
import os
import shutil
import sys
import threading
from pathlib import Path

import pytest
import torch
from helpers.bundles import SIZES, make_bundle, make_tensors, nbytes
from hostile.base import edit_tensors, seal, write_sound
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from weightinit.errors import BundleError
from weightinit.files import hub, locate, writing
from weightinit.files.config import BundleConfig
from weightinit.templates import checks as template_checks
from weightinit.templates.bundle import TemplateBundle, list_templates
from weightinit.templates.config import TemplateConfig, TemplateKind

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
FILES = {"config.json", "model.safetensors", "README.md"}


def contents(folder):
    """Return every file below a folder, hidden ones included, with its bytes."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file()
    }


def assert_equal(one, other):
    assert set(one.tensors) == set(other.tensors)
    for name, tensor in one.tensors.items():
        assert other.tensors[name].dtype == tensor.dtype
        assert torch.equal(other.tensors[name], tensor)


@pytest.fixture
def saved(tmp_path):
    folder = tmp_path / "saved"
    make_bundle(fitted=(2,)).save_pretrained(folder)
    return folder


# Round trips


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
    kinds = {kind: TemplateKind(2, template) for kind in ("attn.proj.weight", "mlp.fc1.weight")}
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


def test_every_file_can_be_read_by_whom_the_umask_lets(saved):
    modes = {path.stat().st_mode & 0o777 for path in Path(saved).iterdir() if path.is_file()}
    plain = Path(saved) / "plain"
    plain.touch()
    assert modes == {plain.stat().st_mode & 0o777}


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


def test_loaded_tensors_are_writable_and_do_not_alias_the_file(saved):
    before = contents(saved)
    one, two = (TemplateBundle.from_pretrained(saved) for _ in range(2))
    for tensor in one.tensors.values():
        tensor.zero_()
    assert contents(saved) == before
    assert all(tensor.any() for tensor in two.tensors.values())


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


# Saving: whole or not at all


def test_saving_over_a_bundle_keeps_other_files_and_the_readme(saved):
    (saved / "README.md").write_text("mine")
    (saved / "train.log").write_text("log")
    (saved / "sub").mkdir()
    (saved / "sub" / "config.json").write_text("other")
    make_bundle(seed=1).save_pretrained(saved)
    assert_equal(make_bundle(seed=1), TemplateBundle.from_pretrained(saved))
    assert (saved / "README.md").read_text() == "mine"
    assert (saved / "train.log").read_text() == "log"
    assert (saved / "sub" / "config.json").read_text() == "other"
    assert {path.name for path in saved.iterdir()} == FILES | {"train.log", "sub"}


def test_saving_a_loaded_bundle_over_itself(saved):
    before = contents(saved)
    TemplateBundle.from_pretrained(saved).save_pretrained(saved)
    assert contents(saved) == before


def test_saving_over_a_mapped_bundle(saved):
    with safe_open(saved / "model.safetensors", "pt") as mapped:
        name = "templates.attn.qkv.weight"
        expected = make_bundle(fitted=(2,)).tensors[name]
        make_bundle(seed=1).save_pretrained(saved)
        assert torch.equal(mapped.get_tensor(name), expected)


def test_saving_into_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_bundle().save_pretrained(".")
    assert {path.name for path in Path.cwd().iterdir()} == FILES


def test_saving_into_a_linked_folder(saved, tmp_path):
    (tmp_path / "link").symlink_to(saved)
    make_bundle(seed=1).save_pretrained(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert_equal(make_bundle(seed=1), TemplateBundle.from_pretrained(saved))


def test_saving_replaces_links_and_not_what_they_point_to(saved, tmp_path):
    blob = tmp_path / "blob"
    (saved / "model.safetensors").rename(blob)
    (saved / "model.safetensors").symlink_to(blob)
    before = blob.read_bytes()
    TemplateBundle.from_pretrained(saved)
    make_bundle(seed=1).save_pretrained(saved)
    assert blob.read_bytes() == before
    assert_equal(make_bundle(seed=1), TemplateBundle.from_pretrained(saved))


class Fault:
    """Stands in for a function of a module and raises at its n-th call, before or after acting."""

    def __init__(self, function, number, error, *, after):
        self.function, self.number, self.error, self.after = function, number, error, after
        self.calls = 0

    def __call__(self, *args, **kwargs):
        self.calls += 1
        if self.calls == self.number and not self.after:
            raise self.error
        result = self.function(*args, **kwargs)
        if self.calls == self.number:
            raise self.error
        return result


FAULTS = [
    *[("os.replace", i) for i in (1, 2, 3)],
    *[("os.fsync", i) for i in (1, 2, 3, 4)],
    *[("os.link", i) for i in (1, 2)],
    ("weightinit.files.bundle.save_file", 1),
    ("tempfile.mkdtemp", 1),
]


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize(("where", "number"), FAULTS)
@pytest.mark.parametrize("existing", [False, True])
def test_a_fault_changes_nothing(tmp_path, monkeypatch, existing, where, number, error, after):
    folder = tmp_path / "b"
    if existing:
        make_bundle(fitted=(2,)).save_pretrained(folder)
        (folder / "README.md").unlink()
        (folder / "train.log").write_text("log")
    before = contents(tmp_path)
    module, _, name = where.rpartition(".")
    fault = Fault(getattr(sys.modules[module], name), number, error, after=after)
    with monkeypatch.context() as patch:
        patch.setattr(where, fault)
        try:
            make_bundle(seed=1).save_pretrained(folder)
            raised = None
        except BaseException as caught:
            raised = caught
    if fault.calls < number or (where == "os.link" and isinstance(error, OSError) and not after):
        assert raised is None  # the fault was not met, or there is a way without hard links
        assert_equal(make_bundle(seed=1), TemplateBundle.from_pretrained(folder))
        return
    if where == "os.fsync" and number == 4:  # the last step: all files are in place
        assert_equal(make_bundle(seed=1), TemplateBundle.from_pretrained(folder))
        return
    assert isinstance(raised, BundleError if isinstance(error, OSError) else KeyboardInterrupt)
    if where == "tempfile.mkdtemp" and after:  # whose result never reached us
        for path in tmp_path.rglob(".saving-*"):
            path.rmdir()
    assert contents(tmp_path) == before
    assert not list(tmp_path.rglob(".saving-*"))
    if existing:
        assert_equal(make_bundle(fitted=(2,)), TemplateBundle.from_pretrained(folder))
    else:
        assert not folder.exists() or not any(folder.iterdir())


def test_a_rollback_that_fails_keeps_the_old_files(saved, monkeypatch):
    before = contents(saved)

    def replace(source, target):
        raise KeyboardInterrupt

    class BrokenPath(type(Path())):
        def replace(self, target):
            raise OSError("disk gone")

    monkeypatch.setattr(writing, "Path", BrokenPath)
    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(BundleError, match=r"disk gone.*what stood there is in"):
        make_bundle(seed=1).save_pretrained(BrokenPath(saved))
    monkeypatch.undo()
    kept = contents(saved)
    for name, data in before.items():
        assert data in kept.values(), name


def test_without_hard_links(saved, monkeypatch):
    def link(*args, **kwargs):
        raise NotImplementedError

    monkeypatch.setattr(os, "link", link)
    make_bundle(seed=1).save_pretrained(saved)
    assert_equal(make_bundle(seed=1), TemplateBundle.from_pretrained(saved))


def test_a_reader_beside_a_writer_never_sees_a_mixture(saved):
    """Between the two renames a reader may be refused, but what it gets is one bundle whole."""
    bundles = [make_bundle(fitted=(2,), seed=seed) for seed in range(2)]
    done = threading.Event()

    def write():
        for i in range(30):
            bundles[i % 2].save_pretrained(saved)
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    while not done.is_set():
        try:
            found = TemplateBundle.from_pretrained(saved)
        except BundleError as error:
            assert "sha256" in str(error)
            continue
        name = "templates.attn.qkv.weight"
        (match,) = [b for b in bundles if torch.equal(b.tensors[name], found.tensors[name])]
        assert_equal(match, found)
    writer.join()


def test_saving_onto_a_file_or_where_nothing_can_be_written(tmp_path):
    (tmp_path / "file").write_text("x")
    for folder in (tmp_path / "file", tmp_path / "file" / "b", Path("/proc/weightinit")):
        with pytest.raises(BundleError, match="cannot save the bundle"):
            make_bundle().save_pretrained(folder)
    assert (tmp_path / "file").read_text() == "x"


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


# The model card


def test_model_card(saved):
    card = (saved / "README.md").read_text()
    lines = card.splitlines()
    assert lines[0] == "---"
    front = lines[1 : lines.index("---", 1)]
    metadata = dict(line.split(": ", 1) for line in front)
    assert {key: json.loads(value) for key, value in metadata.items()} == {
        "library_name": "weightinit",
        "license": "apache-2.0",
        "tags": ["weightinit", "weight-templates", "wave"],
        "base_model": "org/ancestor",
    }
    for words in ("`templates.mlp.fc1.weight` | 2 x 8 x 8", "depth 2", "d=8", '"steps": 10'):
        assert words in card


def test_model_card_cannot_be_broken_out_of(tmp_path):
    bundle = make_bundle()
    evil = {"ancestor": 'a/b"\ntags: [x]', "note": "```\n<script>\n---"}
    config = dataclasses.replace(bundle.config, provenance=evil)
    TemplateBundle(config, bundle.tensors).save_pretrained(tmp_path)
    lines = (tmp_path / "README.md").read_text().splitlines()
    assert lines.count("---") == 2
    assert not [line for line in lines if "script" in line and not line.startswith("    ")]
    assert not [line for line in lines if line.startswith("base_model")]


def test_a_loaded_card_goes_along(saved, tmp_path):
    (saved / "README.md").write_text("mine")
    TemplateBundle.from_pretrained(saved).save_pretrained(tmp_path / "copy")
    assert (tmp_path / "copy" / "README.md").read_text() == "mine"


# Consistency in memory


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("templates.norm1.weight"), "lacks tensors"),
        (lambda t: t.update({"more": torch.ones(1)}), "unknown ones"),
        (lambda t: t.update({"outside.norm.weight": torch.ones(7)}), r"outside\.norm\.weight"),
        (lambda t: t.update({"outside.pos": torch.ones(5, 8).double()}), "cast it"),
        (lambda t: t.update({"outside/pos": torch.ones(5, 8)}), "not allowed"),
        (lambda t: t.update({"outside.rope.f": torch.ones(0)}), "positive"),
    ],
)
def test_a_bundle_that_does_not_fit_its_config_cannot_be_made(change, words):
    bundle = make_bundle()
    tensors = dict(bundle.tensors)
    change(tensors)
    with pytest.raises(BundleError, match=words):
        TemplateBundle(bundle.config, tensors)


def test_closed_form_methods_need_no_scalers_but_whole_layers():
    options = TemplateConfig("tleg", 8, {"attn.qkv.weight": TemplateKind(2, (24, 8), parts=3)})
    config = BundleConfig("templates", "tleg", options.to_dict(), SIZES, 6, "MIT")
    TemplateBundle(config, {"templates.attn.qkv.weight": torch.ones(2, 24, 8)})
    half = TemplateConfig("tleg", 8, {"attn.qkv.weight": TemplateKind(2, (12, 8), parts=3)})
    config = dataclasses.replace(config, options=half.to_dict())
    with pytest.raises(BundleError, match="does not span a whole part"):
        TemplateBundle(config, {"templates.attn.qkv.weight": torch.ones(2, 12, 8)})


def test_small_templates_may_describe_a_vit_large():
    """24 blocks of width 1024 over templates of width 64: legitimate, at 600 times the file."""
    options = TemplateConfig.wave(64)
    square = {kind: spec for kind, spec in options.kinds.items() if len(spec.shape) == 2}
    shapes = {f"templates.{kind}": (spec.number, *spec.shape) for kind, spec in square.items()}
    for kind, wide in (("attn.qkv.weight", (3072, 1024)), ("mlp.fc1.weight", (4096, 1024))):
        scaler = tuple(n // 64 for n in wide)
        shapes[f"fitted.0.{kind}"] = (24, square[kind].number, *scaler)
    config = BundleConfig(
        "templates", "wave", options.to_dict(), SIZES | {"d": 64}, 1, "MIT", fitted=({},)[:0]
    )
    size = sum(4 * math.prod(shape) for shape in shapes.values())
    template_checks.check_expansion(config, shapes, size, 2**33)
    with pytest.raises(BundleError, match="expansion bomb"):
        template_checks.check_expansion(config, shapes, size, 2**28)


def test_bundles_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        make_bundle().tensors = {}


# Where bundles are found


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """Ship one bundle under the name ``tiny``."""
    root = tmp_path / "package" / "builtin"
    make_bundle().save_pretrained(root / "tiny")
    monkeypatch.setattr(locate.resources, "files", lambda package: tmp_path / "package")


def test_builtin(shipped, tmp_path, monkeypatch):
    assert list_templates() == ["tiny"]
    monkeypatch.setitem(hub.KNOWN, "org/known", "0" * 40)
    assert list_templates() == ["org/known", "tiny"]
    monkeypatch.chdir(tmp_path)
    make_bundle(seed=1).save_pretrained("tiny")
    bundle = TemplateBundle.from_pretrained("tiny")
    assert bundle.source == "tiny"
    assert_equal(make_bundle(), bundle)
    assert_equal(make_bundle(seed=1), TemplateBundle.from_pretrained("./tiny"))
    assert_equal(make_bundle(seed=1), TemplateBundle.from_pretrained(Path("tiny")))


def test_all_that_is_shipped_loads():
    for name in list_templates():
        if "/" not in name:
            assert TemplateBundle.from_pretrained(name).source == name


@pytest.mark.parametrize("name", ["tiny", "folder"])
def test_a_revision_of_what_has_none(shipped, saved, name):
    name = str(saved) if name == "folder" else name
    with pytest.raises(BundleError, match=r"has no revision 'v1': leave revision= out"):
        TemplateBundle.from_pretrained(name, revision="v1")


@pytest.mark.parametrize(
    "name", ["tinny", "", "/no/such/folder", "a/b/c", "../tiny", "tiny@v1", "\0", "a" * 5000, "~no"]
)
def test_names_of_nothing(shipped, name):
    with pytest.raises(BundleError, match=r"org/name@revision"):
        TemplateBundle.from_pretrained(name)


@pytest.mark.parametrize("name", [None, 3, b"tiny", ["tiny"]])
def test_names_of_another_type(name):
    with pytest.raises(BundleError, match="names no bundle"):
        TemplateBundle.from_pretrained(name)


def test_a_close_name_is_suggested(shipped):
    with pytest.raises(BundleError, match="did you mean 'tiny'"):
        TemplateBundle.from_pretrained("tinny")


def test_home_folder(saved, monkeypatch):
    monkeypatch.setenv("HOME", str(saved.parent))
    assert TemplateBundle.from_pretrained("~/saved").config.depth == 3


def test_links_into_a_store_are_followed(saved, tmp_path):
    (tmp_path / "snapshot").mkdir()
    for path in saved.iterdir():
        (tmp_path / "snapshot" / path.name).symlink_to(path)
    assert_equal(make_bundle(fitted=(2,)), TemplateBundle.from_pretrained(tmp_path / "snapshot"))


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads anything")
def test_a_file_that_may_not_be_read(saved):
    (saved / "model.safetensors").chmod(0)
    with pytest.raises(BundleError, match="cannot read"):
        TemplateBundle.from_pretrained(saved)


# Arbitrary configs

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sound")
    write_sound(folder)
    return folder, (folder / "config.json").read_text()


@settings(max_examples=100, deadline=None)
@given(value=json_values)
def test_any_json_as_config_is_refused(sound, value):
    folder, _ = sound
    (folder / "config.json").write_text(json.dumps(value))
    with pytest.raises(BundleError):
        TemplateBundle.from_pretrained(folder)


@settings(max_examples=100, deadline=None)
@given(data=st.binary(max_size=200))
def test_any_bytes_as_config_are_refused(sound, data):
    folder, _ = sound
    (folder / "config.json").write_bytes(data)
    with pytest.raises(BundleError):
        TemplateBundle.from_pretrained(folder)


def paths(value, at=()):
    """Return the way to every value inside a JSON value."""
    found = [at]
    if isinstance(value, (dict, list)):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in items:
            found += paths(inner, (*at, key))
    return found


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_sound_config_with_any_one_value_changed(sound, data):
    """Whatever stands in one place of a config: a bundle as configured, or a BundleError."""
    folder, text = sound
    config = json.loads(text)
    way = data.draw(st.sampled_from([way for way in paths(config) if way]))
    value = data.draw(json_values)
    at = config
    for key in way[:-1]:
        at = at[key]
    at[way[-1]] = value
    (folder / "config.json").write_text(json.dumps(config))
    try:
        bundle = TemplateBundle.from_pretrained(folder)
    except BundleError:
        return
    assert json.loads(bundle.config.to_json()) == config


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


def test_missing_scalers_are_named_for_wave_only(tmp_path):
    write_sound(tmp_path)
    edit_tensors(tmp_path, lambda t: [t.pop(n) for n in list(t) if n.startswith("scalers")])
    with pytest.raises(BundleError, match=r"lacks tensors \[scalers.*and 2 more\]"):
        TemplateBundle.from_pretrained(tmp_path)


def test_memory_is_the_file_and_no_more(tmp_path):
    bundle = make_bundle(depth=400)
    bundle.save_pretrained(tmp_path)
    again = TemplateBundle.from_pretrained(tmp_path)
    held = sum(tensor.untyped_storage().nbytes() for tensor in again.tensors.values())
    assert held == nbytes(bundle)
    shutil.rmtree(tmp_path)
    assert_equal(bundle, again)  # nothing is mapped
