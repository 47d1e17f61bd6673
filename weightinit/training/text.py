"""Texts to train on: files, and folders of them."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from weightinit.errors import WeightInitError
from weightinit.training.contexts import evaluating, subseed

__all__ = ["TextData", "load_text"]

SUFFIXES = (".txt", ".md", ".rst")


@dataclass(frozen=True)
class TextData:
    """One text as tokens, in two parts: the last tenth of each of its files is held out.

    Args:
        name: name of the text.
        train: tokens to train on, uint8 or int64 ``[N]``.
        val: tokens to choose settings with, likewise.
        vocab: number of different tokens that there may be.
        context: number of tokens that a model reads at once.
        bytes_per_token: UTF-8 bytes of the text over its tokens.
        source: where the text came from, for provenance (JSON).
    """

    #: As in ImageData.
    family: ClassVar[str] = "gpt2"
    kind: ClassVar[str] = "texts"
    networks: ClassVar[str] = "GPT-2"
    metric: ClassVar[str] = "bits per byte"
    digits: ClassVar[int] = 4

    name: str
    train: Tensor
    val: Tensor
    vocab: int
    context: int
    bytes_per_token: float = 1.0
    source: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        name: str,
        texts: Sequence[str],
        *,
        context: int = 64,
        vocabulary: str | Any = "bytes",
        source: Mapping[str, Any] | None = None,
    ) -> TextData:
        """Return texts as tokens; see :func:`load_text` and the class."""
        encode, vocab = _encoder(vocabulary, texts)
        parts = [encode(text) for text in texts if text]
        cuts = [len(part) * 9 // 10 for part in parts]
        none = torch.empty(0, dtype=torch.uint8)
        train = torch.cat([none, *(part[:cut] for part, cut in zip(parts, cuts, strict=True))])
        val = torch.cat([none, *(part[cut:] for part, cut in zip(parts, cuts, strict=True))])
        if len(val) <= context:
            raise WeightInitError(
                f"text {name!r} has {len(train) + len(val)} tokens in {len(texts)} files, whose "
                f"last tenth holds no window of {context}: use a longer text, or a smaller context"
            )
        bytes_per_token = sum(len(text.encode()) for text in texts) / (len(train) + len(val))
        digest = hashlib.sha256("\0".join(texts).encode()).hexdigest()
        source = {**(source or {}), "sha256": digest}
        return cls(name, train, val, vocab, context, bytes_per_token, source)

    def describe(self) -> dict[str, Any]:
        """Return what a bundle's provenance says of its data."""
        tokens = {part: len(getattr(self, part)) for part in ("train", "val")}
        sizes = {"vocab": self.vocab, "context": self.context}
        return {"name": self.name, "tokens": tokens} | sizes | self.source

    def windows(self, tokens: Tensor, most: int = 1024) -> Tensor:
        """Return windows of ``context`` tokens and the next one, int64 ``[n, context + 1]``.

        A text of more than ``most`` windows gives as many, evenly spread.
        """
        count = (len(tokens) - 1) // self.context
        starts = torch.linspace(0, count - 1, min(most, count)).round().long() * self.context
        return self._cut(tokens, starts)

    def _cut(self, tokens: Tensor, starts: Tensor) -> Tensor:
        return tokens[starts[:, None] + torch.arange(self.context + 1)].long()

    def inputs(self, batch_size: int) -> Iterator[Tensor]:
        """Yield windows of the training tokens ``[B, context]``, each once."""
        yield from self.windows(self.train)[:, :-1].split(batch_size)

    def check(self, batch_size: int, augment: str = "none", world: int = 1) -> None:
        """Raise WeightInitError where no such batches can be drawn."""
        if batch_size % world:
            raise WeightInitError(
                f"batch_size {batch_size} does not divide among {world} processes: use a multiple"
            )

    def batches(
        self,
        steps: range,
        *,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        **_: Any,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield one (tokens ``[B, context]``, next tokens ``[B, context]``) a step, int64.

        Options are those of ``ImageData.batches``; what concerns images alone has no effect.
        """
        self.check(batch_size, world=world)
        most = len(self.train) - self.context
        for step in steps:
            generator = torch.Generator().manual_seed(subseed(seed, 0, step))
            starts = torch.randint(most, (batch_size,), generator=generator)[rank::world]
            window = self._cut(self.train, starts)
            yield window[:, :-1], window[:, 1:]

    def arguments(self, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return ``transformers.GPT2Config``'s arguments with the vocabulary of the text."""
        return {"vocab_size": self.vocab, "n_positions": self.context, **kwargs}

    @staticmethod
    def build(arguments: Mapping[str, Any]) -> nn.Module:
        """Return Hugging Face's GPT-2 of :meth:`arguments`, with its head and without dropout."""
        try:
            from transformers import GPT2Config, GPT2LMHeadModel
        except ImportError as error:
            raise WeightInitError(
                "GPT-2 needs transformers: install it with pip install transformers"
            ) from error
        fixed = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
        none = dict.fromkeys(("bos_token_id", "eos_token_id"))
        return GPT2LMHeadModel(GPT2Config(**fixed, **none, use_cache=False, **arguments))

    @staticmethod
    def loss(out: Any, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
        """Return the cross-entropy of an object with ``logits [B, T, vocab]``."""
        logits = out.logits.float().flatten(0, 1)
        return functional.cross_entropy(logits, targets.flatten(), label_smoothing=label_smoothing)

    def score(self, model: nn.Module, part: Tensor | None = None, *, batch_size: int = 64) -> float:
        """Return a model's bits per UTF-8 byte of some tokens, the held-out text by default."""
        windows, total = self.windows(self.val if part is None else part), 0.0
        with evaluating(model) as device:
            for batch in windows.to(device).split(batch_size):
                total += float(self.loss(model(batch[:, :-1]), batch[:, 1:])) * len(batch)
        return total / len(windows) / math.log(2) / self.bytes_per_token

    @staticmethod
    def size_of(kwargs: Mapping[str, Any]) -> str:
        """Return ``"<width>x<depth>"`` of a sampler's arguments."""
        return f"{kwargs['n_embd']}x{kwargs['n_layer']}"


def load_text(
    source: str | os.PathLike[str], *, context: int = 64, vocabulary: str | Any = "bytes"
) -> TextData:
    """Load a text by path.

    Args:
        source: a text file in UTF-8, or a folder of such (``*.txt``, ``*.md``, ``*.rst``, at any
            depth).
        context: number of tokens that a model reads at once.
        vocabulary: ``"bytes"``, ``"characters"`` (those of the text), or a tokenizer of
            transformers.

    Raises:
        WeightInitError: if there is no such text, or it is too short or no UTF-8.
    """
    path = Path(source).expanduser()
    if path.is_file():
        files, name, origin = [path], path.stem, {"source": path.name}
    elif path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
        name = path.resolve().name
        origin = {"source": name, "files": len(files)}
    else:
        raise WeightInitError(
            f"text {os.fspath(source)!r} is not found: use a text file, or a folder of "
            f"{', '.join(SUFFIXES)} files"
        )
    texts = [_read(file) for file in files]
    return TextData.of(name, texts, context=context, vocabulary=vocabulary, source=origin)


def _encoder(vocabulary: str | Any, texts: Sequence[str]) -> tuple[Callable[[str], Tensor], int]:
    """Return what turns a text into tokens, and how many different ones there are."""
    if vocabulary == "bytes":
        return lambda text: torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8), 256
    if vocabulary == "characters":
        order = {character: i for i, character in enumerate(sorted(set().union(*texts)))}
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
