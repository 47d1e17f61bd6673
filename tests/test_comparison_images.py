"""The `compare` command, on digits and on a folder of images."""

import json

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from weightinit.ancestor.ancestor import Ancestor
from weightinit.cli import main
from weightinit.comparison.images import batches_for, labelled_images

NAME = "vit_tiny_patch16_224"
SET = ["depth=2", "embed_dim=32", "num_heads=2", "class_token=False", "global_pool=avg"]
DIGITS = [NAME, "--set", *SET, "fc_norm=False", "img_size=8", "patch_size=2", "--data", "digits"]
QUICK = ["--steps", "2", "--lrs", "1e-3"]


def folder(path, classes=3, each=12):
    """Write images of one colour a class, under noise."""
    draw = np.random.default_rng(0)
    for label in range(classes):
        (path / f"class{label}").mkdir(parents=True)
        for number in range(each):
            pixels = draw.integers(0, 80, (20, 24, 3))
            pixels[..., label % 3] += 150
            image = Image.fromarray(pixels.astype(np.uint8))
            image.save(path / f"class{label}" / f"{number}.png")
    return str(path)


def test_digits_as_table_json_and_plot(tmp_path, capsys):
    command = ["compare", *DIGITS, "--templates", "digits-w32", *QUICK]
    plot = tmp_path / "starts.png"
    assert main([*command, "--plot", str(plot)]) == 0
    text = capsys.readouterr().out
    assert "179 held-out examples" in text and text.index("digits-w32") < text.index("random")
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["best"] == "digits-w32" and found["examples"] == 179
    assert found["rows"][0]["at_once"]["accuracy"] > 80 and found["lrs"] == [1e-3]
    assert main([*command, "--plot", str(plot)]) == 2
    assert "--force" in capsys.readouterr().err


def test_a_folder_and_an_ancestor_of_ones_own(tmp_path, capsys):
    ancestor = timm.create_model(
        NAME, img_size=16, patch_size=8, depth=3, embed_dim=48, num_heads=3, num_classes=3
    )
    save_file(ancestor.state_dict(), tmp_path / "old.safetensors")
    images = folder(tmp_path / "images")
    command = ["compare", NAME, "--set", "depth=2", "embed_dim=32", "num_heads=2", "img_size=16"]
    command += ["patch_size=8", "--data", images, "--batch-size", "8", *QUICK, "--json"]
    opened = ["--ancestor", str(tmp_path / "old.safetensors"), "--method", "weight_selection"]
    assert main([*command, *opened]) == 2
    assert "heads=" in capsys.readouterr().err
    named = {"architecture": NAME, "model_args": json.dumps(
        {"img_size": 16, "patch_size": 8, "depth": 3, "embed_dim": 48, "num_heads": 3,
         "num_classes": 3})}  # fmt: skip
    save_file(ancestor.state_dict(), tmp_path / "old.safetensors", named)
    assert main([*command, *opened]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["rows"]}
    assert set(rows) == {"random", "weight_selection"} and not rows["random"]["error"]
    assert main([*command, *opened[:2], "--templates", "cifar10-w64"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["rows"]}
    assert set(rows) == {"random", "cifar10-w64", "auto"}


def test_batches_are_of_the_models_size_and_the_ancestors_normalisation(tmp_path):
    data = labelled_images(folder(tmp_path / "images"), 0)
    model = timm.create_model(NAME, img_size=32, depth=1, embed_dim=16, num_heads=1, num_classes=3)
    options = {"steps": 3, "batch_size": 8, "seed": 0}
    train, val = batches_for(model, data, None, **options)
    assert [images.shape for images, _ in train] == [(8, 3, 32, 32)] * 3
    plain = torch.cat([images for images, _ in val])
    assert sum(len(labels) for _, labels in val) == len(data.val)
    _, val = batches_for(model, data, Ancestor.open(model), **options)
    mean, std = (torch.tensor(model.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    theirs = torch.cat([images for images, _ in val]) * std + mean
    own_mean, own_std = (torch.tensor(v).view(3, 1, 1) for v in (data.mean, data.std))
    torch.testing.assert_close(theirs, plain * own_std + own_mean, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"classes": 1}, "two classes at least"),
        ({"each": 2}, "too few to hold any out"),
        ({"classes": 0}, "no images in sub-folders"),
    ],
)
def test_a_folder_that_will_not_do(tmp_path, capsys, changes, match):
    images = folder(tmp_path / "images", **changes)
    (tmp_path / "images").mkdir(exist_ok=True)
    command = ["compare", NAME, "--set", "depth=1", "embed_dim=32", "num_heads=2", "img_size=16"]
    assert main([*command, "--data", images, "--batch-size", "2", *QUICK]) == 2
    assert match in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--steps", "-1"], "--steps"),
        (["--lrs", "0"], "--lrs"),
        (["--batch-size", "5000"], "--batch-size"),
        (["--set", "num_classes=5"], "outside of the model's 5 classes"),
        (["--ancestor", "no_such"], "no_such"),
        (["--plot", "starts.txt"], ".png"),
        (["--method", "lemon", "--set", "no_such=1"], "refuses"),
    ],
)
def test_a_users_error_is_two_and_says_what_to_do(arguments, match, capsys):
    command = ["compare", *DIGITS]
    if arguments[0] == "--method":
        command = ["compare", NAME, "--data", "digits"]
    assert main([*command, *QUICK, *arguments]) == 2
    assert match in capsys.readouterr().err
