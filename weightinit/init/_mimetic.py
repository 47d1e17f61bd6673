"""Attention that resembles a trained one's, in closed form."""

import torch
from torch import Tensor

from weightinit.errors import WeightInitError
from weightinit.init._source import skipped

__all__ = ["mimetic_qk_", "mimetic_vo_"]


def mimetic_qk_(
    q: Tensor,
    k: Tensor,
    num_heads: int,
    *,
    alpha: float = 0.7,
    beta: float = 0.7,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Fill query and key weights so that each head's product resembles the identity.

    The rule of `Mimetic Initialization of Self-Attention Layers`, Trockman & Kolter (2023), arXiv
    2305.09828: :math:`W_Q W_K^\top \approx \alpha Z + \beta I` in row-vector convention, with
    entries of Z from :math:`\mathcal{N}(0, 1/d)` drawn anew for each head. The singular value
    decomposition is cut to the head dim and its values are shared evenly. In storage that is
    ``q_h.T @ k_h``, of each head's rows.

    Query heads that share a key head (grouped queries, consecutive as in torch's ``enable_gqa``)
    share one decomposition, of their targets on top of one another.

    Args:
        q: query weight ``[num_heads * head_dim, d]``.
        k: key weight ``[key_heads * head_dim, d]``, whose heads are as many as those of `q`, or a
            divisor of them.
        num_heads: number of query heads.
        alpha: size of the noise.
        beta: mean of the diagonal, before the cut to the head dim.
        generator: source of Z, which is drawn in fp32; None is torch's global one.

    Returns:
        The same two tensors.

    Raises:
        WeightInitError: if the shapes do not fit.

    Examples:
        >>> import torch
        >>> q, k = torch.empty(48, 48), torch.empty(48, 48)
        >>> _ = mimetic_qk_(q, k, 3, generator=torch.Generator().manual_seed(0))
        >>> product = q[:16].T @ k[:16]
        >>> bool(product.diag().mean() > 0.3)
        True
    """
    key_heads = _key_heads(q, k, num_heads)
    if skipped(q):
        return q, k
    heads = q.unflatten(0, (key_heads, num_heads // key_heads, -1))
    with torch.no_grad():
        for queries, keys in zip(heads, k.unflatten(0, (key_heads, -1)), strict=True):
            targets = _near_identity(q, len(queries), alpha, beta, generator)
            left, right = _factors(targets.flatten(0, 1), len(keys), generator)
            queries.copy_(left.unflatten(0, (len(queries), -1)).mT)
            keys.copy_(right)
    return q, k


def mimetic_vo_(
    v: Tensor,
    proj: Tensor,
    *,
    alpha: float = 0.4,
    beta: float = 0.4,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Fill value and output projection weights so that their product resembles minus the identity.

    The rule of `Mimetic Initialization of Self-Attention Layers`, Trockman & Kolter (2023), arXiv
    2305.09828: :math:`W_V W_{proj} \approx \alpha Z - \beta I` in row-vector convention, with
    entries of Z from :math:`\mathcal{N}(0, 1/d)`, by the singular value decomposition whose values
    are shared evenly. In storage that is ``(proj @ v).T``, the map that a token meets. (A public
    re-implementation, osiriszjq/structured_init, stores both untransposed, so that its rule holds
    of ``v @ proj`` instead.)

    Fewer value channels than d cut the decomposition.

    Args:
        v: value weight ``[r, d]``.
        proj: output projection weight ``[d, r]``.
        alpha: size of the noise.
        beta: mean of the negative diagonal.
        generator: source of Z, which is drawn in fp32; None is torch's global one.

    Returns:
        The same two tensors.

    Raises:
        WeightInitError: if the shapes do not fit.

    Examples:
        >>> import torch
        >>> v, proj = torch.empty(48, 48), torch.empty(48, 48)
        >>> _ = mimetic_vo_(v, proj, generator=torch.Generator().manual_seed(0))
        >>> bool(((proj @ v).diag().mean() + 0.4).abs() < 0.05)
        True
    """
    if v.dim() != 2 or proj.shape != v.shape[::-1]:
        raise WeightInitError(
            f"v {list(v.shape)} and proj {list(proj.shape)} are not [r, d] and [d, r]: pass the "
            "weights as torch.nn.Linear stores them, out x in"
        )
    if skipped(v):
        return v, proj
    with torch.no_grad():
        target = _near_identity(v, 1, alpha, -beta, generator)[0]
        left, right = _factors(target, v.shape[0], generator)
        v.copy_(left.T)
        proj.copy_(right.T)
    return v, proj


def _key_heads(q: Tensor, k: Tensor, num_heads: int) -> int:
    """Return how many heads a key weight holds; raise if it does not fit the query weight."""
    if q.dim() == k.dim() == 2 and q.shape[1] == k.shape[1] and num_heads > 0:
        head_dim, odd = divmod(q.shape[0], num_heads)
        key_heads = k.shape[0] // head_dim if head_dim else num_heads
        fits = k.shape[0] == key_heads * head_dim and key_heads and num_heads % key_heads == 0
        if not odd and fits:
            return key_heads
    raise WeightInitError(
        f"q {list(q.shape)} and k {list(k.shape)} are not [{num_heads} * head_dim, d] and "
        f"[key_heads * head_dim, d], with key_heads a divisor of {num_heads}: pass the weights as "
        "torch.nn.Linear stores them, out x in, and the number of query heads"
    )


def _near_identity(
    like: Tensor, number: int, alpha: float, beta: float, generator: torch.Generator | None
) -> Tensor:
    """Return ``number`` matrices alpha Z + beta I as wide as a weight, on its device."""
    width = like.shape[1]
    target = _noise(number, width, generator, like.device).mul(alpha)
    target.diagonal(dim1=-2, dim2=-1).add_(beta)
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    return target.to(like.device, dtype)


def _noise(
    number: int, width: int, generator: torch.Generator | None, device: torch.device
) -> Tensor:
    """Return Z, ``[number, width, width]``, its entries of variance 1 / width."""
    device = device if generator is None else generator.device
    z = torch.randn(number, width, width, generator=generator, device=device, dtype=torch.float32)
    return z / width**0.5


def _factors(target: Tensor, rank: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Return the balanced factors ``[m, rank]`` and ``[rank, n]`` whose product is nearest."""
    u, s, vh = torch.linalg.svd(target, full_matrices=False)
    root = s[:rank].sqrt()
    left, right = u[:, :rank] * root, root[:, None] * vh[:rank]
    if rank > len(s):
        # Spread over all channels: a channel that is zero on both sides would never train.
        z = _noise(1, rank, generator, target.device)[0, :, : len(s)]
        frame = torch.linalg.qr(z.to(target)).Q
        left, right = left @ frame.T, frame @ right
    return left, right
