import math

import pytest
import torch
from helpers.models import draw
from hypothesis import given, settings
from hypothesis import strategies as st

from weightinit.templates.compose import (
    compose,
    compose_into,
    scaler_shape,
)
from weightinit.templates.config import TemplateConfig, TemplateKind, kind_roles

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
    templates = draw(spec.number, *spec.shape)
    shape = scaler_shape(config, kind, size)
    scalers = draw(2, spec.number, *shape, seed=1)
    sizes = dict.fromkeys(kind_roles(kind), size)
    composed = compose(config, kind, templates, scalers if layers else scalers[0], sizes)
    for layer in range(2 if layers else 1):
        expected = reference(config, kind, templates, scalers[layer])
        for role, value in expected.items():
            cropped = value[tuple(slice(n) for n in size)]
            actual = composed[role][layer] if layers else composed[role]
            torch.testing.assert_close(actual, cropped)
    views = {role: torch.full(size, math.nan, dtype=torch.float64) for role in kind_roles(kind)}
    compose_into(config, kind, templates, scalers[0], views)
    for role, view in views.items():
        torch.testing.assert_close(view, composed[role][0] if layers else composed[role])


def test_compose_is_differentiable_in_both():
    config = TemplateConfig.wave(2)
    templates = draw(6, 2, 2).requires_grad_()
    scalers = draw(2, 6, 6, 2, seed=1).requires_grad_()
    sizes = dict.fromkeys(kind_roles("attn.qkv.weight"), (3, 4))
    assert torch.autograd.gradcheck(
        lambda t, s: tuple(compose(config, "attn.qkv.weight", t, s, sizes).values()),
        (templates, scalers),
    )


def test_kinds_are_checked():
    from weightinit.errors import BundleError

    with pytest.raises(BundleError, match="positive sizes"):
        TemplateConfig("wave", 4, {"attn.proj.weight": TemplateKind(0, (4, 4))})
    with pytest.raises(BundleError, match="use one of"):
        TemplateConfig("waves", 4)
