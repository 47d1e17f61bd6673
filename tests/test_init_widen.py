import pytest
import torch
from helpers.models import draw
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

import weightinit as wi


def onto(old, new, seed):
    """A random map of Net2Net: the first are themselves, the rest are copies of any."""
    generator = torch.Generator().manual_seed(seed)
    return torch.cat([torch.arange(old), torch.randint(old, (new - old,), generator=generator)])


@given(
    st.integers(1, 5), st.integers(1, 6), st.integers(0, 9), st.booleans(), st.booleans(),
    st.integers(0, 9),
)  # fmt: skip
@settings(max_examples=80, deadline=None)
def test_a_wider_hidden_layer_computes_the_same(width, hidden, more, mapped, uneven, seed):
    wider = hidden + more
    fc1, b1, fc2 = draw(hidden, width), draw(hidden, seed=1), draw(width, hidden, seed=2)
    index = onto(hidden, wider, seed) if mapped else None
    rows = None if index is None else [index, None]
    w1 = wi.init.widen_(torch.empty(wider, width).double(), fc1, index=rows)
    c1 = wi.init.widen_(torch.empty(wider).double(), b1, index=None if index is None else [index])
    columns = None if index is None else [None, index]
    w2 = wi.init.widen_(draw(width, wider, seed=3), fc2, index=columns, uneven=uneven)
    x = draw(4, width, seed=4)
    expected = functional.gelu(x @ fc1.T + b1) @ fc2.T
    torch.testing.assert_close(functional.gelu(x @ w1.T + c1) @ w2.T, expected)


@pytest.mark.parametrize("new", [6, 8, 9, 12])
@pytest.mark.parametrize("uneven", [False, True])
def test_the_average_pattern_passes_a_layer_norm(new, uneven):
    old = 4
    eps, whole = 1e-5, new // old * old
    x, gain, bias, fc = draw(3, old), draw(old, seed=1), draw(old, seed=2), draw(5, old, seed=3)

    def widen(source, shape, **options):
        return wi.init.widen_(draw(*shape, seed=9), source, pattern="average", **options)

    stream = torch.stack([widen(row, (new,)) for row in x])
    ratio = whole / new
    wide = functional.layer_norm(
        stream, (new,), widen(gain, (new,)) * ratio**0.5, None, eps * ratio
    ) + torch.cat([widen(bias, (new,))[:whole], torch.zeros(new - whole)])
    weight = widen(fc, (5, new), uneven=uneven)
    expected = functional.layer_norm(x, (old,), gain, bias, eps) @ fc.T
    torch.testing.assert_close(wide @ weight.T, expected)
    assert uneven == bool(weight[:, whole:].any()) or whole == new


def test_repeated_channels_pass_a_layer_norm_where_lengths_divide():
    x, fc = draw(3, 4), draw(5, 4, seed=1)
    stream = torch.stack([wi.init.widen_(torch.empty(12).double(), row) for row in x])
    weight = wi.init.widen_(torch.empty(5, 12).double(), fc)
    expected = functional.layer_norm(x, (4,)) @ fc.T
    torch.testing.assert_close(functional.layer_norm(stream, (12,)) @ weight.T, expected)


def test_uneven_splitting_is_the_nearest_to_what_the_tensor_holds():
    """LEMON projects the large model's own weights onto those that keep the function."""
    own, source = draw(3, 7), draw(3, 4, seed=1)
    weight = wi.init.widen_(own.clone(), source, uneven=True)
    summed = torch.eye(4, dtype=torch.float64)[torch.arange(7) % 4]  # [7, 4]: W S = source
    nearest = own - (own @ summed - source) @ torch.linalg.pinv(summed)
    torch.testing.assert_close(weight, nearest)
    torch.testing.assert_close(weight @ summed, source)
    assert not torch.equal(weight[:, 0], weight[:, 4])


def test_sides_are_a_dims_own():
    source = draw(2, 3)
    embedding = wi.init.widen_(torch.empty(2, 6).double(), source, side="rows")
    assert torch.equal(embedding, source.repeat(1, 2))
    conv1d = wi.init.widen_(torch.empty(4, 6).double(), source, side=["columns", "rows"])
    assert torch.equal(conv1d, source.repeat(2, 2) / 2)
    kernel = wi.init.widen_(torch.empty(4, 6, 2, 2).double(), draw(2, 3, 2, 2))
    assert torch.equal(kernel, draw(2, 3, 2, 2).repeat(2, 2, 1, 1) / 2)


@pytest.mark.parametrize(
    ("shape", "options", "match"),
    [
        ((1, 4), {}, r"\[1, 4\] is smaller than source \[2, 3\].*select_"),
        ((2,), {}, "as many dims"),
        ((4, 3), {"pattern": "tile"}, "pattern='tile'.*'repeat'"),
        ((4, 3), {"side": "up"}, "side='up'.*'rows'"),
        ((4, 3), {"side": ["rows"]}, "one a dim"),
        ((4, 3), {"index": [torch.tensor([0, 0, 0, 0]), None]}, "each of these at least once"),
        ((4, 3), {"index": [torch.tensor([0, 1, 2, 0]), None]}, "from 0 to 1"),
        ((4, 3), {"index": [torch.tensor([0, 1]), None]}, "4 entries"),
        ((4, 3), {"index": [None]}, "one index, or None, a dim"),
    ],
)
def test_what_does_not_fit_raises(shape, options, match):
    weight = torch.zeros(shape)
    with pytest.raises(wi.WeightInitError, match=match):
        wi.init.widen_(weight, torch.ones(2, 3), **options)
    assert not weight.any()


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
def test_what_does_not_fit_into_a_pad_raises(shape, zero):
    weight = torch.zeros(shape)
    with pytest.raises(wi.WeightInitError, match=r"\[2, 3\].*(smaller source|as many dims)"):
        wi.init.pad_(weight, torch.ones(2, 3), zero=zero)
    assert not weight.any()
