"""Writing files that appear whole or not at all, and the model card of a bundle."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import save_file

from weightinit.errors import BundleError, WeightInitError
from weightinit.files.hub import CARD, CONFIG, REPO, WEIGHTS

if TYPE_CHECKING:
    from torch import Tensor

    from weightinit.files.checks import Shape
    from weightinit.files.config import BundleConfig

__all__ = [
    "atomic",
    "check_output",
    "cut_off",
    "model_card",
    "replace_files",
    "save_json",
    "save_tensors",
]

# The config, which states the digest of the weights, comes last: a folder without it is no bundle.
ORDER = (CARD, WEIGHTS, CONFIG)
#: Beginnings of the names of folders in which one file, and a bundle, are written.
FILE, BUNDLE = ".writing-", ".saving-"
#: What writing raises where it cannot: the safetensors library has an error of its own.
FAULTS = (OSError, SafetensorError)


def check_output(path: Path, suffixes: Sequence[str], *, force: bool) -> None:
    """Raise WeightInitError unless a file can be written there, before any work is done."""
    if path.suffix not in suffixes:
        raise WeightInitError(f"cannot write {path}: name it with one of {', '.join(suffixes)}")
    try:
        real = Path(os.path.realpath(path))
        if real.exists() and not real.is_file():
            raise WeightInitError(f"cannot write {path}: it is no regular file; -o names a file")
        if not real.parent.is_dir():
            raise WeightInitError(f"cannot write {path}: -o names a file in an existing folder")
        if real.exists() and not force:
            raise WeightInitError(f"{path} exists: pass --force to replace it, or another -o")
        with tempfile.TemporaryFile(dir=real.parent):
            pass
    except OSError as error:
        raise WeightInitError(
            f"cannot write {path} ({error}): -o names a file in a folder that can be written to"
        ) from error


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a path to write to; the file replaces ``path`` in the end, but not after an error.

    A link stays, and what it points to is replaced. What a killed process left is removed.

    Raises:
        WeightInitError: if the file cannot be written.
    """
    try:
        path = Path(os.path.realpath(path))
        with ExitStack() as cleanup:
            part = _scratch(cleanup, path.parent, FILE) / path.name
            yield part
            _settle(part)
            part.replace(path)
            _sync_folder(path.parent)
    except FAULTS as error:
        raise WeightInitError(
            f"cannot write {path} ({error}); what stood there is unchanged. Choose a place that "
            "can be written to, with space left"
        ) from error


def save_json(value: Any, path: str | os.PathLike[str]) -> None:
    """Write plain values as JSON, whole or not at all.

    Raises:
        WeightInitError: if the file cannot be written.
    """
    with atomic(Path(path).expanduser()) as part:
        part.write_text(json.dumps(value, indent=1) + "\n")


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Write a safetensors file whose bytes are the same every time: metadata in order of keys."""
    save_file(dict(tensors), path, metadata=dict(metadata))
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(metadata.items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(size)
        assert len(text) == size
        file.seek(8)
        file.write(text)


def replace_files(folder: Path, write: Callable[[Path], None]) -> None:
    """Call ``write`` with an empty folder, then move what it wrote into ``folder``.

    Every file is written and synced first and then renamed into place, so that a file of the same
    name that is open or mapped somewhere keeps its contents. After any exception, a BundleError if
    the folder cannot be written to, it is as it was before. Files of other names are left alone.
    One saver at a time renames, and puts back first what one that was killed has half renamed.
    """
    state = unchanged = "nothing there was changed"
    try:
        with ExitStack() as cleanup:
            if not folder.exists():
                cleanup.callback(_remove_if_empty, folder)
            folder.mkdir(parents=True, exist_ok=True)
            temp = _scratch(cleanup, folder, BUNDLE)
            new, old = temp / "new", temp / "old"
            new.mkdir()
            old.mkdir()
            write(new)
            names = [name for name in ORDER if (new / name).exists()]
            for name in names:
                _settle(new / name)
            cleanup.enter_context(_locked(folder))
            for name in names:
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
            _sync_folder(folder)
    except FAULTS as error:
        raise BundleError(
            f"cannot save the bundle to {folder} ({error}); {state}. Choose a folder that can be "
            "written to, with space left"
        ) from error


def cut_off(folder: Path) -> Path | None:
    """Return where the files are that a killed saver has half replaced, if one has."""
    for temp in folder.glob(f"{BUNDLE}*"):
        with _locked(temp, wait=False) as free:
            if free and _half_moved(temp):
                return temp / "old"
    return None


def _half_moved(temp: Path) -> bool:
    """Whether files are left both in ``new`` and in ``old``, where the replaced ones are."""
    return all((temp / part).is_dir() and any((temp / part).iterdir()) for part in ("new", "old"))


def _scratch(cleanup: ExitStack, parent: Path, prefix: str) -> Path:
    """Return a new folder that lasts as long as the stack; killed processes' are cleared away."""
    with _locked(parent):  # so that nobody clears away a folder that is not locked yet
        for left in parent.glob(f"{prefix}*"):
            with _locked(left, wait=False) as free:
                if free:
                    for old in (left / "old").glob("*") if _half_moved(left) else ():
                        old.replace(parent / old.name)
                    shutil.rmtree(left, ignore_errors=True)
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        cleanup.callback(shutil.rmtree, folder, ignore_errors=True)
        cleanup.enter_context(_locked(folder))
    return folder


@contextmanager
def _locked(folder: Path, *, wait: bool = True) -> Iterator[bool]:
    """Lock a folder, until the block or the process ends; yield whether it is."""
    locked, descriptor = False, None
    with suppress(ImportError, OSError):  # a platform or a file system without locks
        import fcntl

        descriptor = os.open(folder, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        locked = True
    try:
        yield locked
    finally:
        if descriptor is not None:
            os.close(descriptor)


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


def _sync_folder(path: Path) -> None:
    with suppress(OSError):  # not every file system can sync a folder
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
        "For the Python library weightinit, which fills a network of any depth and width.",
        textwrap.indent(code, "    "),
        text,
        "\n".join(["| tensor | shape |", "|---|---|", *rows]),
        "## Provenance",
        textwrap.indent(provenance, "    "),  # an indented block cannot be broken out of
    )
    return "\n\n".join(sections) + "\n"
