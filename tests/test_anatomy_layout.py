import math

import einops
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from weightinit import AnatomyError
from weightinit.anatomy.layout import layout
from weightinit.anatomy.pattern import parse

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
        for axis in parse(pattern).axes
    ]
    return tuple(lengths)


def _numbers(shape):
    return torch.arange(math.prod(shape), dtype=torch.float64).reshape(shape)


@given(rearrangements())
@settings(max_examples=150, deadline=None)
def test_split_is_what_einops_does_and_merge_its_inverse(case):
    stored, canonical, sizes = case
    tensor = _numbers(_shape(stored, sizes))
    seen = layout(stored, tensor.shape, sizes, to=canonical)
    (part,) = seen.split(tensor)
    assert torch.equal(part, einops.rearrange(tensor, f"{stored} -> {canonical}", **sizes))
    assert part.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr()
    assert torch.equal(seen.merge([part]), tensor)


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
    seen = layout(fused, tensor.shape, sizes, parts, canonical)
    views = seen.split(tensor)
    # Slow reference: cut the stored tensor in equal runs, rearrange each.
    for view, run in zip(views, tensor.chunk(parts, at), strict=True):
        assert torch.equal(view, einops.rearrange(run, f"{stored} -> {canonical}", **sizes))
    assert torch.equal(seen.merge(views), tensor)
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
    up, q, k = layout("(m + h k + h k) d", tensor.shape, sizes, 3).split(tensor)
    assert (up.shape, q.shape, k.shape) == ((5, 4), (6, 4), (6, 4))
    assert torch.equal(torch.cat([up, q, k]), tensor)
    seen = layout("d (h k + m)", (4, 17), sizes, 2)
    proj, fc2 = seen.split(tensor.t())
    assert torch.equal(torch.cat([proj, fc2], 1), tensor.t())
    assert torch.equal(seen.merge([proj, fc2]), tensor.t())


def test_merge_is_differentiable():
    parts = [_numbers((2, 3)).requires_grad_() for _ in range(3)]
    merged = layout("d (3 m)", (3, 6), {}, 3, "m d").merge(parts)
    (merged * torch.arange(18.0).reshape(3, 6)).sum().backward()
    assert torch.equal(parts[1].grad, torch.arange(18.0).reshape(3, 6)[:, 2:4].t().double())


def test_a_linear_patch_embedding_is_a_view_of_a_convolution():
    weight = _numbers((5, 2 * 3 * 4))
    (view,) = layout("d (p q c)", weight.shape, {"p": 2, "q": 3}, to="d c p q").split(weight)
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
        layout(pattern, shape, {}, parts, to)


def test_no_view_is_an_error_not_a_copy():
    with pytest.raises(AnatomyError, match="contiguous"):
        layout("(a b) c", (6, 4), {"a": 2}, to="b (a c)").split(torch.zeros(4, 6).t())
    with pytest.raises(AnatomyError, match="was given"):
        layout("a b", (2, 3), {}).split(torch.zeros(3, 2))
