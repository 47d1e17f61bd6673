import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_generated_tables_are_those_of_the_result_files(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    for name in ("report", "schema"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import report

    for path, parts in report.PARTS.items():
        text = path.read_text()
        assert report.filled(text, parts) == text, "run make bench-report"


def test_links_lead_somewhere():
    for file in [ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md")]:
        for link in re.findall(r"\]\(([^)#]+)\)", file.read_text()):
            assert link.startswith("http") or (file.parent / link).exists(), (file.name, link)


def test_the_first_code_block_runs():
    """What a user copies first, on a smaller model so that it takes no time."""
    text = (ROOT / "README.md").read_text()
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    names = {}
    exec(code.replace("depth=9", "depth=2"), names)
    assert names["model"].head.out_features == 100
