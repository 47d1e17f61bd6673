"""What benchmarks read that the library does not: packs of JPEG files, and collected texts."""

import itertools
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from weightinit.training.data import load_data

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def trials():
    sys.path.insert(0, str(BENCHMARKS))
    from trials import corpora, data

    yield {"data": data, "corpora": corpora}
    sys.path.remove(str(BENCHMARKS))


@pytest.fixture
def pack(tmp_path):
    """CIFAR's layout: files that share one header."""
    files = []
    for i in range(20):
        buffer = BytesIO()
        Image.fromarray(np.full((8, 8, 3), 12 * i, np.uint8)).save(buffer, "JPEG", quality=90)
        files.append(buffer.getvalue())
    start = files[0].index(b"\xff\xda")
    offsets = [0, *itertools.accumulate(len(f) - start for f in files)]
    body = b"".join(f[start:] for f in files)
    assert all(f[:start] == files[0][:start] for f in files)
    tensors = {
        "header": torch.tensor(list(files[0][:start]), dtype=torch.uint8),
        "body": torch.tensor(list(body), dtype=torch.uint8),
        "offsets": torch.tensor(offsets),
        "labels": (torch.arange(20) % 2).to(torch.uint8),
        "split": (torch.arange(20) >= 16).to(torch.uint8),
    }
    path = tmp_path / "c_compact.safetensors"
    save_file(tensors, path, metadata={"name": "cifar10", "licence": "none"})
    return path


def test_a_pack_of_jpeg_files_is_decoded_once(trials, pack, tmp_path, monkeypatch):
    load, cache = trials["data"].load, tmp_path / "cache"
    monkeypatch.setenv("WEIGHTINIT_DATA", str(tmp_path))
    data = load("c", cache_dir=cache)
    assert data.name == "cifar10" and data.source["licence"] == "none"
    assert data.test.images[:, 0, 0, 0].float().tolist() == pytest.approx(
        [12 * i for i in range(16, 20)], abs=3
    )
    assert data.test.labels.tolist() == [0, 1, 0, 1] and len(data.train) + len(data.val) == 16
    monkeypatch.setattr(Image, "open", lambda *_: pytest.fail("decoded again"))
    again = load(str(pack), cache_dir=cache)
    assert torch.equal(again.train.images, data.train.images)
    assert len(list(cache.iterdir())) == 1


def test_the_command_reads_what_was_decoded(trials, pack, tmp_path):
    trials["data"].decode(pack, tmp_path / "cifar10.safetensors")
    assert load_data(tmp_path / "cifar10.safetensors").classes == 2


def test_other_data_is_the_librarys(trials, tmp_path):
    digits = trials["data"].load("digits", cache_dir=tmp_path)
    assert torch.equal(digits.val.images, load_data("digits").val.images)


@pytest.mark.parametrize("name", ["docstrings", "licences", "python"])
def test_collected_texts_are_there_offline(trials, name):
    corpus = trials["corpora"].corpus
    data = corpus(name, 64)
    assert data.name == name and 1e5 < len(data.train) < 1e6 * 1.2
    assert torch.equal(data.train, corpus(name, 64).train)
    assert "Python 3." in data.source["source"]
