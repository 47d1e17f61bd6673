import pytest
import torch
from helpers.inherit import small_vit
from helpers.models import draw
from torch import nn

from weightinit.anatomy import anatomy
from weightinit.ancestor.ancestor import Ancestor
from weightinit.errors import ProjectionError
from weightinit.inherit.running import Running
from weightinit.methods.activation.blocks import Blocks, absorbed
from weightinit.methods.activation.stream import Stream, principal

IMAGES = [draw(8, 3, 16, 16, seed=seed) for seed in (1, 2, 3)]


@torch.no_grad()
def shrunk(old, new, groups, ridge=1e-3):
    """The values of a target's blocks, its stream after them, and the ancestor's."""
    running = Running(Ancestor.open(old), IMAGES)
    traced = [running.trace(number) for number in range(len(IMAGES))]
    theirs = []
    for x, blocks in traced:
        for block in blocks:
            x = block(x)
        theirs.append(x)
    stream = principal(torch.eye(old.embed_dim).double(), new.embed_dim, centred=True)
    picks = [torch.arange(x[..., 0].numel()) for x, _ in traced]
    blocks = Blocks(running, anatomy(new), stream, [calls for _, calls in traced], picks, ridge)
    values, ours = blocks.shrink(groups, [x for x, _ in traced])
    return values, ours, theirs


def error(ours, theirs):
    """How far streams are apart as norms see them, relative to what they are."""
    ours, theirs = torch.cat(ours).double(), torch.cat(theirs)
    ours, theirs = (x - x.mean(-1, keepdim=True) for x in (ours, theirs))
    return float((ours - theirs).norm() / theirs.norm())


def test_at_full_size_gains_biases_and_scales_are_folded_and_nothing_else():
    old = small_vit(init_values=0.5).double()
    values, ours, theirs = shrunk(old, old, [[0], [1]])
    assert error(ours, theirs) < 1e-10
    block, found = old.blocks[1], values[1]
    q, _, v = block.attn.qkv.weight.chunk(3)
    torch.testing.assert_close(found["attn.v.weight"], v * block.norm1.weight)
    bias = block.attn.qkv.bias[:24] + q @ block.norm1.bias
    torch.testing.assert_close(found["attn.q.bias"], bias)
    proj = block.attn.proj
    torch.testing.assert_close(found["attn.proj.bias"], block.ls1.gamma * proj.bias)
    torch.testing.assert_close(found["attn.proj.weight"], block.ls1.gamma[:, None] * proj.weight)
    for role in ("norm1.weight", "norm2.weight", "ls1", "ls2"):
        assert torch.equal(found[role], torch.ones(24, dtype=torch.float64))
    assert not found["norm1.bias"].any()


@torch.no_grad()
def silenced(model, *blocks):
    """Blocks that write nothing into the stream."""
    for index in blocks:
        for matrix in (model.blocks[index].attn.proj, model.blocks[index].mlp.fc2):
            matrix.weight.zero_()
            matrix.bias.zero_()
    return model


@pytest.mark.parametrize("silent", [(0, 2), (1, 3), (0, 3)])
def test_blocks_that_write_nothing_merge_into_their_neighbours(silent):
    old, new = silenced(small_vit(depth=4).double(), *silent), small_vit(depth=2)
    _, ours, theirs = shrunk(old, new, [[0, 1], [2, 3]])
    # Not zero: silent neurons may be kept too, where they tell what others write.
    assert error(ours, theirs) < 2e-3


def test_heads_and_neurons_that_write_nothing_are_left_out():
    old, new = small_vit(24, 3).double(), small_vit(24, 3, mlp_ratio=2)
    with torch.no_grad():
        for block in old.blocks:
            block.mlp.fc2.weight[:, 1::2] = 0
    values, ours, theirs = shrunk(old, new, [[0], [1]])
    assert error(ours, theirs) < 1e-8
    torch.testing.assert_close(values[0]["mlp.fc2.weight"], old.blocks[0].mlp.fc2.weight[:, ::2])


def test_merged_blocks_are_nearer_than_any_of_them_alone():
    old, new = small_vit(depth=4).double(), small_vit(depth=2)
    merged = error(*shrunk(old, new, [[0, 1], [2, 3]])[1:])
    assert merged < 0.5
    assert merged < 0.7 * min(error(*shrunk(old, new, g)[1:]) for g in ([[0], [2]], [[1], [3]]))


def test_the_ridge_only_holds_the_fit_back():
    old, new = small_vit(24, 3).double(), small_vit(16, 2)
    errors = [error(*shrunk(old, new, [[0], [1]], ridge=r)[1:]) for r in (1e-4, 1e-1, 1e4)]
    assert errors[0] < errors[1] < errors[2]


class Parallel(nn.Module):
    """A block that computes attention and MLP side by side."""

    def __init__(self, block):
        super().__init__()
        for name, child in block.named_children():
            setattr(self, name, child)

    def forward(self, x, **_):
        return x + self.attn(self.norm1(x)) + self.mlp(self.norm2(x))


def test_blocks_that_compute_otherwise_raise():
    old = small_vit().double()
    old.blocks = nn.Sequential(*map(Parallel, old.blocks))
    with pytest.raises(ProjectionError, match=r"block 0 .* one after the other: use method="):
        shrunk(old, small_vit(), [[0], [1]])


def test_missing_biases_are_absorbed_by_the_norm():
    matrix, missing = draw(3, 5), draw(3, seed=1)
    stream = Stream.of(torch.eye(5, dtype=torch.float64))
    torch.testing.assert_close(matrix @ absorbed([(matrix, missing)], stream), missing)
    assert not absorbed([], stream).any()
