"""Writing into a model: whatever hangs on its parameters stays, and Ctrl-C leaves no mixture."""

import copy
import os
import signal
import threading
import weakref

import pytest
import torch
from helpers.models import make_bundle, state_hash, vit
from torch import nn

import weightinit as wi
from weightinit import commit
from weightinit.errors import ProjectionError


def on_meta(**options):
    with torch.device("meta"):
        return vit(**options)


class Marked(nn.Parameter):
    """A Parameter of a user's own class."""


def test_all_that_hangs_on_a_meta_parameter_stays():
    model = on_meta()
    model.head.weight = Marked(model.head.weight.data)
    stem = model.patch_embed.proj.weight
    stem.data = stem.data.to(memory_format=torch.channels_last)
    called, parameter = [], model.head.weight
    parameter.no_weight_decay = True
    parameter.register_post_accumulate_grad_hook(lambda p: called.append("accumulated"))
    handle = parameter.register_hook(lambda grad: called.append("computed"))
    reference = weakref.ref(parameter)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    wi.init_from_templates(model, make_bundle())
    assert model.head.weight is parameter and isinstance(parameter, Marked)
    assert parameter.no_weight_decay and reference() is parameter
    assert stem.is_contiguous(memory_format=torch.channels_last)
    before = state_hash(model)
    model(torch.ones(2, 1, 8, 8)).sum().backward()
    assert called == ["computed", "accumulated"]
    optimizer.step()
    assert state_hash(model) != before
    handle.remove()
    called.clear()
    model(torch.ones(2, 1, 8, 8)).sum().backward()
    assert called == ["accumulated"]


def changes():
    yield "to_empty", lambda model: model.to_empty(device="cpu")
    yield "another head", lambda model: setattr(model, "head", nn.Linear(16, 5))
    yield "another size", lambda model: setattr(model, "head", nn.Linear(16, 6))
    yield "one more", lambda model: setattr(model.norm, "gain", nn.Parameter(torch.ones(1)))
    yield "one less", lambda model: setattr(model, "head", nn.Identity())
    yield "half", lambda model: model.half()


@pytest.mark.parametrize(("name", "change"), list(changes()))
@pytest.mark.parametrize("validated", [False, True])
def test_a_stale_plan_is_refused(name, change, validated):
    model = on_meta() if name == "to_empty" else vit()
    plan = wi.plan_templates(model, make_bundle())
    if validated:
        plan.validate()
    change(model)
    before = state_hash(model)
    with pytest.raises(ProjectionError, match=r"no longer what this plan was made for.*new plan"):
        plan.commit()
    assert state_hash(model) == before


def test_a_plan_can_be_committed_twice_and_on_another_device_of_the_same_parameters():
    model = vit()
    plan = wi.plan_templates(model, make_bundle())
    plan.commit()
    before = state_hash(model)
    with torch.no_grad():
        model.head.weight.zero_()
    plan.commit()
    assert state_hash(model) == before


def test_a_target_that_holds_parts_of_its_source_is_refused():
    ancestor = vit(depth=3)
    for share in (
        lambda model: model.blocks.__setitem__(0, ancestor.blocks[2]),
        lambda model: setattr(model.head.weight, "data", ancestor.head.weight.data),
        lambda model: setattr(model.head.bias, "data", ancestor.head.weight.data.view(-1)[:5]),
    ):
        model = vit(depth=2)
        share(model)
        before, source = state_hash(model), state_hash(ancestor)
        state = wi.Ancestor.open(ancestor.state_dict(), heads=2)
        for given in (ancestor, wi.Ancestor.open(ancestor), state):
            with pytest.raises(ProjectionError, match="share memory with the source"):
                wi.project_from(given, model)
        assert (state_hash(model), state_hash(ancestor)) == (before, source)
    model = vit(depth=2)
    model.blocks[0] = ancestor.blocks[2]
    wi.project_from(ancestor, model, keep=["blocks.0"])
    model.blocks[0] = copy.deepcopy(ancestor.blocks[2])
    wi.project_from(ancestor, model)


def test_a_model_is_no_source_of_itself():
    model = vit()
    with pytest.raises(ProjectionError, match="share memory"):
        wi.project_from(model, model)


def test_two_parameters_over_one_memory_are_refused_and_tied_ones_are_not():
    model = vit()
    model.blocks[1].norm1.weight.data = model.blocks[0].norm1.weight.data
    before = state_hash(model)
    with pytest.raises(ProjectionError, match=r"norm1\.weight and .*norm1\.weight share memory"):
        wi.init_from_templates(model, make_bundle())
    assert state_hash(model) == before
    model = vit()
    model.blocks[1].norm1.weight = model.blocks[0].norm1.weight
    flat = torch.zeros(32)
    model.blocks[0].norm2.weight.data, model.blocks[1].norm2.weight.data = flat[:16], flat[16:]
    wi.init_from_templates(model, make_bundle())


@pytest.mark.parametrize("at", [0, 7, 40])
def test_ctrl_c_while_writing_is_undone_and_a_second_one_changes_nothing(monkeypatch, at):
    model = vit()
    before = state_hash(model)
    plan = wi.plan_templates(model, make_bundle()).validate()
    copies = []
    copy_ = torch.Tensor.copy_

    def interrupted(self, *args, **kwargs):
        if len(copies) >= at:  # while writing, and again at each step of the way back
            signal.raise_signal(signal.SIGINT)
        copies.append(1)
        return copy_(self, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "copy_", interrupted)
    with pytest.raises(KeyboardInterrupt):
        plan.commit()
    monkeypatch.undo()
    assert state_hash(model) == before
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("seed", range(10))
def test_ctrl_c_at_any_moment_of_a_commit_leaves_all_or_nothing(seed):
    model = vit(depth=12, embed_dim=96, num_heads=6)
    before = copy.deepcopy(model)
    after = wi.init_from_templates(copy.deepcopy(model), make_bundle())
    plan = wi.plan_templates(model, make_bundle()).validate()
    delay = float(torch.rand((), generator=torch.Generator().manual_seed(seed))) * 0.02
    timer = threading.Timer(delay, os.kill, (os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        timer.start()  # in here: a busy machine may be slower than the timer
        plan.commit()
        timer.join(10)
    assert any(
        all(torch.equal(a, b) for a, b in zip(model.parameters(), state, strict=True))
        for state in (list(before.parameters()), list(after.parameters()))
    )


def test_a_users_own_handler_of_ctrl_c_is_left_alone():
    calls = []
    before = signal.signal(signal.SIGINT, lambda *_: calls.append(1))
    try:
        with commit._interrupts_held():
            signal.raise_signal(signal.SIGINT)
        assert calls == [1]
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"keep": 5}, "keep=5"),
        ({"keep": [5]}, r"keep=\[5\]"),
        ({"generator": 5}, "generator=5"),
        ({"rules": ["x"]}, r"rules=\['x'\]"),
        ({"rules": 5}, "rules=5"),
    ],
)
def test_arguments_of_another_type_are_named(arguments, error):
    old, bundle = vit(), make_bundle()
    for call in (
        lambda model: wi.init_from_templates(model, bundle, **arguments),
        lambda model: wi.init_mimetic(model, **arguments),
        lambda model: wi.project_from(old, model, **arguments),
    ):
        with pytest.raises(wi.WeightInitError, match=error):
            call(vit())
