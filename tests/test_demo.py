import sys

import pytest

import weightinit as wi
from weightinit.demo import ANCESTOR, RATES, TARGETS, demo, draw
from weightinit.errors import WeightInitError


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The two ends of the demo: the smallest target, and one that grows."""
    said = []
    plot = tmp_path_factory.mktemp("demo") / "demo.png"
    targets = {name: TARGETS[name] for name in ("narrower, shallower", "deeper")}
    last, values = demo(plot, steps=4, targets=targets, say=said.append)
    return said, last, values, plot


def test_carried_weights_are_far_above_random_ones(run):
    values = run[2]
    small, grown = values["rows"]
    for row in (small, grown):
        assert row["steps"][0] == 0
        assert {len(row[start]) for start in RATES} == {len(row["steps"])}
        for start in ("templates", "inherited"):
            assert row[start][0] > max(row["random"]) + 40, row
    assert small["inherited"][0] > small["without_data"] + 40
    whole = values["ancestor"]["accuracy"]
    assert grown["inherited"][0] == grown["without_data"] == pytest.approx(whole)


def test_a_line_is_said_for_each_target_after_an_estimate(run):
    said, last, values, plot = run
    estimate = next(i for i, line in enumerate(said) if "seconds" in line)
    rows = [i for name in TARGETS for i, line in enumerate(said) if line.startswith(f"{name} ")]
    assert len(rows) == len(values["rows"]) == 2
    assert min(rows) > estimate
    assert str(plot) in last
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_the_ancestor_is_the_network_that_its_bundle_was_trained_as():
    config = wi.TemplateBundle.from_pretrained("digits-weit").config
    assert ANCESTOR == {
        "embed_dim": config.sizes["d"],
        "depth": config.depth,
        "num_heads": config.sizes["h"],
    }
    assert ANCESTOR not in TARGETS.values()


def test_a_picture_of_the_same_numbers_is_the_same_file(tmp_path):
    row = {"target": "wider", **TARGETS["wider"], "steps": [0, 1], "without_data": 90.0}
    row |= {start: [50.0, 60.0] for start in RATES}
    files = [tmp_path / name for name in ("a.svg", "b.svg")]
    for file in files:
        draw([row], 95.0, file)
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(WeightInitError, match=r"sklearn.*pip install"):
        demo(tmp_path / "demo.png")
