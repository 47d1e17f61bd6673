import pytest
import torch
from helpers.kron_reference import make, reference
from hypothesis import given, settings
from hypothesis import strategies as st

import weightinit as wi


@pytest.mark.parametrize("order", ["block", "paper"])
def test_kron_sum_fills_a_parameter_in_place(order):
    case = make(dtype=torch.float32)
    weight = torch.nn.Parameter(torch.full((6, 10), torch.nan))
    version, pointer = weight._version, weight.data_ptr()
    assert wi.init.kron_sum_(weight, *case, order=order) is weight
    assert weight.data_ptr() == pointer
    assert weight._version > version
    assert weight.requires_grad
    assert weight.grad_fn is None
    expected = reference(*case, order).float()
    torch.testing.assert_close(weight.detach(), expected)


def test_kron_sum_fills_a_vector_and_keeps_the_dtype():
    case = make(w=(5,), s=(3,), dtype=torch.float32)
    bias = torch.empty(15, dtype=torch.bfloat16)
    wi.init.kron_sum_(bias, *case)
    assert torch.equal(bias, reference(*case).float().bfloat16())


def test_kron_sum_converts_mixed_dtypes():
    templates, scalers = make()
    weight = wi.init.kron_sum_(torch.empty(6, 10), templates.half(), scalers.float())
    torch.testing.assert_close(weight, reference(templates, scalers).float(), atol=1e-2, rtol=1e-2)


def test_kron_sum_leaves_its_sources_alone():
    case = make(dtype=torch.float32)
    before = [tensor.clone() for tensor in case]
    weight = wi.init.kron_sum_(torch.empty(6, 10), *case)
    weight.zero_()
    assert all(torch.equal(a, b) for a, b in zip(case, before, strict=True))


def test_kron_sum_does_nothing_on_meta_and_empty_tensors():
    meta, empty = torch.empty(6, 10, device="meta"), torch.empty(0, 10)
    assert wi.init.kron_sum_(meta, *make()) is meta
    assert wi.init.kron_sum_(empty, *make()) is empty


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_kron_sum_names_both_shapes(device):
    weight = torch.zeros(6, 11, device=device)
    with pytest.raises(wi.WeightInitError, match=r"\[6, 11\].*\[6, 10\]"):
        wi.init.kron_sum_(weight, *make())
    if device == "cpu":
        assert (weight == 0).all()


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def nearest(alpha, beta, rank, width, generator, number=1):
    """The best product of that rank to targets on top of one another, by the slow definition."""
    z = torch.randn(number, width, width, generator=generator).double()
    target = torch.cat([alpha * each / width**0.5 + beta * torch.eye(width) for each in z])
    u, s, vh = torch.linalg.svd(target, full_matrices=False)
    return sum(s[i] * torch.outer(u[:, i], vh[i]) for i in range(min(rank, width)))


@settings(deadline=None, max_examples=50)
@given(
    width=st.integers(1, 24),
    head_dim=st.integers(1, 30),
    key_heads=st.integers(1, 3),
    group=st.integers(1, 3),
    alpha=st.sampled_from([0.7, 0.0, 1.5]),
    beta=st.sampled_from([0.7, 0.3]),
    seed=st.integers(0, 9),
)
def test_mimetic_qk_is_the_nearest_product(width, head_dim, key_heads, group, alpha, beta, seed):
    heads = key_heads * group
    q = torch.full((heads * head_dim, width), torch.nan, dtype=torch.float64)
    k = torch.full((key_heads * head_dim, width), torch.nan, dtype=torch.float64)
    filled = wi.init.mimetic_qk_(q, k, heads, alpha=alpha, beta=beta, generator=seeded(seed))
    assert filled[0] is q and filled[1] is k
    assert bool(torch.isfinite(q).all() and torch.isfinite(k).all())
    if alpha == 0 or (head_dim > width and key_heads > 1):
        return  # equal singular values have no order; a head's frame is drawn after its noise
    generator = seeded(seed)
    for queries, keys in zip(
        q.view(key_heads, group, head_dim, width), k.split(head_dim), strict=True
    ):
        expected = nearest(alpha, beta, head_dim, width, generator, group).view(group, width, width)
        torch.testing.assert_close(queries.mT @ keys, expected, rtol=0, atol=1e-6)


