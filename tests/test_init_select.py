import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import weightinit as wi
from weightinit.init.operators import select_indices


@given(st.integers(1, 400), st.data(), st.sampled_from(["uniform", "consecutive", "random"]))
@settings(max_examples=60, deadline=None)
def test_indices_are_distinct_sorted_and_inside(old, data, elements):
    new = data.draw(st.integers(0, old))
    index = select_indices(old, new, elements, torch.Generator().manual_seed(0))
    assert len(index) == new == len(set(index.tolist()))
    assert index.tolist() == sorted(index.tolist()) and all(0 <= i < old for i in index.tolist())


@pytest.mark.parametrize("elements", ["uniform", "consecutive", "random"])
def test_select_takes_whole_rows_and_columns(elements):
    source = torch.arange(12 * 8.0).view(12, 8)
    w = wi.init.select_(torch.empty(5, 3), source, elements=elements)
    rows, columns = (w // 8).long(), (w % 8).long()
    assert bool((rows == rows[:, :1]).all()) and bool((columns == columns[:1]).all())
    assert len(rows[:, 0].unique()) == 5 and len(columns[0].unique()) == 3


def test_random_selection_agrees_between_tensors_of_one_seed():
    source = torch.arange(12.0)
    seeded = [torch.Generator().manual_seed(7) for _ in range(4)]
    picked = wi.init.select_(torch.empty(5), source, elements="random", generator=seeded[0])
    stacked = torch.stack([source, -source], 1).expand(12, 2)
    wide = wi.init.select_(torch.empty(5, 2), stacked, elements="random", generator=seeded[1])
    assert torch.equal(wide[:, 0], picked)
    both = source.expand(9, 12)
    turned = wi.init.select_(torch.empty(4, 5), both, elements="random", generator=seeded[2])
    assert torch.equal(turned[0], picked)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    wi.init.select_(torch.empty(5), source, elements="random", generator=seeded[3])
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(0)
    one = wi.init.select_(torch.empty(5), source, elements="random")
    assert not torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(0)
    assert torch.equal(wi.init.select_(torch.empty(5), source, elements="random"), one)


def test_indices_of_ones_own_may_keep_or_change_lengths():
    source = torch.arange(6.0).view(3, 2)
    order = torch.tensor([2, 0, 1])
    w = wi.init.select_(torch.empty(3, 2), source, elements=[order, None])
    assert torch.equal(w, source[order])
    assert wi.init.select_(torch.empty(2), torch.ones(3), elements=[order[:2]]).tolist() == [1, 1]


@pytest.mark.parametrize(
    ("shape", "options", "match"),
    [
        ((5, 2), {}, r"\[5, 2\] is larger than source \[4, 2\].*widen_ or pad_"),
        ((4,), {}, r"\[4\].*as many dims"),
        ((2, 2), {"elements": "best"}, "elements='best'.*'uniform'"),
        ((2, 2), {"elements": [torch.tensor([0, 4]), None]}, "these indices"),
        ((2, 2), {"elements": [torch.tensor([0]), None]}, "these indices"),
        ((2, 2), {"elements": [torch.tensor([0, 1])]}, "these indices"),
        ((2, 1), {"elements": [torch.tensor([0, 1]), None]}, r"\[2, 2\] and the tensor \[2, 1\]"),
    ],
)
def test_what_does_not_fit_raises(shape, options, match):
    weight = torch.zeros(shape)
    with pytest.raises(wi.WeightInitError, match=match):
        wi.init.select_(weight, torch.ones(4, 2), **options)
    assert not weight.any()
