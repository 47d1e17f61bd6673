"""The config of every published hypernetwork follows from the shapes of its tensors."""

from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from weightinit.errors import BundleError
from weightinit.hypernet.config import HyperConfig
from weightinit.hypernet.encoder import channel_bins
from weightinit.hypernet.infer import inferred
from weightinit.hypernet.network import GraphHyperNetwork

GHN3 = {
    "t": (64, 3, 8, 6_906_632),
    "s": (128, 5, 16, 35_810_368),
    "l": (256, 12, 16, 214_668_960),
    "xl": (384, 24, 16, 654_365_184),
}
PUBLISHED = {
    "logah": (HyperConfig(), 21_412_794),
    "logah_tiny": (HyperConfig(hid=64, rank=32, layers=3, heads=8), 2_540_380),
    "tal": (HyperConfig("tal", task_dim=768, dead_layer=False), 22_388_924),
    "pith": (HyperConfig.pith(), 50_528_133),
    "pith_tasks": (HyperConfig.pith(task_dim=768), 51_512_453),
    "pith_dual": (HyperConfig.pith(expansion="none"), 41_599_233),
    "pith_shared": (HyperConfig.pith(expansion="none", pathway="shared"), 24_402_873),
    **{
        f"ghn3_{name}": (
            HyperConfig("ghn3", hid=hid, layers=layers, heads=heads, max_shape=(hid, hid, 16)),
            count,
        )
        for name, (hid, layers, heads, count) in GHN3.items()
    },
}


def shapes_of(config):
    with torch.device("meta"):
        state = GraphHyperNetwork(config).state_dict()
    return {name: tuple(value.shape) for name, value in state.items()}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models(name):
    config, count = PUBLISHED[name]
    shapes = shapes_of(config)
    found, assumed = inferred(shapes, {})
    assert found == replace(config, faithful=True)
    sizes = set() if config.kind == "ghn3" else {"num_classes", "max_shape"}
    assert set(assumed) == {"softmax", *sizes}
    assert sum(torch.Size(shape).numel() for shape in shapes.values()) == count


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(["ghn3", "logah", "tal", "pith"]),
    heads=st.integers(1, 4),
    quarter=st.integers(1, 3),
    layers=st.integers(1, 4),
    rows=st.integers(8, 40),
    columns=st.integers(8, 40),
    side=st.sampled_from([11, 16]),
    classes=st.integers(2, 200),
    layernorm=st.booleans(),
    primitives=st.sampled_from([15, 18]),
    rank=st.integers(1, 6),
    max_ck=st.integers(8, 100),
    task=st.integers(1, 9),
    expansion=st.sampled_from(["none", "original", "both"]),
    language=st.sampled_from(["none", "gpt", "llm"]),
)
def test_every_config_is_found_again(
    kind, heads, quarter, layers, rows, columns, side, classes, layernorm, primitives, rank, max_ck,
    task, expansion, language,
):  # fmt: skip
    common = {
        "hid": 4 * heads * quarter, "heads": heads, "layers": layers, "layernorm": layernorm,
        "max_shape": (rows, columns, side), "num_classes": classes, "primitives": primitives,
    }  # fmt: skip
    if kind != "ghn3":
        common |= {"rank": rank, "max_ck": max_ck}
    if kind == "tal":
        common |= {"task_dim": task}
    if kind == "pith":
        common |= {"expansion": expansion}
    if kind == "logah":
        common |= {"language": language}
    config = HyperConfig(kind, **common)
    stated = {"max_shape": (rows, columns, side, side), "num_classes": classes}
    released = replace(config, faithful=True, alignment="first" if kind == "pith" else "uniform")
    # a table of no more rows than for images is one for images
    assume(language != "gpt" or classes not in channel_bins(8, "none"))
    for softmax in (True, False):
        expected = replace(released, softmax=softmax), ()
        assert inferred(shapes_of(config), stated, softmax=softmax) == expected


def test_arguments_come_before_what_is_stated():
    shapes = shapes_of(replace(HyperConfig(), hid=16, heads=2, layers=1, rank=2, max_ck=32))
    stated = {"max_shape": 512, "num_classes": 10}
    assert inferred(shapes, stated)[0].max_shape == (512, 512, 16)
    found, assumed = inferred(shapes, stated, max_shape=64, num_classes=7)
    assert found.max_shape == (64, 64, 16) and found.num_classes == 7 and assumed == ("softmax",)


def test_an_unknown_kernel_must_be_stated():
    config = HyperConfig(hid=16, heads=2, layers=1, rank=2, max_ck=32, max_shape=(64, 64, 24))
    with pytest.raises(BundleError, match="must state its max_shape"):
        inferred(shapes_of(config), {})
    found, _ = inferred(shapes_of(config), {"max_shape": (64, 64, 24)})
    assert found == replace(config, faithful=True)
