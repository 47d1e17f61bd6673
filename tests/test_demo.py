import pytest

from weightinit.demo import TARGETS, demo
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


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(WeightInitError, match=r"sklearn.*pip install"):
        demo(tmp_path / "demo.png")
