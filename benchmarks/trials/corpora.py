"""Texts that every installation holds, up to a million characters of each source."""

from __future__ import annotations

import ast
import platform
import re
import sysconfig
from collections.abc import Iterable
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from pydoc_data.topics import topics

from weightinit.training.text import TextData

__all__ = ["NAMES", "corpus", "sentences"]

#: Documentation and code of the standard library, and licences of the installed packages.
NAMES = ("docstrings", "licences", "python")
_MOST = 1_000_000
#: Whose docstrings are sentences of many kinds, where they are installed.
PACKAGES = ("huggingface_hub", "numpy", "timm", "torch", "transformers")
#: Characters of a sentence, the least words, and the least share of letters and spaces.
_SHORT, _LONG, _WORDS, _LETTERS = 30, 250, 6, 0.9


def corpus(name: str, context: int) -> TextData:
    """Return one of :data:`NAMES` as bytes.

    Args:
        name: which.
        context: bytes that a model reads at once.
    """
    texts = {"docstrings": _docstrings, "licences": _licences, "python": _python}[name]()
    source = {"source": f"{name}, Python {platform.python_version()}"}
    return TextData.of(name, texts, context=context, source=source)


def sentences(name: str) -> list[str]:
    """Return the English sentences of a text, each once, in order.

    Args:
        name: ``"docstrings"``, ``"packages"``: docstrings of :data:`PACKAGES`, ``"licences"``, or
            ``"reference"``: of the Python language.
    """
    sources = {"docstrings": _docstrings, "packages": _packages}
    texts = (sources | {"licences": _licences, "reference": _reference})[name]()
    paragraphs = (" ".join(p.split()) for text in texts for p in re.split(r"\n\s*\n", text))
    found = (s for p in paragraphs for s in re.split(r"(?<=[.!?])\s+(?=[A-Z])", p))
    return list(dict.fromkeys(filter(_is_sentence, found)))


def _is_sentence(text: str) -> bool:
    letters = sum(c.isalpha() or c == " " for c in text)
    ends = text[:1].isalpha() and text[-1:] in (".", "!", "?")
    size = _SHORT <= len(text) <= _LONG and len(text.split()) >= _WORDS
    return ends and size and letters > _LETTERS * len(text)


def _reference() -> list[str]:
    """Return the language reference that `help()` shows."""
    return [topics[name] for name in sorted(topics)]


def _python() -> list[str]:
    """Return modules of the standard library."""
    return _limited(map(_read, sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))))


def _docstrings() -> list[str]:
    """Return the docstrings of the standard library."""
    return [_documentation(source) for source in _python()]


def _packages() -> list[str]:
    """Return the docstrings of the packages that are installed."""
    specs = filter(None, map(find_spec, PACKAGES))
    folders = [Path(folder) for spec in specs for folder in spec.submodule_search_locations or ()]
    files = (sorted(folder.rglob("*.py")) for folder in folders)
    return [text for found in files for text in _limited(map(_documentation, map(_read, found)))]


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="ignore")


def _documentation(source: str) -> str:
    """Return all docstrings of a module; nothing if it is of another Python."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    try:
        nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, kinds)]
    except (SyntaxError, ValueError):
        return ""
    return "\n\n".join(filter(None, map(ast.get_docstring, nodes)))


def _licences() -> list[str]:
    """Return the licences of all packages, each text once."""
    known = re.compile(r"(licen[cs]e|copying|notice)[^/]*", re.IGNORECASE)
    paths = [
        Path(str(file.locate()))
        for package in metadata.distributions()
        for file in package.files or ()
        if known.fullmatch(file.name) and file.suffix in ("", ".txt", ".md", ".rst")
    ]
    texts = {_read(path) for path in paths if path.is_file()}
    return _limited(sorted(texts, key=lambda text: (len(text), text)))


def _limited(texts: Iterable[str]) -> list[str]:
    found, size = [], 0
    for text in texts:
        size += len(text)
        if size > _MOST:
            break
        found.append(text)
    return found
