import itertools

import pytest
import torch
from helpers.models import draw
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from weightinit.errors import ProjectionError
from weightinit.methods.activation.stream import centres, groups_of, normalise, principal


def moment(width, seed=1):
    root = draw(width, width, seed=seed)
    return root @ root.T


@pytest.mark.parametrize("size", [1, 2, 5, 11, 12])
@pytest.mark.parametrize("centred", [True, False])
def test_ones_stay_ones_and_reading_undoes_writing(size, centred):
    stream = principal(moment(12), size, centred=centred)
    eye = torch.eye(size, dtype=torch.float64)
    torch.testing.assert_close(stream.write @ stream.read, eye)
    torch.testing.assert_close(stream.write @ stream.write.T, eye * size / 12)
    if centred:
        ones = torch.ones(12, dtype=torch.float64)
        torch.testing.assert_close(stream.write @ ones, ones[:size])
        torch.testing.assert_close(stream.read @ ones[:size], ones)


@pytest.mark.parametrize("norm", [nn.LayerNorm(12, eps=0.5), nn.RMSNorm(12, eps=0.5)])
def test_norms_commute_with_the_projection_of_a_narrow_stream(norm):
    norm, centred = norm.double(), centres(norm)
    basis = draw(5, 12, seed=3)
    x = draw(40, 5, seed=2) @ (basis - basis.mean(1, keepdim=True) * centred)
    x = x + draw(40, 1, seed=4) * centred
    stream = principal(x.T @ x if not centred else moment_of(x), 5 + centred, centred=centred)
    small = type(norm)(5 + centred, eps=0.5).double()
    ours = normalise(x @ stream.write.T, small) @ stream.read.T
    torch.testing.assert_close(ours, normalise(x, norm))
    torch.testing.assert_close(normalise(x, norm), norm(x))


def moment_of(x):
    x = x - x.mean(1, keepdim=True)
    return x.T @ x


def test_the_directions_are_those_of_most_variance_and_near_to_channels():
    scales = torch.tensor([9.0, 0.1, 4.0, 0.1, 6.0, 0.1], dtype=torch.float64)
    stream = principal(torch.diag(scales), 3, centred=False)
    wanted = torch.eye(6, dtype=torch.float64)[[0, 2, 4]] * 0.5**0.5
    torch.testing.assert_close(stream.write, wanted)
    full = principal(moment(6), 6, centred=True)
    assert torch.equal(full.write, torch.eye(6, dtype=torch.float64))


def test_other_norms_are_turned_away():
    with pytest.raises(ProjectionError, match=r"BatchNorm1d.*use method='weight_selection'"):
        centres(nn.BatchNorm1d(3))


def cost(similarity, groups):
    return sum(1 - float(similarity[group[0], i]) for group in groups for i in group)


@given(st.integers(1, 7), st.data())
@settings(max_examples=40, deadline=None)
def test_groups_are_the_best_of_all(old, data):
    number = data.draw(st.integers(1, old))
    similarity = draw(old, old, seed=data.draw(st.integers(0, 99))).sigmoid()
    similarity = (similarity + similarity.T) / 2
    similarity.fill_diagonal_(1.0)
    found = groups_of(similarity, number)
    assert [i for group in found for i in group] == list(range(old))
    most = -(-old // number)
    assert len(found) == number and max(map(len, found)) <= most
    best = min(
        cost(similarity, [list(range(a, b)) for a, b in itertools.pairwise((0, *cuts, old))])
        for cuts in itertools.combinations(range(1, old), number - 1)
        if max(b - a for a, b in itertools.pairwise((0, *cuts, old))) <= most
    )
    assert cost(similarity, found) == pytest.approx(best)
