import json
from dataclasses import replace

import pytest
import torch
from helpers.processes import torchrun
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from weightinit.errors import WeightInitError
from weightinit.training.checkpoint import load_checkpoint
from weightinit.training.config import TrainingConfig
from weightinit.training.data import load_data
from weightinit.training.images import ImageData
from weightinit.training.loop import distillation_loss, train


@pytest.fixture(scope="module")
def digits():
    return load_data("digits")


def classifier(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Flatten(), nn.Linear(64, 24), nn.BatchNorm1d(24), nn.Dropout(0.1), nn.Linear(24, 10)
        )


def bits(module):
    return {k: v.clone() for k, v in module.state_dict().items()}


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_it_learns_and_reports(digits, tmp_path):
    module = classifier()
    module.eval()
    config = TrainingConfig(steps=60, batch_size=64, lr=1e-2, warmup_steps=5)
    history = train(module, digits, config, out=tmp_path, eval_every=30)
    assert history.val > 70 and history.rows[-1]["step"] == 60
    assert [row["step"] for row in history.rows if "val" in row] == [30, 60]
    assert history.rows[-1]["loss"] < 0.8 * history.rows[0]["loss"]
    saved = json.loads((tmp_path / "history.json").read_text())
    assert saved["rows"] == history.rows and saved["config"]["lr"] == 1e-2
    assert digits.score(module) == history.val


class Killed(Exception):
    pass


class Mortal(nn.Module):
    """Dies at one training step, as a process does."""

    def __init__(self, inner, at=None):
        super().__init__()
        self.inner, self.at, self.steps = inner, at, 0

    def forward(self, x):
        if self.training:
            self.steps += 1
            if self.steps == self.at:
                raise Killed
        return self.inner(x)


@pytest.mark.parametrize("loss", ["ce", "soft+ce"])
def test_a_killed_run_resumes_bit_for_bit(digits, tmp_path, loss):
    config = TrainingConfig(steps=24, batch_size=32, warmup_steps=4, loss=loss, clip_grad=1.0)
    options = {"ancestor": classifier(seed=1), "save_every": 5, "eval_every": 6}
    whole, cut = Mortal(classifier()), Mortal(classifier(), at=18)
    expected = train(whole, digits, config, **options)
    with pytest.raises(Killed):
        train(cut, digits, config, out=tmp_path, **options)
    resumed = Mortal(classifier(seed=7))
    history = train(resumed, digits, config, out=tmp_path, resume=True, **options)
    assert resumed.steps == 24 - 15
    assert equal(bits(resumed), bits(whole))
    assert {r["step"]: r.get("val") for r in history.rows} == {
        r["step"]: r.get("val") for r in expected.rows
    }


def test_a_finished_run_is_not_run_again(digits, tmp_path):
    config = TrainingConfig(steps=3, batch_size=32)
    train(classifier(), digits, config, out=tmp_path)
    module = Mortal(classifier(), at=1)
    history = train(module.inner, digits, config, out=tmp_path, resume=True)
    assert history.rows[-1]["step"] == 3 and module.steps == 0


def test_another_config_is_not_resumed(digits, tmp_path):
    train(classifier(), digits, TrainingConfig(steps=2, batch_size=32), out=tmp_path)
    for steps in (3, 1):
        message = rf"trained by another config \(steps 2, now {steps}\)"
        with pytest.raises(WeightInitError, match=message):
            train(classifier(), digits, TrainingConfig(steps, 32), out=tmp_path, resume=True)


@pytest.mark.parametrize(
    "changes",
    [
        {"history": None}, {"history": {}}, {"history": {"config": {}, "rows": 3, "seconds": 0}},
        {"history": {"config": {}, "rows": [4], "seconds": 0}}, {"scaler": 4}, {"recent": "x"},
        {"recent": None}, {"step": -1}, {"step": 99},
    ],
)  # fmt: skip
def test_a_checkpoint_of_another_form_is_not_resumed(digits, tmp_path, changes):
    config, module = TrainingConfig(2, 32), classifier()
    train(module, digits, config, out=tmp_path)
    file = tmp_path / "checkpoint.safetensors"
    with safe_open(file, "pt") as opened:
        state = json.loads(opened.metadata()["state"])
    save_file(load_file(file), file, metadata={"state": json.dumps(state | changes)})
    with pytest.raises(WeightInitError, match=r"no checkpoint of this version.*--force"):
        train(classifier(), digits, config, out=tmp_path, resume=True)


