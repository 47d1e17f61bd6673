import math

import einops
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from weightinit import AnatomyError
from weightinit.anatomy import layout as axes

LABELS = tuple("abcdfg")


@st.composite
def rearrangements(draw):
    """A stored pattern, a canonical one that is a view of it, and the sizes of their labels."""
    labels = list(draw(st.permutations(LABELS)))[: draw(st.integers(1, 5))]
    sizes = {label: draw(st.integers(1, 4)) for label in labels}
    groups = []
    while labels:
        cut = draw(st.integers(1, len(labels)))
        groups.append(labels[:cut])
        labels = labels[cut:]
    ones = [["1"]] * draw(st.integers(0, 2))
    stored = draw(st.permutations(groups + ones))
    canonical = draw(st.permutations(groups))
    return _text(stored), _text(canonical), sizes


def _text(groups):
    return " ".join(g[0] if len(g) == 1 else f"({' '.join(g)})" for g in groups)


def _shape(pattern, sizes):
    lengths = [
        sum(math.prod(sizes.get(f) or int(f) for f in group) for group in axis)
        for axis in axes.parse(pattern).axes
    ]
    return tuple(lengths)


def _numbers(shape):
    return torch.arange(math.prod(shape), dtype=torch.float64).reshape(shape)


@given(rearrangements())
@settings(max_examples=150, deadline=None)
def test_split_is_what_einops_does_and_merge_its_inverse(case):
    stored, canonical, sizes = case
    tensor = _numbers(_shape(stored, sizes))
    (part,) = axes.split(tensor, stored, sizes, to=canonical)
    assert torch.equal(part, einops.rearrange(tensor, f"{stored} -> {canonical}", **sizes))
    assert part.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr()
    merged = axes.merge([part], stored, tensor.shape, sizes, to=canonical)
    assert torch.equal(merged, tensor)


