import sys

import pytest
import torch
from helpers.models import draw
from hypothesis import given, settings
from hypothesis import strategies as st

import weightinit as wi
from weightinit.init._wavelet import steps

pywt = pytest.importorskip("pywt")
WAVELETS = ("haar", "db2", "coif3", "bior6.8")


@pytest.mark.parametrize("wavelet", WAVELETS)
def test_shrinking_is_the_approximation_band_of_pywt(wavelet):
    source = draw(8, 12, 4)
    expected = source.numpy()
    for _ in range(2):
        expected = pywt.dwtn(expected, wavelet, mode="periodization")["aaa"]
    small = wi.init.wavelet_(torch.empty(2, 3, 1).double(), source, wavelet=wavelet)
    torch.testing.assert_close(small, torch.from_numpy(expected))


@pytest.mark.parametrize("wavelet", WAVELETS)
def test_growing_is_the_inverse_of_pywt_without_details(wavelet):
    source = draw(2, 3, 4)
    expected = pywt.idwtn({"aaa": source.numpy()}, wavelet, mode="periodization")
    large = wi.init.wavelet_(torch.empty(4, 6, 8).double(), source, wavelet=wavelet)
    torch.testing.assert_close(large, torch.from_numpy(expected))


@given(
    st.integers(1, 9), st.integers(1, 9), st.integers(0, 3), st.integers(0, 2),
    st.sampled_from(WAVELETS), st.sampled_from(["ortho", "mean"]),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_nothing_is_lost_on_the_way_up_and_down(rows, columns, up, across, wavelet, normalize):
    source = draw(rows, columns)
    options = {"wavelet": wavelet, "normalize": normalize}
    large = torch.empty(rows << up, columns << across, dtype=torch.float64)
    small = wi.init.wavelet_(
        torch.empty_like(source), wi.init.wavelet_(large, source, **options), **options
    )
    torch.testing.assert_close(small, source)


@pytest.mark.parametrize("wavelet", WAVELETS)
@pytest.mark.parametrize("shape", [(3, 4), (6, 8), (12, 16), (4, 9)])
def test_the_mean_of_a_constant_is_the_constant(wavelet, shape):
    source = torch.full((6, 8), 3.0, dtype=torch.float64)
    result = wi.init.wavelet_(
        torch.empty(shape).double(), source, wavelet=wavelet, normalize="mean"
    )
    torch.testing.assert_close(result, torch.full(shape, 3.0, dtype=torch.float64))


def test_ortho_haar_keeps_the_function_of_doubled_channels():
    """Rows and columns both gain a root of two: what is copied twice is read as its sum."""
    w1, w2 = draw(4, 3), draw(3, 4, seed=1)
    wide = wi.init.wavelet_(torch.empty(8, 3).double(), w1)
    read = wi.init.wavelet_(torch.empty(3, 8).double(), w2)
    torch.testing.assert_close(read @ wide, w2 @ w1)


@given(st.integers(1, 64), st.integers(1, 64))
def test_steps_reach_far_enough_and_no_further(old, new):
    count = steps(old, new)
    if count > 0:
        assert old * 2 ** (count - 1) < new <= old * 2**count
    else:
        length = old
        for _ in range(-count):
            length = -(-length // 2)
        assert new <= length and (length == new or -(-length // 2) < new)


def test_odd_lengths_and_other_ratios_are_padded_and_cut():
    source = torch.tensor([1.0, 3.0, 5.0])
    down = wi.init.wavelet_(torch.empty(2), source, normalize="mean")
    torch.testing.assert_close(down, torch.tensor([2.0, 5.0]))
    up = wi.init.wavelet_(torch.empty(4), source, normalize="mean")
    torch.testing.assert_close(up, torch.tensor([1.0, 1.0, 3.0, 3.0]))


def test_errors_say_what_to_do(monkeypatch):
    w = torch.empty(2)
    with pytest.raises(wi.WeightInitError, match=r"wavelet='gaus1'.*'haar'"):
        wi.init.wavelet_(w, torch.ones(4), wavelet="gaus1")
    with pytest.raises(wi.WeightInitError, match=r"normalize='max'.*'ortho', 'mean'"):
        wi.init.wavelet_(w, torch.ones(4), normalize="max")
    with pytest.raises(wi.WeightInitError, match="is empty"):
        wi.init.wavelet_(w, torch.ones(0))
    monkeypatch.setitem(sys.modules, "pywt", None)
    with pytest.raises(wi.WeightInitError, match=r"pip install 'weightinit\[wavelets\]'"):
        wi.init.wavelet_(w, torch.ones(4))
