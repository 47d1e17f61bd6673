import pytest

from weightinit.errors import WeightInitError
from weightinit.training.config import TrainingConfig
from weightinit.training.run import Run


def test_a_user_changes_the_presets_config():
    preset = TrainingConfig(100, warmup_steps=10, seed=4)
    assert Run("x", seed=4).config(preset) == preset
    found = Run("x", steps=50, batch_size=8, lr=0.5, precision="bf16").config(preset, scaler_lr=2.0)
    assert (found.steps, found.warmup_steps, found.batch_size, found.lr) == (50, 5, 8, 0.5)
    assert (found.precision, found.scaler_lr, found.seed) == ("bf16", 2.0, 0)


def test_a_folder_that_is_tried_is_left_as_it_was(tmp_path):
    Run(tmp_path / "a" / "b").prepare()
    assert not list(tmp_path.iterdir())
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "notes.txt").write_text("mine")
    Run(tmp_path / "there").prepare()
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("name", ["config.json", "training/checkpoint.safetensors"])
def test_what_would_be_lost_is_refused(tmp_path, name):
    (tmp_path / "training").mkdir()
    (tmp_path / name).write_text("{}")
    with pytest.raises(WeightInitError, match=r"pass resume=True \(--resume\) to go on.*--force"):
        Run(tmp_path).prepare()
    Run(tmp_path, resume=True).prepare()
    Run(tmp_path, force=True).prepare()


def test_a_path_that_cannot_be_a_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "inside", tmp_path / ("x" * 300)):
        with pytest.raises(WeightInitError, match="cannot write to"):
            Run(path).prepare()
