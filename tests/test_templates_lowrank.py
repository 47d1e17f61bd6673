import pytest
import torch
from helpers.models import draw
from hypothesis import given, settings
from hypothesis import strategies as st

from weightinit.templates import lowrank
from weightinit.templates.lowrank import low_rank


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 12))
@settings(max_examples=50, deadline=None)
def test_it_is_the_decomposition_cut_at_the_rank(rows, columns, rank):
    matrix = draw(rows, columns)
    left, right, rest = low_rank(matrix, rank)
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    torch.testing.assert_close(left @ right, (u[:, :rank] * s[:rank]) @ vh[:rank])
    assert left.shape[1] == len(right) == min(rank, rows, columns)
    assert rest == pytest.approx(float(s[rank:].norm() / s.norm()), abs=1e-7)
    torch.testing.assert_close(left.square().mean(0), torch.ones(len(right)).double())
    gram = right @ right.T
    torch.testing.assert_close(gram, gram.diag().diag(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [(20, 50), (50, 20)])
@pytest.mark.parametrize("error", [0.0, 0.1, 0.5, 0.99])
def test_the_fewest_factors_for_an_error(shape, error):
    matrix = draw(*shape)
    left, right, rest = low_rank(matrix, 20, error=error)
    assert rest <= max(error, 1e-7)
    assert float((matrix - left @ right).norm() / matrix.norm()) == pytest.approx(rest, abs=1e-7)
    if len(right) > 1:
        assert low_rank(matrix, len(right) - 1)[2] > error


def test_matrices_of_lower_rank_and_of_zeros_have_no_noise():
    matrix = draw(12, 2) @ draw(2, 30, seed=1)
    left, right, rest = low_rank(matrix, 5)
    torch.testing.assert_close(left @ right, matrix)
    assert rest < 1e-7 and bool(torch.isfinite(left).all() and torch.isfinite(right).all())
    left, right, rest = low_rank(torch.zeros(3, 4), 2)
    assert not (left @ right).any() and rest == 0


@pytest.mark.parametrize("shape", [(60, 90), (90, 60)])
def test_a_random_projection_finds_few_factors(monkeypatch, shape):
    monkeypatch.setattr(lowrank, "LARGE", 40)
    matrix = draw(shape[0], 60) * torch.logspace(0, -3, 60).double() @ draw(60, shape[1], seed=1)
    state = torch.get_rng_state()
    first = low_rank(matrix, 5, generator=torch.Generator().manual_seed(1))
    again = low_rank(matrix, 5, generator=torch.Generator().manual_seed(1))
    assert all(torch.equal(a, b) for a, b in zip(first[:2], again[:2], strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    monkeypatch.undo()
    exact = low_rank(matrix, 5)
    torch.testing.assert_close(first[0] @ first[1], exact[0] @ exact[1], rtol=1e-4, atol=1e-4)
    assert first[2] == pytest.approx(exact[2], rel=1e-4)


def test_single_precision_is_exact_at_full_rank():
    matrix = draw(12, 4000).float()
    left, right, _ = low_rank(matrix, 12)
    torch.testing.assert_close(left @ right, matrix, rtol=0, atol=3e-6)
