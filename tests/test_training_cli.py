import argparse
import json
import os
import signal

import pytest
from helpers.training import LOGAH, TINY

from weightinit.cli import main
from weightinit.training import hypernet_run, loop, templates
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
        "weightinit train-templates --preset tiny --data digits --out mine --steps 2 --seed 3"
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


@pytest.mark.parametrize("command", [call, None])
def test_what_is_there_is_not_overwritten(tmp_path, capsys, command):
    command = command or train
    assert command(tmp_path, "--steps", "2") == 0
    before = (tmp_path / "mine" / "config.json").read_bytes()
    assert command(tmp_path, "--steps", "3") == 2
    text = capsys.readouterr().err
    assert "holds a finished bundle" in text and "--resume" in text and "--force" in text
    (tmp_path / "mine" / "config.json").unlink()
    assert command(tmp_path, "--steps", "2") == 2
    assert "holds a half-done training" in capsys.readouterr().err
    assert command(tmp_path, "--steps", "2", "--resume", "--force") == 2
    assert "pass one of them" in capsys.readouterr().err
    assert command(tmp_path, "--steps", "2", "--resume") == 0
    text = (tmp_path / "mine" / "config.json").read_text()
    assert json.loads(text)["sha256"] == json.loads(before)["sha256"]
    assert command(tmp_path, "--steps", "3", "--force") == 0


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_is_tried_before_the_training(tmp_path, capsys):
    (tmp_path / "closed").mkdir(mode=0o500)
    assert call(tmp_path / "closed") == 2
    assert "cannot write to" in capsys.readouterr().err


def test_what_is_no_folder_is_found_before_the_training(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(templates, "get_ancestor", lambda *_, **__: pytest.fail("trained"))
    monkeypatch.setattr(hypernet_run, "meta_train", lambda *_, **__: pytest.fail("trained"))
    (tmp_path / "mine").write_text("a file")
    for command in (call, train):
        assert command(tmp_path, "--steps", "2") == 2
        assert "cannot write to" in capsys.readouterr().err
    assert (tmp_path / "mine").read_text() == "a file"


def test_a_users_options_reach_the_training(tmp_path, capsys):
    more = ["--batch-size", "24", "--lr", "0.003", "--ancestor-steps", "2", "--steps", "4"]
    assert call(tmp_path, "--json", "--checkpoint-every", "1", *more) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    recipe, ancestor = found["auxiliary"]["recipe"], found["ancestor"]["network"]["training"]
    assert (recipe["batch_size"], recipe["lr"], recipe["steps"]) == (24, 0.003, 4)
    assert (ancestor["steps"], ancestor["batch_size"]) == (2, 24)
    assert "--batch-size 24 --lr 0.003 --ancestor-steps 2" in found["command"]
    # lines where there is no terminal, one a checkpoint
    assert err.count("ancestor: step") == 2 and err.count("auxiliary model: step") == 4
    assert "auxiliary model: step 3 of 4" in err and "checkpoint in" in err


@pytest.mark.parametrize(
    "option",
    [("--lr", "-1"), ("--lr", "nan"), ("--batch-size", "0"), ("--checkpoint-every", "0"),
     ("--scaler-lr", "-2"), ("--scalers", "zero"), ("--ancestor", "no/such")],
)  # fmt: skip
def test_bad_options_are_refused_before_anything_is_written(tmp_path, capsys, option):
    assert call(tmp_path, *option) == 2
    assert "weightinit: " in capsys.readouterr().err
    assert not (tmp_path / "mine").exists()


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path, capsys, monkeypatch):
    assert call(tmp_path) == 0
    expected = json.loads((tmp_path / "mine" / "config.json").read_text())["sha256"]
    calls, loss = [], loop.distillation_loss

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 4:
            signal.raise_signal(signal.SIGINT)
        return loss(*arguments)

    monkeypatch.setattr(loop, "distillation_loss", interrupted)
    capsys.readouterr()
    assert call(tmp_path, "--force") == 130
    assert "stopped after step 4 of 8" in capsys.readouterr().err
    assert call(tmp_path, "--resume") == 0
    assert json.loads((tmp_path / "mine" / "config.json").read_text())["sha256"] == expected


def test_templates_without_an_ancestor(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(templates, "get_ancestor", lambda *_, **__: pytest.fail("trained"))
    assert call(tmp_path, "--json", "--ancestor", "none", "--steps", "2") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ancestor"] is None and found["auxiliary"]["recipe"]["loss"] == "ce"
    assert call(tmp_path, "--force", "--method", "weit", "--steps", "2") == 0
    text = capsys.readouterr().out
    assert "ancestor" not in text and "validation, 16x3" in text and "validation, 8x2" in text
    config = json.loads((tmp_path / "mine" / "config.json").read_text())
    assert config["method"] == "weit" and config["provenance"]["ancestor"] is None


def test_defaults():
    parser = argparse.ArgumentParser()
    add_train_arguments(parser)
    found = parser.parse_args(["--preset", "digits-w32", "--out", "x"])
    assert (found.method, found.seed, found.steps, found.resume) == (None, 0, None, False)


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
