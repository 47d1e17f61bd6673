import pytest
import torch
from helpers.models import vit
from torch import nn

from weightinit.anatomy import anatomy
from weightinit.errors import ProjectionError
from weightinit.templates.slots import find_slots


def test_slots_are_the_parameters_that_covered_roles_make_up():
    model = vit()
    seen = anatomy(model)
    qkv = {f"attn.{part}.weight" for part in "qkv"}
    slots = find_slots(seen, {*qkv, "norm1.bias"})
    assert {slot.specs[0].name for slot in slots} == {
        "blocks.0.attn.qkv.weight",
        "blocks.0.norm1.bias",
    }
    assert all(len(slot.specs) == 3 for slot in slots)


def test_stored_is_the_inverse_of_split():
    model = vit()
    seen = anatomy(model)
    (slot,) = find_slots(seen, {f"attn.{part}.weight" for part in "qkv"})
    weights = [block.attn.qkv.weight.detach() for block in model.blocks]
    split = [seen.split(spec, w) for spec, w in zip(slot.specs, weights, strict=True)]
    parts = [torch.stack([s[role] for s in split]) for role in slot.specs[0].parts]
    for found, weight in zip(slot.stored(parts, seen), weights, strict=True):
        assert torch.equal(found, weight)


def test_places_are_modules_and_attributes():
    model = vit()
    (slot,) = find_slots(anatomy(model), {"mlp.fc1.bias"})
    places = list(slot.places(model, 2))
    assert [(i, leaf) for i, _, leaf in places] == [(0, "bias"), (1, "bias")]
    assert places[1][1] is model.blocks[1].mlp.fc1


def test_a_parameter_that_some_blocks_lack_is_refused():
    model = vit()
    model.blocks[1].mlp.fc1 = nn.Linear(16, 64, bias=False)
    with pytest.raises(ProjectionError, match="all blocks must have it in one size"):
        find_slots(anatomy(model), {"mlp.fc1.bias"})


def test_a_parameter_that_is_covered_in_part_is_refused():
    with pytest.raises(ProjectionError, match="Leave its kind out of the config"):
        find_slots(anatomy(vit()), {"attn.q.weight"})
