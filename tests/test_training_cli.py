import argparse
import json

import pytest
from helpers.training import LOGAH, TINY

from weightinit.cli import main
from weightinit.training.cli import add_hypernet_arguments, add_train_arguments
from weightinit.training.hypernet_presets import HYPERNET_PRESETS
from weightinit.training.presets import PRESETS


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(PRESETS, "tiny", TINY)
    monkeypatch.setitem(HYPERNET_PRESETS, "tiny", LOGAH)


def call(tmp_path, *more):
    out = ["--out", str(tmp_path / "mine"), "--cache-dir", str(tmp_path / "cache")]
    return main(["train-templates", "--preset", "tiny", *out, *more])


def test_a_bundle_is_made_and_summed_up(tmp_path, capsys):
    assert call(tmp_path, "--steps", "3", "--fp16") == 0
    text = capsys.readouterr().out
    assert "ancestor" in text and "validation, token" in text
    assert (tmp_path / "mine" / "config.json").exists()


def test_json_holds_the_provenance_and_no_path_of_this_machine(tmp_path, capsys):
    assert call(tmp_path, "--json", "--steps", "2", "--data", "digits", "--seed", "3") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["command"] == (
        "weightinit train-templates --preset tiny --data digits --out mine --method wave --steps 2 "
        "--seed 3"
    )
    config = (tmp_path / "mine" / "config.json").read_text()
    assert str(tmp_path) not in config


@pytest.mark.parametrize(
    "options",
    [
        ("--preset", "nope"),
        ("--data", "no/such/data"),
        ("--steps", "0"),
        ("--mixed-precision", "fp8"),
        ("--method", "ligo"),
    ],
)
def test_a_users_error_ends_with_code_2(tmp_path, capsys, options):
    assert call(tmp_path, *options) == 2
    assert "weightinit: " in capsys.readouterr().err


def test_resuming_goes_on(tmp_path, capsys):
    assert call(tmp_path, "--json") == 0
    first = json.loads(capsys.readouterr().out)
    assert call(tmp_path, "--json", "--resume") == 0
    again = json.loads(capsys.readouterr().out)
    assert again["auxiliary"] == first["auxiliary"]


def test_defaults():
    parser = argparse.ArgumentParser()
    add_train_arguments(parser)
    found = parser.parse_args(["--preset", "digits-w32", "--out", "x"])
    assert (found.method, found.seed, found.steps, found.resume) == ("wave", 0, None, False)


def train(tmp_path, *more):
    out = ["-o", str(tmp_path / "mine"), "--cache-dir", str(tmp_path / "cache")]
    return main(["train-hypernet", "--preset", "tiny", *out, *more])


def test_a_hypernetwork_is_made_and_summed_up(tmp_path, capsys):
    assert train(tmp_path, "--steps", "2") == 0
    text = capsys.readouterr().out
    assert "zero-shot validation accuracy" in text and "48x3" in text
    assert (tmp_path / "mine" / "config.json").exists()


def test_a_hypernetwork_of_a_text(tmp_path, capsys):
    (tmp_path / "README.md").write_text("A text to read. " * 200)
    arguments = ["--data", str(tmp_path / "README.md"), "-o", str(tmp_path / "mine")]
    assert main(["train-hypernet", "--preset", "micro-logah-gpt", "--steps", "2", *arguments]) == 0
    text = capsys.readouterr().out
    assert "zero-shot validation bits per byte" in text and "80x5" in text
    config = (tmp_path / "mine" / "config.json").read_text()
    assert "--data README.md" in config and str(tmp_path) not in config


def test_json_of_a_hypernetwork(tmp_path, capsys):
    assert train(tmp_path, "--json", "--steps", "2", "--data", "digits", "--seed", "3") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["command"] == (
        "weightinit train-hypernet --preset tiny --data digits --out mine --steps 2 --seed 3"
    )
    assert str(tmp_path) not in (tmp_path / "mine" / "config.json").read_text()


@pytest.mark.parametrize(
    "options",
    [
        ("--preset", "nope"),
        ("--preset", "micro-tal-tasks"),
        ("--data", "no/such/data"),
        ("--steps", "0"),
        ("--mixed-precision", "fp8"),
    ],
)
def test_a_users_error_in_meta_training_ends_with_code_2(tmp_path, capsys, options):
    assert train(tmp_path, *options) == 2
    assert "weightinit: " in capsys.readouterr().err
    assert not (tmp_path / "mine").exists()


def test_defaults_of_meta_training():
    parser = argparse.ArgumentParser()
    add_hypernet_arguments(parser)
    found = parser.parse_args(["--preset", "micro-logah", "-o", "x"])
    assert (found.data, found.ancestor, found.start, found.resume) == ([], [], None, False)
