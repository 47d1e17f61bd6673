import copy
import math

import pytest
import torch
from torch import nn

from weightinit.errors import ProjectionError
from weightinit.inherit.fitting import ComposedModel, fit, run


class Halved(ComposedModel):
    """A linear layer whose weight is half of a parameter."""

    def __init__(self):
        super().__init__(nn.Sequential(nn.Linear(2, 1, bias=False)), ["0.weight"])
        self.twice = nn.Parameter(torch.tensor([[2.0, 4.0]]))

    def weights(self):
        return {"0.weight": self.twice / 2}


X = torch.tensor([[1.0, 1.0]])


def train(module, train_step, steps, lr=0.1, **options):
    optimizer = torch.optim.SGD(module.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)
    fit(module, train_step, optimizer, schedule, steps=steps, progress=False, **options)


def test_weights_follow_from_parameters():
    module = Halved()
    assert [name for name, _ in module.named_parameters()] == ["twice"]
    assert module(X).tolist() == [[3.0]]
    module(X).sum().backward()
    assert module.twice.grad.tolist() == [[0.5, 0.5]]


def test_a_copy_leaves_the_composed_weights_behind():
    module = Halved()
    module(X)
    twin = copy.deepcopy(module)
    assert "weight" not in vars(twin.model[0])
    with torch.no_grad():
        twin.twice.zero_()
    assert twin(X).tolist() == [[0.0]] and module(X).tolist() == [[3.0]]


def test_fit_lowers_the_loss():
    module = Halved()
    train(module, lambda m: m(X).square().sum(), 200)
    assert abs(float(module(X).detach())) < 1e-3


def test_gradients_are_clipped():
    module = Halved()
    train(module, lambda m: 1e6 * m(X).sum(), 1, lr=1.0, max_norm=1.0)
    moved = module.twice.detach() - torch.tensor([[2.0, 4.0]])
    assert float(moved.norm()) == pytest.approx(1.0, rel=1e-4)


def test_a_loss_that_is_not_finite_stops():
    with pytest.raises(ProjectionError, match=r"at step 0: use a lower lr than 0\.1"):
        train(Halved(), lambda m: m(X).sum() * math.nan, 1)


@pytest.mark.parametrize(
    ("loss", "said"), [(1.0, "float"), (None, "NoneType"), (X, r"\("), (torch.ones(()), r"\(\)")]
)
def test_what_is_no_loss_is_named(loss, said):
    with pytest.raises(ProjectionError, match=rf"train_step returned {said}.*has a gradient"):
        train(Halved(), lambda _: loss, 1)


def test_a_resumed_range_is_counted_on_and_shown(capsys):
    module, seen = Halved(), []

    def step(index):
        seen.append(index)
        loss = module(X).square().sum()
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
    module = Halved()
    before = {name: value.clone() for name, value in module.state_dict().items()}

    def step(index):
        loss = module(X).square().sum() * float("inf")
        loss.backward()
        return loss

    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    with pytest.raises(ProjectionError, match=r"loss is inf at step 7: use a lower lr than 0\.1"):
        run(range(7, 9), step, optimizer, progress=False)
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
