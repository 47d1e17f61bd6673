import pytest
import torch
from helpers.inherit import small_vit
from hypothesis import given
from hypothesis import strategies as st

import weightinit as wi
from weightinit.anatomy import anatomy
from weightinit.errors import ProjectionError
from weightinit.inherit.depth import RULES, blocks_for, mixes


def indices(rule, old, new):
    return [index for ((index, _),) in blocks_for(rule, old, new)]


@pytest.mark.parametrize(
    ("rule", "old", "new", "wanted"),
    [
        ("first", 6, 3, [0, 1, 2]),
        ("last", 6, 3, [3, 4, 5]),
        ("first_last", 6, 3, [0, 1, 5]),
        ("first_last", 6, 1, [0]),
        ("mid", 6, 2, [2, 3]),
        ("uniform", 6, 3, [0, 2, 5]),
        ("interlace", 3, 6, [0, 0, 1, 1, 2, 2]),
        ("stack", 3, 6, [0, 1, 2, 0, 1, 2]),
        ("stack_top", 3, 5, [0, 1, 2, 1, 2]),
        # SOLAR: n = 32, m = 8, s = 2 (n - m) = 48
        ("solar", 32, 48, [*range(24), *range(8, 32)]),
    ],
)
def test_published_rules(rule, old, new, wanted):
    assert indices(rule, old, new) == wanted


@given(st.sampled_from(sorted(RULES)), st.integers(1, 40), st.integers(1, 40))
def test_weights_of_every_block_sum_to_one(rule, old, new):
    if rule == "solar" and not old <= new <= 2 * old:
        with pytest.raises(ProjectionError, match="solar"):
            blocks_for(rule, old, new)
        return
    for mix in blocks_for(rule, old, new):
        assert sum(weight for _, weight in mix) == pytest.approx(1)
        assert all(0 <= index < old for index, _ in mix)


@given(st.sampled_from(sorted(RULES)), st.integers(1, 40))
def test_the_same_depth_is_the_same_blocks(rule, depth):
    assert indices(rule, depth, depth) == list(range(depth))


def test_a_rule_of_ones_own_is_checked():
    assert blocks_for(lambda old, new: [((old - 1, 2.0),)] * new, 3, 1) == [((2, 2.0),)]
    with pytest.raises(ProjectionError, match="blocks from 0 to 2"):
        blocks_for(lambda old, new: [((old, 1.0),)] * new, 3, 2)
    with pytest.raises(ProjectionError, match="'middle' is unknown"):
        blocks_for("middle", 3, 2)


def test_stages_are_matched_one_by_one():
    import timm

    old, new = (
        anatomy(timm.create_model("convnext_tiny", depths=depths, dims=(8, 8, 16, 16)))
        for depths in ((2, 2, 3, 2), (1, 2, 2, 1))
    )
    assert [index for ((index, _),) in mixes("first", old, new)] == [0, 2, 3, 4, 5, 7]
    with pytest.raises(ProjectionError, match="4 stages and the target 1"):
        mixes("first", old, anatomy(small_vit()))


@pytest.mark.parametrize("given", [[0, 2, 2], (0, -1, 2), range(3), torch.tensor([0, 1, 2])])
def test_blocks_may_be_listed(given):
    old, new = anatomy(small_vit(depth=3)), anatomy(small_vit(depth=3))
    wanted = [((int(block) % 3, 1.0),) for block in given]
    assert mixes(given, old, new) == wanted


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([0, 3], "ancestor has 0 to 2: name one"),
        ([0], "names 1 blocks for a target of 2"),
        ([0, -4], "ancestor has 0 to 2"),
        ([0.5, 1], r"use one of \['first'"),
        (7, r"the ancestor's block for each of the target's 2, such as \[0, 1\]"),
    ],
)
def test_lists_are_checked(given, said):
    with pytest.raises(ProjectionError, match=said):
        mixes(given, anatomy(small_vit(depth=3)), anatomy(small_vit(depth=2)))


def test_listed_blocks_stay_in_their_stages():
    import timm

    old, new = (
        anatomy(timm.create_model("convnext_tiny", depths=depths, dims=(8, 8, 16, 16)))
        for depths in ((2, 2, 3, 2), (1, 2, 2, 1))
    )
    assert [i for ((i, _),) in mixes([1, 2, 2, 4, 6, 8], old, new)] == [1, 2, 2, 4, 6, 8]
    with pytest.raises(ProjectionError, match=r"in stages of \[2, 2, 3, 2\]: name one of the same"):
        mixes([1, 1, 2, 4, 6, 8], old, new)


@pytest.mark.parametrize(
    "method",
    [
        wi.WeightSelection(depth=[0, 2]),
        wi.WeightSelection(depth=(0, 2), faithful=True),
        wi.Subcloning(depth=[0, 2]),
        wi.Bert2BERT(depth=[0, 2, 2]),
        wi.Stacking(depth=[0, 2, 2]),
    ],
)
def test_every_method_takes_a_list(method):
    old, new = small_vit(depth=3), small_vit(depth=len(method.depth))
    batches = [torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))]
    wi.project_from(old, new, method=method, calibration=batches)
    for block, number in zip(new.blocks, method.depth, strict=True):
        assert torch.equal(block.mlp.fc1.weight, old.blocks[number].mlp.fc1.weight)