@given(rearrangements(), st.integers(2, 4), st.integers(0, 4))
@settings(max_examples=150, deadline=None)
def test_fused_parts_are_views_that_cover_every_element_once(case, parts, at):
    stored, canonical, sizes = case
    groups = [f"({parts} {token.strip('()')})" for token in _tokens(stored)]
    tokens = list(_tokens(stored))
    at %= len(tokens)
    tokens[at] = groups[at]
    fused = " ".join(tokens)
    tensor = _numbers(_shape(fused, sizes))
    views = axes.split(tensor, fused, sizes, parts, canonical)
    # Slow reference: cut the stored tensor in equal runs, rearrange each.
    for view, run in zip(views, tensor.chunk(parts, at), strict=True):
        assert torch.equal(view, einops.rearrange(run, f"{stored} -> {canonical}", **sizes))
    assert torch.equal(axes.merge(views, fused, tensor.shape, sizes, canonical), tensor)
    for i, view in enumerate(views):
        view.fill_(-1 - i)
    counts = torch.bincount(-tensor.flatten().long() - 1, minlength=parts)
    assert counts.tolist() == [tensor.numel() // parts] * parts


def _tokens(pattern):
    depth, word = 0, ""
    for char in pattern + " ":
        depth += (char == "(") - (char == ")")
        if char == " " and depth == 0:
            yield word
            word = ""
        else:
            word += char


def test_parts_of_unequal_length():
    sizes = {"h": 2, "k": 3}
    tensor = _numbers((5 + 6 + 6, 4))
    up, q, k = axes.split(tensor, "(m + h k + h k) d", sizes, 3)
    assert (up.shape, q.shape, k.shape) == ((5, 4), (6, 4), (6, 4))
    assert torch.equal(torch.cat([up, q, k]), tensor)
    proj, fc2 = axes.split(tensor.t(), "d (h k + m)", sizes, 2)
    assert torch.equal(torch.cat([proj, fc2], 1), tensor.t())
    merged = axes.merge([proj, fc2], "d (h k + m)", (4, 17), sizes)
    assert torch.equal(merged, tensor.t())


def test_merge_is_differentiable():
    parts = [torch.randn(2, 3, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    merged = axes.merge(parts, "d (3 m)", (3, 6), {}, "m d")
    (merged * torch.arange(18.0).reshape(3, 6)).sum().backward()
    assert torch.equal(parts[1].grad, torch.arange(18.0).reshape(3, 6)[:, 2:4].t().double())


def test_a_linear_patch_embedding_is_a_view_of_a_convolution():
    weight = _numbers((5, 2 * 3 * 4))
    (view,) = axes.split(weight, "d (p q c)", {"p": 2, "q": 3}, to="d c p q")
    assert view.shape == (5, 4, 2, 3)
    assert view[1, 3, 1, 2] == weight[1, (1 * 3 + 2) * 4 + 3]


@pytest.mark.parametrize(
    ("shape", "pattern", "parts", "to", "match"),
    [
        ((6, 2), "(3 h k) d", 3, "", "do not follow"),
        ((5, 2), "(3 d) c", 3, "", "contradicts"),
        ((6, 2), "(3 d) c", 2, "", "parts"),
        ((6, 2), "(d 3) c", 3, "", "parts"),
        ((6, 2), "a b", 1, "a c", "rearrange"),
        ((6, 2), "a b", 1, "a", "rearrange"),
    ],
)
def test_layouts_that_cannot_be(shape, pattern, parts, to, match):
    with pytest.raises(AnatomyError, match=match):
        axes.split(torch.zeros(shape), pattern, {}, parts, to)


def test_no_view_is_an_error_not_a_copy():
    with pytest.raises(AnatomyError, match="contiguous"):
        axes.split(torch.zeros(4, 6).t(), "(a b) c", {"a": 2}, to="b (a c)")
    with pytest.raises(AnatomyError, match="was given"):
        axes.layout("a b", (2, 3), {}).split(torch.zeros(3, 2))


@given(
    st.dictionaries(st.sampled_from(["h", "k", "d"]), st.sampled_from(["index", "matrix", "call"])),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(0, 2**31),
)
@settings(max_examples=100, deadline=None)
def test_apply_is_indexing_and_matmul(kinds, h, k, d, new, seed):
    generator = torch.Generator().manual_seed(seed)
    sizes = {"h": h, "k": k, "d": d}
    tensor = torch.randn(3 * h * k, d, dtype=torch.float64, generator=generator)
    expected = tensor.reshape(3, h, k, d)
    ops = {}
    for label, kind in kinds.items():
        dim = "_hkd".index(label)
        if kind == "index":
            ops[label] = torch.randint(sizes[label], (new,), generator=generator)
            expected = torch.stack([expected.select(dim, i) for i in ops[label].tolist()], dim)
        elif kind == "matrix":
            matrix = torch.randn(new, sizes[label], dtype=torch.float64, generator=generator)
            ops[label] = matrix
            slices = [
                sum(matrix[a, b] * expected.select(dim, b) for b in range(sizes[label]))
                for a in range(new)
            ]
            expected = torch.stack(slices, dim)
        else:
            ops[label] = lambda x, at: x.flip(at)
            expected = expected.flip(dim)
    shape = (3 * expected.shape[1] * expected.shape[2], expected.shape[3])
    result = axes.apply(tensor, "(3 h k) d", {"h": h}, ops)
    torch.testing.assert_close(result, expected.reshape(shape), rtol=1e-12, atol=1e-12)


def test_apply_on_labels_taken_together():
    tensor, matrix = torch.randn(6, 5).double(), torch.randn(4, 6).double()
    result = axes.apply(tensor, "(h k) d", {"h": 2}, {"h k": matrix, "n": lambda x, _: x * 0})
    torch.testing.assert_close(result, matrix @ tensor)
    result = axes.apply(tensor.t(), "d (h k)", {"h": 2}, {"h k": matrix})
    torch.testing.assert_close(result, tensor.t() @ matrix.t())


def test_apply_on_a_sum_acts_on_each_part():
    tensor = torch.randn(2 + 4, 3).double()
    index = torch.tensor([1, 0, 1])
    result = axes.apply(tensor, "(m + h k) d", {"h": 2, "k": 2}, {"h": index})
    heads = tensor[2:].reshape(2, 2, 3)[index].reshape(6, 3)
    assert torch.equal(result, torch.cat([tensor[:2], heads]))


def test_apply_refuses_what_does_not_fit():
    tensor = torch.zeros(6, 5)
    with pytest.raises(AnatomyError, match="one operator a label"):
        axes.apply(tensor, "(h k) d", {"h": 2}, {"k d": torch.zeros(1, 1)})
    with pytest.raises(AnatomyError, match="length 5"):
        axes.apply(tensor, "m d", {}, {"d": torch.zeros(2, 4)})
    with pytest.raises(AnatomyError, match="sizes that are missing"):
        axes.apply(tensor, "(h k) d", {}, {})
