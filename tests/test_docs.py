"""The pages of docs/ run as they stand; `make docs` finds whether their links lead somewhere."""

import ast
import re
import shlex
import socket
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

import weightinit as wi
from weightinit.cli import main
from weightinit.inherit import generated

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
BLOCK = re.compile(r"^```(python|bash)\n(.*?)^```", re.DOTALL | re.MULTILINE)
DIRECTIVE = re.compile(r"^::: ([\w.]+)\n(?:    options:\n      members: (.+))?", re.MULTILINE)
#: Shown by their module.
ERRORS = {"WeightInitError", "AnatomyError", "ProjectionError", "BundleError"}
#: Pages that take more than a few seconds.
SLOW = {"accelerate", "clip", "lightning", "lora", "own_templates", "trainer"}


def blocks(page):
    """Language and text of the blocks that a reader would paste, in order."""
    return BLOCK.findall(page.read_text())


def imported(code):
    """The packages that a block needs."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.partition(".")[0]


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Files of random weights that stand for the checkpoints timm would download, by name."""
    folder, found = tmp_path_factory.mktemp("published"), {}

    def file(name):
        if name not in found:
            with torch.device("meta"):
                model = timm.create_model(name)
            draw = torch.Generator().manual_seed(0)
            state = {
                key: torch.randn(value.shape, generator=draw) * 0.02
                for key, value in model.state_dict().items()
            }
            found[name] = folder / f"{name}.safetensors"
            save_file(state, found[name])
        return str(found[name])

    return file


@pytest.fixture
def offline(published, monkeypatch, tmp_path):
    """An empty folder, and the names of timm's checkpoints without a network."""
    known = timm.get_pretrained_cfg

    def config(name, *args, **kwargs):
        found = known(name, *args, **kwargs)
        if "." in name:
            found.file = published(name)
        return found

    monkeypatch.setattr(timm, "get_pretrained_cfg", config)
    # As many generated images as a fit takes at all: the ancestors are large.
    monkeypatch.setattr(generated, "TOKENS", 2)
    monkeypatch.setattr(generated, "LEAST", 4)
    monkeypatch.chdir(tmp_path)
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def alone(monkeypatch):
    """Set what torchrun sets, for one process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address, port = free.getsockname()
    ranks = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1}
    for name, value in {**ranks, "MASTER_ADDR": address, "MASTER_PORT": port}.items():
        monkeypatch.setenv(name, str(value))


def shell(line):
    """Run a command of ours; those of others need their own programs."""
    words = shlex.split(line)
    if words[0] == "weightinit" and words[1] != "train-templates":
        assert main(words[1:]) == 0


RUN = [
    pytest.param(page, id=page.stem, marks=[pytest.mark.slow] if page.stem in SLOW else [])
    for page in PAGES
    if blocks(page)
]


@pytest.mark.parametrize("page", RUN)
@pytest.mark.filterwarnings("default")
def test_page_runs(page, offline, monkeypatch):
    names = {"__name__": page.stem}
    for language, code in blocks(page):
        if language == "bash":
            for line in code.replace("\\\n", "").splitlines():
                shell(line)
        else:
            for package in imported(code):
                pytest.importorskip(package)
            if "init_process_group" in code:
                alone(monkeypatch)
            exec(compile(code, str(page), "exec"), names)


def test_every_public_name_has_one_place():
    shown = [
        name
        for page in PAGES
        for where, members in DIRECTIVE.findall(page.read_text())
        for name in [where.rpartition(".")[2], *re.findall(r"\w+", members)]
    ]
    once = set(wi.__all__) - ERRORS - {"__version__"}
    assert {name for name in once if shown.count(name) != 1} == set()


def test_every_page_is_in_the_contents():
    contents = (ROOT / "mkdocs.yml").read_text()
    for page in PAGES:
        assert f": {page.relative_to(ROOT / 'docs').as_posix()}\n" in contents, page
