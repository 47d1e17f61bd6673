"""Bundles: config.json and model.safetensors in a folder or on the Hugging Face Hub."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
from safetensors.torch import save_file
from torch import Tensor

from weightinit.errors import BundleError
from weightinit.files import hub
from weightinit.files.checks import (
    DTYPES,
    Shape,
    check_name,
    check_shape,
    digest_of,
    read_text,
    read_weights,
)
from weightinit.files.config import MAX_CONFIG, BundleConfig
from weightinit.files.hub import CARD, CONFIG, WEIGHTS
from weightinit.files.locate import explain_missing, locate
from weightinit.files.writing import cut_off, model_card, replace_files
from weightinit.text import some

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["MAX_BYTES", "Bundle", "Wanted", "copies"]

#: The largest file that is read, and the largest model that a bundle may describe, in bytes.
MAX_BYTES = 8 * 2**30

#: The shape that a tensor must have: a text stands for any size, None for any shape.
Wanted = tuple[int | str, ...] | None


@dataclass(frozen=True, eq=False, repr=False)
class Bundle:
    """A checked config, named tensors, and where they are from.

    Every kind is a subclass that brings its :attr:`kind`, :meth:`wanted` and :meth:`about`; where
    its tensors may differ between bundles of one config, :meth:`optional` too.
    """

    config: BundleConfig
    tensors: Mapping[str, Tensor]
    source: str = "memory"
    card: str | None = None
    kind: ClassVar[str]

    @classmethod
    def wanted(cls, config: BundleConfig) -> Mapping[str, Wanted]:
        """Return the shapes of the tensors that a config calls for, by name.

        Raises:
            BundleError: if the config's options are not sound.
        """
        raise NotImplementedError

    @classmethod
    def optional(cls, config: BundleConfig, names: Set[str]) -> Mapping[str, Wanted]:
        """Return the shapes of those of ``names`` that a bundle may have beside what is wanted."""
        return {}

    @classmethod
    def about(cls, config: BundleConfig, name: str) -> tuple[str, str, str]:
        """Return a card's title, the Python that uses the bundle called ``name``, and more text."""
        raise NotImplementedError

    @classmethod
    def check(cls, config: BundleConfig, shapes: Mapping[str, Shape]) -> None:
        """Raise BundleError unless the tensors are those that the config calls for."""
        if config.kind != cls.kind:
            raise BundleError(
                f"this is a bundle of kind {config.kind!r}, {cls.__name__} reads {cls.kind!r}: "
                "pass another bundle"
            )
        wanted = cls.wanted(config)
        missing, further = wanted.keys() - shapes.keys(), shapes.keys() - wanted.keys()
        expected = {**wanted, **cls.optional(config, further)}
        unknown = further - expected.keys()
        if missing or unknown:
            raise BundleError(
                f"the bundle lacks tensors [{some(missing)}] and has unknown ones "
                f"[{some(unknown)}]: its config and its weights are not of one bundle"
            )
        for name, shape in shapes.items():
            sizes = expected[name]
            if sizes is not None and (
                len(shape) != len(sizes)
                or any(n != w for n, w in zip(shape, sizes, strict=True) if isinstance(w, int))
            ):
                raise BundleError(
                    f"tensor {name} has shape {list(shape)}, the config calls for "
                    f"[{', '.join(map(str, sizes))}]: its config and its weights are not of one "
                    "bundle"
                )

    @classmethod
    def check_expansion(
        cls, config: BundleConfig, shapes: Mapping[str, Shape], nbytes: int, max_bytes: int
    ) -> None:
        """Raise BundleError if ``nbytes`` of tensors describe a model out of all proportion."""

    def __post_init__(self) -> None:
        """Check the tensors against the config."""
        object.__setattr__(self, "tensors", dict(self.tensors))
        shapes = {}
        for name, tensor in self.tensors.items():
            check_name(name)
            if tensor.dtype not in DTYPES.values():
                allowed = [str(dtype) for dtype in DTYPES.values()]
                raise BundleError(f"tensor {name} is {tensor.dtype}: cast it to one of {allowed}")
            shapes[name] = check_shape(name, tensor.shape)
        self.check(self.config, shapes)

    def __repr__(self) -> str:
        config = self.config
        return (
            f"{type(self).__name__}(method={config.method!r}, depth={config.depth}, "
            f"sizes={dict(config.sizes)}, {len(self.tensors)} tensors, source={self.source!r})"
        )

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike[str],
        *,
        revision: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        max_bytes: int = MAX_BYTES,
    ) -> Self:
        """Load a bundle and check all of it; no code of the bundle runs and no pickle is read.

        Args:
            name: a built-in name, a folder (``./name`` where a built-in has the same name), or
                a Hub repository as ``"org/name"`` or ``"org/name@revision"``.
            revision: branch, tag or commit of the Hub repository.
            cache_dir: folder of the Hub's cache; default: that of huggingface_hub.
            token: token for private repositories; default: that of ``hf auth login``.
            local_files_only: use the cache only. ``HF_HUB_OFFLINE=1`` does the same.
            max_bytes: largest weights file, and largest model described by it, that is accepted.

        Returns:
            The bundle, tensors on the CPU in the dtypes stored, ``source`` naming the commit.

        Raises:
            BundleError: if the bundle cannot be found or is not sound.
        """
        client = hub.Client(cache_dir, token, local_files_only)
        limits = {CONFIG: MAX_CONFIG, CARD: MAX_CONFIG, WEIGHTS: max_bytes}
        folder, source = locate(name, revision, client, limits)
        try:
            return cls._read(folder, source, max_bytes)
        except OSError as error:
            explain_missing(folder)
            raise BundleError(f"cannot read the bundle in {folder}: {error}") from error
        except BundleError as error:
            if (before := cut_off(folder)) is None:
                raise
            raise BundleError(
                f"{error}. A save into {folder} was cut off: save again, or load {before}, which "
                "stood there before"
            ) from error

    @classmethod
    def _read(cls, folder: Path, source: str, max_bytes: int) -> Self:
        config = BundleConfig.from_json(
            read_text(folder / CONFIG, MAX_CONFIG), str(folder / CONFIG)
        )

        def check(shapes: Mapping[str, Shape], nbytes: int) -> None:
            cls.check(config, shapes)
            cls.check_expansion(config, shapes, nbytes, max_bytes)

        tensors = read_weights(folder / WEIGHTS, config.sha256, check, max_bytes=max_bytes)
        card = folder / CARD
        text = read_text(card, MAX_CONFIG).decode(errors="replace") if card.exists() else None
        return cls(config, tensors, source, text)

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Write config.json, model.safetensors and, if there is none, README.md.

        The files appear whole or not at all: after any exception the folder is as it was. A file
        that is mapped by another reader keeps its contents. Dtypes are kept.

        Args:
            save_directory: created if it does not exist; other files in it are left alone.

        Raises:
            BundleError: if a value is not finite or the folder cannot be written to.
        """
        try:
            text = str(os.fspath(save_directory))
            folder = Path(text).expanduser()
        except (RuntimeError, TypeError) as error:
            raise BundleError(f"{save_directory!r} names no folder ({error}): pass one") from error
        if not text or "\0" in text:
            raise BundleError(f"{text!r} names no folder: pass one, '.' for the working folder")
        replace_files(
            folder, lambda new: self._write(new, folder.name, card=not (folder / CARD).exists())
        )

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        revision: str | None = None,
        commit_message: str | None = None,
        create_pr: bool = False,
        token: str | bool | None = None,
    ) -> str:
        """Upload the bundle in one commit; a README.md that the repository has is kept.

        Args:
            repo_id: ``"org/name"``, created if it does not exist.
            private: visibility of a new repository; default: the organization's.
            revision: branch to commit to, created if it does not exist.
            commit_message: default: ``"Upload bundle with weightinit"``.
            create_pr: open a pull request instead of committing to the main branch.
            token: token with write permission; default: that of ``hf auth login``.

        Returns:
            ``"org/name@commit"``, which :meth:`from_pretrained` accepts.

        Raises:
            BundleError: if the repository cannot be created or written to.
        """
        if create_pr and revision is not None:
            raise BundleError(
                f"create_pr=True opens a pull request against main, not {revision!r}: pass one"
            )
        with tempfile.TemporaryDirectory() as temp:
            self._write(Path(temp), repo_id, card=True)
            message = commit_message or "Upload bundle with weightinit"
            return hub.push(Path(temp), repo_id, private, revision, message, create_pr, token)

    def _write(self, folder: Path, name: str, *, card: bool) -> None:
        for key, tensor in self.tensors.items():
            if tensor.is_meta or not bool(torch.isfinite(tensor).all()):
                raise BundleError(
                    f"tensor {key} {'is on meta' if tensor.is_meta else 'holds NaN or infinity'}: "
                    "a bundle holds finite values"
                )
        tensors = copies(self.tensors)
        shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
        nbytes = sum(tensor.nbytes for tensor in tensors.values())
        self.check_expansion(self.config, shapes, nbytes, MAX_BYTES)
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        config = replace(self.config, sha256=digest_of(folder / WEIGHTS))
        data = config.to_json().encode()
        if len(data) > MAX_CONFIG:
            raise BundleError(
                f"config.json would have {len(data)} bytes, over the limit of {MAX_CONFIG}: "
                "shorten provenance or traits"
            )
        BundleConfig.from_json(data)
        (folder / CONFIG).write_bytes(data)
        if card:
            text = self.card or model_card(config, shapes, *self.about(config, json.dumps(name)))
            (folder / CARD).write_text(text, encoding="utf-8")


def copies(tensors: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Return copies on the CPU, in ``dtype`` if one is given, that share no memory."""
    return {
        # safetensors refuses views that share memory or have strides.
        name: value.detach().cpu().to(dtype or value.dtype)
        .clone(memory_format=torch.contiguous_format)
        for name, value in tensors.items()
    }  # fmt: skip