def test_a_run_is_not_resumed_on_other_data(digits, tmp_path):
    config = TrainingConfig(2, 32)
    train(classifier(), digits, config, out=tmp_path)
    other = replace(digits, name="other")
    with pytest.raises(WeightInitError, match="another config \\(data"):
        train(classifier(), other, config, out=tmp_path, resume=True)


def test_the_global_generator_is_left_alone(digits):
    before = torch.get_rng_state()
    train(classifier(), digits, TrainingConfig(steps=2, batch_size=32))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_trains_and_gives_the_module_back(digits, precision, tmp_path):
    module = classifier()
    forward = module.forward
    config = TrainingConfig(steps=60, batch_size=64, lr=1e-2, precision=precision, clip_grad=5.0)
    history = train(module, digits, config, out=tmp_path)
    assert history.val > 70
    assert module.forward == forward and all(p.dtype == torch.float32 for p in module.parameters())
    assert module.eval()(torch.zeros(1, 1, 8, 8)).dtype == torch.float32


def test_loss_against_float64():
    draw = torch.Generator().manual_seed(0)
    z, t = (torch.randn(6, 5, generator=draw) * 3 for _ in range(2))
    y = torch.softmax(torch.randn(6, 5, generator=draw), 1)
    p, q = (torch.softmax(v.double(), 1) for v in (z, t))
    ce = -(y.double() * p.log()).sum() / 6
    kl = (q * (q.log() - p.log())).sum() / 6
    both = torch.stack([z, z.flip(0)], 1)
    for loss, expected in (
        (lambda z: ImageData.loss(z, y), ce),
        (lambda z: distillation_loss("soft", z, y, t), kl),
        (lambda z: distillation_loss("soft+ce", z, y, t), kl + ce),
    ):
        assert float(loss(z)) == pytest.approx(float(expected), rel=1e-5)
        torch.testing.assert_close(loss(both), (loss(z) + loss(z.flip(0))) / 2)


def test_a_loss_that_is_not_finite_stops_the_training(digits):
    module = classifier()
    with torch.no_grad():
        module[1].weight.fill_(float("nan"))
    with pytest.raises(WeightInitError, match=r"loss is nan at step 0: use a lower lr than 0\.5"):
        train(module, digits, TrainingConfig(steps=1, batch_size=32, lr=0.5))


def test_several_tasks_take_turns(digits):
    tasks = [digits, replace(digits, name="again")]
    history = train(classifier(), tasks, TrainingConfig(steps=60, batch_size=64, lr=1e-2))
    assert history.val > 70


def test_soft_labels_need_an_ancestor(digits):
    with pytest.raises(WeightInitError, match="needs an ancestor"):
        train(classifier(), digits, TrainingConfig(steps=1, loss="soft"))


WORKER = """
import sys, torch
from torch import nn
from weightinit.training.data import load_data
from weightinit.training.loop import train
from weightinit.training.config import TrainingConfig
torch.set_num_threads(1)
torch.manual_seed(0)
module = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
from pathlib import Path
config = TrainingConfig(steps=8, batch_size=32, augment="none", lr=1e-2)
history = train(module, load_data("digits"), config, out=Path(sys.argv[1]))
"""


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one(digits, tmp_path):
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    torchrun(script, tmp_path)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        alone, together = (nn.Sequential(nn.Flatten(), nn.Linear(64, 10)) for _ in range(2))
        torch.manual_seed(0)
        alone[1].reset_parameters()
    train(alone, digits, TrainingConfig(steps=8, batch_size=32, augment="none", lr=1e-2))
    state = load_checkpoint(tmp_path / "checkpoint.safetensors", together)
    assert state["step"] == 8
    torch.testing.assert_close(together[1].weight, alone[1].weight, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_torchrun_is_seen_without_an_accelerator(tmp_path):
    """accelerate takes a torchrun on a machine without GPUs for single processes."""
    worker = tmp_path / "worker.py"
    worker.write_text(
        "import os\n"
        "from weightinit.training.fleet import accelerator\n"
        # one write, which the other process cannot come between
        "os.write(1, f'processes: {accelerator().num_processes}\\n'.encode())\n"
    )
    count = 2 if not torch.accelerator.is_available() else min(2, torch.accelerator.device_count())
    assert torchrun(worker).count(f"processes: {count}") == 2
