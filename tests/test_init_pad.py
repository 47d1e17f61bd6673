import pytest
import torch
from helpers.models import draw
from torch.nn import functional

import weightinit as wi


def test_a_wider_hidden_layer_with_free_rows_computes_the_same():
    fc1, fc2, x = draw(4, 3), draw(3, 4, seed=1), draw(5, 3, seed=2)
    w1 = wi.init.pad_(draw(7, 3, seed=3), fc1)
    w2 = wi.init.pad_(draw(3, 7, seed=4), fc2, zero=[1])
    assert torch.equal(w1[4:], draw(7, 3, seed=3)[4:]) and not w2[:, 4:].any()
    expected = functional.relu(x @ fc1.T) @ fc2.T
    torch.testing.assert_close(functional.relu(x @ w1.T) @ w2.T, expected)


def test_a_wider_stream_passes_an_rms_norm():
    """Step 5 of the paper: what writes new channels is zero, the gain makes up for the mean."""
    x, fc, gain = draw(5, 4), draw(3, 4, seed=1), draw(4, seed=2)
    wide = torch.stack([wi.init.pad_(draw(6, seed=3), row, zero=[0]) for row in x])
    weight = wi.init.pad_(draw(3, 6, seed=4), fc)
    scaled = wi.init.pad_(draw(6, seed=5), gain * (4 / 6) ** 0.5)
    expected = functional.rms_norm(x, (4,), gain, 1e-6) @ fc.T
    result = functional.rms_norm(wide, (6,), scaled, 1e-6 * 4 / 6) @ weight.T
    torch.testing.assert_close(result, expected)


def test_zero_takes_negative_dims_and_the_corner_wins():
    w = wi.init.pad_(torch.ones(2, 2, 2), torch.full((1, 1, 1), 5.0), zero=[0, -1])
    assert w.tolist() == [[[5, 0], [1, 0]], [[0, 0], [0, 0]]]


@pytest.mark.parametrize(("shape", "zero"), [((1, 4), []), ((2, 3), [2]), ((2,), [])])
def test_what_does_not_fit_raises(shape, zero):
    weight = torch.zeros(shape)
    with pytest.raises(wi.WeightInitError, match=r"\[2, 3\].*(smaller source|as many dims)"):
        wi.init.pad_(weight, torch.ones(2, 3), zero=zero)
    assert not weight.any()
