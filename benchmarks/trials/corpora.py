"""Texts that every Python installation holds, up to a million characters of each."""

from __future__ import annotations

import ast
import platform
import re
import sysconfig
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from pydoc_data.topics import topics

from weightinit.training.text import TextData

__all__ = ["NAMES", "corpus", "sentences"]

#: Documentation and code of the standard library, and licences of the installed packages.
NAMES = ("docstrings", "licences", "python")
_MOST = 1_000_000
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
        name: ``"docstrings"``, ``"licences"``, or ``"reference"``: of the Python language.
    """
    texts = {"docstrings": _docstrings, "licences": _licences, "reference": _reference}[name]()
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
