import pytest
import torch
from helpers.models import draw
from hypothesis import given, settings
from hypothesis import strategies as st

from weightinit.methods.activation.leastsquares import Moments, choose


def filled(x, y, parts=1):
    moments = Moments()
    for some, more in zip(x.chunk(parts), y.chunk(parts), strict=True):
        moments.add(some, more)
    return moments


@given(st.integers(1, 6), st.integers(1, 4), st.booleans(), st.sampled_from([1e-3, 0.5, 10.0]))
@settings(max_examples=30, deadline=None)
def test_the_fit_is_that_of_lstsq_on_rows_of_the_prior(inputs, outputs, bias, ridge):
    x, y, prior = draw(40, inputs, seed=1), draw(40, outputs, seed=2), draw(outputs, inputs)
    weight, offset = filled(x, y).fit(prior, ridge=ridge, bias=bias)
    mean = (x.mean(0), y.mean(0)) if bias else (torch.zeros(inputs), torch.zeros(outputs))
    free = x - mean[0].double()
    strength = (ridge * free.square().mean() * len(x)) ** 0.5
    rows = torch.cat([free, strength * torch.eye(inputs, dtype=torch.float64)])
    wanted = torch.cat([y - mean[1].double(), strength * prior.T])
    reference = torch.linalg.lstsq(rows, wanted).solution.T
    torch.testing.assert_close(weight, reference)
    expected = y.mean(0) - reference @ x.mean(0) if bias else torch.zeros(outputs).double()
    torch.testing.assert_close(offset, expected)


def test_batches_add_up_whatever_their_shape():
    x, y = draw(4, 6, 3, seed=1), draw(4, 6, 2, seed=2)
    whole, parts = filled(x.flatten(0, 1), y.flatten(0, 1)), filled(x, y, parts=2)
    assert whole.count == parts.count == 24
    for one, other in zip(whole.centred(), parts.centred(), strict=True):
        torch.testing.assert_close(one, other)
    flat = x.flatten(0, 1)
    torch.testing.assert_close(whole.centred()[0], torch.cov(flat.T, correction=0))


def test_what_fits_stays_and_dead_inputs_keep_the_prior():
    x, prior = draw(50, 4, seed=1), draw(3, 4)
    weight, offset = filled(x, x @ prior.T + 2.0).fit(prior, ridge=5.0)
    torch.testing.assert_close(weight, prior)
    torch.testing.assert_close(offset, torch.full((3,), 2.0, dtype=torch.float64))
    dead = x * torch.tensor([1.0, 0, 1, 0])
    weight, _ = filled(dead, draw(50, 3, seed=2)).fit(prior, ridge=1e-3)
    torch.testing.assert_close(weight[:, 1::2], prior[:, 1::2])
    weight, _ = filled(0 * x, draw(50, 3, seed=2)).fit(prior, ridge=1e-3)
    torch.testing.assert_close(weight, prior)


def slow(gram, cross, number, unit):
    """The same choice, with a whole least squares at every step."""
    gram = gram + 1e-4 * gram.diagonal().mean() * torch.eye(len(gram))
    chosen, gain = [], 0.0

    def explained(units):
        at = torch.cat([torch.arange(unit) + u * unit for u in units])
        return float((cross[at] * torch.linalg.solve(gram[at][:, at], cross[at])).sum())

    for _ in range(number):
        rest = [u for u in range(len(gram) // unit) if u not in chosen]
        gain, best = max((explained([*chosen, u]), -u) for u in rest)
        chosen.append(-best)
    return sorted(chosen), gain


@pytest.mark.parametrize("unit", [1, 3])
@pytest.mark.parametrize("number", [1, 2, 4])
def test_the_choice_is_that_of_whole_regressions(unit, number):
    x = draw(60, 5 * unit, seed=unit) @ draw(5 * unit, 5 * unit, seed=7)
    gram, cross = filled(x, draw(60, 2, seed=3) + x[:, :2]).centred()
    chosen, gain = choose(gram, cross, number, unit=unit)
    expected, best = slow(gram, cross, number, unit)
    assert chosen.tolist() == expected
    assert gain == pytest.approx(best, rel=1e-9)


def test_a_choice_leaves_what_it_is_given():
    x = draw(50, 8)
    gram, cross = filled(x, x @ draw(8, 3, seed=1)).centred()
    before = gram.clone(), cross.clone()
    choose(gram, cross, 2, unit=2)
    assert torch.equal(gram, before[0]) and torch.equal(cross, before[1])


def test_copies_are_not_chosen_twice_and_dead_inputs_last():
    x = draw(50, 2, seed=1)
    x = torch.cat([3 * x[:, :1], 3 * x[:, :1], x[:, 1:], 0 * x], 1)
    gram, cross = filled(x, x).centred()
    assert choose(gram, cross, 2)[0].tolist() == [0, 2]
    assert choose(gram, cross, 5)[0].tolist() == [0, 1, 2, 3, 4]
    assert choose(0 * gram, 0 * cross, 2)[0].tolist() == [0, 1]


def test_wide_products_are_mirrored_and_single_precision_is_summed_in_double():
    x, y = draw(5000, 600, seed=1), draw(5000, 3, seed=2)
    moments = Moments()
    moments.add(x.float(), y.float())
    gram, cross = moments.centred()
    assert gram.dtype == torch.float64 and torch.equal(gram, gram.T)
    torch.testing.assert_close(gram, torch.cov(x.T, correction=0), rtol=0, atol=1e-5)
    rows = torch.cat([x, y], 1).T
    torch.testing.assert_close(cross, torch.cov(rows, correction=0)[:600, 600:], rtol=0, atol=1e-5)


def test_a_choice_of_many_explains_nearly_what_single_steps_do():
    x = draw(400, 120, seed=1) @ draw(120, 120, seed=2)
    gram, cross = filled(x, x @ draw(120, 20, seed=3)).centred()
    found, gain = choose(gram, cross, 60)
    assert len(found.unique()) == 60 and torch.equal(found, found.sort().values)
    expected, best = slow(gram, cross, 60, 1)
    assert gain > 0.97 * best
    at = torch.tensor(expected)
    assert best == pytest.approx(
        float((cross[at] * torch.linalg.solve(gram[at][:, at], cross[at])).sum()), rel=1e-3
    )


def test_inputs_that_hardly_vary_are_summed_without_cancellation():
    x = draw(4000, 3, seed=1) + torch.tensor([0.0, 3000.0, 0.0])
    y = x.double() @ torch.tensor([[1.0], [2.0], [3.0]], dtype=torch.float64)
    moments = Moments()
    for some, more in zip(x.float().split(500), y.float().split(500), strict=True):
        moments.add(some, more)
    weight, _ = moments.fit(torch.zeros(1, 3, dtype=torch.float64), ridge=1e-6)
    torch.testing.assert_close(
        weight, torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64), rtol=1e-2, atol=1e-2
    )


def test_inputs_that_do_not_vary_keep_the_prior():
    moments = Moments()
    moments.add(torch.full((64, 2), 7.0), torch.full((64, 1), 3.0))
    prior = torch.tensor([[0.5, -0.5]], dtype=torch.float64)
    weight, bias = moments.fit(prior, ridge=1e-2)
    torch.testing.assert_close(weight, prior)
    torch.testing.assert_close(bias, torch.tensor([3.0], dtype=torch.float64))
