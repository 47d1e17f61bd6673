"""Writing files that appear whole or not at all, and the model card of a bundle."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import textwrap
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from weightinit.errors import BundleError
from weightinit.files.hub import CARD, CONFIG, REPO, WEIGHTS

if TYPE_CHECKING:
    from weightinit.files.checks import Shape
    from weightinit.files.config import BundleConfig

__all__ = ["atomic", "model_card", "replace_files"]

# The config, which states the digest of the weights, comes last: a folder without it is no bundle.
ORDER = (CARD, WEIGHTS, CONFIG)


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a path to write to; the file replaces ``path`` in the end, but not after an error."""
    with tempfile.TemporaryDirectory(prefix=".saving-", dir=path.parent) as folder:
        part = Path(folder, path.name)
        yield part
        _settle(part)
        part.replace(path)


def replace_files(folder: Path, write: Callable[[Path], None]) -> None:
    """Call ``write`` with an empty folder, then move what it wrote into ``folder``.

    Every file is written and synced first and then renamed into place, so that a file of the same
    name that is open or mapped somewhere keeps its contents. After any exception, a BundleError if
    the folder cannot be written to, it is as it was before. Files of other names are left alone.
    """
    state = unchanged = "nothing there was changed"
    try:
        with ExitStack() as cleanup:
            if not folder.exists():
                cleanup.callback(_remove_if_empty, folder)
            folder.mkdir(parents=True, exist_ok=True)
            temp = Path(tempfile.mkdtemp(prefix=".saving-", dir=folder))
            cleanup.callback(shutil.rmtree, temp, ignore_errors=True)
            new, old = temp / "new", temp / "old"
            new.mkdir()
            old.mkdir()
            write(new)
            names = [name for name in ORDER if (new / name).exists()]
            for name in names:
                _settle(new / name)
                if os.path.lexists(folder / name):
                    _link(folder / name, old / name)
            try:
                for name in names:
                    os.replace(new / name, folder / name)  # noqa: PTH105 (tests inject faults here)
            except BaseException:
                later = cleanup.pop_all()  # until all is back, its only copy is in temp
                state = f"what stood there is in {temp}"
                for name in names:
                    if os.path.lexists(old / name):
                        (old / name).replace(folder / name)
                    else:
                        (folder / name).unlink(missing_ok=True)
                later.close()
                state = unchanged
                raise
            with suppress(OSError):  # not every file system can sync a folder
                _sync(folder)
    except OSError as error:
        raise BundleError(
            f"cannot save the bundle to {folder} ({error}); {state}. Choose a folder that can be "
            "written to, with space left"
        ) from error


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except (OSError, NotImplementedError):  # a file system or platform without hard links
        shutil.copy2(source, target, follow_symlinks=False)


def _settle(path: Path) -> None:
    """Sync a new file, and let those read it whom the umask lets: safetensors lets its owner."""
    probe = path.with_name(".umask")
    probe.touch()
    shutil.copymode(probe, path)
    probe.unlink()
    _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def model_card(
    config: BundleConfig, shapes: Mapping[str, Shape], title: str, code: str, text: str
) -> str:
    """Return the text of a README.md for the Hub: metadata, use, tensors, provenance."""
    from huggingface_hub import ModelCardData

    ancestor = str(config.provenance.get("ancestor"))
    metadata = ModelCardData(
        library_name="weightinit",
        license=config.licence.lower(),
        tags=list(dict.fromkeys(["weightinit", f"weight-{config.kind}", config.method])),
        base_model=ancestor if REPO.fullmatch(ancestor) else None,
    )
    rows = [f"| `{name}` | {' x '.join(map(str, shape))} |" for name, shape in shapes.items()]
    provenance = json.dumps(config.provenance, indent=2, ensure_ascii=False)
    sections = (
        f"---\n{metadata.to_yaml()}\n---",
        f"# {title}",
        "For the Python library weightinit, which fills a transformer of any depth and width.",
        textwrap.indent(code, "    "),
        text,
        "\n".join(["| tensor | shape |", "|---|---|", *rows]),
        "## Provenance",
        textwrap.indent(provenance, "    "),  # an indented block cannot be broken out of
    )
    return "\n\n".join(sections) + "\n"
