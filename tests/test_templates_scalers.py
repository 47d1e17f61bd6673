import math
from dataclasses import replace

import pytest
import torch
from helpers.models import draw, make_bundle, vit
from helpers.templates import compose, composer
from hypothesis import given, settings
from hypothesis import strategies as st

import weightinit as wi
from weightinit.anatomy import anatomy, facts
from weightinit.errors import ProjectionError
from weightinit.templates.bundle import size_entry
from weightinit.templates.compose import Composer
from weightinit.templates.config import TemplateConfig
from weightinit.templates.kinds import kind_roles
from weightinit.templates.scalers import (
    closed_form,
    interpolate_depth,
    linear_scalers,
    stretch_depth,
    widen_scalers,
)

KINDS = ("attn.qkv.weight", "attn.qkv.bias", "attn.proj.weight", "mlp.fc1.weight", "mlp.fc1.bias")


def start(bundle, model, scalers="interpolate"):
    return Composer.of(bundle, anatomy(model)).start(bundle, scalers)


def widen(target, kind, scalers, source, noise=0.0):
    """The scalers of a kind, of an auxiliary model of a size, for a composer's target."""
    spec = target.config.kinds[kind]
    parts = scalers.unflatten(2, (len(kind_roles(kind)) // spec.parts, -1))
    covers = target.covers(target.pieces[kind])
    return widen_scalers(parts, source, covers, noise=noise).flatten(2, 3)


def test_closed_forms():
    assert closed_form("tleg", 2, 3).tolist() == [
        [1, 0],
        [1, pytest.approx(1 / 3)],
        [1, pytest.approx(2 / 3)],
    ]
    assert closed_form("share", 1, 2).tolist() == [[1], [1]]
    assert closed_form("auto_lg", 2, 4).tolist() == [[1, 0], [0, 1], [0, 0], [0, 0]]
    assert closed_form("heur_lg", 2, 4).tolist() == [[0, 0], [0, 0], [1, 0], [0, 1]]
    assert closed_form("heur_lg", 3, 2).tolist() == [[0, 1, 0], [0, 0, 1]]


@given(old=st.integers(1, 6), new=st.integers(1, 9))
def test_depth_is_interpolated_linearly_between_the_ends(old, new):
    scalers = torch.arange(old, dtype=torch.float64)[:, None].expand(old, 2)
    out = interpolate_depth(scalers, new)
    ends = torch.linspace(0, old - 1, new, dtype=torch.float64)
    expected = ends if new > 1 else torch.tensor([(old - 1) / 2], dtype=torch.float64)
    torch.testing.assert_close(out, expected[:, None].expand(new, 2))


@pytest.mark.parametrize("depth", [1, 4, 7])
def test_linear_scalers_are_equation_b1(depth):
    """i = floor(((t-1) mod s1 s2) / s2) and j = (t-1) mod s2, in the paper's orientation."""
    config = TemplateConfig.wave(4)
    for kind in KINDS:
        number = config.kinds[kind].number
        size = {"attn.qkv.weight": (8, 8), "mlp.fc1.weight": (32, 8)}.get(kind, (8, 8))
        shape = config.scaler_shape(kind, size[: len(config.kinds[kind].shape)])
        actual = linear_scalers(number, shape, depth, epsilon=0.0)
        s1, s2 = (shape[1], shape[0]) if len(shape) == 2 else (1, shape[0])
        for layer in range(1, depth + 1):
            for t in range(1, number + 1):
                expected = torch.zeros(s1, s2, dtype=torch.float64)
                alpha = 1.0 if t <= number / 2 else layer / depth
                expected[((t - 1) % (s1 * s2)) // s2, (t - 1) % s2] = alpha
                stored = expected.T if len(shape) == 2 else expected[0]
                torch.testing.assert_close(actual[layer - 1, t - 1], stored)


def test_linear_scalers_at_ratio_one_are_tleg_per_part():
    """At ratio 1, q = T1 + (l / L) T4, k = T2 + (l / L) T5 and v = T3 + (l / L) T6."""
    config = TemplateConfig.wave(3)
    templates = draw(6, 3, 3)
    scalers = linear_scalers(6, (3, 1), 5, epsilon=0.0)
    kind = "attn.qkv.weight"
    parts = compose(composer(config, kind, (3, 3)), kind, templates, scalers)
    for index, part in enumerate(parts.values()):
        for layer in range(5):
            expected = templates[index] + (layer + 1) / 5 * templates[index + 3]
            torch.testing.assert_close(part[layer], expected)


@pytest.mark.parametrize("ratio", [2, 3])
@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_widened_scalers_keep_the_product_with_repeated_inputs(ratio, noise):
    config = TemplateConfig.wave(4)
    for kind, size in (("attn.proj.weight", (4, 4)), ("mlp.fc2.weight", (4, 16))):
        spec = config.kinds[kind]
        templates = draw(spec.number, *spec.shape)
        scalers = draw(2, spec.number, *config.scaler_shape(kind, size), seed=1)
        narrow, wide = (composer(config, kind, tuple(r * n for n in size)) for r in (1, ratio))
        new = widen(wide, kind, scalers, size, noise)
        before = compose(narrow, kind, templates, scalers)[kind]
        after = compose(wide, kind, templates, new)[kind]
        x = draw(size[1], seed=2)
        torch.testing.assert_close(after @ x.repeat(ratio), (before @ x).repeat(1, ratio))
        copies = after.unflatten(2, (ratio, -1)).unbind(2)
        assert torch.allclose(copies[0], copies[1]) is (noise == 0.0)


def test_an_input_copied_in_part_is_not_read():
    config = TemplateConfig.wave(4)
    scalers = draw(1, 2, 1, 1)
    target = composer(config, "attn.proj.weight", (10, 10))
    wide = widen(target, "attn.proj.weight", scalers, (4, 4), noise=0.5)
    assert wide.shape == (1, 2, 3, 3)
    assert not wide[..., 2].any()
    torch.testing.assert_close(wide[..., :2].sum(-1), scalers.expand(1, 2, 3, 1)[..., 0])


@settings(deadline=None, max_examples=40)
@given(heads=st.integers(1, 3), source=st.integers(1, 4), target=st.integers(1, 9))
def test_other_head_dims_keep_the_attention_logits(heads, source, target):
    """q k / sqrt(k') over the new head dim is q k / sqrt(k) over the old one, where k' >= k."""
    if target < source:
        return
    width = heads * source
    config = TemplateConfig.wave(width)
    kind = "attn.qkv.weight"
    templates = draw(6, width, width)
    scalers = draw(1, 6, 3, 1, seed=1)
    small = composer(config, kind, (width, width), heads=heads)
    large = composer(config, kind, (heads * target, width), heads=heads, head_dim=source)
    wide = widen(large, kind, scalers, (width, width), noise=0.3)
    assert wide.shape[2:] == large.scaler_shape(kind)
    old = compose(small, kind, templates, scalers)
    new = compose(large, kind, templates, wide)
    x, y = draw(width, seed=2), draw(width, seed=3)

    def logits(parts, k):
        q, key = (
            (parts[f"attn.{p}.weight"][0] @ v).unflatten(0, (heads, k))
            for p, v in (("q", x), ("k", y))
        )
        return (q * key).sum(1) / math.sqrt(k)

    torch.testing.assert_close(logits(new, target), logits(old, source))


def test_fitted_scalers_of_exactly_this_size_are_taken(bundle):
    from weightinit.templates.fit import _with_fitted

    model = vit(embed_dim=32, num_heads=4, depth=5)
    values = {k: torch.full_like(v, 0.25) for k, v in start(bundle, model).items()}
    fitted = _with_fitted(bundle, size_entry(anatomy(model)), values)
    for how in (None, "fitted"):
        assert "fitted scalers" in str(wi.plan_templates(model, fitted, scalers=how).report())
    asked = wi.plan_templates(model, fitted, scalers="interpolate")
    assert "interpolate scalers" in str(asked.report())
    wi.init_from_templates(model, fitted)
    expected = 0.25 * bundle.tensors["templates.attn.proj.weight"].sum(0)
    torch.testing.assert_close(model.blocks[4].attn.proj.weight.detach(), expected.repeat(2, 2))
    other = wi.plan_templates(vit(embed_dim=32, num_heads=4, depth=4), fitted)
    assert "interpolate scalers" in str(other.report())


def test_damaged_fitted_scalers_are_refused(bundle):
    from weightinit.templates.fit import _with_fitted

    fitted = _with_fitted(bundle, size_entry(anatomy(vit())), start(bundle, vit()))
    del fitted.tensors["fitted.0.mlp.fc2.weight"]
    with pytest.raises(ProjectionError, match=r"fc2.*fit them anew"):
        wi.plan_templates(vit(), fitted)


def test_unknown_scalers_are_named(bundle):
    with pytest.raises(ProjectionError, match="interpolate"):
        start(bundle, vit(), "inter")


@pytest.mark.parametrize(
    ("trained", "move"), [([2, 3, 4], interpolate_depth), ([3], stretch_depth)]
)
@pytest.mark.parametrize("depth", [2, 4, 12])
def test_scalers_are_moved_over_depth_as_they_were_trained(trained, move, depth):
    """A much deeper target also writes less into the stream."""
    bundle = make_bundle()
    config = replace(bundle.config, traits={**bundle.config.traits, "trained_depths": trained})
    bundle = wi.TemplateBundle(config, bundle.tensors, "test")
    factor = min(1.0, (1.5 * 3 / depth) ** 0.75)
    for kind, values in start(bundle, vit(depth=depth)).items():
        whole = move(bundle.tensors[f"scalers.{kind}"].double(), depth)
        torch.testing.assert_close(values, whole * (factor if facts(kind).end else 1.0))


@given(old=st.integers(1, 8), new=st.integers(1, 20))
def test_stretching_keeps_the_first_half(old, new):
    scalers = torch.arange(old, dtype=torch.float64)[:, None]
    out = stretch_depth(scalers, new)
    assert out.shape == (new, 1)
    kept = min(new, old // 2 if new > old else old)
    assert torch.equal(out[:kept], scalers[:kept])
    assert bool((out.diff(dim=0) >= -1e-12).all()) and float(out[-1]) <= old - 1
    if new >= old > 1:
        assert float(out[-1]) == pytest.approx(old - 1)
