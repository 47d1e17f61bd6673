import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from weightinit.ancestor.ancestor import Ancestor
from weightinit.cli import main
from weightinit.errors import WeightInitError

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
    assert main([*arguments, "-o", str(new), "--force", "--method", "weight_selection"]) == 2
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
                "--force",
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
    assert rows["digits-weit"]["method"] == "weit"
    assert rows["pith-cifar10"]["kind"] == "hypernetwork" != rows["digits-w32"]["kind"]
    assert main(["templates"]) == 0
    assert "logah-cifar10: logah hypernetwork" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["inspect", "vit_tinny"], "cannot build"),
        (["inspect", "vit_tiny_patch16_224", "--set", "depth"], "KEY=VALUE"),
        (["inspect", "vit_tiny_patch16_224", "--set", "dept=2"], "has 'vit_tiny_patch16_224' and"),
        (["inspect", "vit_tiny_patch16_224", "--set", "depth={1}"], "cannot be stored"),
        (["init", "vit_tiny_patch16_224"], "-o F.safetensors is missing"),
        (["init", "vit_tiny_patch16_224", "-o", "vit.pt"], ".safetensors"),
        (["init", "vit_tiny_patch16_224", "-o", "x" * 300 + ".safetensors"], "cannot write"),
        (["demo", "-o", "nowhere/demo.png"], "existing folder"),
        (["demo", "-o", "demo.safetensors"], ".png"),
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


FILL = ["init", "vit_tiny_patch16_224", *SIZE, "num_classes=10"]


def test_a_file_gets_the_umasks_mode_and_is_the_same_every_time(tmp_path):
    files = [tmp_path / f"{number}.safetensors" for number in range(3)]
    before = os.umask(0o027)
    try:
        for file in files:
            assert main([*FILL, "-o", str(file)]) == 0
    finally:
        os.umask(before)
    assert {file.stat().st_mode & 0o777 for file in files} == {0o640}
    assert len({file.read_bytes() for file in files}) == 1


def test_a_file_is_replaced_by_force_alone_and_a_link_is_followed(tmp_path, capsys):
    file, link = tmp_path / "old.safetensors", tmp_path / "link.safetensors"
    file.write_text("old")
    link.symlink_to(file)
    for output in (file, link):
        assert main([*FILL, "-o", str(output)]) == 2
        assert "--force" in capsys.readouterr().err and file.read_text() == "old"
    assert main([*FILL, "-o", str(link), "--force"]) == 0
    assert link.is_symlink() and "head.weight" in load_file(file)
    gone = tmp_path / "gone.safetensors"
    gone.symlink_to(tmp_path / "new.safetensors")
    assert main([*FILL, "-o", str(gone)]) == 0
    assert gone.is_symlink() and (tmp_path / "new.safetensors").is_file()


def test_what_is_no_regular_file_is_never_replaced(tmp_path, capsys):
    fifo, folder = tmp_path / "fifo.safetensors", tmp_path / "folder.safetensors"
    device = tmp_path / "device.safetensors"
    os.mkfifo(fifo)
    folder.mkdir()
    device.symlink_to("/dev/null")
    before = {path: path.lstat().st_ino for path in (fifo, folder, device)}
    for path, number in before.items():
        for force in ([], ["--force"]):
            assert main([*FILL, "-o", str(path), *force]) == 2
            assert "no regular file" in capsys.readouterr().err
        assert path.lstat().st_ino == number
    assert Path("/dev/null").is_char_device()


def test_outputs_are_tried_before_any_work(tmp_path, monkeypatch, capsys):
    """Root may write anywhere, so that the system's answer is made up."""

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    monkeypatch.setattr("timm.create_model", None)
    assert main([*FILL, "-o", str(tmp_path / "vit.safetensors")]) == 2
    assert "No space left" in capsys.readouterr().err


def test_a_disk_that_fills_up_meanwhile_leaves_nothing(tmp_path, monkeypatch, capsys):
    def full(*args, **kwargs):
        raise SafetensorError("Error while serializing: I/O error: No space left on device")

    monkeypatch.setattr("weightinit.files.writing.save_file", full)
    assert main([*FILL, "-o", str(tmp_path / "vit.safetensors")]) == 2
    assert "with space left" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([*FILL, "--dry-run", "-o", "vit.safetensors"]) == 0
    assert "nothing was written" in capsys.readouterr().out
    assert main([*FILL, "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["counts"]["written"] == 32
    assert list(tmp_path.iterdir()) == []


def test_what_is_kept_is_as_timm_initialises_it(tmp_path):
    heads = []
    for number, seed in enumerate(("0", "0", "1")):
        file = tmp_path / f"{number}.safetensors"
        assert main([*FILL, "--keep", "head.weight", "--seed", seed, "-o", str(file)]) == 0
        heads.append(load_file(file)["head.weight"])
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])
    assert 0.01 < float(heads[0].std()) < 0.03


def ancestor_file(folder, **changes):
    """Write a file as another program would: nothing but the tensors."""
    size = {"depth": 2, "embed_dim": 48, "num_heads": 6, "num_classes": 5}
    model = timm.create_model(
        "vit_tiny_patch16_224", **{**size, "img_size": 32, "patch_size": 8, **changes}
    )
    save_file(model.state_dict(), folder / "bare.safetensors")
    return str(folder / "bare.safetensors")


