import pytest
import timm
import torch
from helpers.inherit import small_vit
from helpers.models import draw

from weightinit.anatomy import anatomy
from weightinit.errors import ProjectionError
from weightinit.methods.activation.keep import Keep
from weightinit.methods.activation.leastsquares import Moments


def keep(group, old=None, **sizes):
    return Keep(
        anatomy(old or small_vit(depth=4)), anatomy(small_vit(16, 2, 2, **sizes)), list(group)
    )


def moments(alive, width):
    """Of hidden activations of which some channels write, in that order of size."""
    x = draw(200, width, seed=1)
    x[:, alive] *= torch.arange(2 * len(alive), len(alive), -1)
    found = Moments()
    found.add(x, x[:, alive])
    return found.centred()


def test_heads_come_from_all_blocks_of_a_group():
    chosen = keep([0, 1])
    heads = torch.tensor([1, 5])
    channels = (heads[:, None] * 8 + torch.arange(8)).flatten()
    chosen.choose("attn", *moments(channels, 48))
    assert torch.equal(chosen.kept["attn"], channels)
    first, second = draw(24, 5, seed=2), draw(24, 5, seed=3)
    wanted = torch.cat([first[8:16], second[16:24]])
    assert torch.equal(chosen.keep("attn.q.weight", [first, second]), wanted)
    assert torch.equal(chosen.keep("attn.proj.weight", [first.T, second.T]), wanted.T)


def test_neurons_come_from_all_blocks_of_a_group():
    chosen = keep([2, 3], mlp_ratio=0.25)
    chosen.choose("mlp", *moments(torch.tensor([0, 95, 96, 150]), 192))
    assert chosen.kept["mlp"].tolist() == [0, 95, 96, 150]
    biases = [torch.arange(96), torch.arange(96) + 100]
    assert chosen.keep("mlp.fc1.bias", biases).tolist() == [0, 95, 100, 154]


def test_heads_stay_in_one_block_where_it_shares_a_norm_among_them():
    chosen = keep([0, 1], small_vit(depth=4, qk_norm=True), qk_norm=True)
    channels = torch.arange(32, 48)
    chosen.choose("attn", *moments(torch.cat([channels, torch.arange(4)]), 48))
    assert torch.equal(chosen.kept["attn"], channels)
    assert chosen.keep("attn.q_norm.weight", [torch.zeros(8), torch.ones(8)]).all()


def test_all_are_kept_where_there_is_room():
    model = small_vit(24, 3, 2)
    chosen = Keep(anatomy(model), anatomy(model), [1])
    for branch, number in (("attn", 24), ("mlp", 96)):
        assert chosen.all(branch)
        assert torch.equal(chosen.kept[branch], torch.arange(number))


def test_a_norm_over_all_neurons_cannot_be_cut():
    options = {"img_size": 32, "patch_size": 8, "num_heads": 3, "depth": 2, "num_classes": 5}
    old = timm.create_model("eva02_base_patch14_224", embed_dim=24, **options)
    new = timm.create_model("eva02_base_patch14_224", embed_dim=24, mlp_ratio=1, **options)
    with pytest.raises(ProjectionError, match=r"mlp.norm.weight acts on all.*keep m = "):
        Keep(anatomy(old), anatomy(new), [0]).choose("mlp", torch.eye(96), torch.eye(96))


def test_neurons_that_write_most_are_candidates():
    chosen = keep([0, 1], mlp_ratio=0.25)
    written = torch.zeros(192)
    written[[7, 8, 100, 101, 5, 190]] = torch.tensor([9.0, 8.0, 7.0, 6.0, 5.0, 4.0])
    among = chosen.candidates("mlp", written)
    assert among.tolist() == [5, 7, 8, 100, 101, 190]
    chosen.choose("mlp", *moments(torch.tensor([1, 2, 4, 5]), 6), among)
    assert chosen.kept["mlp"].tolist() == [7, 8, 101, 190]
    assert torch.equal(chosen.candidates("attn", torch.zeros(48)), torch.arange(48))
