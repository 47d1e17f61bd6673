import re
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest

from weightinit.demo import BATCH, CALIBRATION
from weightinit.training.data import load_data

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md")]


@pytest.fixture
def report(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    for name in ("report", "schema"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import report

    return report


def test_generated_tables_are_those_of_the_result_files(report):
    for path, parts in report.PARTS.items():
        text = path.read_text()
        assert report.filled(text, parts) == text, "run make bench-report"


def test_the_picture_shows_what_the_text_says(report):
    whole, *rows = report.results("demo")["rows"]
    seeds = len(report.results("demo")["seeds"])
    steps = {row["steps"][-1] for row in rows}
    assert steps == {int(re.search(r"(\d+) steps of", README)[1])}
    assert f"steps of {BATCH} images" in README
    assert {1: "one seed", 2: "means of two seeds", 3: "means of three seeds"}[seeds] in README
    data = load_data("digits")
    assert f"{len(data.train):,} images" in README
    assert f"{CALIBRATION} of them" in README
    assert whole["name"] == "ancestor"
    assert (ROOT / "docs" / "plots" / "demo.svg").exists()


def test_links_lead_somewhere():
    for file in PAGES:
        for link in re.findall(r"\]\(([^)#]+)\)", file.read_text()):
            assert link.startswith("http") or (file.parent / link).exists(), (file.name, link)


def test_it_is_short():
    assert len(README.splitlines()) <= 130


def test_blocks_run_when_pasted_in_order_and_print_what_is_shown():
    """With random weights in the place of those that timm would download."""
    blocks = re.findall(r"```python\n(.*?)```(?:\n\n```text\n(.*?)```)?", README, re.DOTALL)
    assert len(blocks) >= 3
    names = {}
    for code, shown in blocks:
        printed = StringIO()
        with redirect_stdout(printed):
            exec(code.replace(", pretrained=True", ""), names)
        assert printed.getvalue() == shown
