import pytest
import torch
from helpers.models import draw

from weightinit.methods.activation.skip import Skip


def sums(*samples):
    skip = Skip()
    for batch in zip(*(x.split(100) for x in samples), strict=True):
        skip.add(*batch)
    return skip


def problem():
    z, x = draw(400, 6, seed=0), draw(400, 4, seed=1)
    x = x + z[:, :4]
    weight, gain, offset = draw(4, 6, seed=2), 1 + 0.1 * draw(4, seed=3), draw(4, seed=4)
    return z, x, weight, gain, offset


def test_it_finds_weight_gain_and_offset():
    z, x, weight, gain, offset = problem()
    y = z @ weight.T + gain * x + offset
    found = sums(z, x, y).fit(torch.zeros(4, 6).double(), torch.ones(4).double(), ridge=1e-12)
    for one, other in zip(found, (weight, gain, offset), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-8)


def test_a_prior_without_error_stays():
    z, x, weight, gain, offset = problem()
    y = z @ weight.T + gain * x + offset
    found = sums(z, x, y).fit(weight, gain, ridge=0.1)
    for one, other in zip(found, (weight, gain, offset), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_it_is_the_least_squares():
    """No nearby weight, gain or offset has a smaller error."""
    z, x, _, _, _ = problem()
    y = draw(400, 4, seed=9) + x
    weight, gain, offset = sums(z, x, y).fit(
        torch.zeros(4, 6).double(), torch.ones(4).double(), ridge=1e-12
    )

    def error(w, g, c):
        return float((y - z @ w.T - g * x - c).square().sum())

    least = error(weight, gain, offset)
    for seed in range(5):
        steps = (1e-3 * draw(*v.shape, seed=seed) for v in (weight, gain, offset))
        moved = [a + b for a, b in zip((weight, gain, offset), steps, strict=True)]
        assert error(*moved) > least


@pytest.mark.parametrize(("true", "found"), [(100.0, 4.0), (-1.0, 0.25)])
def test_a_gain_stays_near_its_prior(true, found):
    z, x, *_ = problem()
    _, gain, _ = sums(z, x, true * x).fit(
        torch.zeros(4, 6).double(), torch.ones(4).double(), ridge=1e-12
    )
    torch.testing.assert_close(gain, torch.full((4,), found).double())


def test_a_gain_of_zero_stays():
    z, x, *_ = problem()
    _, gain, _ = sums(z, x, x).fit(torch.zeros(4, 6).double(), torch.zeros(4).double(), ridge=1e-12)
    assert not gain.any()


def test_inputs_that_vary_by_rounding_alone_keep_the_prior():
    noise = 1e-12 * draw(64, 6, seed=1)
    weight, gain = draw(3, 3, seed=2), torch.ones(3).double()
    z, x, y = 1000 + noise[:, :3], 500 + noise[:, 3:], draw(64, 3, seed=3)
    found = sums(z, x, y).fit(weight, gain, ridge=1e-2)
    torch.testing.assert_close(found[0], weight)
    torch.testing.assert_close(found[1], gain)