@settings(deadline=None, max_examples=50)
@given(
    width=st.integers(1, 40),
    channels=st.integers(1, 40),
    alpha=st.sampled_from([0.4, 1.5]),
    beta=st.sampled_from([0.4, -0.3]),
    seed=st.integers(0, 9),
)
def test_mimetic_vo_is_the_nearest_product(width, channels, alpha, beta, seed):
    v = torch.full((channels, width), torch.nan, dtype=torch.float64)
    proj = torch.full((width, channels), torch.nan, dtype=torch.float64)
    filled = wi.init.mimetic_vo_(v, proj, alpha=alpha, beta=beta, generator=seeded(seed))
    assert filled[0] is v and filled[1] is proj
    expected = nearest(alpha, -beta, channels, width, seeded(seed))
    torch.testing.assert_close((proj @ v).T, expected, rtol=0, atol=1e-6)
    assert bool((v != 0).any(1).all()) and bool((proj != 0).any(0).all())


def test_mimetic_shares_singular_values_evenly():
    v, proj = wi.init.mimetic_vo_(torch.empty(32, 32), torch.empty(32, 32), generator=seeded())
    torch.testing.assert_close(v @ v.T, proj.T @ proj)
    q, k = wi.init.mimetic_qk_(torch.empty(8, 32), torch.empty(8, 32), 1, generator=seeded())
    torch.testing.assert_close(q @ q.T, k @ k.T)


def test_mimetic_has_the_diagonals_of_the_published_re_implementation():
    """Width 48 and 3 heads: cutting 0.7 I to the head dim leaves 0.40; -0.4 I stays."""
    q, k, v, proj = (torch.empty(48, 48) for _ in range(4))
    generator, means = seeded(), []
    for _ in range(20):
        wi.init.mimetic_qk_(q, k, 3, generator=generator)
        wi.init.mimetic_vo_(v, proj, generator=generator)
        heads = q.view(3, 16, 48).mT @ k.view(3, 16, 48)
        means.append([heads.diagonal(dim1=1, dim2=2).mean(), (proj @ v).diagonal().mean()])
    qk, vo = torch.tensor(means).mean(0).tolist()
    assert qk == pytest.approx(0.40, abs=0.02)
    assert vo == pytest.approx(-0.40, abs=0.02)


def test_mimetic_draws_from_the_generator_or_the_global_one():
    before = torch.get_rng_state()
    draws = [
        wi.init.mimetic_vo_(torch.empty(8, 8), torch.empty(8, 8), generator=g)[0]
        for g in (seeded(1), seeded(1), seeded(2))
    ]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    assert torch.equal(torch.get_rng_state(), before)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        plain = wi.init.mimetic_vo_(torch.empty(8, 8), torch.empty(8, 8))[0]
    assert torch.equal(plain, draws[0])


def test_mimetic_fills_parameters_views_and_any_dtype_in_place():
    qkv = torch.nn.Parameter(torch.empty(24, 8))
    proj = torch.nn.Parameter(torch.empty(8, 8, dtype=torch.bfloat16))
    q, k, v = qkv.detach().chunk(3)
    wi.init.mimetic_qk_(q, k, 2, generator=seeded())
    wi.init.mimetic_vo_(v, proj, generator=seeded(1))
    assert qkv.requires_grad and qkv.grad_fn is None and proj.grad_fn is None
    plain = wi.init.mimetic_vo_(torch.empty(8, 8), torch.empty(8, 8), generator=seeded(1))
    assert torch.equal(v, plain[0]) and torch.equal(proj, plain[1].bfloat16())
    double = torch.empty(8, 8, dtype=torch.float64)
    wi.init.mimetic_vo_(double, torch.empty_like(double), generator=seeded(1))
    torch.testing.assert_close(double.float().abs(), v.abs(), rtol=0, atol=1e-4)


def test_mimetic_does_nothing_on_meta_and_empty_tensors():
    meta, empty = torch.empty(8, 8, device="meta"), torch.empty(0, 8)
    before = torch.get_rng_state()
    assert wi.init.mimetic_qk_(meta, meta, 2) == (meta, meta)
    assert wi.init.mimetic_vo_(meta, meta) == (meta, meta)
    assert wi.init.mimetic_qk_(empty, empty, 2)[0] is empty
    assert wi.init.mimetic_vo_(empty, empty.T)[0] is empty
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("q", "k", "heads"),
    [((8, 8), (8, 8), 3), ((8, 8), (8, 7), 2), ((8, 8), (12, 8), 2), ((8, 8), (6, 8), 4),
     ((8,), (8,), 2), ((8, 8), (8, 8), 0), ((8, 8), (0, 8), 2)],
)  # fmt: skip
def test_mimetic_qk_names_both_shapes(q, k, heads):
    with pytest.raises(wi.WeightInitError, match=rf"q \[{q[0]}.*k \[{k[0]}.*out x in"):
        wi.init.mimetic_qk_(torch.zeros(q), torch.zeros(k), heads)


