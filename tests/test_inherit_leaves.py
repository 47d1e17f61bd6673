from itertools import pairwise

import pytest
import torch

from weightinit.inherit.leaves import dead_leaves


def draw(number=8, channels=3, height=64, width=64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return dead_leaves(number, channels, height, width, generator=generator)


@pytest.mark.parametrize(("channels", "height", "width"), [(3, 64, 64), (1, 28, 28), (5, 33, 16)])
def test_pictures_are_finite_and_within_range(channels, height, width):
    pictures = draw(4, channels, height, width)
    assert pictures.shape == (4, channels, height, width)
    assert pictures.dtype == torch.float32
    assert torch.isfinite(pictures).all()
    assert pictures.min() >= 0
    assert pictures.max() <= 1
    assert pictures.std((1, 2, 3)).min() > 0.02


def test_the_generator_decides_and_the_global_one_is_untouched():
    state = torch.get_rng_state()
    assert torch.equal(draw(seed=1), draw(seed=1))
    assert not torch.equal(draw(seed=1), draw(seed=2))
    assert torch.equal(torch.get_rng_state(), state)


def test_the_spectrum_falls_as_that_of_photographs():
    """The amplitude falls about as 1/f, so that it has an exponent between 1 and 2."""
    pictures = draw(32, 3, 96, 96).mean(1)
    window = torch.hann_window(96)
    centred = (pictures - pictures.mean((1, 2), keepdim=True)) * window * window[:, None]
    power = torch.fft.rfft2(centred).abs().square().mean(0)
    radius = (torch.fft.fftfreq(96)[:, None].square() + torch.fft.rfftfreq(96).square()).sqrt()
    edges = torch.tensor([0.03, 0.06, 0.12, 0.24, 0.48])
    means = torch.stack(
        [
            power[(low <= radius) & (radius < high)].mean().log2() / 2
            for low, high in pairwise(edges)
        ]
    )
    assert 0.8 < -means.diff().mean() < 2.2


def test_channels_are_alike():
    pictures = draw(32).transpose(0, 1).flatten(1)
    correlation = torch.corrcoef(pictures)
    assert correlation[~torch.eye(3, dtype=torch.bool)].min() > 0.5
