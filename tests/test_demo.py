import pytest

import weightinit as wi
from weightinit.demo import NESTED, TARGETS, demo
from weightinit.errors import WeightInitError


@pytest.mark.slow
def test_demo_beats_random_on_every_target(tmp_path):
    plot = tmp_path / "demo.png"
    text, values = demo(plot, steps=3)
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert len(values["rows"]) == len(TARGETS) >= 5
    for row in values["rows"]:
        assert row["target"] in text
        assert row["templates_at_once"] > row["random_trained"] + 10, row
    assert {row["bundle"] for row in values["rows"]} == {"digits-w32", "digits-weit"}


def test_one_target_is_below_all_that_its_neighbours_templates_were_trained_at():
    other, bundle = (
        wi.TemplateBundle.from_pretrained(f"digits-{name}") for name in ("w32", "weit")
    )
    size, auxiliary = TARGETS[NESTED], other.config.provenance["auxiliary"]
    assert size["embed_dim"] < other.config.sizes["d"]
    assert size["depth"] < min(auxiliary["depths"])
    assert size["depth"] in bundle.config.traits["trained_depths"]
    assert size["embed_dim"] / bundle.config.sizes["d"] in bundle.config.traits["trained_widths"]


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(WeightInitError, match=r"sklearn.*pip install"):
        demo(tmp_path / "demo.png")