def test_mimetic_vo_names_both_shapes():
    with pytest.raises(wi.WeightInitError, match=r"v \[8, 6\] and proj \[8, 6\].*out x in"):
        wi.init.mimetic_vo_(torch.zeros(8, 6), torch.zeros(8, 6))


def halves():
    return torch.tensor([[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]])


#: Every rule that reads a tensor of another size: how it fills one of 2 x 4 or 4 x 8 from 4 x 4.
FROM_SOURCE = {
    "select_": lambda w, s: wi.init.select_(w[:, :2], s),
    "widen_": lambda w, s: wi.init.widen_(w, s[:2]),
    "pad_": lambda w, s: wi.init.pad_(w, s[:1, :1], zero=[0, 1]),
    "project_": lambda w, s: wi.init.project_(w, s, halves()),
    "mix_": lambda w, s: wi.init.mix_(w, [s[:2], s[2:]], [0.5, 0.5]),
    "wavelet_": lambda w, s: wi.init.wavelet_(w, s),
}


@pytest.mark.parametrize("rule", FROM_SOURCE)
def test_rules_fill_a_parameter_in_place_and_leave_the_source_alone(rule):
    if rule == "wavelet_":
        pytest.importorskip("pywt")
    weight = torch.nn.Parameter(torch.zeros(2, 4, dtype=torch.bfloat16))
    source = torch.nn.Parameter(torch.randn(4, 4, generator=seeded()))
    before, version, pointer = source.detach().clone(), weight._version, weight.data_ptr()
    filled = FROM_SOURCE[rule](weight, source)
    assert rule == "select_" or filled is weight
    assert weight.data_ptr() == pointer and weight._version > version
    assert weight.requires_grad and weight.grad_fn is None and bool((weight != 0).any())
    weight.detach().zero_()
    assert torch.equal(source, before)


@pytest.mark.parametrize("rule", FROM_SOURCE)
def test_rules_compute_in_the_wider_dtype_and_round_once(rule):
    if rule == "wavelet_":
        pytest.importorskip("pywt")
    source = torch.randn(4, 4, generator=seeded()).bfloat16()
    low, high = torch.zeros(2, 4, dtype=torch.bfloat16), torch.zeros(2, 4)
    FROM_SOURCE[rule](low, source)
    FROM_SOURCE[rule](high, source)
    assert torch.equal(low, high.bfloat16())


@pytest.mark.parametrize("rule", FROM_SOURCE)
def test_rules_do_nothing_on_meta_and_empty_tensors(rule):
    if rule == "wavelet_":
        pytest.importorskip("pywt")
    state = torch.get_rng_state()
    meta = torch.empty(2, 4, device="meta")
    filled = FROM_SOURCE[rule](meta, torch.ones(4, 4))
    assert filled.is_meta and (rule == "select_" or filled is meta)
    FROM_SOURCE[rule](torch.empty(2, 4), torch.ones(4, 4, device="cpu"))
    assert torch.equal(torch.get_rng_state(), state)


def test_every_initializer_returns_its_tensor_and_is_documented():
    for name in wi.init.__all__:
        assert name.endswith("_") and ">>> " in (getattr(wi.init, name).__doc__ or ""), name


def test_empty_tensors_stay_empty():
    empty = torch.empty(0, 4)
    assert wi.init.select_(empty, torch.ones(4, 4)) is empty
    assert wi.init.widen_(torch.empty(0, 4), torch.ones(0, 2)).shape == (0, 4)
    assert wi.init.pad_(torch.empty(0, 4), torch.ones(0, 2)).shape == (0, 4)
    assert wi.init.project_(empty, torch.ones(4, 4), torch.ones(0, 4)) is empty
    assert wi.init.mix_(empty, [torch.ones(0, 4)], [1.0]) is empty