TARGET = ["vit_tiny_patch16_224", "--set", "depth=2", "embed_dim=24", "num_heads=3"]
TARGET += ["img_size=32", "patch_size=8", "num_classes=5"]


def test_heads_of_a_file_that_does_not_say(tmp_path, capsys):
    bare = ancestor_file(tmp_path)
    command = ["project", bare, *TARGET, "--method", "weight_selection"]
    output = ["-o", str(tmp_path / "new.safetensors")]
    assert main([*command, *output]) == 2
    assert "heads= is --heads" in capsys.readouterr().err
    assert main([*command, *output, "--heads", "6"]) == 0
    assert Ancestor.open(tmp_path / "new.safetensors").anatomy.sizes["h"] == 3


def test_the_grid_reaches_the_ancestor(tmp_path, monkeypatch):
    given = {}

    def opened(source, **options):
        given.update(options)
        raise WeightInitError("seen")

    monkeypatch.setattr(Ancestor, "open", opened)
    assert main(["project", "x", *TARGET, "--grid", "2", "8", "--heads", "3", "--dry-run"]) == 2
    assert given == {"heads": 3, "grid": (2, 8)}


@pytest.mark.parametrize("channels", [1, 3])
def test_a_folder_of_images_calibrates(tmp_path, capsys, channels):
    generator = torch.Generator().manual_seed(0)
    for number in range(12):
        pixels = torch.randint(256, (40, 50, 3), generator=generator, dtype=torch.uint8)
        (tmp_path / str(number % 2)).mkdir(exist_ok=True)
        Image.fromarray(pixels.numpy()).save(tmp_path / str(number % 2) / f"{number}.png")
    size = [f"in_chans={channels}", "embed_dim=48", "num_heads=6", *TARGET[5:]]
    old = str(tmp_path / "old.safetensors")
    assert main(["init", *TARGET[:2], *size, "depth=2", "-o", old]) == 0
    capsys.readouterr()
    command = ["project", old, *TARGET, f"in_chans={channels}", "--dry-run"]
    assert main([*command, "--calibration", str(tmp_path), "--method", "activation"]) == 0
    assert "nothing was written" in capsys.readouterr().out
    (tmp_path / "empty").mkdir()
    assert main([*command, "--calibration", str(tmp_path / "empty")]) == 2
    assert "holds no images" in capsys.readouterr().err
    (tmp_path / "0" / "broken.png").write_bytes(b"no image")
    assert main([*command, "--calibration", str(tmp_path)]) == 2
    assert "broken.png cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "picked ActivationAware"),
        (["--calibration", "none"], "picked WeightSelection"),
        (
            ["--calibration", "generated", "--method", "subcloning"],
            "run on 96 generated images",
        ),
    ],
)
def test_images_are_generated_where_no_folder_is_named(tmp_path, capsys, options, said):
    old = str(tmp_path / "old.safetensors")
    wider = ["embed_dim=48", "num_heads=6", *TARGET[5:]]
    assert main(["init", *TARGET[:2], *wider, "depth=2", "-o", old]) == 0
    assert main(["project", old, *TARGET, "--dry-run", *options]) == 0
    assert said in capsys.readouterr().out


def test_calibration_without_torchvision_says_what_to_install(tmp_path, monkeypatch, capsys):
    old = str(tmp_path / "old.safetensors")
    main(["init", *TARGET, "-o", old])
    monkeypatch.setitem(sys.modules, "timm.data.transforms_factory", None)
    assert main(["project", old, *TARGET, "--calibration", str(tmp_path), "--dry-run"]) == 2
    assert "pip install torchvision" in capsys.readouterr().err


def shell(command, **options):
    return subprocess.run(
        ["bash", "-c", command.replace("weightinit", f"{sys.executable} -W error -m weightinit")],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[1],
        **options,
    )


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        ("weightinit templates | true; exit ${PIPESTATUS[0]}", 0, ""),
        ("weightinit templates > /dev/full", 2, "cannot print"),
        ("weightinit templates --json >&-", 0, ""),
    ],
)
def test_an_output_that_ends_leaves_no_traceback(command, code, words):
    done = shell(command)
    assert done.returncode == code and words in done.stderr and "Traceback" not in done.stderr
    assert bool(done.stderr) is bool(words)


def test_ctrl_c_is_130_without_a_traceback(monkeypatch, capsys):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("timm.create_model", interrupted)
    assert main(["inspect", "vit_tiny_patch16_224"]) == 130
    assert capsys.readouterr().err == "weightinit: interrupted\n"


def test_a_seed_of_more_than_64_bits_is_two(capsys):
    with pytest.raises(SystemExit) as stop:
        main([*FILL, "--seed", str(2**64), "--dry-run"])
    assert stop.value.code == 2 and "64 bits" in capsys.readouterr().err


def test_unknown_commands_are_two():
    with pytest.raises(SystemExit) as stop:
        main(["frobnicate"])
    assert stop.value.code == 2
