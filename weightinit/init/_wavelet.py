"""More or fewer channels by wavelets: an approximation, or what it is the approximation of."""

from types import ModuleType
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from weightinit.errors import WeightInitError
from weightinit.init._source import changed_dims, fill

__all__ = ["Normalize", "check_wavelet", "resized", "steps", "wavelet_"]

Normalize = Literal["ortho", "mean"]
NORMALIZE = get_args(Normalize)


def wavelet_(
    tensor: Tensor, source: Tensor, *, wavelet: str = "haar", normalize: Normalize = "ortho"
) -> Tensor:
    r"""Fill the input Tensor with a wavelet approximation of another, or its inverse, dim by dim.

    The rule of `BoT`, Shen et al. (2026), arXiv 2603.07506, in either direction: a longer dim is
    cut to the low-pass band of a discrete wavelet transform, once for each factor of two; a shorter
    one is taken as that band, with details of zero. From one size to twice that and back nothing is
    lost. Other ratios: as many steps as leave a dim long enough, then its first entries; a dim of
    odd length repeats its last entry. Boundaries are periodic.

    Args:
        tensor: ``[*new]``.
        source: ``[*old]``.
        wavelet: a discrete wavelet of PyWavelets (``pip install 'weightinit[wavelets]'``).
        normalize: ``"ortho"``, orthonormal filters, by which a step divides or multiplies a
            constant by the root of 2; ``"mean"`` keeps constants.

    Returns:
        The same tensor.

    Raises:
        WeightInitError: if the numbers of dims differ, an option is unknown, or PyWavelets is
            missing.

    Examples:
        >>> import torch
        >>> small = wavelet_(torch.empty(2), torch.tensor([1.0, 3.0, 5.0, 5.0]), normalize="mean")
        >>> small.round(decimals=4)
        tensor([2., 5.])
        >>> wavelet_(torch.empty(4), small, normalize="mean").round(decimals=4)
        tensor([2., 2., 5., 5.])
    """
    check_wavelet(wavelet, normalize)
    dims = changed_dims(tensor, source)
    if any(old == 0 for _, old, _ in dims):
        raise WeightInitError(f"source {list(source.shape)} is empty: pass one with elements")

    def rule(value: Tensor) -> Tensor:
        for dim, _, new in dims:
            value = resized(value, dim, new, wavelet, normalize)
        return value

    return fill(tensor, source, rule)


def check_wavelet(wavelet: str, normalize: str) -> None:
    """Raise WeightInitError unless both are known and PyWavelets is there."""
    if normalize not in NORMALIZE:
        raise WeightInitError(f"normalize={normalize!r}: use one of {NORMALIZE}")
    known = _pywt().wavelist(kind="discrete")
    if wavelet not in known:
        families = sorted({name.rstrip("0123456789.") for name in known})
        raise WeightInitError(
            f"wavelet={wavelet!r} is no discrete wavelet: use one of the families {families}, "
            "such as 'haar', 'db2', 'coif3' or 'bior6.8'"
        )


def steps(old: int, new: int) -> int:
    """Return how many transforms lead from one length to another: up if positive, down if not.

    Examples:
        >>> steps(384, 768), steps(768, 192), steps(12, 8), steps(8, 12)
        (1, -2, 0, 1)
    """
    count = 0
    while old < new:
        old, count = 2 * old, count + 1
    while old > new and -(-old // 2) >= new and count <= 0:
        old, count = -(-old // 2), count - 1
    return count


def resized(value: Tensor, dim: int, size: int, wavelet: str, normalize: str) -> Tensor:
    """Return a tensor, fp32 or fp64, with one dim of another length; see :func:`wavelet_`."""
    count = steps(value.shape[dim], size)
    pywt, array = _pywt(), value.detach().cpu().numpy()
    options: dict[str, Any] = {"wavelet": wavelet, "mode": "periodization", "axis": dim}
    for _ in range(abs(count)):
        array = pywt.idwt(array, None, **options) if count > 0 else pywt.dwt(array, **options)[0]
    result = torch.from_numpy(array).to(value).narrow(dim, 0, size)
    return result * 2 ** (count / 2) if normalize == "mean" else result


def _pywt() -> ModuleType:
    try:
        import pywt
    except ModuleNotFoundError as error:
        raise WeightInitError(
            "wavelets need PyWavelets: pip install 'weightinit[wavelets]'"
        ) from error
    return pywt
