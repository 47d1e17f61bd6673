"""Safetensors of an ancestor: whole, in shards, damaged, or no safetensors at all."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.ancestors import ARCHITECTURE, CONFIG, assert_same, refused, shards, write
from helpers.models import vit
from safetensors.torch import save_file

from weightinit.ancestor.ancestor import Ancestor
from weightinit.errors import BundleError

ROOT = Path(__file__).resolve().parents[1]

#: No door touches the global generator.
pytestmark = pytest.mark.usefixtures("global_generator")


def damage(change):
    """Return a builder of a folder whose weights file is changed."""

    def build(folder, model):
        file = write(folder, model.state_dict(), CONFIG) / "model.safetensors"
        file.write_bytes(change(file.read_bytes()))

    return build


def only(*names, config=True):
    def build(folder, model):
        write(folder, model.state_dict(), CONFIG if config else None)
        (folder / "model.safetensors").unlink()
        for name in names:
            (folder / name).write_bytes(b"\x80\x04 evil")

    return build


def index(change):
    def build(folder, model):
        file = shards(folder, model.state_dict(), CONFIG) / "model.safetensors.index.json"
        value = json.loads(file.read_text())
        change(folder, value)
        file.write_text(json.dumps(value))

    return build


UNSOUND = {
    "truncated": (damage(lambda data: data[:-1]), "damaged, cut off.*again"),
    "half a header": (damage(lambda data: data[:40]), "damaged, cut off.*again"),
    "empty": (damage(lambda data: b""), "damaged, cut off.*again"),
    "wrong header": (damage(lambda data: data[:9] + b"x" + data[10:]), "damaged, cut off.*again"),
    "archive": (damage(lambda data: b"PK\x03\x04" + data), "is a pickle.*pass the module"),
    "pickle": (damage(lambda data: b"\x80\x02}q\x00X" + data), "is a pickle.*pass the module"),
    "old pickle": (damage(lambda data: b"(dp0\nS'a'\np1\n" + data), "damaged, cut off"),
    "pickles": (
        only("pytorch_model.bin", "model.pth"),
        "no model.safetensors.*holds model.pth, pytorch_model.bin.*never reads pickles",
    ),
    "nothing": (only(config=False), "holds no model.safetensors and no model.*index.json"),
    "index leads away": (
        index(lambda folder, value: value["weight_map"].update({"a": "../a.safetensors"})),
        "no safetensors file beside it",
    ),
    "index without map": (
        index(lambda folder, value: value.pop("weight_map")),
        "has no weight_map",
    ),
    "missing shard": (
        index(lambda folder, value: (folder / "model-00002-of-00002.safetensors").unlink()),
        "lacks model-00002-of-00002.safetensors",
    ),
    "shard of another model": (
        index(
            lambda folder, value: save_file(
                {"a": torch.ones(2)}, folder / "model-00002-of-00002.safetensors"
            )
        ),
        "the shards lack",
    ),
    "config cut off": (
        lambda folder, model: (write(folder, model.state_dict()) / "config.json").write_text(
            '{"architecture":'
        ),
        "not sound JSON",
    ),
}


@pytest.mark.parametrize("name", UNSOUND)
def test_unsound_folders(name, model, tmp_path):
    build, words = UNSOUND[name]
    build(tmp_path / "made", model)
    refused(tmp_path / "made", words)


def test_unsound_files(model, tmp_path):
    pickled = tmp_path / "model.pth"
    torch.save(model.state_dict(), pickled)
    renamed = tmp_path / "model.safetensors"
    shutil.copy(pickled, renamed)
    for file in (pickled, renamed, str(pickled)):
        with pytest.raises(BundleError, match=r"is a pickle.*never reads pickles.*pass the module"):
            Ancestor.open(file, heads=2)
    other = tmp_path / "model.weights"
    other.write_bytes(b"")
    with pytest.raises(BundleError, match=r"not called \.safetensors"):
        Ancestor.open(other)
    metadata = {"architecture": ARCHITECTURE, "model_args": '{"pretrained": true}'}
    file = write(tmp_path, model.state_dict(), **metadata) / "model.safetensors"
    with pytest.raises(BundleError, match="model_args"):
        Ancestor.open(file)


def test_a_shape_that_no_tensor_has(tmp_path):
    entry = {"dtype": "F32", "shape": [0, 2**62, 2**62], "data_offsets": [0, 0]}
    header = json.dumps({"blocks.0.norm1.weight": entry}).encode()
    file = tmp_path / "model.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(BundleError, match="which no tensor has"):
        Ancestor.open(file, heads=1)


def test_a_file_that_is_gone_when_it_is_read(model, tmp_path):
    folder = write(tmp_path / "made", model.state_dict(), CONFIG)
    ancestor = Ancestor.open(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(BundleError, match="cannot read"):
        ancestor.stored("head.weight")


def test_the_only_file_of_a_folder_may_have_any_name(model, tmp_path):
    folder = write(tmp_path / "made", model.state_dict(), CONFIG)
    (folder / "model.safetensors").rename(folder / "vit_tiny_patch16_224.safetensors")
    assert_same(Ancestor.open(folder), model)
    shutil.copy(folder / "vit_tiny_patch16_224.safetensors", folder / "b.safetensors")
    with pytest.raises(BundleError, match="pass the one that is meant"):
        Ancestor.open(folder)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="counts pages as Linux does")
def test_memory_stays_near_one_tensor(tmp_path):
    """A file of 200 MB, its largest tensors 16 MB each, in a process of its own."""
    with torch.device("meta"):
        shapes = vit(embed_dim=1024, depth=4).state_dict()
    state = {name: torch.zeros(value.shape) for name, value in shapes.items()}
    folder = write(tmp_path, state)
    assert (folder / "model.safetensors").stat().st_size > 190 * 2**20
    script = """
import sys, torch
from weightinit.ancestor.ancestor import Ancestor

def peak():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

ancestor = Ancestor.open(sys.argv[1], heads=16)
anatomy = ancestor.anatomy
ancestor.part(anatomy.outside["norm.weight"])
open("/proc/self/clear_refs", "w").write("5")
before = peak()
for pieces in (anatomy.outside, *anatomy.blocks):
    for piece in pieces.values():
        ancestor.part(piece)
print(peak() - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder / "model.safetensors")],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 2 * 16 * 2**10  # KiB
