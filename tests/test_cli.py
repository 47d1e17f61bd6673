import json

import pytest
import timm
import torch
from safetensors.torch import load_file

from weightinit.ancestor.ancestor import Ancestor
from weightinit.cli import main

SIZE = ["--set", "depth=2", "embed_dim=80", "num_heads=5", "img_size=32", "patch_size=8"]


def test_inspect_prints_the_anatomy(capsys):
    assert main(["inspect", "vit_tiny_patch16_224", "--set", "depth=2"]) == 0
    out = capsys.readouterr().out
    assert "attn.qkv.weight" in out and "(3 h k) d" in out
    assert main(["inspect", "vit_tiny_patch16_224", "--set", "depth=2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["sizes"]["d"] == 192


def test_init_writes_a_checkpoint_that_timm_loads_strictly(tmp_path, capsys):
    file = tmp_path / "vit.safetensors"
    arguments = ["init", "vit_tiny_patch16_224", *SIZE, "num_classes=10"]
    assert main([*arguments, "--templates", "cifar10-w64", "-o", str(file), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["output"] == str(file) and printed["counts"]["kept"] == 0
    model = timm.create_model(
        "vit_tiny_patch16_224", depth=2, embed_dim=80, num_heads=5, img_size=32, patch_size=8,
        num_classes=10, checkpoint_path=str(file),
    )  # fmt: skip
    values = load_file(file)
    assert all(torch.equal(values[n], p) for n, p in model.named_parameters())
    assert [f.name for f in tmp_path.iterdir()] == ["vit.safetensors"]


def test_the_file_says_what_model_it_is_of(tmp_path):
    file = tmp_path / "vit.safetensors"
    main(["init", "vit_tiny_patch16_224", *SIZE, "num_classes=10", "-o", str(file)])
    ancestor = Ancestor.open(file)
    assert ancestor.anatomy.sizes["h"] == 5 and ancestor.anatomy.depth == 2
    assert ancestor.module()(torch.zeros(1, 3, 32, 32)).shape == (1, 10)


def test_project_goes_from_file_to_file(tmp_path, capsys):
    """A checkpoint of our own is an ancestor, larger and smaller."""
    old, new = tmp_path / "old.safetensors", tmp_path / "new.safetensors"
    main(["init", "vit_tiny_patch16_224", *SIZE, "num_classes=10", "-o", str(old)])
    capsys.readouterr()
    wider = [word.replace("=80", "=160").replace("heads=5", "heads=10") for word in SIZE]
    arguments = ["project", str(old), "vit_tiny_patch16_224", *wider, "num_classes=10"]
    assert main([*arguments, "-o", str(new), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["counts"]["fresh"] == 0 and "LEMON" in printed["notes"][0]
    images = torch.randn(2, 3, 32, 32)
    small, large = (Ancestor.open(file).module() for file in (old, new))
    torch.testing.assert_close(large(images), small(images), atol=1e-4, rtol=1e-4)
    assert main([*arguments, "-o", str(new), "--method", "weight_selection"]) == 2
    assert "only shrinks" in capsys.readouterr().err


def test_the_seed_decides_what_is_fresh(tmp_path):
    heads = []
    for seed in ("0", "0", "1"):
        file = tmp_path / "vit.safetensors"
        main(
            [
                "init",
                "vit_tiny_patch16_224",
                *SIZE,
                "num_classes=7",
                "--seed",
                seed,
                "-o",
                str(file),
            ]
        )
        heads.append(load_file(file)["head.weight"])
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])


def test_templates_lists_the_shipped_bundles(capsys):
    assert main(["templates", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["cifar10-w64"]["embed_dim"] == 64 and rows["digits-w32"]["in_chans"] == 1


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["inspect", "vit_tinny"], "cannot build"),
        (["inspect", "vit_tiny_patch16_224", "--set", "depth"], "KEY=VALUE"),
        (["inspect", "vit_tiny_patch16_224", "--set", "dept=2"], "dept"),
        (["inspect", "resnet18"], "rules="),
        (["init", "vit_tiny_patch16_224", "-o", "nowhere/vit.safetensors"], "existing folder"),
        (["init", "vit_tiny_patch16_224", "-o", "vit.safetensors", "--templates", "no"], "'no'"),
        (["init", "vit_tiny_patch16_224", "-o", "vit.safetensors", "--scalers", "no"], "linear"),
        (["project", "no_such", "vit_tiny_patch16_224", "-o", "vit.safetensors"], "no_such"),
        (["project", "x", "vit_tiny_patch16_224", "-o", "nowhere/v.safetensors"], "existing"),
        (["train-templates", "--preset", "no", "--out", "there"], "cifar10-w64"),
    ],
)
def test_a_users_error_is_two_and_says_what_to_do(arguments, match, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert match in error and "Traceback" not in error
    assert list(tmp_path.iterdir()) == []
    assert main([*arguments, "--json"]) == 2
    assert match in json.loads(capsys.readouterr().out)["message"]


def test_unknown_commands_are_two():
    with pytest.raises(SystemExit) as stop:
        main(["frobnicate"])
    assert stop.value.code == 2
