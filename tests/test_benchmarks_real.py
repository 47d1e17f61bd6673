"""The suites of real ancestors run on a tiny one; what they measure takes the real ones."""

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

import weightinit as wi

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import real
import schema
from trials.pretrained import Pretrained, Target, words
from trials.real_probe import scores
from trials.real_starts import STARTS, ridge
from trials.real_tables import real_finetune, real_names, real_probe

SIZES: dict[str, Any] = {"img_size": 28, "patch_size": 7, "embed_dim": 32, "depth": 3}
SIZES |= {"num_heads": 2, "num_classes": 0}


@pytest.fixture
def ancestor(tmp_path, monkeypatch):
    """A file that says what it is of, in the folder of ancestors."""
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", **SIZES)
    metadata = {"architecture": "vit_tiny_patch16_224", "model_args": json.dumps(SIZES)}
    save_file(model.state_dict(), tmp_path / "tiny.safetensors", metadata=metadata)
    monkeypatch.setenv("WEIGHTINIT_ANCESTORS", str(tmp_path))
    return model


@pytest.fixture
def rows(tmp_path, monkeypatch):
    """Run a suite on the tiny ancestor and return the recorded rows."""
    monkeypatch.setattr(schema, "RESULTS", tmp_path / "results")

    def run(suite, *arguments):
        folders = ["--work", str(tmp_path / "work"), "--results", str(tmp_path / "results")]
        tiny = ["--ancestor", "tiny", "--smoke", "--threads", "1"]
        real.main(["--suite", suite, *tiny, *folders, *arguments])
        return schema.load(next((tmp_path / "results").glob(f"real-{suite}-*")))["rows"]

    return run


def test_a_target_is_written_as_a_size():
    assert Target.parse("192x6p16@112") == Target(192, 6, 16, 112)
    assert str(Target.parse("192x6p16@112")) == "192x6p16@112"
    assert Target.parse("192x6") == Target(192, 6)
    with pytest.raises(wi.WeightInitError, match="as in 192x6p16@112"):
        Target.parse("small")


def test_messages_lose_their_folders():
    assert words("open '/home/me/a.safetensors' or (~/x/b)") == "open 'a.safetensors' or (b)"
    assert words("1/2 of a/b") == "1/2 of a/b"


def test_an_ancestor_is_read_from_its_file(ancestor):
    found = Pretrained("tiny")
    images = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    assert found.sizes == (32, 3, 2, 7) and found.side(30) == 28
    with torch.no_grad():
        assert torch.allclose(found.model(28)(images), ancestor.eval()(images), atol=1e-5)
    target = found.target(Target(48, 2, 4), 28, classes=3)
    assert target.blocks[0].attn.num_heads == 3 and target.num_classes == 3


def test_the_probe_recovers_what_is_linear():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(300, 8, generator=generator)
    labels = inputs[:, :3].argmax(1)
    found = scores(inputs[:200], labels[:200], inputs[200:], labels[200:])
    assert found["linear"] > 85 and found["knn"] > 60
    wanted = 3 * inputs[:, :2].double() + 1
    weight, bias = ridge(inputs, wanted, 1e-6)
    assert torch.allclose(inputs.double() @ weight + bias, wanted, atol=1e-3)


def test_the_probe_scores_every_start_or_records_its_refusal(ancestor, rows):
    starts = [start for start in STARTS if start != "Torch-Pruning"]
    few = ["--data", "digits", "--targets", "16x2", "48x3p4", "--only", "ancestor", *starts]
    found = rows("probe", *few)
    assert [row["name"] for row in found] == ["ancestor", *starts, *starts]
    done = {(row["name"], row["target"]): row for row in found}
    assert "larger" in done["Weight Selection", "48x3p4"]["refused"]
    assert "default" not in "".join(name for (name, _), row in done.items() if "refused" in row)
    assert all(0 <= row["linear"] <= 100 for row in found if "refused" not in row)
    assert done["random", "16x2"]["scored"] == 64
    lines = real_probe().splitlines()
    assert lines[2] == "|  | 16x2 | 48x3p4 |"
    assert next(line for line in lines if "Weight Selection |" in line).endswith(" |  |")


def test_a_row_is_not_made_twice(ancestor, rows, monkeypatch):
    few = ["--data", "digits", "--targets", "16x2", "--only", "random"]
    first = rows("probe", *few)
    monkeypatch.setattr("trials.real_probe.features", lambda *_: pytest.fail("made again"))
    assert rows("probe", *few) == first


def test_a_training_picks_its_rate_by_the_first_seed(ancestor, rows):
    only = ["--data", "digits", "--targets", "16x2", "--only", "random", "default with data"]
    found = rows("finetune", *only, "--seeds", "1", "2")
    assert [row["seed"] for row in found] == [1, 2, 1, 2]
    for first, second in zip(found[::2], found[1::2], strict=True):
        assert len(first["val"]) == 4 and second["rates"] == [first["lr"]]
        assert first["lr"] == first["rates"][first["val"].index(max(first["val"]))]
        assert {"accuracy", "balanced", "start_seconds"} <= second.keys()
    text = real_finetune()
    assert f"{found[0]['val'][0]}" in text and "Balanced accuracy" in text


def test_names_say_what_is_refused_and_what_is_equal(ancestor, rows):
    found = {row["name"]: row for row in rows("names", "--targets", "64x3")}
    assert "did you mean" in found["name misspelt"]["words"]
    assert found["file into its own size"]["equal"] and found["module into its own size"]["equal"]
    assert found["grown"]["equal"]
    assert "| grown 64x3 | works, differs by" in real_names()


@pytest.mark.slow
def test_several_processes_make_the_same_rows(ancestor, rows):
    few = ["--data", "digits", "--targets", "16x2", "--only", "random", "mimetic", "--jobs", "2"]
    assert [row["name"] for row in rows("probe", *few)] == ["random", "mimetic"]


def test_texts_say_what_they_need(ancestor, rows):
    if find_spec("trials.real_text"):
        pytest.skip("the suite is there, and has tests of its own")
    with pytest.raises(wi.WeightInitError, match="real_text, which is not there"):
        rows("text")
