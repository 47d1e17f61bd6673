import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from weightinit.errors import WeightInitError
from weightinit.training import checkpoint
from weightinit.training.checkpoint import load_checkpoint, save_checkpoint


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(3, 3)
        self.b = nn.Linear(3, 3)
        self.b.weight = self.a.weight
        self.register_buffer("seen", torch.tensor(4))


def trained(steps=3):
    torch.manual_seed(0)
    module = Tied()
    optimizer = torch.optim.AdamW(module.parameters(), fused=True)
    for _ in range(steps):
        module.b(module.a(torch.ones(2, 3))).sum().backward()
        optimizer.step()
    return module, optimizer


def test_weights_moments_and_state_come_back_bit_for_bit(tmp_path):
    path = tmp_path / "deep" / "c.safetensors"
    module, optimizer = trained()
    save_checkpoint(path, module, optimizer, {"step": 3, "rows": [{"loss": 0.1}]})
    other, blank = trained(steps=0)
    state = load_checkpoint(path, other, blank)
    assert state == {"step": 3, "rows": [{"loss": 0.1}]}
    for a, b in zip(module.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    for index, entry in optimizer.state_dict()["state"].items():
        for name, value in entry.items():
            assert torch.equal(value, blank.state_dict()["state"][index][name])
    assert [p.name for p in path.parent.iterdir()] == ["c.safetensors"]


def test_a_failed_write_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "c.safetensors"
    module, optimizer = trained()
    save_checkpoint(path, module, optimizer, {"step": 1})

    def broken(tensors, file, metadata):
        file.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(checkpoint, "save_file", broken)
    with pytest.raises(WeightInitError, match=r"cannot write .*disk full"):
        save_checkpoint(path, module, optimizer, {"step": 2})
    assert load_checkpoint(path, module) == {"step": 1}


def test_another_model_is_refused(tmp_path):
    path = tmp_path / "c.safetensors"
    save_checkpoint(path, *trained(), {"step": 1})
    with pytest.raises(WeightInitError, match="not a checkpoint of this model"):
        load_checkpoint(path, nn.Linear(2, 2))


@pytest.mark.parametrize("state", [[], 5, "x", None, {}, {"step": "3"}, {"step": True}])
def test_a_state_of_another_form_is_refused(tmp_path, state):
    path = tmp_path / "c.safetensors"
    save_checkpoint(path, *trained(), state)
    with pytest.raises(WeightInitError, match="not a checkpoint of this model"):
        load_checkpoint(path, *trained())


@pytest.mark.parametrize(
    "moments",
    [
        {"optimizer.9.exp_avg": torch.zeros(3)},
        {"optimizer.x.exp_avg": torch.zeros(3)},
        {"optimizer.0.exp_avg": torch.zeros(7)},
        {"optimizer.0.momentum": torch.zeros(3, 3)},
        {"other.0": torch.zeros(3)},
    ],
)
def test_moments_of_another_form_are_refused(tmp_path, moments):
    path = tmp_path / "c.safetensors"
    module, optimizer = trained()
    weights = {f"model.{name}": t.clone() for name, t in module.state_dict().items()}
    save_file(weights | moments, path, metadata={"state": '{"step": 1}'})
    with pytest.raises(WeightInitError, match="not a checkpoint of this model"):
        load_checkpoint(path, module, optimizer)


def test_averages_come_back_and_stand_for_the_weights(tmp_path):
    path = tmp_path / "c.safetensors"
    module, optimizer = trained()
    averages = {name: p.detach() + 1 for name, p in module.named_parameters()}
    save_checkpoint(path, module, optimizer, {"step": 3}, averages)
    other, blank = trained(steps=0)
    found = {name: torch.zeros_like(value) for name, value in averages.items()}
    load_checkpoint(path, other, blank, found)
    assert all(torch.equal(found[name], value) for name, value in averages.items())
    assert torch.equal(other.a.weight, module.a.weight)
    load_checkpoint(path, other)
    assert torch.equal(other.a.weight, averages["a.weight"])


def test_what_is_no_checkpoint_is_refused(tmp_path):
    path = tmp_path / "c.safetensors"
    path.write_bytes(b"\x80\x04pickle")
    with pytest.raises(WeightInitError, match="remove it, or start without resuming"):
        load_checkpoint(path, *trained())
