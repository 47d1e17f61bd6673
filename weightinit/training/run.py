"""What both train commands have in common: a user's options, and the provenance of a bundle."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import timm
import torch

from weightinit._version import __version__
from weightinit.training.recipe import Recipe

__all__ = ["Run"]

AnyRecipe = TypeVar("AnyRecipe", bound=Recipe)


@dataclass(frozen=True)
class Run:
    """How a user runs a preset.

    Args:
        out: folder of the bundle; ``training/`` in it holds the checkpoint and the history.
        steps: number of steps, the warm-up scaled along; None is the preset's.
        seed: base seed for all random draws.
        resume: go on from the checkpoint in ``out``.
        precision: ``"no"``, ``"bf16"`` or ``"fp16"``; None is the preset's.
        workers: number of processes that augment images.
        cache_dir: folder of downloads and ancestors (default ``~/.cache/weightinit``).
        command: command line, for the provenance.
        progress: None shows bars on a terminal.
    """

    out: str | os.PathLike[str]
    steps: int | None = None
    seed: int = 0
    resume: bool = False
    precision: str | None = None
    workers: int = 0
    cache_dir: str | os.PathLike[str] | None = None
    command: str = ""
    progress: bool | None = None

    @property
    def folder(self) -> Path:
        """The folder of the bundle."""
        return Path(self.out).expanduser()

    @property
    def cache(self) -> Path:
        """The folder of downloads and ancestors."""
        return Path(self.cache_dir or "~/.cache/weightinit").expanduser()

    def recipe(self, recipe: AnyRecipe) -> AnyRecipe:
        """Return a preset's recipe with what the user asks for."""
        return recipe.planned(steps=self.steps, seed=self.seed, precision=self.precision)

    def options(self, eval_every: int) -> dict[str, Any]:
        """Return the options of :func:`weightinit.training.loop.follow`."""
        return {
            "out": self.folder / "training",
            "resume": self.resume,
            "eval_every": max(1, eval_every),
            "workers": self.workers,
            "progress": self.progress,
        }

    def provenance(self, preset: str, **more: Any) -> dict[str, Any]:
        """Return what a bundle says of its training, as plain JSON values."""
        import accelerate

        versions = {
            "weightinit": __version__,
            "torch": torch.__version__,
            "timm": timm.__version__,
            "accelerate": accelerate.__version__,
            "python": platform.python_version(),
        }
        found = {"command": self.command, "preset": preset, **more, "versions": versions}
        return json.loads(json.dumps(found))
