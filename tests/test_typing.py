"""What a type checker sees of an installed wheel: py.typed, the user's class, names as literals."""

import json
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SNIPPET = """
import timm
import torch
import weightinit as wi


class Mine(torch.nn.Module):
    pass


mine = Mine()
reveal_type(wi.init_from_templates(mine))  # Mine
reveal_type(wi.project_from("vit", mine))  # Mine
reveal_type(wi.init_from_hypernet(mine, "logah"))  # Mine
reveal_type(wi.init_mimetic(mine))  # Mine
reveal_type(wi.plan_templates(mine).commit())  # Mine
reveal_type(wi.plan_projection("vit", mine).validate().commit())  # Mine
reveal_type(wi.plan_hypernet(mine, "logah").commit())  # Mine
reveal_type(wi.plan_mimetic(mine).commit())  # Mine
reveal_type(wi.create_model("vit_tiny_patch16_224", "cifar10-w64", depth=3))  # Module
reveal_type(wi.plan_templates(mine).report())  # Report
reveal_type(wi.Ancestor.open("vit"))  # Ancestor
reveal_type(wi.anatomy(mine))  # Anatomy
reveal_type(wi.TemplateBundle.from_pretrained("cifar10-w64"))  # TemplateBundle
reveal_type(wi.compare(mine, ["random", wi.LEMON(), ("vit", "bot")], []))  # Comparison
reveal_type(wi.compare(mine, {"mine": lambda m: wi.init_mimetic(m)}, []).best)  # Outcome
reveal_type(wi.compare(mine, None, []).best.name)  # str
for name in wi.list_methods():
    wi.project_from("vit", mine, method=name)
wi.project_from("vit", mine, method=wi.WeightSelection(depth="last", elements="random"))
wi.project_from("vit", mine, method=wi.Stacking(depth=[0, 1, 0, 1]))
"""
WRONG = [
    'wi.project_from("vit", mine, method="lemmon")',
    'wi.init_from_templates(mine, scalers="nestd")',
    'wi.init_from_templates(mine, unexplained="kep")',
    'wi.WeightSelection(depth="frist")',
    'wi.LiGO(width_init="rnd")',
    'wi.constrain(mine, wi.TemplateConfig.wave(64), train="scaler")',
    "wi.init_from_templates(7)",
]


def installed(folder):
    """Install the wheel of a copy of this tree, beside the packages of this environment."""
    source = folder / "source"
    source.mkdir()
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    skipped = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "weightinit", source / "weightinit", ignore=skipped)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
    command += ["--no-build-isolation", "--wheel-dir", str(folder), str(source)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], check=True
    )
    python = folder / "venv" / "bin" / "python"
    place = "import sysconfig; print(sysconfig.get_path('purelib'))"
    found = subprocess.run([python, "-c", place], check=True, capture_output=True, text=True)
    site = Path(found.stdout.strip())
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(site)
    (site / "beside.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python, site


@pytest.mark.slow
def test_what_a_type_checker_sees_of_the_wheel(tmp_path):
    python, site = installed(tmp_path)
    assert (site / "weightinit" / "py.typed").is_file()
    work = tmp_path / "work"
    work.mkdir()
    (work / "pyrightconfig.json").write_text('{"typeCheckingMode": "standard"}')
    (work / "snippet.py").write_text(SNIPPET + "\n".join(WRONG) + "\n")
    checker = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", str(python)]
    done = subprocess.run(
        [*checker, "snippet.py"], cwd=work, capture_output=True, text=True, check=False
    )
    found = json.loads(done.stdout)["generalDiagnostics"]
    lines = (work / "snippet.py").read_text().splitlines()
    seen = {}
    for item in found:
        kind, line = item["severity"], lines[item["range"]["start"]["line"]]
        seen.setdefault(kind, {})[line] = item["message"]
    wanted = [line for line in lines if line.startswith("reveal_type")]
    assert list(seen["information"]) == wanted
    for line, message in seen["information"].items():
        assert message.endswith(f'is "{line.rpartition("# ")[2]}"'), message
    assert list(seen.get("error", {})) == WRONG
