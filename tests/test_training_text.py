import math
import sys
from dataclasses import replace

import pytest
import torch
from helpers.training import GPT, TEXT, gpt
from torch.nn import functional

from weightinit.errors import WeightInitError
from weightinit.training.text import TextData, load_text

OPTIONS = {"batch_size": 6, "seed": 3}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "song.txt"
    path.write_text(TEXT)
    return path


def test_bytes_of_a_file_whose_last_tenth_is_held_out(file):
    data = load_text(file, context=16)
    assert bytes(torch.cat([data.train, data.val]).tolist()).decode() == TEXT
    assert len(data.train) == len(TEXT) * 9 // 10 and data.vocab == 256
    assert data.name == "song" and data.source["source"] == "song.txt"
    found = data.describe()
    assert found["tokens"] == {"train": len(data.train), "val": len(data.val)}
    assert str(file.parent) not in str(found)


def test_every_file_of_a_folder_gives_a_tenth(tmp_path):
    (tmp_path / "deep").mkdir()
    for name, letter in (("b.md", "b"), ("deep/a.txt", "a"), ("c.png", "c")):
        (tmp_path / name).write_text(letter * 1000)
    data = load_text(tmp_path, context=8)
    assert bytes(data.val.tolist()) == b"b" * 100 + b"a" * 100
    assert len(data.train) == 1800 and data.source["files"] == 2


def test_characters_and_what_a_byte_is(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("äöü " * 200, encoding="utf-8")
    data, raw = load_text(path, context=8, vocabulary="characters"), load_text(path, context=8)
    assert data.vocab == 4 and len(data.train) == 720
    assert data.bytes_per_token == 7 / 4 and raw.bytes_per_token == 1.0
    assert data.train[:4].tolist() == [1, 2, 3, 0]


class Words:
    """What transformers' tokenizers have in common."""

    words = ("beer", "bottles", "of")

    def __call__(self, text, add_special_tokens=True):
        assert not add_special_tokens
        return {"input_ids": [self.words.index(w) for w in text.split() if w in self.words]}

    def __len__(self):
        return 3


def test_a_tokenizer(file):
    data = load_text(file, context=4, vocabulary=Words())
    assert data.vocab == 3 and data.train[:4].tolist() == [1, 2, 0, 1]
    assert data.bytes_per_token == pytest.approx(len(TEXT) / 180)


def test_a_step_is_the_same_wherever_the_run_starts(file):
    data = load_text(file, context=16)
    whole = list(data.batches(range(8), **OPTIONS))
    rest = list(data.batches(range(5, 8), **OPTIONS))
    for (tokens, after), (again, more) in zip(whole[5:], rest, strict=True):
        assert torch.equal(tokens, again) and torch.equal(after, more)
    tokens, after = whole[0]
    assert tokens.shape == after.shape == (6, 16) and tokens.dtype == torch.long
    assert torch.equal(tokens[:, 1:], after[:, :-1])
    assert bytes(tokens[0].tolist()).decode() in TEXT
    assert not torch.equal(tokens, whole[1][0])


def test_processes_share_a_batch(file):
    data = load_text(file, context=16)
    whole = next(data.batches(range(1), **OPTIONS))[0]
    for rank in (0, 1):
        part = next(data.batches(range(1), rank=rank, world=2, **OPTIONS))[0]
        assert torch.equal(part, whole[rank::2])
    with pytest.raises(WeightInitError, match="does not divide among 4 processes"):
        next(data.batches(range(1), world=4, **OPTIONS))


def test_every_token_is_drawn_but_the_held_out():
    data = TextData("n", torch.arange(40), torch.arange(40, 50), 50, 4)
    seen = torch.cat([torch.stack(b) for b in data.batches(range(100), **OPTIONS)], 1)
    assert seen.unique().tolist() == list(range(40))


def test_windows_cover_a_text_once():
    data = TextData("n", torch.arange(41), torch.arange(41), 50, 4)
    found = data.windows(data.val)
    assert torch.equal(found[:, 1:].flatten(), torch.arange(1, 41))
    assert data.windows(data.val, most=3)[:, 0].tolist() == [0, 16, 36]


def test_bad_input_is_refused(tmp_path, file):
    with pytest.raises(WeightInitError, match="is not found: use a text file, or a folder"):
        load_text("no/such/text")
    with pytest.raises(WeightInitError, match="holds no window of 512"):
        load_text(file, context=512)
    with pytest.raises(WeightInitError, match="has 0 tokens in 0 files"):
        (tmp_path / "empty").mkdir()
        load_text(tmp_path / "empty")
    with pytest.raises(WeightInitError, match="vocabulary 'words' is unknown"):
        load_text(file, vocabulary="words")
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(WeightInitError, match="is not a text in UTF-8"):
        load_text(tmp_path / "bad.txt")


@pytest.fixture
def text(file):
    return load_text(file, context=16, vocabulary="characters")


def test_bits_per_byte_by_hand(text):
    net = gpt(text)
    windows = text.windows(text.val)
    with torch.no_grad():
        logits = net.eval()(windows[:, :-1]).logits
    nats = functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())
    net.train()
    found = text.score(net, batch_size=3)
    assert net.training and found == pytest.approx(float(nats) / math.log(2), rel=1e-5)
    other = replace(text, bytes_per_token=2.0)
    assert other.score(net) == pytest.approx(found / 2, rel=1e-5)
    assert text.score(net, text.train) != found


def test_a_uniform_model_needs_the_bits_of_the_vocabulary(text):
    net = gpt(text)
    with torch.no_grad():
        net.lm_head.weight.zero_()
    assert text.score(net) == pytest.approx(math.log2(text.vocab), rel=1e-6)


def test_label_smoothing_raises_the_loss_of_a_sure_network():
    out = type("Out", (), {"logits": 9 * functional.one_hot(torch.tensor([[1, 2]]), 4).float()})()
    wanted = torch.tensor([[1, 2]])
    assert TextData.loss(out, wanted, 0.1) > TextData.loss(out, wanted, 0.0)


def test_transformers_is_asked_for(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    data = TextData("n", torch.arange(40), torch.arange(10), 50, 4)
    with pytest.raises(WeightInitError, match="pip install transformers"):
        data.build(data.arguments(GPT))
