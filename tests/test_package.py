"""What holds of the package as a whole: lazy imports, no pickle, no cycles, honest metadata."""

import ast
import configparser
import inspect
import subprocess
import sys
from pathlib import Path

import weightinit as wi

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "weightinit"
#: A module may import from its own layer and those before it.
LAYERS = [
    {"errors", "_version"},
    {"config", "init", "kernels", "report", "_checks", "_hub", "_writing"},
    {"bundle", "_bundle_config", "_template_checks", "_locate"},
    {"anatomy"},
    {"ancestor", "_ancestor_files", "_ancestor_pair", "_ancestor_models", "_ancestor_open"},
    {"plan"},
    {"methods"},
    {"hypernet"},
    {"api", "training"},
    {"project"},
    {"generate"},
    {"demo"},
    {"cli", "__main__"},
]


def imports(tree, *, everywhere):
    """Modules that a file imports: on import, or anywhere but under TYPE_CHECKING."""
    nodes = list(ast.walk(tree)) if everywhere else tree.body
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
            if node.module == "weightinit":
                yield from (f"weightinit.{alias.name}" for alias in node.names)


def files():
    return sorted(PACKAGE.rglob("*.py"))


def run(code):
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )


def test_import_costs_torch_and_nothing_more():
    heavy = (
        "timm",
        "huggingface_hub",
        "transformers",
        "accelerate",
        "sklearn",
        "matplotlib",
        "rich",
        "torchvision",
    )
    done = run(f"import sys, weightinit; print([m for m in {heavy} if m in sys.modules])")
    assert done.stdout.strip() == "[]", done.stderr


def test_it_is_a_command():
    done = subprocess.run(
        [sys.executable, "-m", "weightinit", "--version"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == wi.__version__


def test_every_public_name_is_there_and_documented():
    for name in wi.__all__:
        value = getattr(wi, name)
        assert name == "__version__" or inspect.getdoc(value), name
    assert "nonsense" not in dir(wi)


def test_the_anatomy_function_survives_the_import_of_its_package():
    done = run(
        "import weightinit as wi, weightinit.anatomy, weightinit.api, torch.nn as nn\n"
        "try: wi.anatomy(nn.Linear(2, 2))\n"
        "except wi.AnatomyError: print('callable')"
    )
    assert done.stdout.strip() == "callable", done.stderr


def test_no_pickle_anywhere():
    for file in files():
        tree = ast.parse(file.read_text())
        names = {name.split(".")[0] for name in imports(tree, everywhere=True)}
        assert not names & {"pickle", "joblib", "dill", "cloudpickle", "shelve", "marshal"}, file
        calls = {ast.unparse(n.func) for n in ast.walk(tree) if isinstance(n, ast.Call)}
        assert not calls & {"torch.load", "torch.save", "eval", "exec", "__import__"}, file


def layer(module):
    name = module.split(".")[1] if "." in module else ""
    return next((i for i, names in enumerate(LAYERS) if name in names), None)


def test_imports_form_a_dag():
    for file in files():
        name = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if name == "__init__":
            continue
        own = layer(f"weightinit.{name}")
        assert own is not None, f"{file} has no layer"
        for module in imports(ast.parse(file.read_text()), everywhere=False):
            if module.startswith("weightinit."):
                found = layer(module)
                assert found is None or found <= own, f"{file} imports {module}"


def test_metadata_has_lower_bounds_only():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    lines = setup["options"]["install_requires"].split()
    assert {line.split(">=")[0] for line in lines} == {
        "torch", "timm", "safetensors", "huggingface_hub", "einops",
    }  # fmt: skip
    assert all("==" not in line and "<" not in line for line in lines)


def test_version_is_in_the_changelog():
    assert f"## {wi.__version__}" in (ROOT / "CHANGELOG.md").read_text()
