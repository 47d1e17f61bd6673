import pytest
from helpers.inherit import small_vit
from hypothesis import given
from hypothesis import strategies as st

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
