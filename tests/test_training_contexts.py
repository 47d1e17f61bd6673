import random

import pytest
import torch
from torch import nn

from weightinit.training.contexts import evaluating, seeded


def test_seeded_puts_the_generators_back_after_an_error():
    before = torch.get_rng_state(), random.getstate()
    with pytest.raises(KeyError), seeded(5):
        torch.rand(3), random.random()
        raise KeyError
    assert torch.equal(before[0], torch.get_rng_state()) and before[1] == random.getstate()


def test_modes_are_put_back_after_an_error():
    module = nn.Sequential(nn.Linear(2, 2), nn.Dropout()).train()
    module[1].eval()
    with pytest.raises(KeyError), evaluating(module) as device:
        assert not module.training and not torch.is_grad_enabled() and device.type == "cpu"
        raise KeyError
    assert module.training and module[0].training and not module[1].training
