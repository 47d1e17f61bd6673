"""Texts for training: files, folders of them, and what every Python installation holds."""

from __future__ import annotations

import ast
import hashlib
import os
import platform
import re
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weightinit.errors import WeightInitError
from weightinit.training.augment import subseed

__all__ = ["TextData", "draws", "load_text"]

SUFFIXES = (".txt", ".md", ".rst")
#: Characters that a named text has at most.
_MOST = 1_000_000


@dataclass(frozen=True)
class TextData:
    """One text as tokens, in two parts: the last tenth of each of its files is held out.

    Args:
        name: of the text.
        train: tokens to train on, uint8 or int64 ``[N]``.
        val: tokens to choose settings with, likewise.
        vocab: how many different tokens there may be.
        context: tokens that a model reads at once.
        bytes_per_token: UTF-8 bytes of the held-out text over its tokens.
        source: where the text came from, for provenance (JSON).
    """

    name: str
    train: Tensor
    val: Tensor
    vocab: int
    context: int
    bytes_per_token: float = 1.0
    source: dict[str, Any] = field(default_factory=dict)

    def describe(self) -> dict[str, Any]:
        """Return what a bundle's provenance says of its data."""
        tokens = {part: len(getattr(self, part)) for part in ("train", "val")}
        sizes = {"vocab": self.vocab, "context": self.context}
        return {"name": self.name, "tokens": tokens} | sizes | self.source

    def windows(self, tokens: Tensor, most: int = 1024) -> Tensor:
        """Return windows of ``context`` tokens and the next one, int64 ``[n, context + 1]``.

        Args:
            tokens: of this text.
            most: windows; a longer text gives as many, evenly spread.
        """
        count = (len(tokens) - 1) // self.context
        starts = torch.linspace(0, count - 1, min(most, count)).round().long() * self.context
        return _cut(tokens, starts, self.context)


def draws(
    data: TextData, *, steps: range, batch_size: int, seed: int, rank: int = 0, world: int = 1
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield one (tokens ``[B, context]``, next tokens ``[B, context]``) a step, int64.

    A step is a function of the seed and its number alone.

    Args:
        data: whose training tokens are drawn.
        steps: which steps, counted from the start of the training.
        batch_size: over all processes together.
        seed: of where windows start.
        rank: of this process.
        world: how many processes share a batch.

    Raises:
        WeightInitError: if the batch does not divide.
    """
    if batch_size % world:
        raise WeightInitError(
            f"batch_size {batch_size} does not divide among {world} processes: use a multiple"
        )
    for step in steps:
        generator = torch.Generator().manual_seed(subseed(seed, 0, step))
        most = len(data.train) - data.context
        starts = torch.randint(most, (batch_size,), generator=generator)[rank::world]
        found = _cut(data.train, starts, data.context)
        yield found[:, :-1], found[:, 1:]


def load_text(
    source: str | os.PathLike[str], *, context: int = 64, vocabulary: str | Any = "bytes"
) -> TextData:
    """Load a text by name or path.

    Args:
        source: a text file in UTF-8; a folder of such (``*.txt``, ``*.md``, ``*.rst``, at any
            depth); or up to a million characters of what an installation of Python holds:
            ``"docstrings"`` or ``"python"``, the documentation or the code of the standard library,
            or ``"licences"`` of the installed packages.
        context: tokens that a model reads at once.
        vocabulary: ``"bytes"``, ``"characters"`` (those of the text), or a tokenizer of
            transformers.

    Raises:
        WeightInitError: if there is no such text, or it is too short or no UTF-8.

    Examples:
        >>> data = load_text("licences")
        >>> data.vocab, data.bytes_per_token
        (256, 1.0)
    """
    name = os.fspath(source)
    path = Path(name).expanduser()
    if name in _NAMED:
        found, origin = _NAMED[name](), {"source": f"{name}, Python {platform.python_version()}"}
    elif path.is_file():
        found, origin, name = [_read(path)], {"source": path.name}, path.stem
    elif path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
        name = path.resolve().name
        found, origin = [_read(p) for p in files], {"source": name, "files": len(files)}
    else:
        raise WeightInitError(
            f"text {name!r} is not found: use a text file, a folder of {', '.join(SUFFIXES)} "
            f"files, or one of {sorted(_NAMED)}"
        )
    encode, vocab = _encoder(vocabulary, found)
    parts = [encode(text) for text in found if text]
    cuts = [len(part) * 9 // 10 for part in parts]
    train, val = (
        torch.cat([part[where] for part, where in zip(parts, wheres, strict=True)] or [_EMPTY])
        for wheres in ([slice(cut) for cut in cuts], [slice(cut, None) for cut in cuts])
    )
    if len(val) <= context:
        raise WeightInitError(
            f"text {name!r} has {len(train) + len(val)} tokens in {len(found)} files, whose last "
            f"tenth holds no window of {context}: use a longer text, or a smaller context"
        )
    digest = hashlib.sha256("\0".join(found).encode()).hexdigest()
    size = sum(len(text.encode()) for text in found)
    return TextData(
        name=name,
        train=train,
        val=val,
        vocab=vocab,
        context=context,
        bytes_per_token=size / (len(train) + len(val)),
        source=origin | {"sha256": digest},
    )


_EMPTY = torch.empty(0, dtype=torch.uint8)


def _cut(tokens: Tensor, starts: Tensor, context: int) -> Tensor:
    return tokens[starts[:, None] + torch.arange(context + 1)].long()


def _encoder(vocabulary: str | Any, found: list[str]) -> tuple[Callable[[str], Tensor], int]:
    """Return what turns a text into tokens, and how many different ones there are."""
    if vocabulary == "bytes":
        return lambda text: torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8), 256
    if vocabulary == "characters":
        order = {character: i for i, character in enumerate(sorted(set().union(*found)))}
        return lambda text: torch.tensor([order[character] for character in text]), len(order)
    if isinstance(vocabulary, str) or not callable(vocabulary):
        raise WeightInitError(
            f"vocabulary {vocabulary!r} is unknown: use 'bytes', 'characters' or a tokenizer"
        )

    tokenizer: Any = vocabulary

    def encode(text: str) -> Tensor:
        return torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"]).long()

    return encode, len(tokenizer)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise WeightInitError(f"{path} is not a text in UTF-8 ({error}): name another") from error


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
    return _limited(iter(sorted(texts, key=lambda text: (len(text), text))))


def _limited(texts: Iterator[str]) -> list[str]:
    found, size = [], 0
    for text in texts:
        size += len(text)
        if size > _MOST:
            break
        found.append(text)
    return found


_NAMED: Mapping[str, Callable[[], list[str]]] = {
    "docstrings": _docstrings,
    "licences": _licences,
    "python": _python,
}
