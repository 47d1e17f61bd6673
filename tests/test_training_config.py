import pytest
import torch
from torch import nn

from weightinit.errors import WeightInitError
from weightinit.training.config import TrainingConfig


def test_rate_warms_up_and_falls_along_a_cosine():
    config = TrainingConfig(
        steps=110, warmup_steps=10, lr=1.0, warmup_lr=0.1, min_lr=0.2, scaler_lr=0.5
    )
    scaled = nn.ModuleDict({"scalers": nn.Linear(2, 2), "other": nn.Linear(2, 2)})
    optimizer = config.optimizer(scaled)
    schedule = config.schedule(optimizer)
    for step, lr in ((0, 0.1), (5, 0.55), (10, 1.0), (60, 0.6), (110, 0.2)):
        schedule.step_update(step)
        for group in optimizer.param_groups:
            assert group["lr"] == pytest.approx(lr * group["lr_scale"])


def test_a_users_steps_scale_the_warm_up():
    config = TrainingConfig(steps=100, warmup_steps=10, precision="bf16", seed=1)
    assert config.planned() == config
    found = config.planned(steps=50, seed=0, precision="no")
    assert (found.steps, found.warmup_steps, found.seed, found.precision) == (50, 5, 0, "no")


def test_vectors_and_excluded_names_have_no_decay():
    class Module(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(2, 2))
            self.pos = nn.Parameter(torch.ones(1, 2, 2))
            self.vector = nn.Parameter(torch.ones(2))
            self.scalers = nn.ParameterDict({"a": nn.Parameter(torch.ones(1, 1, 1))})
            self.frozen = nn.Parameter(torch.ones(2, 2), requires_grad=False)

        def no_weight_decay(self):
            return {"pos"}

    module = Module()
    optimizer = TrainingConfig(steps=1, weight_decay=0.3, scaler_lr=5.0).optimizer(module)
    found = {
        id(p): (group["weight_decay"], group["lr_scale"])
        for group in optimizer.param_groups
        for p in group["params"]
    }
    assert found == {
        id(module.w): (0.3, 1.0),
        id(module.pos): (0.0, 1.0),
        id(module.vector): (0.0, 1.0),
        id(module.scalers["a"]): (0.3, 5.0),
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": "mse"}, "loss 'mse' is not supported: use one of"),
        ({"precision": "fp8"}, "precision 'fp8' is not supported"),
        ({"steps": 0}, "steps=0"),
    ],
)
def test_bad_configs_are_refused(changes, message):
    with pytest.raises(WeightInitError, match=message):
        TrainingConfig(**({"steps": 1} | changes))
