"""How a user runs a preset: the options that both train commands share."""

from __future__ import annotations

import json
import os
import platform
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any, TypeVar

from weightinit._version import __version__
from weightinit.errors import WeightInitError
from weightinit.files.hub import CONFIG

if TYPE_CHECKING:
    from weightinit.training.config import TrainingConfig

__all__ = ["Run"]

AnyConfig = TypeVar("AnyConfig", bound="TrainingConfig")


def _option(text: str, default: Any = None, **how: Any) -> Any:
    """Return a field that is an option of both commands; ``how`` is argparse's."""
    return field(default=default, metadata={"help": text, **how})


@dataclass(frozen=True)
class Run:
    """How a user runs a preset: options of both commands; None is the preset's own.

    ``command`` is the command line, for the provenance; ``progress`` shows bars, False nothing, and
    None bars on a terminal, elsewhere a line now and then.
    """

    out: str | os.PathLike[str] = _option(  # noqa: RUF009
        "folder of the bundle; training/ in it holds the checkpoint and the history",
        flags=("-o", "--out"), metavar="DIR", type=Path, required=True,
    )  # fmt: skip
    steps: int | None = _option("number of steps; the warm-up is scaled along", type=int)
    batch_size: int | None = _option("number of inputs a step, of the ancestor too", type=int)
    lr: float | None = _option("learning rate after the warm-up", type=float)
    ancestor_steps: int | None = _option("steps of the ancestor's own training", type=int)
    seed: int = _option("base seed for all random draws", 0, type=int)
    resume: bool = _option("go on from the checkpoint in DIR", False, action="store_true")
    force: bool = _option("start again, over what is in DIR", False, action="store_true")
    checkpoint_every: int = _option("steps between checkpoints", 500, type=int)
    precision: str | None = _option("no, bf16 or fp16", flags=("--mixed-precision",), metavar="P")
    workers: int = _option("processes that augment images", 0, type=int)
    cache_dir: str | os.PathLike[str] | None = _option(  # noqa: RUF009
        "folder of downloads and ancestors; default: ~/.cache/weightinit", type=Path
    )
    command: str = ""
    progress: bool | None = None

    def __post_init__(self) -> None:
        """Check what excludes one another."""
        if self.resume and self.force:
            raise WeightInitError(
                "resume (--resume) goes on and force (--force) starts again: pass one of them"
            )
        if self.checkpoint_every < 1:
            raise WeightInitError(f"checkpoint_every={self.checkpoint_every} must be at least 1")

    @property
    def folder(self) -> Path:
        """The folder of the bundle."""
        return Path(self.out).expanduser()

    @property
    def cache(self) -> Path:
        """The folder of downloads and ancestors."""
        return Path(self.cache_dir or "~/.cache/weightinit").expanduser()

    @property
    def ancestor_options(self) -> dict[str, Any]:
        """Options of :func:`weightinit.training.teacher.get_ancestor`."""
        return {
            "cache_dir": self.cache,
            "seed": self.seed,
            "steps": self.ancestor_steps,
            "batch_size": self.batch_size,
            "save_every": self.checkpoint_every,
            "progress": self.progress,
        }

    def config(self, preset: AnyConfig, **changes: Any) -> AnyConfig:
        """Return a preset's config with what the user asks for."""
        asked = ("steps", "batch_size", "lr", "seed", "precision")
        return preset.planned(**changes, **{name: getattr(self, name) for name in asked})

    def prepare(self) -> None:
        """Check that the folder can be written to, and that nothing in it would be lost."""
        kinds = {
            CONFIG: "a finished bundle",
            "training/checkpoint.safetensors": "a half-done training",
        }
        held = next((text for name, text in kinds.items() if _exists(self.folder / name)), None)
        if held and not (self.resume or self.force):
            raise WeightInitError(
                f"{self.folder} holds {held}: pass resume=True (--resume) to go on, "
                "force=True (--force) to start again over it, or name another folder"
            )
        inner = self.folder / "training"
        new = [path for path in (inner, *inner.parents) if not _exists(path)]
        try:
            inner.mkdir(parents=True, exist_ok=True)
            for folder in (self.folder, inner):
                TemporaryFile(dir=folder).close()
        except OSError as error:
            raise WeightInitError(
                f"cannot write to {self.folder} ({error}): name a folder that can be written to"
            ) from error
        finally:
            with suppress(OSError):
                for path in new:
                    path.rmdir()

    def options(self, title: str, eval_every: int) -> dict[str, Any]:
        """Return options of :func:`weightinit.training.loop.train`."""
        return {
            "out": self.folder / "training",
            "resume": self.resume,
            "save_every": self.checkpoint_every,
            "eval_every": max(1, eval_every),
            "workers": self.workers,
            "progress": self.progress,
            "title": title,
        }

    def provenance(self, preset: str, **more: Any) -> dict[str, Any]:
        """Return what a bundle says of its training, as plain JSON values."""
        import accelerate
        import timm
        import torch

        versions = {
            "weightinit": __version__,
            "torch": torch.__version__,
            "timm": timm.__version__,
            "accelerate": accelerate.__version__,
            "python": platform.python_version(),
        }
        found = {"command": self.command, "preset": preset, **more, "versions": versions}
        return json.loads(json.dumps(found))


def _exists(path: Path) -> bool:
    """Whether there is such a path; pathlib raises where a name is too long, or no folder is."""
    return os.path.exists(path)  # noqa: PTH110
