"""Configs: sound values only, quickly, wherever they come from."""

import json
from dataclasses import fields

import pytest
import torch

from weightinit.errors import BundleError
from weightinit.hypernet.config import HyperConfig
from weightinit.hypernet.network import GraphHyperNetwork

RULED = HyperConfig.pith(start="rule", separate=True, expansion="both")


@pytest.mark.parametrize("config", [HyperConfig(), HyperConfig("ghn3"), HyperConfig.pith(), RULED])
def test_round_trip_through_json(config):
    values = json.loads(json.dumps(config.to_dict()))
    assert HyperConfig.from_dict(values) == config
    assert set(values) == {field.name for field in fields(config)}


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "gpt"},
        {"kind": ["ghn3"]},
        {"pathway": "both"},
        {"expansion": None},
        {"start": "noise"},
        {"hid": 0},
        {"hid": 130},
        {"hid": 24, "heads": 16},
        {"hid": 2.0},
        {"hid": True},
        {"hid": float("nan")},
        {"hid": "128"},
        {"layers": -1},
        {"layers": 2**40},
        {"heads": 0},
        {"rank": -3},
        {"max_ck": 0},
        {"num_classes": None},
        {"max_shape": 2048},
        {"max_shape": (2048, 2048)},
        {"max_shape": (2048, 2048, float("inf"))},
        {"max_shape": (2048, 0, 16)},
        {"primitives": 16},
        {"task_dim": -1},
        {"kind": "tal"},
        {"layernorm": 1},
        {"dead_layer": "yes"},
        {"separate": None},
        {"faithful": 1},
        {"language": True},
        {"language": "bert"},
        {"kind": "tal", "task_dim": 3, "language": "llm"},
        {"kind": "pith", "start": "rule", "faithful": True},
        {"width": 3},
    ],
)
def test_unsound_values_are_refused(changes):
    with pytest.raises(BundleError, match="use"):
        HyperConfig.from_dict({**HyperConfig().to_dict(), **changes})


@pytest.mark.parametrize(
    "gone", [{"heads_apart": True}, {"heads_apart": 0}, {"alignment": "learned"}]
)
def test_what_was_dropped_is_refused_by_what_to_do(gone):
    with pytest.raises(BundleError, match="train it again"):
        HyperConfig.from_dict({**HyperConfig.pith().to_dict(), **gone})


def test_a_dropped_flag_that_meant_nothing_is_passed_over():
    assert HyperConfig.from_dict({**RULED.to_dict(), "heads_apart": True}) == RULED
    assert HyperConfig.from_dict({**HyperConfig().to_dict(), "heads_apart": False}) == HyperConfig()


def test_pith_as_released_aligns_the_first_blocks():
    """A bundle that does not say was trained by this library, on blocks in even steps."""
    assert HyperConfig.pith().alignment == "first" and not HyperConfig.pith().faithful
    values = HyperConfig.pith().to_dict()
    for name in ("alignment", "faithful", "language"):
        del values[name]
    old = HyperConfig.from_dict(values)
    assert (old.alignment, old.faithful, old.language) == ("uniform", False, "none")


def test_lists_become_tuples():
    assert HyperConfig(max_shape=[4, 4, 2]).max_shape == (4, 4, 2)  # pyright: ignore[reportArgumentType]


def published_count(hid, rank, layers, heads, ck):
    """LoGAH's number of parameters, written out once more."""
    encoder = (
        15 * hid + 11 * hid // 4 + 392 * hid // 4 + 257 * hid + (101 * 2 + 1001) * hid + 2 * hid
    )
    encoder += 2 * hid * hid + hid + hid * heads + heads
    encoder += layers * (4 * hid + 3 * hid**2 + hid**2 + hid + 8 * hid**2 + 5 * hid)
    mlp = 4 * hid * (hid + 1) + 8 * hid * (4 * hid + 1) + 2 * rank**2 * (8 * hid + 1)
    return encoder + mlp + rank**2 + rank + (rank + 1) * ck + 4


@pytest.mark.parametrize(
    "sizes", [(64, 32, 3, 8, 32768), (128, 90, 5, 16, 32768), (256, 256, 12, 16, 32768)]
)
def test_parameters_follow_the_formula(sizes):
    hid, rank, layers, heads, ck = sizes
    with torch.device("meta"):
        net = GraphHyperNetwork(
            HyperConfig(hid=hid, rank=rank, layers=layers, heads=heads, max_ck=ck)
        )
    assert sum(p.numel() for p in net.parameters()) == published_count(*sizes)
