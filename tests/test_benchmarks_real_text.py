from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from helpers.models import draw

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def real_text(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    pytest.importorskip("transformers")
    from trials import real_text

    return real_text


def test_sentences_of_parts_differ(real_text):
    found = {part: set(real_text.sentences(text)) for part, (text, _) in real_text.TEXTS.items()}
    for part, sentences in found.items():
        assert len(sentences) >= real_text.TEXTS[part][1]
        assert all(not sentences & other for name, other in found.items() if name != part)


def test_equal_embeddings_agree(real_text):
    ours = draw(40, 8, seed=0)
    found = real_text.agreement(ours, ours, ours)
    assert found == {"n": 40, "cosine": 1, "cosine_error": 0, "rank_correlation": 1}


def test_a_readout_undoes_a_rotation(real_text):
    theirs = draw(100, 8, seed=0) + 3
    ours = theirs @ torch.linalg.qr(draw(8, 8, seed=1)).Q
    weight, offset = real_text.readout(ours, theirs)
    assert (ours @ weight + offset - theirs).abs().max() < 0.01
    found = real_text.agreement(ours, theirs, ours @ weight + offset)
    assert found["rank_correlation"] == 1 and found["cosine"] > 0.999


@dataclass(frozen=True)
class Asked:
    ancestor: str
    work: Path
    only: tuple[str, ...] = ()
    targets: tuple[str, ...] = ("256x2", "512x2")
    seeds: tuple[int, ...] = (0,)
    part: str = "val"
    smoke: bool = True

    def wants(self, start):
        return not self.only or start in self.only


def test_rows_are_done_once_and_refusals_are_rows(real_text, tmp_path, monkeypatch):
    calls = []

    class Fake:
        def __init__(self, *args):
            calls.append(args)

        def row(self, target, start, seed):
            return {"target": target, "start": start, "seed": seed}

    monkeypatch.setattr(real_text, "Encoder", Fake)
    asked = Asked("nobody", tmp_path, only=("random", "subcloning"))
    rows = real_text.rows(asked)
    assert [(row["target"], row["start"]) for row in rows] == [
        ("256x2", "random"), ("256x2", "subcloning"), ("512x2", "random"), ("512x2", "subcloning"),
    ]  # fmt: skip
    assert real_text.rows(asked) == rows and calls == [("nobody", "val", True)]


@pytest.mark.slow
def test_a_target_is_started_and_compared(real_text):
    if not (Path(real_text.os.environ["WEIGHTINIT_ANCESTORS"]) / "minilm_l6").is_dir():
        pytest.skip("no ancestor here")
    encoder = real_text.Encoder("minilm_l6", "val", True)
    row = encoder.row("256x2", "random", 0)
    assert row["n"] == 32 and row["rank_correlation"] < 0.9 and not row["result"]
    assert "refused" in encoder.row("512x2", "subcloning", 0)
