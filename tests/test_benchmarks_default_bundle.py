"""What templates are worth on photos, at a size that takes a second, on scikit-learn's digits."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from weightinit.training.data import load_data
from weightinit.training.images import ImageData

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import default_bundle
import schema
from trials import photos, tables


@pytest.fixture
def small(monkeypatch, tmp_path):
    """The command on few digits in colour, of one target, where photos would be."""
    whole = load_data("digits").in_shape(16)
    parts = {part: getattr(whole, part).rows(torch.arange(60)) for part in ("train", "val", "test")}
    monkeypatch.setattr(default_bundle, "load", lambda *_, **__: replace(whole, **parts))
    monkeypatch.setattr(default_bundle, "TARGETS", ((64, 1, 16, 4),))
    monkeypatch.setattr(sys, "argv", [
        "default_bundle.py", "--rates", "1e-3", "3e-3", "--steps", "2", "--batch-size", "8",
        "--work", str(tmp_path / "work"), "--results", str(tmp_path / "results"),
    ])  # fmt: skip
    return tmp_path


def test_validation_photos_are_taken_from_the_training_photos(small):
    data: ImageData = default_bundle.photos(16, small)
    assert len(data.train) + len(data.val) == 120 and 69 <= len(data.val) <= 71
    assert len(data.val.images) == len(data.val.labels) and len(data.test) == 60


def test_every_start_is_trained_at_every_rate_once(small, monkeypatch, capsys):
    default_bundle.main()
    files = list((small / "work" / "clothing_128").iterdir())
    assert len(files) == 4
    monkeypatch.setattr(default_bundle, "perform", lambda *_: pytest.fail("run again"))
    default_bundle.main()
    (path,) = (small / "results").glob("default-bundle--*.json")
    rows = schema.load(path)["rows"]
    assert [row["name"] for row in rows] == ["random", "mixed-w96"] * 2
    assert {row["tokens"] for row in rows} == {16} and {row["heads"] for row in rows} == {1}
    assert json.loads(files[0].read_text()) in rows
    monkeypatch.setattr(schema, "RESULTS", small / "results")
    monkeypatch.setattr(tables.schema, "RESULTS", small / "results")
    text = photos.photos()
    assert "|  | 64 x 1, 16 px, patch 4, 2 steps |" in text and "| random |" in text


def test_targets_budgets_and_packs_of_the_command_line(small, monkeypatch):
    more = ["--rates", "1e-3", "--targets", "64x2x16x8", "--steps", "1", "2", "--pack", "signs"]
    monkeypatch.setattr(sys, "argv", [*sys.argv, *more])
    default_bundle.main()
    (path,) = (small / "results").glob("default-bundle-signs--*.json")
    rows = schema.load(path)["rows"]
    assert [(row["depth"], row["tokens"], row["steps"]) for row in rows] == [
        (2, 4, 1), (2, 4, 1), (2, 4, 2), (2, 4, 2),
    ]  # fmt: skip


def test_what_was_not_run_is_not_recorded(small, monkeypatch):
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--rates", "1e-3"])
    default_bundle.main()
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--record", "--rates", "1e-3", "3e-3"])
    default_bundle.main()
    (path,) = (small / "results").glob("default-bundle--*.json")
    assert {row["lr"] for row in schema.load(path)["rows"]} == {1e-3}


def test_a_target_that_says_nothing_is_refused(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["default_bundle.py", "--targets", "64x2"])
    with pytest.raises(SystemExit):
        default_bundle.arguments()
    assert "64x2 is not WIDTHxDEPTHxIMAGExPATCH" in capsys.readouterr().err
