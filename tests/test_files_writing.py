"""Files that appear whole or not at all, and the model card."""

import dataclasses
import os
import signal
import sys
import threading
from pathlib import Path

import pytest
import torch
from helpers.bundles import assert_equal, contents, make_bundle
from huggingface_hub import ModelCard
from safetensors import safe_open

from weightinit.errors import BundleError, WeightInitError
from weightinit.files import writing
from weightinit.files.writing import atomic, save_tensors
from weightinit.templates.bundle import TemplateBundle

FILES = {"config.json", "model.safetensors", "README.md"}


@pytest.mark.parametrize("error", [None, OSError("disk gone"), KeyboardInterrupt()])
@pytest.mark.parametrize("existing", [False, True])
def test_a_file_is_whole_or_as_it_was(tmp_path, existing, error):
    path = tmp_path / "file"
    if existing:
        path.write_text("old")
    before = contents(tmp_path)
    try:
        with atomic(path) as part:
            part.write_text("new")
            if error:
                raise error
    except (WeightInitError, KeyboardInterrupt) as raised:
        assert contents(tmp_path) == before
        assert "unchanged" in str(raised) or isinstance(error, KeyboardInterrupt)
    else:
        assert error is None and contents(tmp_path) == {"file": b"new"}
    assert not list(tmp_path.glob(".writing-*"))


def test_a_link_is_written_through(tmp_path):
    (tmp_path / "real").mkdir()
    path, real = tmp_path / "link", tmp_path / "real" / "file"
    path.symlink_to(real)
    with atomic(path) as part:
        part.write_text("new")
    assert path.is_symlink() and real.read_text() == "new"


def killed(action, where, number):
    """Run an action in a process that is killed at the n-th call of a function."""
    child = os.fork()
    if not child:
        module, _, name = where.rpartition(".")
        fault = Fault(getattr(sys.modules[module], name), number, SystemExit(), after=False)

        def call(*args, **kwargs):
            try:
                return fault(*args, **kwargs)
            except SystemExit:
                os._exit(9)

        setattr(sys.modules[module], name, call)
        action()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def test_what_a_killed_writer_left_is_cleared_away_and_what_a_live_one_has_is_not(tmp_path):
    def write(name):
        with atomic(tmp_path / name) as part:
            part.write_text("new")

    killed(lambda: write("file"), "os.fsync", 1)
    assert len(list(tmp_path.glob(".writing-*"))) == 1
    with atomic(tmp_path / "one") as part:
        part.write_text("1")
        assert len(list(tmp_path.glob(".writing-*"))) == 1
        write("two")
    assert contents(tmp_path) == {"one": b"1", "two": b"new"}


@pytest.mark.parametrize("rename", [1, 2, 3])
def test_a_saver_that_was_killed_while_renaming(saved, rename):
    """The folder says so, what stood there can be loaded, and the next save puts all right."""
    before = make_bundle(fitted=(2,))
    (saved / "README.md").unlink()
    changed = make_bundle(seed=1)
    killed(lambda: changed.save_pretrained(saved), "os.replace", rename)
    if rename == 3:
        with pytest.raises(BundleError, match="cut off: save again, or load") as raised:
            TemplateBundle.from_pretrained(saved)
        old = str(raised.value).partition("or load ")[2].partition(",")[0]
        assert_equal(before, TemplateBundle.from_pretrained(old))
    else:
        assert_equal(before, TemplateBundle.from_pretrained(saved))
    with pytest.raises(BundleError, match="NaN"):
        broken = make_bundle(seed=1)
        broken.tensors["outside.pos"][0, 0] = torch.nan
        broken.save_pretrained(saved)
    assert_equal(before, TemplateBundle.from_pretrained(saved))
    assert not list(saved.glob(".saving-*"))
    changed.save_pretrained(saved)
    assert_equal(changed, TemplateBundle.from_pretrained(saved))


def test_of_two_savers_one_wins_whole(saved):
    bundles = [make_bundle(seed=seed) for seed in range(4)]
    threads = [threading.Thread(target=b.save_pretrained, args=(saved,)) for b in bundles]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = TemplateBundle.from_pretrained(saved)
    name = "templates.attn.qkv.weight"
    assert sum(torch.equal(b.tensors[name], found.tensors[name]) for b in bundles) == 1
    assert {path.name for path in saved.iterdir()} == FILES


def test_a_full_disk_is_a_bundle_error(saved):
    """The safetensors library has an error of its own for it."""
    import resource

    before = contents(saved)
    child = os.fork()
    if not child:
        try:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
            make_bundle(seed=1).save_pretrained(saved)
        except BundleError as error:
            os._exit(3 if "space left" in str(error) else 4)
        os._exit(5)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
    assert contents(saved) == before


def test_the_same_tensors_are_the_same_bytes(tmp_path):
    tensors, metadata = {"b": torch.ones(2), "a": torch.zeros(3)}, {"z": "é", "a": "2", "m": '"'}
    for number in range(5):
        save_tensors(tensors, tmp_path / str(number), dict(reversed(metadata.items())))
    assert len({(tmp_path / str(number)).read_bytes() for number in range(5)}) == 1
    with safe_open(tmp_path / "0", "pt") as file:
        assert file.metadata() == metadata and torch.equal(file.get_tensor("b"), tensors["b"])


def test_every_file_can_be_read_by_whom_the_umask_lets(saved):
    modes = {path.stat().st_mode & 0o777 for path in Path(saved).iterdir() if path.is_file()}
    plain = Path(saved) / "plain"
    plain.touch()
    assert modes == {plain.stat().st_mode & 0o777}


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


@pytest.mark.parametrize("name", ["", "~nouser/x", "a\0b", 5, None])
def test_what_names_no_folder(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BundleError, match="names no folder"):
        make_bundle().save_pretrained(name)
    assert list(tmp_path.iterdir()) == []


def test_model_card(saved):
    card = (saved / "README.md").read_text()
    lines = card.splitlines()
    assert lines[0] == "---"
    assert ModelCard(card).data.to_dict() == {
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
