import math

import pytest
import torch
from helpers.models import draw
from helpers.templates import compose, composer
from hypothesis import given, settings
from hypothesis import strategies as st

from weightinit.templates.config import TemplateConfig
from weightinit.templates.kinds import TemplateKind, kind_roles

KINDS = ("attn.qkv.weight", "attn.qkv.bias", "attn.proj.weight", "mlp.fc1.weight", "mlp.fc1.bias")


def reference(config, kind, templates, scalers):
    """Every part of W = sum_t S_t (x) T_t by torch.kron, in float64: {role: matrix}."""
    spec, roles = config.kinds[kind], kind_roles(kind)
    found = {}
    for index, role in enumerate(roles):
        total = 0
        for t in range(spec.number):
            template, scaler = templates[t], scalers[t]
            if spec.parts > 1:
                template = template.chunk(len(roles))[index]
            else:
                scaler = scaler.chunk(len(roles))[index]
            order = (scaler, template) if config.order == "block" else (template, scaler)
            total = total + torch.kron(*order)
        found[role] = total
    return found


@settings(deadline=None, max_examples=60)
@given(
    kind=st.sampled_from(KINDS),
    order=st.sampled_from(["block", "paper"]),
    width=st.integers(1, 5),
    out=st.integers(1, 13),
    inner=st.integers(1, 13),
    layers=st.booleans(),
    layer_templates=st.booleans(),
)
def test_compose_is_the_cropped_kronecker_sum(
    kind, order, width, out, inner, layers, layer_templates
):
    config = (
        TemplateConfig.layers("tleg", width, 2) if layer_templates else TemplateConfig.wave(width)
    )
    config = TemplateConfig(config.method, width, config.kinds, order)
    spec = config.kinds[kind]
    size = (out, inner)[: len(spec.shape)]
    target = composer(config, kind, size)
    templates = draw(spec.number, *spec.shape)
    scalers = draw(2, spec.number, *target.scaler_shape(kind), seed=1)
    composed = compose(target, kind, templates, scalers if layers else scalers[0])
    for layer in range(2 if layers else 1):
        expected = reference(config, kind, templates, scalers[layer])
        for role, value in expected.items():
            cropped = value[tuple(slice(n) for n in size)]
            actual = composed[role][layer] if layers else composed[role]
            torch.testing.assert_close(actual, cropped)
    for role, piece in target.target.blocks[0].items():
        view = torch.full(size, math.nan, dtype=torch.float64)
        assert target.compose(piece, templates, scalers[0], out=view) is view
        torch.testing.assert_close(view, composed[role][0] if layers else composed[role])


@settings(deadline=None, max_examples=40)
@given(
    kind=st.sampled_from(KINDS[:3]),
    heads=st.integers(1, 3),
    source=st.integers(1, 4),
    target=st.integers(1, 9),
    width=st.integers(1, 5),
)
def test_heads_of_another_size_are_made_of_copies(kind, heads, source, target, width):
    """Head by head: copies of the templates' head dim, the last one cut."""
    config = TemplateConfig.wave(width)
    size = {"attn.proj.weight": (7, heads * target)}.get(kind, (heads * target, 7))
    wide = composer(
        config, kind, size[: len(config.kinds[kind].shape)], heads=heads, head_dim=source
    )
    spec, piece = config.kinds[kind], wide.pieces[kind]
    templates = draw(spec.number, *spec.shape)
    scalers = draw(spec.number, *wide.scaler_shape(kind), seed=1)
    composed = wide.compose(piece, templates, scalers)
    out = torch.full(piece.size, math.nan, dtype=torch.float64)
    wide.compose(piece, templates, scalers, out=out)
    torch.testing.assert_close(out, composed)
    axis = 1 if kind == "attn.proj.weight" else 0
    copies, full = -(-target // source), target // source
    whole = reference(config, kind, templates, scalers)[piece.role].movedim(axis, 0)
    whole = whole.unflatten(0, (copies, -1))[:, : heads * source].unflatten(1, (heads, source))
    gain = 1.0
    if axis == 0 and source != target:
        gain = math.sqrt(math.sqrt(target / source) / (full or target / source))
    for head in range(heads):
        expected = gain * whole[:, head].flatten(0, 1)[:target]
        if axis == 0 and full:
            expected[full * source :] = 0
        actual = composed.movedim(axis, 0).unflatten(0, (heads, target))[head]
        torch.testing.assert_close(actual, expected[:, :7] if expected.dim() == 2 else expected)


def test_compose_is_differentiable_in_both():
    config = TemplateConfig.wave(2)
    templates = draw(6, 2, 2).requires_grad_()
    scalers = draw(2, 6, 6, 2, seed=1).requires_grad_()
    target = composer(config, "attn.qkv.weight", (3, 4))
    assert torch.autograd.gradcheck(
        lambda t, s: tuple(compose(target, "attn.qkv.weight", t, s).values()),
        (templates, scalers),
    )


def test_kinds_are_checked():
    from weightinit.errors import BundleError

    with pytest.raises(BundleError, match="positive sizes"):
        TemplateConfig("wave", 4, {"attn.proj.weight": TemplateKind(0, (4, 4))})
    with pytest.raises(BundleError, match="use one of"):
        TemplateConfig("waves", 4)
