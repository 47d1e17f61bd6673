import json

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from weightinit.anatomy import anatomy
from weightinit.errors import BundleError
from weightinit.templates.config import TemplateConfig


def deit(name="deit_base_patch16_224", **options):
    with torch.device("meta"):
        return timm.create_model(name, **options)


@pytest.mark.parametrize(
    ("name", "width", "ratio"),
    [
        ("deit_base_patch16_224", 768, 1),
        ("deit_small_patch16_224", 384, 1),
        ("deit_small_patch16_224", 192, 2),
        ("deit_base_patch16_224", 384, 2),
    ],
)
@pytest.mark.parametrize("depth", [4, 12])
def test_wave_needs_84_r2_plus_32_r_scalers_a_block(name, width, ratio, depth):
    """Table 4 of WAVE: 464 and 1392 at ratio 1 for 4 and 12 blocks, without the tables of iRPE."""
    model = deit(name, depth=depth)
    per_block = 84 * ratio**2 + 32 * ratio
    assert TemplateConfig.wave(width).num_scalers(anatomy(model)) == depth * per_block


def test_ratio_three():
    model = deit(depth=6, embed_dim=576, num_heads=9)
    assert TemplateConfig.wave(192).num_scalers(anatomy(model)) == 6 * (84 * 9 + 32 * 3)


class Table(nn.Module):
    """One lookup table of Mini-DeiT's contextual relative positions."""

    def __init__(self, *shape):
        super().__init__()
        self.lookup_table_weight = nn.Parameter(torch.empty(shape))


@pytest.mark.parametrize(("depth", "total"), [(4, 536), (8, 1072), (12, 1608)])
def test_contextual_relative_positions_need_18_more(depth, total):
    """The counts that WAVE prints in Table 4, to the last scaler."""
    model = deit(depth=depth)
    for block in model.blocks:
        with torch.device("meta"):
            block.attn.rpe_q, block.attn.rpe_k = Table(1, 64, 49), Table(1, 64, 49)
            block.attn.rpe_v = Table(1, 49, 64)
    assert TemplateConfig.wave(768).num_scalers(anatomy(model)) == total


def test_kinds_that_a_model_lacks_are_not_counted():
    model = deit(qkv_bias=False, depth=1)
    assert TemplateConfig.wave(768).num_scalers(anatomy(model)) == 116 - 4
    kinds = TemplateConfig.wave(768).restricted_to(anatomy(model)).kinds
    assert "attn.qkv.bias" not in kinds and "attn.rpe_q.weight" not in kinds and len(kinds) == 11


def test_wave_has_two_layers_worth_of_square_templates():
    kinds = TemplateConfig.wave(192).kinds
    assert sum(k.number for k in kinds.values() if k.shape == (192, 192)) == 24


@pytest.mark.parametrize(
    "config", [TemplateConfig.wave(32), TemplateConfig.layers("tleg", 16, 2, mlp_ratio=3)]
)
def test_round_trip_through_json(config):
    assert TemplateConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def damaged():
    good = TemplateConfig.wave(8).to_dict()
    yield {**good, "method": "magic"}
    yield {**good, "order": "column"}
    yield {**good, "width": -1}
    yield {**good, "width": "8"}
    yield {**good, "more": 1}
    yield {k: v for k, v in good.items() if k != "kinds"}
    for entry in (
        {"number": 0, "shape": [8, 8], "parts": 1},
        {"number": 2**40, "shape": [8, 8], "parts": 1},
        {"number": 2, "shape": [8, 8, 8], "parts": 1},
        {"number": 2, "shape": [], "parts": 1},
        {"number": 2, "shape": [8], "parts": 2},
        {"number": 2.5, "shape": [8], "parts": 1},
        {"number": 2},
        [],
        None,
    ):
        yield {**good, "kinds": {"mlp.fc1.weight": entry}}
    yield {**good, "kinds": []}


@pytest.mark.parametrize("options", list(damaged()), ids=str)
def test_damaged_options_are_refused(options):
    with pytest.raises(BundleError, match=r"use|expected|remove"):
        TemplateConfig.from_dict(options)


@given(
    st.recursive(
        st.none() | st.integers() | st.text(), lambda c: st.lists(c) | st.dictionaries(st.text(), c)
    )
)
def test_arbitrary_json_is_refused_and_nothing_else_escapes(value):
    with pytest.raises(BundleError):
        TemplateConfig.from_dict(value)
