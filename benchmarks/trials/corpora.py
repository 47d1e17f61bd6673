"""Texts that every Python installation holds, up to a million characters of each."""

from __future__ import annotations

import ast
import platform
import re
import sysconfig
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from weightinit.training.text import TextData

__all__ = ["NAMES", "corpus"]

#: Documentation and code of the standard library, and licences of the installed packages.
NAMES = ("docstrings", "licences", "python")
_MOST = 1_000_000


def corpus(name: str, context: int) -> TextData:
    """Return one of :data:`NAMES` as bytes.

    Args:
        name: which.
        context: bytes that a model reads at once.
    """
    texts = {"docstrings": _docstrings, "licences": _licences, "python": _python}[name]()
    source = {"source": f"{name}, Python {platform.python_version()}"}
    return TextData.of(name, texts, context=context, source=source)


def _python() -> list[str]:
    """Return modules of the standard library."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    return _limited(path.read_text(encoding="utf-8", errors="ignore") for path in files)


def _docstrings() -> list[str]:
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = ([n for n in ast.walk(ast.parse(s)) if isinstance(n, kinds)] for s in _python())
    return ["\n\n".join(filter(None, map(ast.get_docstring, found))) for found in nodes]


def _licences() -> list[str]:
    """Return the licences of all packages, each text once."""
    known = re.compile(r"(licen[cs]e|copying|notice)[^/]*", re.IGNORECASE)
    paths = [
        Path(str(file.locate()))
        for package in metadata.distributions()
        for file in package.files or ()
        if known.fullmatch(file.name) and file.suffix in ("", ".txt", ".md", ".rst")
    ]
    texts = {path.read_text(encoding="utf-8", errors="ignore") for path in paths if path.is_file()}
    return _limited(sorted(texts, key=lambda text: (len(text), text)))


def _limited(texts: Iterable[str]) -> list[str]:
    found, size = [], 0
    for text in texts:
        size += len(text)
        if size > _MOST:
            break
        found.append(text)
    return found
