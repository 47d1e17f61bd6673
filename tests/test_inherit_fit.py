import pytest
import torch
from torch import nn

from weightinit.errors import ProjectionError
from weightinit.inherit.fit import fit, run


def linear():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Linear(3, 1)


def loss_of(module):
    return module(torch.ones(2, 3)).square().mean()


def test_steps_are_those_of_a_loop_by_hand():
    module, other = linear(), linear()
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 4)
    fit(module, loss_of, optimizer, schedule, steps=4, clip_grad=0.5)
    optimizer = torch.optim.AdamW(other.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 4)
    for _ in range(4):
        optimizer.zero_grad()
        loss_of(other).backward()
        nn.utils.clip_grad_norm_(other.parameters(), 0.5)
        optimizer.step()
        schedule.step()
    assert all(map(torch.equal, module.parameters(), other.parameters()))
    assert all(p.grad is None for p in module.parameters())


def test_a_resumed_range_is_counted_on_and_shown(capsys):
    module, seen = linear(), []

    def step(index):
        seen.append(index)
        loss = loss_of(module)
        loss.backward()
        return loss

    def after(done, loss):
        assert done == seen[-1] + 1 and not loss.requires_grad
        return {"loss": float(loss)}

    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    run(range(3, 5), step, optimizer, after=after, progress=True)
    shown = capsys.readouterr().err
    assert seen == [3, 4] and "5/5" in shown and "loss=" in shown
    run(range(5, 6), step, optimizer, progress=False)
    assert capsys.readouterr().err == ""


def test_a_loss_that_is_not_finite_changes_nothing():
    module = linear()
    before = {name: value.clone() for name, value in module.state_dict().items()}

    def step(index):
        loss = loss_of(module) * float("inf")
        loss.backward()
        return loss

    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    with pytest.raises(ProjectionError, match=r"loss is inf at step 7: use a lower lr than 0\.1"):
        run(range(7, 9), step, optimizer, progress=False)
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
