import pytest
import torch

from weightinit.inherit.fresh import base_seed, fresh_rule, sub_generator


@pytest.mark.parametrize(
    ("role", "shape", "value"),
    [
        ("norm1.weight", (4,), 1.0),
        ("fc_norm.bias", (4,), 0.0),
        ("ls1", (4,), 1.0),
        ("attn.q_norm.weight", (4,), 1.0),
        ("attn.rel_table", (4, 2), 0.0),
        ("head.bias", (3,), 0.0),
    ],
)
def test_constant_rules(role, shape, value):
    text, rule = fresh_rule(role, shape)
    out = torch.full(shape, float("nan"))
    rule(out, sub_generator(0, role))
    assert bool((out == value).all()) and text


def test_matrices_are_drawn_as_torch_draws_them():
    text, rule = fresh_rule("head.weight", (200, 100))
    out = torch.empty(200, 100)
    rule(out, sub_generator(0, "head.weight"))
    assert "trunc_normal_" in text and float(out.std()) == pytest.approx(0.02, rel=0.05)


def test_seeds_differ_by_name_and_call():
    draws = {
        (seed, name): float(torch.rand((), generator=sub_generator(seed, name)))
        for seed in (0, 1)
        for name in ("a", "b")
    }
    assert len(set(draws.values())) == 4
    generator = torch.Generator().manual_seed(5)
    assert base_seed(generator) != base_seed(generator)
    assert base_seed(None) == 0
