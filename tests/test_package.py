"""What holds of the package as a whole: lazy imports, no pickle, no cycles, honest metadata."""

import ast
import configparser
import inspect
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import weightinit as wi

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "weightinit"


def imports(tree, *, everywhere):
    """Modules that a file imports: on import, or anywhere but under TYPE_CHECKING."""
    nodes = list(ast.walk(tree)) if everywhere else tree.body
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


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
    """But in the one file that reads the field's old checkpoints, and imports no name of theirs."""
    for file in files():
        tree = ast.parse(file.read_text())
        names = {name.split(".")[0] for name in imports(tree, everywhere=True)}
        if file.relative_to(PACKAGE).as_posix() == "hypernet/unpickle.py":
            names.discard("pickle")
        assert not names & {"pickle", "joblib", "dill", "cloudpickle", "shelve", "marshal"}, file
        calls = {ast.unparse(n.func) for n in ast.walk(tree) if isinstance(n, ast.Call)}
        assert not calls & {"torch.load", "torch.save", "eval", "exec", "__import__"}, file


def dependencies():
    """From each module to the modules of the package that it imports, late and by name too."""
    paths = {".".join(file.relative_to(ROOT).with_suffix("").parts): file for file in files()}
    modules = {name.removesuffix(".__init__"): file for name, file in paths.items()}
    del modules["weightinit"]  # the table of contents names everything
    del modules["weightinit.__main__"]  # the command by another name
    found = {}
    for module, file in modules.items():
        tree = ast.parse(file.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                node.body = []
        named = set(imports(tree, everywhere=True))
        named |= {
            node.value.partition(":")[0]
            for node in ast.walk(tree)
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
        found[module] = (named & set(modules)) - {module}
    return found


def floors(graph):
    """The number of floors of a graph without circles: graphlib raises CycleError on a circle."""
    floor = {}
    for node in TopologicalSorter(graph).static_order():
        floor[node] = 1 + max((floor[below] for below in graph.get(node, ())), default=0)
    return max(floor.values())


def test_modules_import_one_another_without_circles():
    graph = dependencies()
    # A package's own __init__ is its table of contents: it imports, and its modules do not.
    floors({m: {n for n in names if not m.startswith(f"{n}.")} for m, names in graph.items()})


def test_folders_import_one_another_without_circles():
    rooms = {}
    for module, names in dependencies().items():
        room = module.split(".")[1]
        rooms.setdefault(room, set()).update(name.split(".")[1] for name in names)
    assert floors({room: names - {room} for room, names in rooms.items()}) <= 10


def test_inference_imports_no_training():
    for module, names in dependencies().items():
        if module.split(".")[1] not in ("training", "cli", "demo", "comparison"):
            assert not any(name.startswith("weightinit.training") for name in names), module


def test_metadata_has_lower_bounds_only():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    lines = setup["options"]["install_requires"].split()
    assert {line.split(">=")[0] for line in lines} == {
        "torch", "timm", "safetensors", "huggingface_hub", "numpy",
    }  # fmt: skip
    assert all("==" not in line and "<" not in line for line in lines)


def test_version_is_in_the_changelog():
    assert f"## {wi.__version__}" in (ROOT / "CHANGELOG.md").read_text()


#: Where text is matched that is neither a role nor a label.
MATCHING = {"files", "ancestor", "training", "cli.py", "bundle.py", "convert.py"}
#: Beginnings of roles; a string that is compared with one of them reads the text of a role.
ROLES = (
    "norm", "ls", "attn", "attns", "mlp", "ffns", "patch", "pos", "token", "embed", "head", "stem",
    "fc_norm", "pre_logits", "pool", "down", "neck", "rel_pos", "rope", "gamma", "bias", "weight",
)  # fmt: skip


def reads_a_role(node):
    """Whether an expression tests the text of a role or a label, in place of asking for facts."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        tests = node.func.attr in ("startswith", "endswith", "removeprefix", "partition")
        texts = [a.value for a in ast.walk(node) if isinstance(a, ast.Constant)]
        texts = [t.strip(".").partition(".")[0] for t in texts if isinstance(t, str)]
        return tests and any(text in ROLES for text in texts)
    if isinstance(node, ast.Compare):
        sides = [node.left, *node.comparators]
        first = any(ast.unparse(side) in ("label[0]", "labels[0][0]") for side in sides)
        inside = isinstance(node.ops[0], ast.In) and isinstance(node.left, ast.Constant)
        named = any(isinstance(s, ast.Attribute) and s.attr == "role" for s in sides)
        named |= any(isinstance(s, ast.Name) and s.id == "role" for s in node.comparators)
        return first or (inside and named)
    return False


def test_no_room_but_the_anatomy_reads_the_text_of_roles_and_labels():
    for file in files():
        rooms = {file.relative_to(PACKAGE).parts[0], file.name}
        if "anatomy" in rooms:
            continue
        tree = ast.parse(file.read_text())
        if not rooms & MATCHING:
            assert "re" not in set(imports(tree, everywhere=True)), file
        found = [ast.unparse(node) for node in ast.walk(tree) if reads_a_role(node)]
        assert not found, f"{file}: {found}"
